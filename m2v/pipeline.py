"""Stage two from end to end: one reference picture and landmarks, frame by frame, to frames.

Clips of 16 frames are made one after the other, each from the noise of its own frames and from xy noise that all share,
and joined by a short cross-fade in pixels. Memory does not grow with the length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from torch import Generator, Tensor

from common.errors import InputError
from common.triplane import TriPlane
from m2v.autoencoder import Autoencoder, load_autoencoder
from m2v.condition import FACTOR, Conditions
from m2v.denoiser import Denoiser, clip_noise, glance, load_denoiser
from m2v.source import Source
from m2v.watch import Made, Watch

AUTOENCODER, DENOISER = "small/m2v_autoencoder", "small/m2v_denoiser"
N_FRAMES = 16  # of a clip
N_FADE = 4  # frames that neighbouring clips share
N_AT_ONCE = 4  # clips whose planes are sampled together


@dataclass
class MCVDM:
    """Both networks. `render` takes landmarks in pixels of the reference picture (`m2v.drive`)."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    device: torch.device
    name: str = "mcvdm"

    @classmethod
    def from_pretrained(
        cls,
        autoencoder: str | Path = AUTOENCODER,
        denoiser: str | Path = DENOISER,
        device: torch.device | str = "cpu",
    ) -> MCVDM:
        """Load weights by name, folder or hub id."""
        decoder, sampler = load_autoencoder(autoencoder), load_denoiser(denoiser)
        if decoder.config.plane_channels != sampler.config.plane_channels:
            raise InputError(
                f"{denoiser} makes planes of {sampler.config.plane_channels} channels, {autoencoder} reads "
                f"{decoder.config.plane_channels}: choose weights that were trained together."
            )
        return cls(decoder.to(device), sampler.to(device), torch.device(device))

    @torch.inference_mode()
    def render(
        self,
        source: Source,
        landmarks: Tensor,
        seed: int = 0,
        n_steps: int | None = None,
        guidance_scale: float = 1.0,
        watch: Watch | None = None,
    ) -> Iterator[Tensor]:
        """Target landmarks [T, 68, 2 or 3], pixels of the source -> T frames float32 [3, H, W], about 0..255.

        Four clips at a time are held. n_steps: of sampling, 0: planes of zeros (the regression); guidance_scale: 1
        leaves guidance out; watch: is shown the clips that it wants.
        """
        side = source.picture.shape[0] // FACTOR
        shared = torch.randn(self.denoiser.config.plane_channels, side, side, generator=_generator(seed, -1))
        tail: Tensor | None = None  # the last frames of the clip before, [n, 3, H, W]
        spans = clip_spans(len(landmarks))
        for some in (spans[k : k + N_AT_ONCE] for k in range(0, len(spans), N_AT_ONCE)):
            targets = [_whole_clip(landmarks[first:last, :, :2].cpu()) for first, last in some]
            told = [source.conditions(first, each) for (first, _), each in zip(some, targets, strict=True)]
            clips = [each.batched().to(self.device) for each in told]
            noise = torch.cat([self._noise(first, shared, seed) for first, _ in some]).to(self.device)
            steps: list[TriPlane] = []
            is_watched = watch is not None and any(watch.wants(*span) for span in some)
            with torch.autocast(self.device.type, torch.bfloat16):
                planes = self.planes(clips, noise, n_steps, guidance_scale, steps.append if is_watched else None)
            for k, ((first, last), conditions, said) in enumerate(zip(some, clips, planes, strict=True)):
                with torch.autocast(self.device.type, torch.bfloat16):
                    clip = self.clip(conditions, said)
                    if watch is not None and watch.wants(first, last):
                        decode = partial(self.autoencoder.blend, conditions=conditions)
                        watch.see(Made(first, conditions, clip, said, [part(step, k) for step in steps], decode))
                frames = (rearrange(clip, "1 c s h w -> s c h w")[: last - first].float() + 1) * 127.5
                if tail is not None:
                    weight = (torch.arange(1, N_FADE + 1, device=frames.device) / (N_FADE + 1)).view(-1, 1, 1, 1)
                    frames[:N_FADE] = (1 - weight) * tail + weight * frames[:N_FADE]
                n_done = len(frames) if last == len(landmarks) else len(frames) - N_FADE
                tail = frames[n_done:]
                yield from frames[:n_done].cpu()

    def planes(
        self,
        clips: list[Conditions],
        noise: Tensor,
        n_steps: int | None,
        guidance_scale: float,
        show: Callable[[TriPlane], None] | None = None,
    ) -> list[TriPlane]:
        """Planes of several clips at once, which takes half the time of one by one; noise: [n, C, L]."""
        if n_steps == 0:
            return [self.autoencoder.zeros(conditions) for conditions in clips]
        drawn, warped, reference = zip(*(glance(conditions) for conditions in clips), strict=True)
        seen = torch.cat(drawn), torch.cat(warped), torch.cat(reference)
        sampled = self.denoiser.sample(seen, noise, n_steps, guidance_scale, show)
        return [part(sampled, k) for k in range(len(clips))]

    def clip(self, conditions: Conditions, planes: TriPlane) -> Tensor:
        """One clip [1, 3, S, H, W] in about [-1, 1]."""
        return self.autoencoder.decode(planes, conditions)

    def _noise(self, first: int, shared: Tensor, seed: int) -> Tensor:
        """x_T [1, C, L] of the clip that begins with frame `first`."""
        generators = [_generator(seed, frame) for frame in range(first, first + N_FRAMES)]
        return clip_noise(N_FRAMES, shared.shape[-1], len(shared), shared, generators)


def part(planes: TriPlane, k: int) -> TriPlane:
    """Those of one clip of a batch."""
    return planes.map(lambda plane: plane[k : k + 1])


def _whole_clip(targets: Tensor) -> Tensor:
    """Landmarks of up to 16 frames, the last of which repeats."""
    return torch.cat([targets, targets[-1:].expand(N_FRAMES - len(targets), -1, -1)])


def clip_spans(n_frames: int) -> list[tuple[int, int]]:
    """First and last (exclusive) frame of clips of 16 that share 4 with their neighbours; the last may be shorter."""
    firsts = range(0, max(1, n_frames - N_FADE), N_FRAMES - N_FADE)
    return [(first, min(first + N_FRAMES, n_frames)) for first in firsts]


def _generator(seed: int, frame: int) -> Generator:
    """One for every frame, and one (frame -1) for what all clips share."""
    return Generator().manual_seed((seed * 1_000_003 + frame + 1) % 2**63)
