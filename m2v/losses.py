"""How far a decoded clip is from the real one: by pixel, by scale, as a network sees it; mouths count more."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from common.errors import InputError
from common.face.detect import networks

MOUTH_WEIGHT = 6.0  # of a pixel between the lips, against 1 far away
N_BANDS = 3
VGG_NAME = "vgg16-397923af.pth"  # torchvision's file of the trunk


def mouth_weight(mouth: Tensor, height: int, width: int) -> Tensor:
    """Weights of pixels [B, 1, S, H, W], mean 1; mouth [B, S, 4]: its centre, half its width and height, in pixels.

    A bell that reaches half a mouth's width beyond the lips; at least 12 pixels, closed mouths are thin.
    """
    x = torch.arange(width, device=mouth.device, dtype=torch.float32)
    y = torch.arange(height, device=mouth.device, dtype=torch.float32)
    cx, cy, half_width, half_height = (part[..., None] for part in mouth.float().unbind(-1))  # [B, S, 1]
    reach = 0.7 * half_width
    across = torch.exp(-0.5 * ((x - cx) / (half_width * 0.6 + 0.5 * reach).clamp(min=6)) ** 2)  # [B, S, W]
    down = torch.exp(-0.5 * ((y - cy) / (half_height * 0.6 + 0.5 * reach).clamp(min=6)) ** 2)
    weight = 1 + (MOUTH_WEIGHT - 1) * down[..., :, None] * across[..., None, :]
    return (weight / weight.mean(dim=(1, 2, 3), keepdim=True))[:, None]


def charbonnier(error: Tensor, weight: Tensor, tiny: float = 1e-3) -> Tensor:
    """A smooth L1 (Charbonnier et al. 1994) of an error [B, 3, S, H, W], weight [B, 1, S, H, W] -> scalar."""
    return ((error.square() + tiny**2).sqrt() * weight).mean(dtype=torch.float32)


def laplacian(error: Tensor, weight: Tensor, n_bands: int = N_BANDS) -> Tensor:
    """L1 between the bands of Laplacian pyramids (Bojanowski et al. 2018), finest first, all counting alike.

    Bands are linear in the pictures: those of the error [B, 3, S, H, W] are the errors of the bands.
    """
    error = rearrange(error, "b c s h w -> (b s) c h w")
    weight = rearrange(weight, "b 1 s h w -> (b s) 1 h w")
    total = torch.zeros((), device=error.device)
    for _ in range(n_bands):
        smaller = F.avg_pool2d(error, 2)
        band = error - F.interpolate(smaller, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + (band.abs() * weight).mean(dtype=torch.float32)
        error, weight = smaller, F.avg_pool2d(weight, 2)
    return total


def texture(pred: Tensor, real: Tensor, weight: Tensor, cell: int = 8) -> Tensor:
    """How much finest detail there is, cell by cell, wherever in the cell: clips and weights as above -> [B].

    L1 alone leaves out detail whose place it can't tell to the pixel; this asks for its amount.
    """
    amount = []
    for clip in (pred, real):
        frames = rearrange(clip, "b c s h w -> (b s) c h w")
        smaller = F.avg_pool2d(frames, 2)
        band = frames - F.interpolate(smaller, scale_factor=2, mode="bilinear", align_corners=False)
        amount.append(F.avg_pool2d(band.abs(), cell))
    weight = F.avg_pool2d(rearrange(weight, "b 1 s h w -> (b s) 1 h w"), cell)
    error = (amount[0] - amount[1]).abs() * weight
    return rearrange(error, "(b s) c h w -> b (s c h w)", b=len(pred)).mean(dim=1, dtype=torch.float32)


class LandmarkFeatures(nn.Module):
    """L1 between what the first stages of our own landmark network make of both clips: eyes, lips, teeth, outlines."""

    name = "landmark network"

    def __init__(self) -> None:
        super().__init__()
        _, net = networks()
        self.stages = nn.ModuleList([copy.deepcopy(net.stem), copy.deepcopy(net.down[0])])
        self.eval().requires_grad_(False)

    def forward(self, pred: Tensor, real: Tensor, weight: Tensor) -> Tensor:
        """Clips [B, 3, S, H, W] in [-1, 1], weight [B, 1, S, H, W] -> scalar."""
        a, b = (rearrange(clip, "b c s h w -> (b s) c h w") for clip in (pred, real))
        weight = rearrange(weight, "b 1 s h w -> (b s) 1 h w")
        total = a.new_zeros(())
        for stage in self.stages:
            a, b = stage(a), stage(b)
            scale = b.float().abs().mean().detach() + 1e-3
            small = F.adaptive_avg_pool2d(weight, a.shape[-2:])
            total = total + ((a - b).abs() * small).mean(dtype=torch.float32) / scale
        return total


class Lpips(nn.Module):
    """LPIPS (Zhang et al. 2018), as the paper's eq. 6 has it; its VGG trunk is fetched on first use."""

    name = "LPIPS"

    def __init__(self) -> None:
        super().__init__()
        try:
            import lpips

            self.net = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
        except (ImportError, OSError) as error:  # not installed; no network
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"The LPIPS loss can't be had ({reason}): install it with `uv sync --extra train` and let its trunk be "
                "downloaded once, or choose features=landmarks."
            ) from error

    def forward(self, pred: Tensor, real: Tensor, weight: Tensor) -> Tensor:
        a, b = (rearrange(clip, "b c s h w -> (b s) c h w") for clip in (pred, real))
        return self.net(a, b).mean()


def perceptual(name: str) -> nn.Module | None:
    """`lpips` (fetches its trunk), `landmarks`, `none`, or `auto`: LPIPS where it and its trunk are already here."""
    if name == "none":
        return None
    if name == "lpips" or (name == "auto" and has_lpips()):
        return Lpips()
    return LandmarkFeatures()


def has_lpips() -> bool:
    """Whether LPIPS is installed and its trunk was downloaded before."""
    return find_spec("lpips") is not None and (Path(torch.hub.get_dir()) / "checkpoints" / VGG_NAME).is_file()
