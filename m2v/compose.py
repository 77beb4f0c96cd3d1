"""A picture at its own size, moved as a smaller frame was: what `m2v.paste` and `m2v.enlarge` have in common.

A renderer's frame is small; scaling it up makes it soft. The picture that it was made of is not: warped at its own size
by the same flow it is sharp, and what the frame adds to its own warp goes on top, where `detail` says that the
picture's fine structure still holds.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Barrier

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.face.framing import Crop
from m2v.masks import smooth_step

SLOW_PX = 6.0  # of the frame: differences slower than this are light and shade, faster ones structure
STRUCTURE = 8.0  # levels of structure that the picture does not have, where half of its detail is let go
STRIP = 128  # rows of the picture made at once

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the square at its own size


@dataclass(frozen=True)
class Layers:
    """What is to be composed, in pixels of one frame.

    flow: [1, 2, h, h] x and y, where to look in the picture, from each place; colours: [1, 4, h, h], what to add to the
    warped picture (3) and what to keep of that before; head: the box beyond which nothing is changed; face: that beyond
    which nothing is added and all kept, None: nowhere.
    """

    flow: Tensor
    colours: Tensor
    head: Box
    face: Box | None


@torch.inference_mode()
def as_levels(picture: np.ndarray) -> Tensor:
    """uint8 [h, w, 3] → float32 [1, 3, h, w]."""
    pixels = torch.from_numpy(picture.copy())
    return pixels.movedim(-1, 0)[None].to(torch.float32, memory_format=torch.contiguous_format)


def detail(frame: Tensor, warped: Tensor) -> Tensor:
    """How far the picture's detail holds in the frame: [1, 1, h, w], 1 where the frame has no structure of its own.

    The part of the frame's fine structure that a multiple of the picture's doesn't explain, against STRUCTURE. A frame
    that is just softer than the picture is explained.
    """
    grey = [each.mean(dim=1, keepdim=True) for each in (frame, warped)]
    fine = [each - slow(each) for each in grey]
    energy, theirs, common = blur(torch.cat([fine[0] ** 2, fine[1] ** 2, fine[0] * fine[1]], dim=1), 2.0).split(
        1, dim=1
    )
    own = (energy - common.clamp(min=0).square() / (theirs + 1e-3)).clamp(min=0)
    return 1 / (1 + (own / STRUCTURE**2).square())


def mouth_moved(source: Tensor, target: Tensor) -> Tensor:
    """0 where the lips keep their shape, 1 where they changed it by 2 pixels: [1, 1, 1, 1]."""
    move = (target - source)[:, 48:]
    change = (move - move.mean(dim=1, keepdim=True)).norm(dim=-1).amax(dim=1)
    return smooth_step((change - 0.25) / 1.75).view(-1, 1, 1, 1)


def slow(x: Tensor) -> Tensor:
    """What is left below SLOW_PX: Gaussian, at a quarter of the size."""
    small = F.interpolate(blur(F.avg_pool2d(x, 4, ceil_mode=True), SLOW_PX / 4), scale_factor=4, mode="bilinear")
    return small[..., : x.shape[-2], : x.shape[-1]]


def blur(x: Tensor, sigma_px: float) -> Tensor:
    """Gaussian, the border repeated: [1, C, h, w]."""
    down, across = (_gaussian(n, sigma_px).to(x) for n in x.shape[-2:])
    return down @ x @ across.mT


@cache
def _gaussian(n: int, sigma_px: float) -> Tensor:
    """Weights [n, n] that blur n pixels: a product of matrices takes a sixth of a convolution's time on a CPU."""
    reach = int(3 * sigma_px + 0.5)
    steps = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-steps.square() / (2 * sigma_px**2))
    pixels = (torch.arange(n)[:, None] + steps).clamp(0, n - 1)
    return torch.zeros(n, n).scatter_add_(1, pixels, (kernel / kernel.sum()).expand(n, -1))


# ---- in the picture's pixels ----------------------------------------------------------------------------------------


