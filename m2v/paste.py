"""`--framing full`: the whole picture, its face replaced by what a renderer made of the square around it.

A renderer's frame is small; the picture need not be. Scaling the frame up would make a soft face in a sharp picture, so
only what is new is taken from it. The frame is, nearly, the square warped along the landmarks or standing still, both of
which the picture has at full size: warp it there by the same flow, and add the (low-resolution) difference to the frame:

    out = W (a · warped + (1 − a) · still + smooth difference) + (1 − W) · frame

a: how much a place was taken from the warp, judged by likeness, from the renderer's own share; W: how far the picture's
detail still holds there, none inside a mouth that moved and where the frame has structure that the picture has not.
All of it happens within a mask around the head's old and new place. Towards its border the flow and the difference fade
to nothing: nothing is cross-faded that lies in two places, so that there is no double edge. Before that the difference's
slow part along the border is taken out of the whole of it: a frame in another light than the picture leaves no rim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from common.face import warp
from common.face.framing import FOREHEAD, HAIR, Crop
from m2v.rendered import Rendered

GROW, NECK, FEATHER = 0.06, 0.3, 0.3  # of the mask, in heights of the landmarks (brows to chin)
MARGIN = 0.07  # of the crop's side: the mask fades to zero before the crop's border, where the picture goes on
SLOW_PX = 2.5  # of the frame: differences slower than this are light and shade, faster ones structure
STRUCTURE = 5.0  # levels of structure that the picture does not have, where half of its detail is let go
NOISE = 2.0  # levels: below, a frame is equally like everything
CAST_CELLS, CAST_WIDTH = 32, 5.0  # colour casts are known on a coarse grid, over a Gaussian of that many cells


@dataclass(frozen=True)
class Original:
    """What is known of a picture before any frame is made: the same for all frames of a still picture.

    square: the crop at its own size, float32 [1, 3, side, side], 0..255; small: as the renderer saw it, [1, 3, h, h];
    source: [1, 68, 2] landmarks in pixels of `small`.
    """

    picture: np.ndarray
    square: Tensor
    small: Tensor
    source: Tensor


class Paster:
    """For frames of one crop of pictures width x height; of a crop that follows a face, one for every place it has.

    What the last picture and its landmarks need is kept: a picture that is the same array as before is taken to be
    unchanged. Memory is that of the crop, whatever the number of frames.
    """

    def __init__(self, crop: Crop, width: int, height: int, device: torch.device | str = "cpu") -> None:
        x1, y1 = crop.x0 + crop.side, crop.y0 + crop.side
        if crop.side < 1 or crop.x0 < 0 or crop.y0 < 0 or x1 > width or y1 > height:
            raise ValueError(f"the crop {crop} does not lie in a picture of {width}x{height}")
        self.crop, self.width, self.height = crop, width, height
        self.device = torch.device(device)
        self.edge = _edge_fade(crop, width, height).to(self.device)  # [h, h]
        self.original: Original | None = None

    @torch.inference_mode()
    def paste(self, picture: np.ndarray, source: Tensor, target: Tensor, rendered: Rendered) -> np.ndarray:
        """The picture uint8 [H, W, 3] with its face as in `rendered` → uint8 [H, W, 3], a new array.

        source, target: [68, 2] in pixels of the crop, of the picture's face and of the frame's. Raises ValueError where
        sizes do not fit.
        """
        original = self._original(picture, source)
        self._check(target, rendered)
        target = target[None].to(original.source)
        frame, share = (part[None].to(self.device, torch.float32) for part in (rendered.frame, rendered.share))
        mask = self._mask(original.source, target)
        layers = _layers(original, target, frame, share, mask)
        result = picture.copy()
        box = _box(mask[0, 0] > 0, self.crop)
        if box is not None:
            x0, y0, x1, y1 = box
            patch = _compose(original.square, layers, self.crop, box)
            result[self.crop.y0 + y0 : self.crop.y0 + y1, self.crop.x0 + x0 : self.crop.x0 + x1] = patch
        return result

    def mask(self, source: Tensor, target: Tensor) -> np.ndarray:
        """How far the picture may be changed, float32 [H, W] in 0..1; where it is 0, it is not."""
        mask = self._mask(source[None].to(self.device), target[None].to(self.device))
        whole = np.zeros((self.height, self.width), np.float32)
        box = _box(mask[0, 0] > 0, self.crop)
        if box is not None:
            x0, y0, x1, y1 = box
            rows, columns = (_cubic(low, high, high - low, self.crop).to(mask) for low, high in ((y0, y1), (x0, x1)))
            part = (rows.abs() > 0).to(mask) @ mask[0, 0] @ (columns.abs() > 0).to(mask).mT
            part = torch.where(part > 0, (rows @ mask[0, 0] @ columns.mT).clamp(1e-6, 1), part)
            whole[self.crop.y0 + y0 : self.crop.y0 + y1, self.crop.x0 + x0 : self.crop.x0 + x1] = part.cpu().numpy()
        return whole

    def _mask(self, source: Tensor, target: Tensor) -> Tensor:
        return (head_mask(source[0], target[0], self.crop.size_px) * self.edge)[None, None]

    def _original(self, picture: np.ndarray, source: Tensor) -> Original:
        if picture.shape != (self.height, self.width, 3) or picture.dtype != np.uint8:
            raise ValueError(
                f"a picture is uint8 [{self.height}, {self.width}, 3] here, got {picture.dtype} {list(picture.shape)}"
            )
        if source.shape != (68, 2):
            raise ValueError(f"a face has landmarks [68, 2] in pixels of the crop, got {list(source.shape)}")
        source = source[None].to(self.device, torch.float32)
        last = self.original
        if last is None or last.picture is not picture:
            c = self.crop
            square = picture[c.y0 : c.y0 + c.side, c.x0 : c.x0 + c.side]
            self.original = Original(picture, *(self._tensor(each) for each in (square, c.cut(picture))), source)
        elif not torch.equal(last.source, source):
            self.original = Original(picture, last.square, last.small, source)
        assert self.original is not None
        return self.original

    def _tensor(self, picture: np.ndarray) -> Tensor:
        """uint8 [h, w, 3] → float32 [1, 3, h, w]."""
        pixels = torch.from_numpy(picture.copy()).to(self.device)
        return pixels.movedim(-1, 0)[None].to(torch.float32, memory_format=torch.contiguous_format)

    def _check(self, target: Tensor, rendered: Rendered) -> None:
        h = self.crop.size_px
        if target.shape != (68, 2):
            raise ValueError(f"a frame has landmarks [68, 2] in pixels of the crop, got {list(target.shape)}")
        if rendered.frame.shape != (3, h, h) or rendered.share.shape != (1, h, h):
            raise ValueError(
                f"a frame of this crop is [3, {h}, {h}] and its share [1, {h}, {h}], got {list(rendered.frame.shape)} "
                f"and {list(rendered.share.shape)}"
            )


# ---- in the renderer's pixels ---------------------------------------------------------------------------------------


def head_mask(source: Tensor, target: Tensor, size_px: int) -> Tensor:
    """A head's old and new place, from landmarks [68, 2] of both: float32 [h, h], 1 within, 0 from a feather away."""
    points, height = zip(*(_outline(each.double().cpu().numpy()) for each in (source, target)), strict=True)
    polygon = _hull(np.concatenate(points))
    unit = max(height)
    n = max(size_px // 4, 2)  # the distance is smooth
    at = np.linspace(0, size_px - 1, n)
    away = _distance(polygon, at, at) - GROW * unit
    faded = torch.from_numpy(1 - away / max(FEATHER * unit, 1.0)).to(source.device, torch.float32)
    faded = F.interpolate(faded[None, None], (size_px, size_px), mode="bilinear", align_corners=True)[0, 0]
    return _smooth_step(faded)


def _outline(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Landmarks with points around hair and neck added, [N, 2], and the landmarks' height along the face."""
    chin, brows = points[8], points[17:27].mean(axis=0)
    up = (brows - chin) / max(float(np.linalg.norm(brows - chin)), 1e-6)
    along = points @ up
    height = float(along.max() - along.min())
    # Hair: of the mesh, which reaches above the landmarks by FOREHEAD, add HAIR.
    rise = (FOREHEAD + HAIR * (1 + FOREHEAD)) * height
    top = points[[0, 1, 2, 14, 15, 16, *range(17, 27)]]
    lift = (along.max() + rise - top @ up)[:, None] * up
    lift[:6] *= 0.75  # a head is round: above the ears less than above the brows
    neck = points[4:13] - NECK * height * up
    return np.concatenate([points, top + lift, neck]), height


def _hull(points: np.ndarray) -> np.ndarray:
    """Corners [K, 2] of the convex hull, in order; of points in a line, the points."""
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:
        return points


def _distance(polygon: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """From grid points to a convex polygon [K, 2]: [rows, columns], 0 inside."""
    at = np.stack(np.meshgrid(xs, ys), axis=-1)[:, :, None]  # [rows, columns, 1, 2]
    start = polygon
    edge = np.roll(polygon, -1, axis=0) - start
    from_start = at - start
    along = (from_start * edge).sum(-1) / np.maximum((edge * edge).sum(-1), 1e-9)
    nearest = from_start - along.clip(0, 1)[..., None] * edge
    side = edge[:, 0] * from_start[..., 1] - edge[:, 1] * from_start[..., 0]
    inside = (side >= 0).all(-1) | (side <= 0).all(-1)
    return np.where(inside, 0.0, np.sqrt((nearest * nearest).sum(-1).min(-1)))


def _edge_fade(crop: Crop, width: int, height: int) -> Tensor:
    """1 inside the crop, falling to 0 before those of its sides behind which the picture goes on: [h, h]."""
    at = torch.arange(crop.size_px, dtype=torch.float32)
    ends = crop.size_px - 1 - at
    fades = []
    for low, high, side in ((crop.y0, crop.y0 + crop.side, height), (crop.x0, crop.x0 + crop.side, width)):
        inward = torch.full_like(at, torch.inf)
        inward = torch.minimum(inward, at) if low > 0 else inward
        inward = torch.minimum(inward, ends) if high < side else inward
        # The last pixels are not touched at all: what is scaled up reaches two pixels further.
        fades.append(_smooth_step((inward - 3) / (MARGIN * crop.size_px)))
    return fades[0][:, None] * fades[1]


def _layers(original: Original, target: Tensor, frame: Tensor, share: Tensor, mask: Tensor) -> Tensor:
    """What the result is made of, in pixels of the frame: [1, 7, h, h].

    Added colour (3), weight of the warp, of the warp and the still picture together, and the flow x, y.
    """
    height, width = frame.shape[-2:]
    grid = warp.backward_grid(original.source, target, height, width)
    flow = (grid - _pixels(height, width, grid)).movedim(-1, 1)  # [1, 2, h, w]
    warped, still = warp.apply(original.small, grid), original.small
    taken = _taken(frame, warped, still, share)
    mixed = still + taken * (warped - still)
    difference = frame - mixed
    inner = warp.inner_mouth_mask(target, height, width) * _mouth_moved(original.source, target)
    detail = _detail(frame, mixed) * (1 - inner)
    cast = _cast(difference, mask)
    kept = 1 - mask * (1 - detail)
    added = mask * detail * (_blur(difference, SLOW_PX) - cast) + (1 - kept) * (frame - cast)
    return torch.cat([added, kept * taken, kept, mask * flow], dim=1)


def _taken(frame: Tensor, warped: Tensor, still: Tensor, share: Tensor) -> Tensor:
    """How much of each place comes from the warp, [1, 1, h, w]: the renderer's share, corrected by likeness."""
    unlike_warped, unlike_still = (
        (_blur((frame - each).square().mean(dim=1, keepdim=True), 2.0) + NOISE**2).square() for each in (warped, still)
    )
    warps = share * unlike_still
    return warps / (warps + (1 - share) * unlike_warped)


def _detail(frame: Tensor, mixed: Tensor) -> Tensor:
    """How far the picture's detail holds in the frame: [1, 1, h, w], 1 where the frame has no structure of its own.

    The part of the frame's fine structure that a multiple of the picture's doesn't explain, against STRUCTURE. A frame
    that is just softer than the picture is explained.
    """
    fine = [(each - _blur(each, SLOW_PX)).mean(dim=1, keepdim=True) for each in (frame, mixed)]
    energy, theirs = (_blur(each.square(), 2.0) for each in fine)
    common = _blur(fine[0] * fine[1], 2.0).clamp(min=0)
    own = (energy - common.square() / (theirs + 1e-3)).clamp(min=0)
    return 1 / (1 + (own / STRUCTURE**2).square())


def _mouth_moved(source: Tensor, target: Tensor) -> Tensor:
    """0 where the lips keep their shape, 1 where they changed it by 2 pixels: [1, 1, 1, 1]."""
    move = (target - source)[:, 48:]
    change = (move - move.mean(dim=1, keepdim=True)).norm(dim=-1).amax(dim=1)
    return _smooth_step((change - 0.25) / 1.75).view(-1, 1, 1, 1)


def _cast(difference: Tensor, mask: Tensor) -> Tensor:
    """The difference's slow part along the mask's border, carried on across it: [1, 3, h, w].

    A normalised Gaussian average; places whose difference is far from the border's median (hair that moved) count less.
    """
    band = 4 * mask * (1 - mask)
    if float(band.sum()) <= 0:
        return torch.zeros_like(difference)
    cells = (CAST_CELLS, CAST_CELLS)
    within = band[0, 0] > 0.25
    middle = difference[0, :, within].median(dim=1).values.view(1, 3, 1, 1) if within.any() else 0.0
    off = (difference - middle).square().mean(dim=1, keepdim=True)
    weight = band / (1 + off / (2 * NOISE) ** 2)
    carried, weights = (F.adaptive_avg_pool2d(each, cells) for each in (weight * difference, weight))
    wide, total = (_blur(each, CAST_WIDTH) + 1e-3 * each.mean(dim=(2, 3), keepdim=True) for each in (carried, weights))
    return F.interpolate(wide / total, difference.shape[-2:], mode="bilinear", align_corners=False)


def _blur(x: Tensor, sigma_px: float) -> Tensor:
    """Gaussian, the border repeated: [1, C, h, w]."""
    reach = min(int(3 * sigma_px + 0.5), min(x.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-at.square() / (2 * sigma_px**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None], groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[..., None], groups=x.shape[1])


def _smooth_step(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    ys, xs = (torch.arange(n, dtype=like.dtype, device=like.device) for n in (height, width))
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)


# ---- in the picture's pixels ----------------------------------------------------------------------------------------

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the square at its own size


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


def _cubic(low: int, high: int, n: int, crop: Crop) -> Tensor:
    """Weights [n, h] that interpolate the frame's pixels at n places from pixel low to high - 1 of the square (Keys)."""
    at = torch.linspace(low, high - 1, n, dtype=torch.float64)
    at = ((at + 0.5) * (crop.size_px / crop.side) - 0.5)[:, None]
    knots = torch.arange(-2, crop.size_px + 2, dtype=torch.float64)
    d = (at - knots).abs()
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = torch.where(d < 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
    inner = weights[:, 2:-2].clone()  # beyond the border its pixels repeat
    inner[:, 0] += weights[:, :2].sum(dim=1)
    inner[:, -1] += weights[:, -2:].sum(dim=1)
    return inner.float()


def _compose(square: Tensor, layers: Tensor, crop: Crop, box: Box) -> np.ndarray:
    """The box of the square, made of the layers: uint8 [rows, columns, 3]."""
    x0, y0, x1, y1 = box
    height, width = y1 - y0, x1 - x0
    zoom = crop.side / crop.size_px
    # Cubic to at most twice the frame's pixels, bilinear from there: as smooth as cubic to the eye, at half its cost.
    rows, columns = (min(n, max(round(2 * n / zoom), 2)) for n in (height, width))
    up, across = _cubic(y0, y1, rows, crop).to(layers), _cubic(x0, x1, columns, crop).to(layers)
    layers = (up @ layers) @ across.mT
    layers = F.interpolate(layers, (height, width), mode="bilinear", align_corners=True)
    added, warps, kept, flow = layers.split([3, 1, 1, 2], dim=1)
    ys = torch.arange(y0, y1, dtype=torch.float32, device=square.device)[:, None]
    xs = torch.arange(x0, x1, dtype=torch.float32, device=square.device)
    to_unit = 2 / max(crop.side - 1, 1)
    grid = torch.stack([(flow[:, 0] * zoom + xs) * to_unit - 1, (flow[:, 1] * zoom + ys) * to_unit - 1], dim=-1)
    warped = F.grid_sample(square, grid, mode="bicubic", padding_mode="border", align_corners=True)
    still = square[..., y0:y1, x0:x1]
    result = (warped - still).mul_(warps).add_(added).addcmul_(kept, still)
    return result.round_().clamp_(0, 255)[0].to(torch.uint8).movedim(0, -1).cpu().numpy()
