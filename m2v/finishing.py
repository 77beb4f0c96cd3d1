"""The last part of stage two's training: mouths that look real with the planes that the denoiser samples.

Until here the decoder has only seen the clips' own planes. Sampled ones show another mouth than the clip has at that
moment, and a decoder that is asked for every pixel of the clip learns not to listen to them: teeth, tongue and dark
come out as the mean of the three. So it now decodes sampled planes too; with these it is asked less for the clip's very
pixels between the lips, and a discriminator of patches (Isola et al. 2017), which sees two frames in a row, asks for
mouths like real ones. One step of sampling and planes of zeros still decode to the best single guess. Only the decoder
learns: what makes planes stays as it is, so the denoiser still fits.
"""

from __future__ import annotations

import hashlib
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

CROP_PX, N_FRAMES = 112, 8  # of a sample: a square around the mouth
TRUE, SAMPLED, MEAN, ZERO = range(4)  # kinds of planes: the clip's own, the denoiser's, its one step's, none
PLANES = ("true", "sampled", "mean")  # the first three, by name
SHARES = (0.2, 0.45, 0.2, 0.15)  # how often the decoder gets each of them
LENIENCE = 0.8  # this part of a pixel's weight is waived between the lips where planes are sampled
TEXTURE_WEIGHT, PERCEPTUAL_WEIGHT, ADVERSARIAL_WEIGHT, MATCHING_WEIGHT = 2.0, 0.1, 0.05, 0.2
SIGNED = ("clip", "reference", "warped")  # in [-1, 1]; stored, like what is in 0..1, as bytes


# ---- samples --------------------------------------------------------------------------------------------------------


def cut_mouths(denoiser: Denoiser, samples: ClipSamples, encoded: Encoded, folder: Path) -> Encoded:
    """The mouths of clips 0..N-1, with their own planes and sampled ones; mapped from `folder`.

    encoded: what `planes.encode` made of the same samples.
    """
    make = partial(cut_mouth, denoiser, samples, encoded)
    own = hashlib.sha256(encoded["planes"].tobytes()).hexdigest()[:16]
    return cached(make, len(encoded["planes"]), folder, f"{fingerprint(denoiser, samples)} {own}")


