"""AToM-Net on speech that is still being spoken: motion block after block, for recordings of any length.

A window is a few frames already made, a block of new ones, and a lookahead whose frames are made only to be thrown
away: what a mouth does depends on what it is about to say. Made frames are clean and known to the network, which makes
the others go with them (`AToMConfig.sees_known`); one that was not trained so sees them as noisy as the rest. What a
prediction misses known frames by fades over those around them (`fitted`). Known frames given by the caller, keyframes
of an edit say, are one and the same thing. Noise belongs to the frame's number in the recording, not to the window. So
nothing depends on how the speech arrives, and offline sampling is this as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from common.diffusion import ddim, pvdm_timesteps, q_sample

if TYPE_CHECKING:  # the model's `stream` is the one below
    from a2m.model import AToMConfig, AToMNet

FADE_FRAMES = 6  # 0.24 s, a syllable
_NOISE_FRAMES = 64  # drawn at once from one generator


@dataclass(frozen=True)
class Schedule:
    """Block j is frames j * block to (j + 1) * block - 1; its window, `known` frames more before, `lookahead` after.

    A frame is made once `delay` frames of speech have been heard from its block's beginning, or the speech has ended.
    """

    known: int
    block: int
    lookahead: int

    def __post_init__(self) -> None:
        if self.block < 1 or self.known < 0 or self.lookahead < 0:
            raise ValueError(f"{self} is no schedule: a block has 1 frame or more, and the others can't be negative")

    @staticmethod
    def of(config: AToMConfig, block: int | None = None) -> Schedule:
        """The model's own: windows share `overlap` frames, half of them made before.

        A smaller block lowers the delay and takes longer; before it, up to `overlap` frames are seen, longer beginnings
        are not trained. A window is never longer than the model's: ValueError for a block that exceeds its own.
        """
        most, lookahead = config.window - config.overlap, config.overlap // 2
        block = most if block is None else block
        if not 1 <= block <= most:
            raise ValueError(f"a block has 1 to {most} frames, got {block}")
        return Schedule(min(config.overlap, config.window - block - lookahead), block, lookahead)

    @property
    def delay(self) -> int:
        """Frames of speech from the beginning of a block until it can be made."""
        return self.block + self.lookahead


@dataclass(frozen=True)
class Known:
    """Frames of the first T that are given: values [T, K] or one for each sample [S, T, K]; is_known: [T] bool.

    A recording may be longer (no frame after T is known) or shorter.
    """

    values: Tensor
    is_known: Tensor

    def __post_init__(self) -> None:
        if self.is_known.ndim != 1 or self.values.shape[-2:-1] != self.is_known.shape:
            expected = "values [T, K] or [S, T, K] and is_known [T]"
            raise ValueError(f"expected {expected}, got {list(self.values.shape)} and {list(self.is_known.shape)}")

    def cut(self, first: int, last: int, n_samples: int) -> tuple[Tensor, Tensor]:
        """Frames first..last-1: values [n_samples, n, K], is_known [n]; nothing known after the end."""
        values, is_known = self.values[..., first:last, :], self.is_known[first:last]
        missing = last - first - len(is_known)
        values = torch.nn.functional.pad(values, (0, 0, 0, missing)).expand(n_samples, -1, -1)
        return values, torch.nn.functional.pad(is_known, (0, missing))


@torch.no_grad()
def stream(
    model: AToMNet,
    chunks: Iterable[Tensor],
    reference: Tensor,
    generators: Sequence[Generator],
    n_steps: int | None = None,
    guidance_scale: float | None = None,
    temperature: float = 1.0,
    known: Known | None = None,
    block: int | None = None,
) -> Iterator[Tensor]:
    """Values [S, n, K], block after block, of S samples of one recording: one for each generator (on the CPU).

    chunks: what is heard, [frames, n_audio_states, audio_dim] each, of any lengths; reference: LM3D [68, 3], the frame
    that the values are relative to. A frame comes as soon as `Schedule.delay` frames from its block's beginning have
    been heard. n_steps, guidance_scale: None takes the model's own. temperature: deviation of the noise, 1 as trained;
    less is more alike whatever the seed. known: frames that the result has exactly, the others are made to fit.
    block: frames; None takes the longest. Memory does not grow with the length.
    """
    schedule, device = Schedule.of(model.config, block), model.alpha_bar.device
    S, K = len(generators), model.space.n_values
    sampler = WindowSampler(
        model,
        reference.to(device),
        pvdm_timesteps(model.config.n_steps if n_steps is None else n_steps, model.config.n_timesteps),
        model.config.guidance_scale if guidance_scale is None else guidance_scale,
        Noise.of(generators, K, temperature),
    )
    known = known or Known(torch.zeros(0, K), torch.zeros(0, dtype=torch.bool))
    known = Known(known.values.to(device), known.is_known.to(device))
    made = torch.zeros(S, 0, K, device=device)  # the frames before the block, as far as its window sees
    ahead = made  # those after the last block, in case that the speech ends with its window
    heard = torch.empty(0, device=device)  # by the window; nothing yet, of no shape yet
    start = 0  # of the block

    def window(audio: Tensor) -> Tensor:
        """Values of the block and of what has been heard after it."""
        n_made = made.shape[1]
        values, is_known = known.cut(start, start - n_made + len(audio), S)
        is_known = torch.cat([is_known.new_ones(n_made), is_known])
        return sampler(start - n_made, audio, torch.cat([made, values], dim=1), is_known)[:, n_made:]

    for chunk in chunks:
        heard = torch.cat([heard, chunk.to(device)])
        while len(heard) >= made.shape[1] + schedule.delay:
            new, ahead = window(heard[: made.shape[1] + schedule.delay]).split([schedule.block, schedule.lookahead], 1)
            yield new
            n_before = made.shape[1] + schedule.block
            made = torch.cat([made, new], dim=1)[:, max(0, n_before - schedule.known) :]
            heard = heard[n_before - made.shape[1] :]
            start += schedule.block
    n_left = len(heard) - made.shape[1]
    if n_left > ahead.shape[1]:
        yield window(heard)
    elif n_left:
        yield ahead


@dataclass(frozen=True)
class Noise:
    """Standard normal numbers times a temperature that follow from (seed, step, frame) alone; one seed a sample."""

    seeds: list[int]
    n_values: int
    temperature: float

    @staticmethod
    def of(generators: Sequence[Generator], n_values: int, temperature: float) -> Noise:
        if temperature < 0:
            raise ValueError(f"temperature can't be negative, got {temperature}")
        return Noise([int(torch.randint(2**62, (), generator=g)) for g in generators], n_values, temperature)

    def __call__(self, step: int, first: int, last: int) -> Tensor:
        """[S, last - first, n_values] of the frames first..last-1 of the recording."""
        pieces = range(first // _NOISE_FRAMES, -(-last // _NOISE_FRAMES))
        each = [torch.cat([self._piece(seed, step, k) for k in pieces]) for seed in self.seeds]
        offset = first - pieces[0] * _NOISE_FRAMES
        return self.temperature * torch.stack(each)[:, offset : offset + last - first]

    def _piece(self, seed: int, step: int, k: int) -> Tensor:
        mixed = int(np.random.SeedSequence((seed, step, k)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.randn(_NOISE_FRAMES, self.n_values, generator=Generator().manual_seed(mixed))


@dataclass(frozen=True)
class WindowSampler:
    """Denoises one window; reference: LM3D [68, 3]; timesteps: largest first."""

    model: AToMNet
    reference: Tensor
    timesteps: list[int]
    guidance_scale: float
    noise: Noise

    def __call__(self, first: int, audio: Tensor, x_0: Tensor, is_known: Tensor) -> Tensor:
        """Values [S, n, K] of frames first.. of the recording.

        audio: [n, n_audio_states, audio_dim]; x_0: [S, n, K], where is_known [n] the values of the result as well.
        """
        model, sees_known = self.model, self.model.config.sees_known
        S, n = x_0.shape[:2]
        scale, device = self.guidance_scale, x_0.device
        # Classifier-free guidance, uncond + scale (cond - uncond): all in one batch, and no more than it takes.
        shares = {0.0: {False: 1.0}, 1.0: {True: 1.0}}.get(scale, {True: scale, False: 1 - scale})
        has_audio = torch.tensor(list(shares), device=device)
        share = torch.tensor(list(shares.values()), device=device)
        both = len(shares)
        heard = audio.flatten(0, 1).expand(both, -1, -1)
        condition = model.condition(heard, self.reference.expand(both, -1, -1), is_known.new_ones(both, n), has_audio)
        condition = condition.rows(torch.arange(both, device=device).repeat_interleave(S))
        is_given = is_known[:, None]  # [n, 1]
        step = iter(range(1, len(self.timesteps) + 1))
        x_T = self.noise(0, first, first + n).to(x_0)

        def hold(x_t: Tensor, timesteps: Tensor) -> Tensor:
            given = x_0 if sees_known else q_sample(x_0, timesteps, x_T, model.alpha_bar)
            return torch.where(is_given, given, x_t)

        def denoiser(x_t: Tensor, timesteps: Tensor) -> Tensor:
            known = is_known.expand(both * S, -1)
            each = model.denoise(x_t.repeat(both, 1, 1), timesteps.repeat(both), condition, known).float()
            x_0_pred = torch.einsum("g,gsnk->snk", share, each.unflatten(0, (both, S)))
            return torch.where(is_given, x_0, fitted(x_0_pred, x_0, is_known))

        def noise(like: Tensor) -> Tensor:
            return self.noise(next(step), first, first + n).to(like)

        eta = model.config.eta
        return ddim(denoiser, x_T, self.timesteps, model.alpha_bar, "x_0", eta=eta, noise=noise, before_call=hold)


def fitted(x_0_pred: Tensor, x_0: Tensor, is_known: Tensor, fade: int = FADE_FRAMES) -> Tensor:
    """x_0_pred [S, n, K] moved to meet x_0 at known frames [n], and less and less over `fade` frames around them."""
    if not is_known.any():
        return x_0_pred
    n = len(is_known)
    frame = torch.arange(n, device=x_0.device)
    far = n + fade
    before = torch.where(is_known, frame, -far).cummax(dim=0).values  # the nearest known frame on either side
    after = torch.where(is_known, frame, far + n).flip(0).cummin(dim=0).values.flip(0)
    error = x_0 - x_0_pred
    weights = torch.stack([frame - before, after - frame]).clamp(max=fade) / fade
    weights = (weights * torch.pi / 2).cos().square()
    weights = weights / weights.sum(dim=0).clamp(min=1)
    sides = error[:, torch.stack([before.clamp(min=0), after.clamp(max=n - 1)])]  # [S, 2, n, K]
    return x_0_pred + torch.einsum("en,senk->snk", weights, sides)
