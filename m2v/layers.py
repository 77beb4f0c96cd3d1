"""Layers of the small renderer: local norms and residual blocks on pictures, and pooling a clip into three planes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from common.triplane import TriPlane


class PixelNorm(nn.Module):
    """Layer norm over the channels of each pixel: nothing depends on how large a part of the picture is seen.

    So a network that was trained on crops gives the same on whole frames.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return normed.permute(0, 3, 1, 2)


class Residual(nn.Module):
    """x + conv(act(conv(act(norm(x))))), starting near the identity. reach: of the convolutions, by dilation."""

    def __init__(self, channels: int, reach: int = 1) -> None:
        super().__init__()
        self.norm = PixelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=reach, dilation=reach)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=reach, dilation=reach)
        nn.init.normal_(self.conv2.weight, std=0.3 / (9 * channels) ** 0.5)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


def residuals(channels: int, n_blocks: int, reach: int = 1) -> nn.Sequential:
    return nn.Sequential(*(Residual(channels, reach) for _ in range(n_blocks)))


class Up(nn.Module):
    """Twice the rows and columns: a convolution to four pixels at once."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class PlanePool(nn.Module):
    """Features of a clip [B, S, C, h, w] -> a TriPlane: each plane is a weighted mean over the axis that it lacks.

    The weights are a softmax of the features themselves, channel by channel: what matters (a mouth) is not drowned by
    what doesn't (a wall), and any size of picture or clip will do.
    """

    def __init__(self, channels: int, plane_width: int, plane_channels: int) -> None:
        super().__init__()
        self.n = plane_width
        self.project = nn.Conv2d(channels, 6 * plane_width, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(plane_width, plane_width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(plane_width, plane_channels, 3, padding=1),
            )
            for _ in ["xy", "xt", "yt"]
        )

    def forward(self, features: Tensor) -> TriPlane:
        n_clips = len(features)
        flat = self.project(rearrange(features, "b s c h w -> (b s) c h w"))
        parts = rearrange(flat, "(b s) (kind c) h w -> kind b c s h w", b=n_clips, kind=6)
        planes = [
            head((value * logit.softmax(dim=axis)).sum(dim=axis))
            for head, value, logit, axis in zip(self.heads, parts[:3], parts[3:], (2, 3, 4), strict=True)
        ]
        return TriPlane(*planes)  # xy [B, C, h, w], xt [B, C, S, w], yt [B, C, S, h]


class PlaneSpread(nn.Module):
    """The reverse: a TriPlane -> features [B, S, C, h, w], the sum of what each plane says of a place."""

    def __init__(self, plane_channels: int, channels: int) -> None:
        super().__init__()
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Conv2d(plane_channels, channels, 3, padding=1), Residual(channels)) for _ in range(3)
        )

    def forward(self, planes: TriPlane) -> Tensor:
        xy, xt, yt = (embed(plane) for embed, plane in zip(self.embed, planes, strict=True))
        return (
            rearrange(xy, "b c h w -> b 1 c h w")
            + rearrange(xt, "b c s w -> b s c 1 w")
            + rearrange(yt, "b c s h -> b s c h 1")
        )
