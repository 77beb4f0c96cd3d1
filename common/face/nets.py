"""The built-in face finder and landmark network: two small residual convolutional networks.

Sizes are chosen for two CPU cores: together 3 M parameters, about 25 ms for a portrait of any size. Both are trained by
`python -m common.face.train` and see RGB in [-1, 1].
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3×3 convolutions and a skip (He et al. 2016); the first may halve the resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(hidden)))


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())


def _stage(in_channels: int, out_channels: int, n_blocks: int) -> nn.Sequential:
    later = [Block(out_channels, out_channels, 1) for _ in range(n_blocks - 1)]
    return nn.Sequential(Block(in_channels, out_channels, 2), *later)


@dataclass
class FinderConfig:
    channels: tuple[int, ...] = (16, 32, 64, 96, 128)  # stem (1/2), then 1/4, 1/8, 1/16, 1/32
    n_blocks: int = 2  # residual blocks per stage
    head_channels: int = 64
    canvas_px: int = 160  # side of the pictures that it was trained on; it runs on any size


class Finder(nn.Module):
    """Faces as points (Zhou et al. 2019, "Objects as Points"): a heat map of centres, a size and an offset at each.

    One cell is 8×8 pixels. A face is a square: centre of its 68 landmarks' bounding box, side = that box's longer side.
    """

    stride = 8

    def __init__(self, config: FinderConfig) -> None:
        super().__init__()
        c = config.channels
        self.config = config
        self.stem = _stem(c[0])
        self.down = nn.ModuleList(_stage(a, b, config.n_blocks) for a, b in pairwise(c))
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.head_channels, 1) for width in c[2:])
        self.merge = Block(config.head_channels, config.head_channels, 1)
        self.head = nn.Conv2d(config.head_channels, 4, 1)
        nn.init.constant_(self.head.bias[:1], -4.0)  # type: ignore[index]  # rare faces: start at p = 0.02 (Lin et al. 2017)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, 3, H, W], H and W multiples of 32.

        Returns logits [B, H/8, W/8], log(side / 8 px) [B, H/8, W/8], offset of the centre in cells [B, 2, H/8, W/8].
        """
        x = self.down[0](self.stem(x))
        levels = []
        for stage in list(self.down)[1:]:
            x = stage(x)
            levels.append(x)  # 1/8, 1/16, 1/32
        merged = self.lateral[-1](levels[-1])
        for level, lateral in zip(levels[-2::-1], list(self.lateral)[-2::-1], strict=True):
            merged = lateral(level) + F.interpolate(merged, scale_factor=2.0, mode="nearest")
        out = self.head(self.merge(merged))  # [B, 4, H/8, W/8]
        return out[:, 0], out[:, 1], out[:, 2:]


@dataclass
class LandmarkNetConfig:
    size_px: int = 128  # side of the crop the network sees
    margin: float = 1.6  # that side in face sizes
    channels: tuple[int, ...] = (32, 48, 64, 128, 224)  # stem (1/2), then 1/4 ... 1/32
    n_blocks: int = 2
    head_channels: int = 64  # per cell of the last map, before it is flattened: position matters, so no pooling
    hidden: int = 256


class LandmarkNet(nn.Module):
    """A square crop around a face → 68 points in 3D and whether the crop holds a face."""

    def __init__(self, config: LandmarkNetConfig) -> None:
        super().__init__()
        c = config.channels
        self.config = config
        self.stem = _stem(c[0])
        self.down = nn.Sequential(*(_stage(a, b, config.n_blocks) for a, b in pairwise(c)))
        n_cells = (config.size_px // 2 ** len(c)) ** 2
        self.squeeze = nn.Conv2d(c[-1], config.head_channels, 1)
        self.hidden = nn.Linear(config.head_channels * n_cells, config.hidden)
        self.points = nn.Linear(config.hidden, 68 * 3)
        self.is_face = nn.Linear(config.hidden, 1)
        nn.init.zeros_(self.points.weight)
        self.register_buffer("mean_points", torch.zeros(68, 3))  # of the training crops; the network adds to it
        self.mean_points: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, 3, size, size] → points [B, 68, 3], logit [B] that this is a face.

        Points: x right and y down in [-1, 1] over the crop; z in the same scale, negative towards the camera.
        """
        hidden = rearrange(F.relu(self.squeeze(self.down(self.stem(x)))), "b c h w -> b (c h w)")
        hidden = F.relu(self.hidden(hidden))
        points = rearrange(self.points(hidden), "b (p d) -> b p d", d=3) + self.mean_points
        return points, self.is_face(hidden)[:, 0]