@torch.inference_mode()
def cut_mouth(denoiser: Denoiser, samples: ClipSamples, encoded: Encoded, k: int) -> Encoded:
    """A square of sample k around its mouth, all frames: the fields of Conditions and `clip` as bytes (`flow` float16),

    `mouth` in pixels of the square, PLANES float16 [C, L]. It starts on a multiple of 8 pixels: planes and every field
    can be cut there.
    """
    sample = samples[k]
    conditions = conditions_of(sample)
    n_frames, _, height, width = conditions.warped.shape
    h, w = height // FACTOR, width // FACTOR
    true = torch.from_numpy(np.array(encoded["planes"][k]))[None].float()
    noise = torch.randn(true.shape, generator=Generator().manual_seed(k))
    with torch.autocast("cpu", torch.bfloat16):
        seen = glance(conditions.batched())
        sampled, mean = denoiser.sample(seen, noise), denoiser.sample(seen, noise, n_steps=1)
    middle = sample["mouth"][:, :2].mean(dim=0)
    left, top = (((middle - CROP_PX / 2) / FACTOR).round().long() * FACTOR).clamp(0, height - CROP_PX).tolist()
    cut = {name: crop(value, height, top, left) for name, value in sample.items() if name != "mouth"}
    stored = {name: as_bytes(value, name) for name, value in cut.items() if name != "flow"}
    stored["flow"] = cut["flow"].half().numpy()
    stored["mouth"] = (sample["mouth"] - torch.tensor([left, top, 0, 0])).numpy()
    for name, planes in zip(PLANES, (unpack(true, n_frames, h, w), sampled, mean), strict=True):
        rows, columns = (slice(low // FACTOR, (low + CROP_PX) // FACTOR) for low in (top, left))
        part = TriPlane(planes.xy[..., rows, columns], planes.xt[..., columns], planes.yt[..., rows])
        stored[name] = part.pack()[0].half().numpy()
    return stored


def crop(value: Tensor, height: int, top: int, left: int) -> Tensor:
    """That square of a field [..., h, w], which may be smaller than the picture; top, left, height: of the picture."""
    zoom = height // value.shape[-2]
    rows, columns = (slice(low // zoom, (low + CROP_PX) // zoom) for low in (top, left))
    return value[..., rows, columns]


def as_bytes(value: Tensor, name: str) -> np.ndarray:
    """For storing; `MouthSamples` undoes it."""
    unit = (value + 1) / 2 if name in SIGNED else value
    return (unit * 255).round().clamp(0, 255).byte().numpy()


class MouthSamples:
    """Endless samples of what `cut_mouths` made, in an order that the seed shuffles anew each time round: 8 frames in a

    row, from a random one on. The fields of Conditions, `clip`, `mouth`, and, packed [C, L], all PLANES.
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
            if name in PLANES:
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
    """Of pairs of frames with their conditions [N, C, H, W] (see `shown`): features of three stages at a half, a

    quarter and an eighth of the side, and logits [N, 1, H/8, W/8], above 0 for what looks real.
    """

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
    """The decoder and its discriminator, trained in the same steps: no term gives both of them a gradient.

    features: the perceptual loss, see `losses.perceptual`.
    """

    def __init__(
        self, autoencoder: Autoencoder, features: nn.Module | None = None, has_discriminator: bool = True
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False)
        for part in autoencoder.decoder_parts():
            part.requires_grad_(True)
        self.discriminator = PatchDiscriminator(2 * (3 + 1 + 3)) if has_discriminator else None
        self.features = features

    def train(self, mode: bool = True) -> Finishing:
        """The perceptual loss stays as it is: it has a batch norm (or dropout), which must not see that we train."""
        super().train(mode)
        if self.features is not None:
            self.features.eval()
        return self

    def forward(self, batch: Sample, generator: Generator) -> dict[str, Tensor]:
        """The terms of the loss; the generator draws which planes each clip is decoded from."""
        shares = batch["clip"].new_tensor(SHARES)
        return self.terms(batch, torch.multinomial(shares, len(batch["clip"]), replacement=True, generator=generator))

    def terms(self, batch: Sample, kind: Tensor) -> dict[str, Tensor]:
        """kind: [B] int64, TRUE, SAMPLED, MEAN or ZERO."""
        clip, conditions = batch["clip"], conditions_of(batch)
        n_clips, _, n_frames, height, width = clip.shape
        packed = torch.stack([*(batch[name] for name in PLANES), torch.zeros_like(batch["true"])])  # by kind
        packed = packed[kind, torch.arange(n_clips, device=kind.device)]
        pred = self.autoencoder.decode(unpack(packed, n_frames, height // FACTOR, width // FACTOR), conditions)
        is_sampled, is_seen = (kind == SAMPLED).float(), (kind <= SAMPLED).float()
        weight = mouth_weight(batch["mouth"], height, width)
        weight = weight * (1 - LENIENCE * like_clip(conditions.inner) * is_sampled.view(-1, 1, 1, 1, 1))
        error = pred - clip
        terms = {"charbonnier": charbonnier(error, weight), "laplacian": laplacian(error, weight)}
        terms["texture"] = TEXTURE_WEIGHT * (texture(pred, clip, weight) * is_seen).mean()
        if self.features is not None:  # every second frame
            some = (part[:, :, ::2] for part in (pred, clip, weight))
            terms["features"] = PERCEPTUAL_WEIGHT * self.features(*some)
        if self.discriminator is None:
            return terms
        return terms | adversarial(self.discriminator, pred, clip, conditions, is_seen)


def adversarial(
    discriminator: nn.Module, pred: Tensor, clip: Tensor, conditions: Conditions, is_seen: Tensor
) -> dict[str, Tensor]:
    """Hinge losses (Lim & Ye 2017) of patches around the mouth; and the decoder is to give the discriminator the

    features that the clip gives it (Wang et al. 2018, eq. 4, each stage by its own size). is_seen: [B], 0 for clips
    that don't count: the best single guess isn't a real mouth.
    """
    region = pairs(like_clip(conditions.region))[:, :1]  # [B S/2, 1, H/8, W/8], as the logits
    weight = region * is_seen.repeat_interleave(len(region) // len(is_seen)).view(-1, 1, 1, 1)
    weight = weight / weight.mean().clamp(min=1e-3)
    real = discriminator(shown(clip, conditions))
    fake = discriminator(shown(pred.detach(), conditions))
    # Once more for the decoder's sake: the gradient goes through the discriminator, not into its weights.
    fixed = {name: value.detach() for name, value in discriminator.named_parameters()}
    judged = functional_call(discriminator, fixed, (shown(pred, conditions),))
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
    """What the discriminator sees of a clip [B, 3, S, H, W]: two frames in a row, where their inner lips are, their

    warp: [B S/2, 14, H, W].
    """
    return pairs(torch.cat([clip, like_clip(conditions.inner), like_clip(conditions.warped)], dim=1))


def like_clip(field: Tensor) -> Tensor:
    """A field of Conditions [B, S, C, h, w] with its axes in a clip's order, [B, C, S, h, w]."""
    return rearrange(field, "b s c h w -> b c s h w")


def pairs(clip: Tensor) -> Tensor:
    """Clips [B, C, S, H, W], S even -> frames 2k and 2k + 1 together, [B S/2, 2 C, H, W]."""
    return rearrange(clip, "b c (s two) h w -> (b s) (two c) h w", two=2)


def finishing_loss(model: nn.Module, batch: Sample, generator: Generator) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = model(batch, generator)
    return terms
