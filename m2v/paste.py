"""`--framing full`: the whole picture, its face replaced by what a renderer made of the square around it.

A renderer's frame is small; the picture need not be. Scaling the frame up would make a soft face in a sharp picture, so
only what is new is taken from it. A frame is, nearly, the square warped along the landmarks, and the picture can be
warped by the same flow at its own size:

    out = W (warped + slow difference) + (1 − W) frame,   difference = frame − warped, in the frame's pixels

W says how far the picture's detail still holds: not inside a mouth that moved, not where the frame has structure that
the picture has not. Two masks follow the head. In the *head's* (hair and neck included) the picture moves; towards its
border the flow fades to nothing, so that nothing is cross-faded that lies in two places, and no edge is double. In the
*face's* the frame counts; hair and background are the picture's own, bent a little near the head, which looks better
than what a small network makes of them. Before that, the difference's slow part along the face's border is taken out of
all of it: a frame in another light than the picture leaves no rim.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from threading import Barrier

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.face import warp
from common.face.framing import Crop
from m2v.masks import edge_fade, face_mask, head_mask, smooth_step

SLOW_PX = 6.0  # of the frame: differences slower than this are light and shade, faster ones structure
STRUCTURE = 8.0  # levels of structure that the picture does not have, where half of its detail is let go
CAST_CELLS, CAST_WIDTH = 32, 5.0  # colour casts are known on a coarse grid, over a Gaussian of that many cells
CAST_OFF = 4.0  # levels from the median, beyond which a difference is not the light's
STRIP = 128  # rows of the picture made at once
TONES = (2.0, 6.0)  # levels beside one line of colours: below, a picture is monochrome; above, coloured


Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the square at its own size


@dataclass(frozen=True)
class Original:
    """What is known of a picture before any frame is made: the same for all frames of a still picture.

    square: the crop at its own size, float32 [1, 3, side, side], 0..255; small: as the renderer saw it, [1, 3, h, h];
    tones: see `_tones`; source: [1, 68, 2] landmarks in pixels of `small`.
    """

    picture: np.ndarray
    square: Tensor
    small: Tensor
    tones: Tensor
    source: Tensor


@dataclass(frozen=True)
class Layers:
    """Of one frame, in its pixels. flow: [1, 2, h, h] x and y, where to look in the picture, from each place.

    colours: [1, 4, h, h], what to add to the warped picture (3) and what to keep of that before; head: the box beyond
    which nothing is changed; face: that beyond which nothing is added and all kept, None: nowhere.
    """

    flow: Tensor
    colours: Tensor
    head: Box
    face: Box | None


class Paster:
    """For frames of one crop of pictures width x height; of a crop that follows a face, one for every place it has.

    What the last picture and its landmarks need is kept: a picture that is the same array as before is taken to be
    unchanged. Memory is that of the crop, whatever the number of frames.
    """

    def __init__(self, crop: Crop, width: int, height: int) -> None:
        x1, y1 = crop.x0 + crop.side, crop.y0 + crop.side
        if crop.side < 1 or crop.x0 < 0 or crop.y0 < 0 or x1 > width or y1 > height:
            raise ValueError(f"the crop {crop} does not lie in a picture of {width}x{height}")
        self.crop, self.width, self.height = crop, width, height
        self.edge = edge_fade(crop, width, height)  # [h, h]
        self.original: Original | None = None

    def paste(self, picture: np.ndarray, source: Tensor, target: Tensor, frame: Tensor) -> np.ndarray:
        """The picture uint8 [H, W, 3] with its face as in a renderer's frame → uint8 [H, W, 3], a new array.

        source, target: [68, 2] in pixels of the crop, of the picture's face and of the frame's. Raises ValueError where
        sizes do not fit.
        """
        self._check(picture, source, target, frame)
        original = self._original(picture, source)
        begun = _workers().submit(_layers, original, target, frame, self.edge, self.crop)
        result = picture.copy()
        layers = begun.result()
        if layers is not None:
            x0, y0, x1, y1 = layers.head
            part = result[self.crop.y0 + y0 : self.crop.y0 + y1, self.crop.x0 + x0 : self.crop.x0 + x1]
            _compose(original.square, layers, self.crop, part)
        return result

    def mask(self, source: Tensor, target: Tensor) -> np.ndarray:
        """How far the picture may be changed, float32 [H, W] in 0..1; where it is 0, it is not."""
        mask = head_mask(source, target, self.crop.size_px) * self.edge
        whole = np.zeros((self.height, self.width), np.float32)
        box = _box(mask > 0, self.crop)
        if box is not None:
            x0, y0, x1, y1 = box
            rows, columns = (_cubic(torch.arange(*ends), self.crop) for ends in ((y0, y1), (x0, x1)))
            reached = (rows != 0).float() @ mask @ (columns != 0).float().mT
            part = torch.where(reached > 0, (rows @ mask @ columns.mT).clamp(1e-6, 1), 0.0)
            whole[self.crop.y0 + y0 : self.crop.y0 + y1, self.crop.x0 + x0 : self.crop.x0 + x1] = part.numpy()
        return whole

    def _original(self, picture: np.ndarray, source: Tensor) -> Original:
        last = self.original
        source = source[None].to(torch.float32)
        if last is None or last.picture is not picture:
            c = self.crop
            begun = _workers().submit(_tensor, picture[c.y0 : c.y0 + c.side, c.x0 : c.x0 + c.side])
            small, tones = _workers().submit(self._small, picture).result()
            last = Original(picture, begun.result(), small, tones, source)
        self.original = replace(last, source=source)
        return self.original

    @torch.inference_mode()
    def _small(self, picture: np.ndarray) -> tuple[Tensor, Tensor]:
        small = _tensor(self.crop.cut(picture))
        return small, _tones(small)

    def _check(self, picture: np.ndarray, source: Tensor, target: Tensor, frame: Tensor) -> None:
        if picture.shape != (self.height, self.width, 3) or picture.dtype != np.uint8:
            raise ValueError(
                f"a picture is uint8 [{self.height}, {self.width}, 3] here, got {picture.dtype} {list(picture.shape)}"
            )
        for points in (source, target):
            if points.shape != (68, 2):
                raise ValueError(f"a face has landmarks [68, 2] in pixels of the crop, got {list(points.shape)}")
            if not points.isfinite().all():
                raise ValueError("landmarks hold numbers that are not finite: leave such frames out")
        h = self.crop.size_px
        if frame.shape != (3, h, h):
            raise ValueError(f"a frame of this crop is [3, {h}, {h}], got {list(frame.shape)}")


@torch.inference_mode()
def _tensor(picture: np.ndarray) -> Tensor:
    """uint8 [h, w, 3] → float32 [1, 3, h, w]."""
    pixels = torch.from_numpy(picture.copy())
    return pixels.movedim(-1, 0)[None].to(torch.float32, memory_format=torch.contiguous_format)


# ---- in the renderer's pixels ---------------------------------------------------------------------------------------


@torch.inference_mode()
def _layers(original: Original, target: Tensor, frame: Tensor, edge: Tensor, crop: Crop) -> Layers | None:
    """None where nothing of the head lies in the crop. target: [68, 2]; frame: [3, h, h]; edge: [h, h]."""
    frame, target = frame[None].to(original.small), target[None].to(original.source)
    height, width = frame.shape[-2:]
    mask = head_mask(original.source[0], target[0], height)[None, None] * edge
    box = _box(mask[0, 0] > 0, crop)
    if box is None:
        return None
    grid = warp.backward_grid(original.source, target, height, width)
    warped = warp.apply(original.small, grid)
    frame = warped + _in_tones(frame - warped, original.tones)
    face = face_mask(target[0], height) * mask
    cast = _cast(frame - warped, face)
    inner = warp.inner_mouth_mask(target, height, width) * _mouth_moved(original.source, target)
    kept = 1 - face * (1 - _detail(frame, warped) * (1 - inner))
    added = face * kept * _slow(frame - warped - cast) + (1 - kept) * (frame - cast)
    flow = (grid - _pixels(height, width, grid)).movedim(-1, 1)
    return Layers(mask * flow, torch.cat([added, kept], dim=1), box, _box(face[0, 0] > 0, crop))


def _detail(frame: Tensor, warped: Tensor) -> Tensor:
    """How far the picture's detail holds in the frame: [1, 1, h, w], 1 where the frame has no structure of its own.

    The part of the frame's fine structure that a multiple of the picture's doesn't explain, against STRUCTURE. A frame
    that is just softer than the picture is explained.
    """
    grey = [each.mean(dim=1, keepdim=True) for each in (frame, warped)]
    fine = [each - _slow(each) for each in grey]
    energy, theirs, common = _blur(torch.cat([fine[0] ** 2, fine[1] ** 2, fine[0] * fine[1]], dim=1), 2.0).split(
        1, dim=1
    )
    own = (energy - common.clamp(min=0).square() / (theirs + 1e-3)).clamp(min=0)
    return 1 / (1 + (own / STRUCTURE**2).square())


def _mouth_moved(source: Tensor, target: Tensor) -> Tensor:
    """0 where the lips keep their shape, 1 where they changed it by 2 pixels: [1, 1, 1, 1]."""
    move = (target - source)[:, 48:]
    change = (move - move.mean(dim=1, keepdim=True)).norm(dim=-1).amax(dim=1)
    return smooth_step((change - 0.25) / 1.75).view(-1, 1, 1, 1)


def _cast(difference: Tensor, mask: Tensor) -> Tensor:
    """The difference's slow part along the mask's border, carried on across it: [1, 3, h, w].

    A normalised Gaussian average; places whose difference is far from the border's median (hair that moved) count less.
    """
    band = 4 * mask * (1 - mask)
    within = band[0, 0] > 0.25
    if not within.any():
        return torch.zeros_like(difference)
    middle = difference[0, :, within].median(dim=1).values.view(1, 3, 1, 1)
    off = (difference - middle).square().mean(dim=1, keepdim=True)
    weight = band / (1 + off / CAST_OFF**2)
    cells = F.adaptive_avg_pool2d(torch.cat([weight * difference, weight], dim=1), (CAST_CELLS, CAST_CELLS))
    wide = _blur(cells, CAST_WIDTH) + 1e-3 * cells.mean(dim=(2, 3), keepdim=True)
    return F.interpolate(wide[:, :3] / wide[:, 3:], difference.shape[-2:], mode="bilinear", align_corners=False)


def _tones(small: Tensor) -> Tensor:
    """What a difference may be in this picture, [3, 3]: the identity, or the projection on its one line of colours.

    Photographs in black and white or sepia have one; a network that knows colours would redden their lips.
    """
    colours = small[0].flatten(1).double()  # [3, N]
    spread, axes = torch.linalg.eigh(torch.cov(colours))
    beside = float(spread[1].clamp(min=0).sqrt())
    coloured = min(max((beside - TONES[0]) / (TONES[1] - TONES[0]), 0.0), 1.0)
    line = torch.outer(axes[:, 2], axes[:, 2])
    return (line + coloured * (torch.eye(3, dtype=line.dtype, device=line.device) - line)).float()


def _in_tones(difference: Tensor, tones: Tensor) -> Tensor:
    return torch.tensordot(tones, difference, dims=([1], [1])).movedim(0, 1)


def _slow(x: Tensor) -> Tensor:
    """What is left below SLOW_PX: Gaussian, at a quarter of the size."""
    small = F.interpolate(_blur(F.avg_pool2d(x, 4, ceil_mode=True), SLOW_PX / 4), scale_factor=4, mode="bilinear")
    return small[..., : x.shape[-2], : x.shape[-1]]


def _blur(x: Tensor, sigma_px: float) -> Tensor:
    """Gaussian, the border repeated: [1, C, h, w]."""
    reach = min(int(3 * sigma_px + 0.5), min(x.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-at.square() / (2 * sigma_px**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None], groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[..., None], groups=x.shape[1])


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    ys, xs = (torch.arange(n, dtype=like.dtype, device=like.device) for n in (height, width))
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)


# ---- in the picture's pixels ----------------------------------------------------------------------------------------


def _box(where: Tensor, crop: Crop) -> Box | None:
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


def _cubic(at: Tensor, crop: Crop) -> Tensor:
    """Weights [n, h] that interpolate the frame's pixels at places [n] of the square, in its pixels (Keys' cubic)."""
    at = (at.double() + 0.5) * (crop.size_px / crop.side) - 0.5
    first = at.floor()
    taps = torch.arange(-1, 3, device=at.device)
    d = ((at - first)[:, None] - taps).abs()  # [n, 4]
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = torch.where(d < 1, near, far).float()
    pixels = (first.long()[:, None] + taps).clamp(0, crop.size_px - 1)  # beyond the border its pixels repeat
    return weights.new_zeros(len(at), crop.size_px).scatter_add_(1, pixels, weights)


def _compose(square: Tensor, layers: Layers, crop: Crop, out: np.ndarray) -> None:
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

    deque(_workers().map(strip, range(y0, y1, STRIP)), maxlen=0)  # raises what a strip raises


@cache
def _workers() -> ThreadPoolExecutor:
    """As many threads as torch has, each of which computes alone.

    Torch's own threads wait for each other after every operation: with an encoder's threads on the same cores, a frame
    takes ten times as long.
    """
    n = torch.get_num_threads()
    started = Barrier(n)
    pool = ThreadPoolExecutor(n, "paste", torch.set_num_threads, (1,))
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
        across = _cubic(torch.linspace(x0, x1 - 1, n, device=layers.device), crop)
        self.knots = layers @ across.mT  # [1, C, h, n]
        self.up = _cubic(torch.arange(self.y0, y1, device=layers.device), crop)

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