def box_of(where: Tensor, crop: Crop) -> Box | None:
    """The part of the square that the frame's pixels `where` [h, h] reach, two pixels around each included."""
    sides = []
    for dim in (0, 1):  # columns, rows
        hit = torch.nonzero(where.any(dim=dim)).flatten()
        if len(hit) == 0:
            return None
        zoom = crop.side / crop.size_px
        low, high = (float(hit[0]) - 2) * zoom, (float(hit[-1]) + 3) * zoom
        sides.append((max(int(low), 0), min(int(high) + 1, crop.side)))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def cubic(at: Tensor, crop: Crop) -> Tensor:
    """Weights [n, h] that interpolate the frame's pixels at places [n] of the square, in its pixels (Keys' cubic)."""
    at = (at.double() + 0.5) * (crop.size_px / crop.side) - 0.5
    first = at.floor()
    taps = torch.arange(-1, 3, device=at.device)
    d = ((at - first)[:, None] - taps).abs()  # [n, 4]
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = torch.where(d < 1, near, far).float()
    pixels = (first.long()[:, None] + taps).clamp(0, crop.size_px - 1)  # beyond the border its pixels repeat
    return weights.new_zeros(len(at), crop.size_px).scatter_add_(1, pixels, weights)


def compose(square: Tensor, layers: Layers, crop: Crop, out: np.ndarray) -> None:
    """The head's box of the square, made of the layers, into `out`, uint8 [rows, columns, 3].

    Strip by strip, which stays in the processor's cache and takes half as long.
    """
    x0, y0, x1, y1 = layers.head
    flow = _Enlarged(layers.flow * (crop.side / crop.size_px), crop, layers.head)
    inner = None if layers.face is None else (layers.face, _Enlarged(layers.colours, crop, layers.face))
    to_unit = 2 / max(crop.side - 1, 1)
    xs, ys = (torch.arange(*ends, dtype=torch.float32, device=square.device) for ends in ((x0, x1), (y0, y1)))
    result = torch.from_numpy(out)

    @torch.inference_mode()
    def strip(first: int) -> None:
        last = min(first + STRIP, y1)
        part = flow.rows(first, last)  # [1, 2, rows, columns]
        grid = part.new_empty(1, last - first, x1 - x0, 2)
        torch.add(part[0, 0], xs, out=grid[0, ..., 0])
        torch.add(part[0, 1], ys[first - y0 : last - y0, None], out=grid[0, ..., 1])
        grid = grid.mul_(to_unit).sub_(1)
        made = F.grid_sample(square, grid, mode="bicubic", padding_mode="border", align_corners=True)
        if inner is not None:
            (fx0, fy0, fx1, fy1), colours = inner
            top, bottom = max(first, fy0), min(last, fy1)
            if top < bottom:
                added = colours.rows(top, bottom)
                made[..., top - first : bottom - first, fx0 - x0 : fx1 - x0].mul_(added[:, 3:]).add_(added[:, :3])
        result[first - y0 : last - y0] = made.round_().clamp_(0, 255)[0].movedim(0, -1)

    deque(workers().map(strip, range(y0, y1, STRIP)), maxlen=0)  # raises what a strip raises


@cache
def workers() -> ThreadPoolExecutor:
    """As many threads as torch has, each of which computes alone.

    Torch's own threads wait for each other after every operation: with an encoder's threads on the same cores, a frame
    takes ten times as long.
    """
    n = torch.get_num_threads()
    started = Barrier(n)
    pool = ThreadPoolExecutor(n, "compose", torch.set_num_threads, (1,))
    deque(pool.map(lambda _: started.wait(), range(n)), maxlen=0)
    torch.set_num_threads(n)  # the number for this thread and those that come was not meant
    return pool


class _Enlarged:
    """Layers [1, C, h, h] in pixels of the frame, scaled up to rows of a box of the square.

    Cubic; along rows only to twice the frame's pixels, and linear from there: as smooth to the eye, and cheaper.
    """

    def __init__(self, layers: Tensor, crop: Crop, box: Box) -> None:
        x0, self.y0, x1, y1 = box
        self.width = x1 - x0
        n = min(self.width, max(round(2 * self.width * crop.size_px / crop.side), 2))
        across = cubic(torch.linspace(x0, x1 - 1, n, device=layers.device), crop)
        self.knots = layers @ across.mT  # [1, C, h, n]
        self.up = cubic(torch.arange(self.y0, y1, device=layers.device), crop)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows first to last - 1 of the square: [1, C, rows, columns]."""
        up = self.up[first - self.y0 : last - self.y0]
        reached = torch.nonzero((up != 0).any(dim=0)).flatten()
        low, high = int(reached[0]), int(reached[-1]) + 1
        rows = up[:, low:high] @ self.knots[:, :, low:high]  # [1, C, rows, n]
        if rows.shape[-1] == self.width:
            return rows
        wide = F.interpolate(rows.flatten(1, 2), self.width, mode="linear", align_corners=True)
        return wide.unflatten(1, rows.shape[1:3])
