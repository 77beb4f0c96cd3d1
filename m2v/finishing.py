"""The last part of stage two's training: mouths that look real with the planes that the denoiser samples.

Sampled planes are not the clip's own, and a decoder that is asked for every pixel of the clip learns to ignore what
they say: teeth, tongue and dark come out as the mean of the three. So here it decodes them too, between the lips it is
asked for less of the very pixels, and a discriminator of patches (Isola et al. 2017), which sees two frames in a row,
asks for mouths like real ones. Planes of zeros still decode to the best single guess. Only the decoder learns: planes
stay what they are, and the denoiser fits.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from common.triplane import TriPlane, unpack
from m2v.autoencoder import Autoencoder
from m2v.condition import FACTOR, Conditions
from m2v.data import ClipSamples, Sample, conditions_of
from m2v.denoiser import Denoiser, glance
from m2v.losses import charbonnier, laplacian, mouth_weight, texture
from m2v.planes import Encoded, cached, fingerprint

CROP_PX, N_FRAMES = 112, 8  # of a sample, around the mouth
TRUE, SAMPLED, ZERO = 0, 1, 2
SHARES = (0.25, 0.5, 0.25)  # how often the decoder gets each kind of planes
LENIENCE = 0.8  # of the weight between the lips that sampled planes are let off
TEXTURE_WEIGHT, PERCEPTUAL_WEIGHT, ADVERSARIAL_WEIGHT, MATCHING_WEIGHT = 2.0, 0.1, 0.05, 0.2
SIGNED = ("clip", "reference", "warped")  # in [-1, 1]; stored, like what is in 0..1, as bytes


# ---- samples --------------------------------------------------------------------------------------------------------


def cut_mouths(denoiser: Denoiser, samples: ClipSamples, encoded: Encoded, folder: Path) -> Encoded:
    """The mouths of clips 0..N-1, with their own planes (`planes.encode` made them) and sampled ones, cut alike."""
    make = partial(cut_mouth, denoiser, samples, encoded)
    return cached(make, len(encoded["planes"]), folder, fingerprint(denoiser, samples))


@torch.inference_mode()
def cut_mouth(denoiser: Denoiser, samples: ClipSamples, encoded: Encoded, k: int) -> Encoded:
    sample = samples[k]
    conditions = conditions_of(sample)
    n_frames, _, height, width = conditions.warped.shape
    h, w = height // FACTOR, width // FACTOR
    true = torch.from_numpy(np.array(encoded["planes"][k]))[None].float()
    noise = torch.randn(true.shape, generator=Generator().manual_seed(k))
    with torch.autocast("cpu", torch.bfloat16):
        sampled = denoiser.sample(glance(conditions.batched()), noise)
    middle = sample["mouth"][:, :2].mean(dim=0)
    left, top = (((middle - CROP_PX / 2) / FACTOR).round().long() * FACTOR).clamp(0, height - CROP_PX).tolist()
    cut = {name: crop(value, height, top, left) for name, value in sample.items() if name != "mouth"}
    stored = {name: as_bytes(value, name) for name, value in cut.items() if name != "flow"}
    stored["flow"] = cut["flow"].half().numpy()
    stored["mouth"] = (sample["mouth"] - torch.tensor([left, top, 0, 0])).numpy()
    for name, planes in (("true", unpack(true, n_frames, h, w)), ("sampled", sampled)):
        rows, columns = (slice(low // FACTOR, (low + CROP_PX) // FACTOR) for low in (top, left))
        part = TriPlane(planes.xy[..., rows, columns], planes.xt[..., columns], planes.yt[..., rows])
        stored[name] = part.pack()[0].half().numpy()
    return stored


def crop(value: Tensor, height: int, top: int, left: int) -> Tensor:
    """The part of a field [..., h, w], of whatever fraction of the picture's size."""
    zoom = height // value.shape[-2]
    rows, columns = (slice(low // zoom, (low + CROP_PX) // zoom) for low in (top, left))
    return value[..., rows, columns]


def as_bytes(value: Tensor, name: str) -> np.ndarray:
    unit = (value + 1) / 2 if name in SIGNED else value
    return (unit * 255).round().clamp(0, 255).byte().numpy()


class MouthSamples:
    """Endless samples [..., 8 frames] of what `cut_mouths` made, in an order that the seed shuffles.

    The fields of Conditions, `clip`, `mouth` and packed planes [C, L]: `true` and `sampled`.
    """

    def __init__(self, arrays: Encoded, seed: int) -> None:
        self.arrays, self.seed = arrays, seed

    def __getitem__(self, index: int) -> Sample:
        n = len(self.arrays["clip"])
        rng = np.random.default_rng((self.seed, index // n))
        k = int(rng.permutation(n)[index % n])
        n_frames = self.arrays["clip"].shape[2]
        start = int(np.random.default_rng((self.seed, index, 1)).integers(n_frames - N_FRAMES + 1))
        part = slice(start, start + N_FRAMES)
        sample = {}
        for name, array in self.arrays.items():
            value = torch.from_numpy(np.array(array[k])).float()
            if name in ("true", "sampled"):
                side = CROP_PX // FACTOR
                planes = unpack(value[None], n_frames, side, side)
                value = TriPlane(planes.xy, planes.xt[:, :, part], planes.yt[:, :, part]).pack()[0]
            elif name == "clip":
                value = value[:, part]
            elif name != "reference":
                value = value[part]
            if array.dtype == np.uint8:
                value = value / 127.5 - 1 if name in SIGNED else value / 255
            sample[name] = value
        return sample


# ---- losses ---------------------------------------------------------------------------------------------------------


class PatchDiscriminator(nn.Module):
    """Pairs of frames and their conditions [N, C, H, W] -> features, the last of them logits [N, 1, H/8, W/8]."""

    def __init__(self, in_channels: int, width: int = 48) -> None:
        super().__init__()
        widths = (in_channels, width, 2 * width, 3 * width)
        self.stages = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in pairwise(widths))
        self.logits = spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = F.leaky_relu(stage(x), 0.2)
            features.append(x)
        return [*features, self.logits(x)]


class Finishing(nn.Module):
    """The decoder and its discriminator, trained together: `forward` gives the terms of both."""

    def __init__(self, autoencoder: Autoencoder, features: nn.Module | None = None) -> None:
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False)
        for part in autoencoder.decoder_parts():
            part.requires_grad_(True)
        self.discriminator = PatchDiscriminator(2 * (3 + 1 + 3))
        self.features = features

    def forward(self, batch: Sample, generator: Generator) -> dict[str, Tensor]:
        clip, conditions = batch["clip"], conditions_of(batch)
        n_clips, _, n_frames, height, width = clip.shape
        kind = torch.multinomial(clip.new_tensor(SHARES), n_clips, replacement=True, generator=generator)
        packed = torch.stack([batch["true"], batch["sampled"], torch.zeros_like(batch["true"])])
        planes = unpack(packed[kind, torch.arange(n_clips)], n_frames, height // FACTOR, width // FACTOR)
        pred = self.autoencoder.decode(planes, conditions)
        is_sampled, is_seen = ((kind == SAMPLED).float(), (kind != ZERO).float())
        inner = rearrange(conditions.inner, "b s c h w -> b c s h w")
        weight = mouth_weight(batch["mouth"], height, width)
        weight = weight * (1 - LENIENCE * inner * is_sampled.view(-1, 1, 1, 1, 1))
        error = pred - clip
        terms = {"charbonnier": charbonnier(error, weight), "laplacian": laplacian(error, weight)}
        terms["texture"] = TEXTURE_WEIGHT * (texture(pred, clip, weight) * is_seen).mean()
        if self.features is not None:
            some = (part[:, :, ::2] for part in (pred, clip, weight))
            terms["features"] = PERCEPTUAL_WEIGHT * self.features(*some)
        return terms | self.adversarial(pred, clip, conditions, is_seen)

    def adversarial(self, pred: Tensor, clip: Tensor, conditions: Conditions, is_seen: Tensor) -> dict[str, Tensor]:
        """Hinge losses (Lim & Ye 2017) of patches around the mouth, and matching of the discriminator's features.

        is_seen: [B], 0 for clips that don't count.
        """
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        region = pairs(rearrange(conditions.region, "b s c h w -> b c s h w"))[:, :1]
        weight = region * is_seen.repeat_interleave(len(region) // len(is_seen)).view(-1, 1, 1, 1)
        weight = weight / weight.mean().clamp(min=1e-3)
        real = self.discriminator(shown(clip, conditions))
        fake = self.discriminator(shown(pred.detach(), conditions))
        judged = functional_call(self.discriminator, fixed, (shown(pred, conditions),))
        matching = [
            ((a.detach() - b).abs() * F.interpolate(weight, a.shape[-2:])).mean(dtype=torch.float32)
            / a.detach().abs().mean(dtype=torch.float32).clamp(min=1e-3)
            for a, b in zip(real[:-1], judged[:-1], strict=True)
        ]
        hinge = F.relu(1 - real[-1].float()) + F.relu(1 + fake[-1].float())
        return {
            "discriminator": (weight * hinge).mean(),
            "adversarial": -ADVERSARIAL_WEIGHT * (weight * judged[-1].float()).mean(),
            "matching": MATCHING_WEIGHT * torch.stack(matching).mean(),
        }


def shown(clip: Tensor, conditions: Conditions) -> Tensor:
    """What the discriminator sees of a clip [B, 3, S, H, W]: two frames in a row, where their lips are, their warp."""
    inner, warped = (rearrange(part, "b s c h w -> b c s h w") for part in (conditions.inner, conditions.warped))
    return pairs(torch.cat([clip, inner, warped], dim=1))


def pairs(clip: Tensor) -> Tensor:
    """Clips [B, C, S, H, W], S even -> their frames two by two, [B S/2, 2 C, H, W]."""
    return rearrange(clip, "b c (s two) h w -> (b s) (two c) h w", two=2)


def finishing_loss(model: nn.Module, batch: Sample, generator: Generator) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = model(batch, generator)
    return terms
