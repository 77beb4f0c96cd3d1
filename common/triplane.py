"""TriPlane: a clip of video as three planes, each named by the two axes it keeps (PVDM, Yu et al. 2023).

Packed, a TriPlane is one sequence [B, C, L] in the order xy, xt, yt, each plane row-major: what diffusion noises and
what attention across the planes sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TriPlane:
    """xy: [B, C, h, w], time folded away; xt: [B, C, S, w], rows folded away; yt: [B, C, S, h], columns folded away."""

    xy: Tensor
    xt: Tensor
    yt: Tensor

    def __post_init__(self) -> None:
        if not self.xy.ndim == self.xt.ndim == self.yt.ndim == 4:
            raise ValueError(f"planes must be [B, C, rows, columns], got {self._shapes()}")
        same_batch = self.xy.shape[:2] == self.xt.shape[:2] == self.yt.shape[:2]
        height, width = self.xy.shape[2:]
        if (
            not same_batch
            or self.xt.shape[2:] != (self.n_frames, width)
            or self.yt.shape[2:] != (self.n_frames, height)
        ):
            raise ValueError(
                f"planes must agree as xy [B, C, h, w], xt [B, C, S, w], yt [B, C, S, h], got {self._shapes()}"
            )

    def _shapes(self) -> str:
        return ", ".join(f"{name} {list(plane.shape)}" for name, plane in zip(("xy", "xt", "yt"), self, strict=True))

    def __iter__(self) -> Iterator[Tensor]:
        """The planes in packing order."""
        return iter((self.xy, self.xt, self.yt))

    @property
    def n_frames(self) -> int:
        """S, latent frames of the clip."""
        return self.xt.shape[2]

    @property
    def height(self) -> int:
        return self.xy.shape[2]

    @property
    def width(self) -> int:
        return self.xy.shape[3]

    def map(self, function: Callable[[Tensor], Tensor]) -> TriPlane:
        """The same function on each plane."""
        return TriPlane(function(self.xy), function(self.xt), function(self.yt))

    def pack(self) -> Tensor:
        """-> [B, C, h w + S w + S h], in the order xy, xt, yt."""
        return torch.cat([rearrange(plane, "b c rows columns -> b c (rows columns)") for plane in self], dim=2)


def packed_length(n_frames: int, height: int, width: int) -> int:
    """L, the number of tokens of a packed TriPlane."""
    return height * width + n_frames * width + n_frames * height


def unpack(packed: Tensor, n_frames: int, height: int, width: int) -> TriPlane:
    """The inverse of TriPlane.pack. packed: [B, C, L] with L = h w + S w + S h."""
    if packed.ndim != 3 or packed.shape[2] != packed_length(n_frames, height, width):
        expected = packed_length(n_frames, height, width)
        raise ValueError(
            f"{n_frames} frames of {height} x {width} pack to [B, C, {expected}], got shape {list(packed.shape)}"
        )
    xy, xt, yt = packed.split([height * width, n_frames * width, n_frames * height], dim=2)
    return TriPlane(
        xy=rearrange(xy, "b c (h w) -> b c h w", h=height),
        xt=rearrange(xt, "b c (s w) -> b c s w", s=n_frames),
        yt=rearrange(yt, "b c (s h) -> b c s h", s=n_frames),
    )
