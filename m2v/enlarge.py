"""`--size 512`: frames of twice a renderer's size.

The networks work at 256. Their frame is scaled up, and what lies between its pixels is taken from the picture, where
the picture has more of them:

    out = frame↑ + W (picture moved − (small picture moved)↑)

Moved by the flow that the frame shows: that of the landmarks where it looks like the warped picture, none where it
looks like the picture as it stands (a background). Every place's detail comes from one place of the picture, so no fine
line is double where the frame blends two. W is as in `m2v.paste`: nothing inside a mouth that moved, nothing where the
frame has structure of its own. A picture that hardly has more than 256 pixels adds hardly anything, one with fewer
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.face import warp
from common.face.framing import Crop
from m2v.compose import Layers, as_levels, blur, compose, cubic, detail, mouth_moved, workers
from m2v.masks import head_mask, smooth_step

NEAR_PX = 3.0  # of the frame: whether it moved is told from its pixels within this distance
TELLING = 100.0  # squared levels by which the picture moved and not differ, where its frame begins to tell which it is


@dataclass(frozen=True)
class Original:
    """A picture before any frame is made. large: its square, float32 [1, 3, size, size], 0..255; small: as the renderer

    saw it, [1, 3, h, h].
    """

    picture: np.ndarray
    crop: Crop
    large: Tensor
    small: Tensor


class Enlarger:
    """Frames [3, h, h] of squares of pictures → uint8 [size_px, size_px, 3].

    What the last picture needs is kept: one that is the same array as before is taken to be unchanged.
    """

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self.original: Original | None = None

    def enlarge(self, picture: np.ndarray, crop: Crop, source: Tensor, target: Tensor, frame: Tensor) -> np.ndarray:
        """picture: uint8 [H, W, 3], of which the renderer saw the crop; source, target: [68, 2] in pixels of the crop,

        of the picture's face and of the frame's. Raises ValueError where sizes do not fit.
        """
        h = crop.size_px
        if frame.shape != (3, h, h) or source.shape != (68, 2) or target.shape != (68, 2):
            raise ValueError(
                f"a frame of this crop is [3, {h}, {h}] and its landmarks are [68, 2], got {list(frame.shape)}, "
                f"{list(source.shape)} and {list(target.shape)}"
            )
        if crop.side <= h:
            return scaled(frame, self.size_px)
        original = self._original(picture, crop)
        layers = workers().submit(_layers, original, source[None].float(), target[None].float(), frame[None]).result()
        result = np.empty((self.size_px, self.size_px, 3), np.uint8)
        compose(original.large, layers, replace(crop, x0=0, y0=0, side=self.size_px), result)
        return result

    def _original(self, picture: np.ndarray, crop: Crop) -> Original:
        last = self.original
        if last is None or last.picture is not picture or last.crop != crop:
            large = as_levels(replace(crop, size_px=self.size_px).cut(picture))
            last = self.original = Original(picture, crop, large, as_levels(crop.cut(picture)))
        return last


@torch.inference_mode()
def scaled(frame: Tensor, size_px: int) -> np.ndarray:
    """A frame [3, h, h] as it is, scaled up: uint8 [size_px, size_px, 3]."""
    up = cubic(torch.arange(size_px), Crop(0, 0, size_px, frame.shape[-1]))
    return (up @ frame @ up.mT).round().clamp(0, 255).byte().movedim(0, -1).numpy()


@torch.inference_mode()
def _layers(original: Original, source: Tensor, target: Tensor, frame: Tensor) -> Layers:
    """source, target: [1, 68, 2]; frame: [1, 3, h, h]."""
    h, size = frame.shape[-1], original.large.shape[-1]
    grid = warp.backward_grid(source, target, h, h)
    places = warp.places(h, h, grid)
    head = head_mask(source[0], target[0], h)
    share = _moved(frame, original.small, warp.apply(original.small, grid), head)
    flow = share * (grid - places).movedim(-1, 1)
    moved = warp.apply(original.small, places + flow.movedim(1, -1))
    inner = warp.inner_mouth_mask(target, h, h) * mouth_moved(source, target)
    kept = detail(frame, moved) * (1 - inner)
    everywhere = (0, 0, size, size)
    return Layers(flow, torch.cat([frame - kept * moved, kept], dim=1), everywhere, everywhere)


def _moved(frame: Tensor, still: Tensor, warped: Tensor, head: Tensor) -> Tensor:
    """Where a frame looks like the warped picture (1) or like the picture as it stands (0): [1, 1, h, w].

    The nearest blend of the two, by least squares over a neighbourhood, made clear-cut. Where both look the same, the
    head moves and what is around it stands still.
    """
    change = warped - still
    along = torch.cat([(frame - still) * change, change.square()], dim=1).unflatten(1, (2, 3)).sum(dim=2)
    common, energy = blur(along, NEAR_PX).split(1, dim=1)
    return smooth_step(2 * (common + TELLING * head) / (energy + TELLING) - 0.5)
