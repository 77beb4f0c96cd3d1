"""The conditional tri-plane autoencoder: a clip to three planes that hold what its conditions do not tell, and back.

E(x, conditions) -> planes; D(planes, conditions) -> clip. The decoder sees the conditions at two scales, so the planes
need not say what the reference picture shows; they are *residual*: planes of zeros decode to the best single guess (a
regression), and in training they are zeroed now and then to keep it so. Noise and a penalty on their size limit what
they can say. They count around the mouth only: what head, hair and light do elsewhere is not worth guessing anew for
every clip. A frame is a blend of the warped reference and of the reference as it stands still (backgrounds), each
looked up a little beside where the landmarks' flow points (a learned correction of it), plus a correction in colour.
(That is added, not blended in by a mask: under a mask it learned several times more slowly.)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from common import weights
from common.errors import InputError
from common.face import warp
from common.triplane import TriPlane, unpack
from common.unet_layers import zero_init
from m2v.condition import FACTOR, Conditions
from m2v.layers import PixelNorm, PlanePool, PlaneSpread, Up, residuals

FORMAT = "duet-m2v-autoencoder-1"
SHIFT_UNIT_PX = 8.0  # so that a network's small numbers move pixels
PATCH = 4  # pixels of a frame per row or column of the finer features


@dataclass(frozen=True)
class AutoencoderConfig:
    """Widths at a quarter and an eighth of the frame's side."""

    widths: tuple[int, int] = (64, 160)
    plane_channels: int = 8
    plane_width: int = 64  # channels pooled into each plane, before its head
    n_blocks: tuple[int, int] = (3, 2)  # residual blocks at each scale of the decoder's way up
    plane_noise: float = 0.1  # standard deviation added in training to planes of about 0.2
    has_shift: bool = True  # whether the flow is seen and corrected, from a wide view

    def __post_init__(self) -> None:
        for name in ("widths", "n_blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and OmegaConf bring lists


@dataclass(frozen=True)
class Blend:
    """What a decoder makes of planes, float32.

    frames: [B, 3, S, H, W] = share * warped' + (1 - share) * still' + correction, in about [-1, 1]; share:
    [B, 1, S, H, W]; shift: [B, 4, S, H/4, W/4], pixels x and y beside the place itself, where warped' looks in the
    warped picture and still' in the reference.
    """

    frames: Tensor
    share: Tensor
    shift: Tensor


class Autoencoder(nn.Module):
    """Clips [B, 3, S, H, W] in [-1, 1]; H and W multiples of 8 (of 32 with the small denoiser).

    Convolutions begin at a quarter of the side: CPUs do wide, small ones at several times the rate of thin, large ones.
    """

    def __init__(self, config: AutoencoderConfig = AutoencoderConfig()) -> None:
        super().__init__()
        self.config = config
        w1, w2 = config.widths
        b1, b2 = config.n_blocks
        # Conditions at two scales: of 4x4 pixels warped, reference and inner, of 2x2 what is given at half the side.
        n_shown = PATCH**2 * 7 + 4 * 4 + 2 * config.has_shift
        self.look1 = nn.Sequential(nn.Conv2d(n_shown, w1, 3, padding=1), *residuals(w1, 2))
        self.look2 = nn.Sequential(nn.Conv2d(w1, w2, 3, stride=2, padding=1), *residuals(w2, 2))
        # The encoder: the clip and its difference to the warp; the conditions' own features join at the coarser scale.
        self.see1 = nn.Sequential(nn.Conv2d(PATCH**2 * 6, w1, 3, padding=1), *residuals(w1, 2))
        self.see2 = nn.Sequential(nn.Conv2d(w1, w2, 3, stride=2, padding=1), *residuals(w2, 1))
        self.join = nn.Sequential(nn.Conv2d(2 * w2, w2, 1), *residuals(w2, 1), PixelNorm(w2))
        self.pool = PlanePool(w2, config.plane_width, config.plane_channels)
        # The decoder.
        self.spread = PlaneSpread(config.plane_channels, w2)
        self.middle = residuals(w2, b2)
        self.up, self.fuse, self.blocks = Up(w2, w1), nn.Conv2d(2 * w1, w1, 1), residuals(w1, b1)
        self.head = nn.Sequential(PixelNorm(w1), nn.SiLU(), zero_init(nn.Conv2d(w1, PATCH**2 * 4, 3, padding=1)))
        if config.has_shift:
            self.wide = residuals(w2, 2, reach=4)  # hair and shoulders lie far from the landmarks
            self.shift = nn.Sequential(PixelNorm(w1), nn.SiLU(), zero_init(nn.Conv2d(w1, 4, 3, padding=1)))
        self.to(memory_format=torch.channels_last)

    def look(self, conditions: Conditions) -> list[Tensor]:
        """Features of the conditions at a quarter and an eighth of the side: [B S, C, ., .]."""
        c = conditions.to(conditions.warped.device, compute_dtype(conditions.warped))
        n_frames = c.warped.shape[1]
        still = F.pixel_unshuffle(still_frames(c.reference, n_frames), PATCH)
        shown = F.pixel_unshuffle(torch.cat([_flat(c.warped), _flat(c.inner)], dim=1), PATCH)
        drawn = F.pixel_unshuffle(torch.cat([_flat(c.visible), _flat(c.maps)], dim=1), PATCH // 2)
        seen = [shown, still, drawn, *([_flat(c.flow)] if self.config.has_shift else [])]
        features = [self.look1(_last(torch.cat(seen, dim=1)))]
        features.append(self.look2(features[0]))
        return features

    def encode(self, clip: Tensor, conditions: Conditions, features: list[Tensor] | None = None) -> TriPlane:
        """Clip [B, 3, S, H, W] -> planes. features: `look(conditions)`, where it is at hand."""
        features = features or self.look(conditions)
        dtype = compute_dtype(clip)
        frames = rearrange(clip.to(dtype), "b c s h w -> (b s) c h w")
        x = F.pixel_unshuffle(torch.cat([frames, frames - _flat(conditions.warped.to(dtype))], dim=1), PATCH)
        x = self.see2(self.see1(_last(x)))
        x = self.join(torch.cat([x, features[1]], dim=1))
        return self.pool(rearrange(x, "(b s) c h w -> b s c h w", b=len(clip)))

    def decode(self, planes: TriPlane, conditions: Conditions, features: list[Tensor] | None = None) -> Tensor:
        """Planes -> clip [B, 3, S, H, W] in about [-1, 1] (not clamped)."""
        return self.blend(planes, conditions, features).frames

    def blend(self, planes: TriPlane, conditions: Conditions, features: list[Tensor] | None = None) -> Blend:
        """As `decode`, and what went into it. Away from the mouth it is as if the planes were zeros."""
        fine, coarse = features or self.look(conditions)
        c, n_clips = conditions, len(conditions.warped)
        said = self.spread(planes)  # [B, S, C, h, w]
        silent = self.spread(self.zeros(conditions))
        said = silent + c.region.to(said.dtype) * (said - silent)
        x = _last(coarse + _flat(said))
        x = self.middle(self.wide(x) if self.config.has_shift else x)
        x = self.blocks(self.fuse(torch.cat([self.up(x), fine], dim=1)))
        correction, logit = F.pixel_shuffle(self.head(x), PATCH).float().split([3, 1], dim=1)  # [B S, ., H, W]
        share = torch.sigmoid(logit + 2)
        warped, still = _flat(c.warped).float(), still_frames(c.reference.float(), len(x) // n_clips)
        shift = warped.new_zeros(len(x), 4, *x.shape[-2:])
        if self.config.has_shift:
            shift = SHIFT_UNIT_PX * self.shift(x).float()
            warped, still = shifted(warped, shift[:, :2]), shifted(still, shift[:, 2:])
        frames = torch.lerp(still, warped, share.expand_as(still)) + correction
        return Blend(*(rearrange(part, "(b s) c h w -> b c s h w", b=n_clips) for part in (frames, share, shift)))

    def forward(self, clip: Tensor, conditions: Conditions, noise: Tensor, keep: Tensor) -> tuple[Tensor, TriPlane]:
        """One pass of training: clip -> (reconstruction, planes).

        noise: standard normal, packed [B, C, L]; keep: [B, 2] of 0 or 1, whether the planes and whether the finer scale
        of the conditions reach the decoder. Zeroed planes make it a regression; withheld skips, the planes' job.
        """
        features = self.look(conditions)
        planes = self.encode(clip, conditions, features)
        n_frames = clip.shape[2]
        packed = planes.pack() + self.config.plane_noise * noise.to(planes.xy.dtype)
        kept = packed * keep[:, :1, None].to(packed.dtype)
        seen = unpack(kept, planes.n_frames, planes.height, planes.width)
        skips = repeat(keep[:, 1], "b -> (b s) 1 1 1", s=n_frames).to(features[0].dtype)
        return self.decode(seen, conditions, [features[0] * skips, features[1]]), planes

    def encoder_parts(self) -> list[nn.Module]:
        """What planes follow from."""
        return [self.look1, self.look2, self.see1, self.see2, self.join, self.pool]

    def decoder_parts(self) -> list[nn.Module]:
        """What only `decode` uses."""
        return [self.spread, self.middle, self.up, self.fuse, self.blocks, self.head] + (
            [self.wide, self.shift] if self.config.has_shift else []
        )

    def zeros(self, conditions: Conditions) -> TriPlane:
        """Planes that say nothing, of the size that goes with the conditions."""
        n_clips, n_frames, _, height, width = conditions.warped.shape
        h, w, c = height // FACTOR, width // FACTOR, self.config.plane_channels
        new = conditions.warped.new_zeros
        return TriPlane(new(n_clips, c, h, w), new(n_clips, c, n_frames, w), new(n_clips, c, n_frames, h))


def shifted(pictures: Tensor, shift: Tensor) -> Tensor:
    """Pictures [N, C, H, W] looked up `shift` [N, 2, h, w] pixels (x, y) beside each place; upsampled to their size."""
    height, width = pictures.shape[-2:]
    to_unit = shift.new_tensor([2 / (width - 1), 2 / (height - 1)])
    fine = F.interpolate(shift * to_unit.view(2, 1, 1), (height, width), mode="bilinear", align_corners=False)
    grid = fine.movedim(1, -1) + (warp.places(height, width, fine) * to_unit - 1)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=True)


def still_frames(reference: Tensor, n_frames: int) -> Tensor:
    """`Conditions.reference` for every frame: [B S, 3, H, W]."""
    return _flat(reference) if reference.ndim == 5 else repeat(reference, "b c h w -> (b s) c h w", s=n_frames)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What convolutions of x compute in here: autocast's type, or its own."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # autocast doesn't know meta
        return x.dtype
    return torch.get_autocast_dtype(device)


def _flat(x: Tensor) -> Tensor:
    return rearrange(x, "b s c h w -> (b s) c h w")


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def save_autoencoder(model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Autoencoder)
    weights.save(folder, model, {"format": FORMAT, "autoencoder": asdict(model.config)})


def load_autoencoder(name: str | Path, config: AutoencoderConfig | None = None) -> Autoencoder:
    """From weights; with `config`, only if they were made for it."""
    state, stored = weights.from_pretrained(name)
    if stored.get("format") != FORMAT:
        raise InputError(f"{name} does not hold an autoencoder of this version ({FORMAT}): name weights that do.")
    if config is None:
        config = AutoencoderConfig(**{"has_shift": False, **stored["autoencoder"]})  # older ones had none
    model = Autoencoder(config)
    weights.load_into(model, state, name)
    return model.eval()
