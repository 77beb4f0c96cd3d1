"""The dense backward flow that carries one picture's landmarks to another frame's: a thin-plate spline.

Backward: for every pixel of the target, where in the source to look. The spline interpolates at the 68 target points
and at anchors on the border that stay where they are, is evaluated on a coarse grid and upsampled bilinearly; its
system depends on the target only. Two masks say where not to trust it: the inside of the mouth, which a closed mouth's
picture does not show, and places where the flow folds over or stretches, as on the far cheek of a turned head.

Points here are in pixels, x right, y down; pixel centres have whole-number coordinates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.face.model import INNER_LIP, N_POINTS

_SMOOTH_PX = 2.0  # bending is regularised as if landmarks closer than this were one place
_JACOBIAN_STEP_PX = 4  # finer steps would only see the seams of the coarse grid


def backward_grid(src: Tensor, dst: Tensor, height: int, width: int, grid: int = 48) -> Tensor:
    """Where in the source each target pixel looks: landmarks [B, 68, 2] of source and target -> [B, H, W, 2], pixels.

    grid: cells of the coarse grid along each side. The bending is lightly regularised, so that points that meet (a
    closed mouth's lips) or tremble by a fraction of a pixel don't tear the picture: landmarks are met to a fraction of
    a pixel, not exactly. Where src equals dst, the grid is the identity.
    """
    _check(src, dst)
    return upsample(coarse_grid(src, dst, height, width, grid), height, width)


def coarse_grid(src: Tensor, dst: Tensor, height: int, width: int, grid: int = 48) -> Tensor:
    """`backward_grid` at (grid + 1)² knots that span the picture corner to corner: [B, grid + 1, grid + 1, 2]."""
    anchors = border_anchors(height, width).to(dst).expand(len(dst), -1, -1)
    around = around_eyes(dst)
    centres = torch.cat([dst, around, anchors], dim=1)  # [B, P, 2], P = 68 + 10 + 16
    # What the spline interpolates: displacement.
    moves = torch.cat([src - dst, around_eyes(src) - around, torch.zeros_like(anchors)], dim=1)
    unit = float(max(height, width))  # the system is better conditioned in pictures than in pixels
    weights, affine = _solve_spline(centres / unit, moves, (_SMOOTH_PX / unit) ** 2)
    ys, xs = (torch.linspace(0, side - 1, grid + 1, dtype=dst.dtype, device=dst.device) for side in (height, width))
    knots = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)  # [grid + 1, grid + 1, 2]
    flat = (knots / unit).flatten(0, 1).expand(len(dst), -1, -1)
    moved = _kernel(flat, centres / unit) @ weights + F.pad(flat, (1, 0), value=1.0) @ affine
    return knots + moved.unflatten(1, (grid + 1, grid + 1))


def around_eyes(points: Tensor) -> Tensor:
    """Skin above and below the eyes, which a blink leaves where it is: landmarks [B, 68, 2] -> [B, 10, 2].

    Without it a closing lid drags the brow, and the rims of glasses, along. Sums of brows, eye corners and the nose
    with weights that add to 1: they move, turn and grow with the face, and the lids are not among them.
    """
    parts = []
    for outer, inner, brow, nose in ((36, 39, (18, 19, 20), 31), (45, 42, (25, 24, 23), 35)):
        along = [0.75 * points[:, outer] + 0.25 * points[:, inner], 0.25 * points[:, outer] + 0.75 * points[:, inner]]
        middle = (points[:, outer] + points[:, inner]) / 2
        corners = (along[0], middle, along[1])
        parts += [(points[:, b] + c) / 2 for b, c in zip(brow, corners, strict=True)]
        parts += [0.75 * c + 0.25 * points[:, nose] for c in along]
    return torch.stack(parts, dim=1)


def upsample(coarse: Tensor, height: int, width: int) -> Tensor:
    """Knots [B, h, w, C] that span the picture corner to corner -> [B, H, W, C], bilinear."""
    return F.interpolate(coarse.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=True).permute(
        0, 2, 3, 1
    )


def places(height: int, width: int, like: Tensor) -> Tensor:
    """Every pixel's own place [H, W, 2], x and y: the grid that changes nothing."""
    ys, xs = (torch.arange(n, dtype=like.dtype, device=like.device) for n in (height, width))
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)


def apply(image: Tensor, grid: Tensor) -> Tensor:
    """Look the source image [B or 1, C, H, W] up at grid [B, h, w, 2] (pixels) -> [B, C, h, w]; the border repeats."""
    if image.ndim != 4 or grid.ndim != 4 or grid.shape[-1] != 2:
        raise ValueError(f"warp needs [B, C, H, W] and [B, h, w, 2], got {list(image.shape)} and {list(grid.shape)}")
    height, width = image.shape[-2:]
    normalised = grid * grid.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)]) - 1
    image = image.expand(len(grid), -1, -1, -1)
    return F.grid_sample(image, normalised, mode="bilinear", padding_mode="border", align_corners=True)


def inner_mouth_mask(dst: Tensor, height: int, width: int, softness_px: float = 1.0) -> Tensor:
    """Inside of the lips (points 60-67 of [B, 68, 2]) -> [B, 1, H, W] in 0..1, one half on the outline.

    The distance to the polygon's outline, signed by the even-odd rule and divided by the softness. A mouth that is shut
    has no inside: its mask is about zero.
    """
    polygon = dst[:, list(INNER_LIP)]
    start, end = polygon[:, :, None, None], polygon.roll(-1, dims=1)[:, :, None, None]  # [B, 8, 1, 1, 2]
    low, high = _window(polygon, height, width, margin_px=6 * softness_px + 2)
    ys = torch.arange(low[1], high[1], dtype=dst.dtype, device=dst.device)
    xs = torch.arange(low[0], high[0], dtype=dst.dtype, device=dst.device)
    pixel = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)  # [h, w, 2]
    edge = end - start
    along = ((pixel - start) * edge).sum(dim=-1) / edge.square().sum(dim=-1).clamp(min=1e-9)
    nearest = start + along.clamp(0, 1)[..., None] * edge
    distance = (pixel - nearest).square().sum(dim=-1).amin(dim=1).clamp(min=1e-12).sqrt()  # [B, h, w]
    below = start[..., 1] > pixel[..., 1]
    crosses = below != (end[..., 1] > pixel[..., 1])
    slope = edge[..., 0] / torch.where(edge[..., 1].abs() < 1e-9, torch.ones_like(edge[..., 1]), edge[..., 1])
    left_of = pixel[..., 0] < start[..., 0] + slope * (pixel[..., 1] - start[..., 1])
    inside = (crosses & left_of).sum(dim=1) % 2 == 1
    soft = torch.sigmoid(2 * torch.where(inside, distance, -distance) / softness_px)
    # A sliver's two outlines lie within each other's softness and would leave half a mask: fade by its mean thickness.
    x, y = polygon.unbind(-1)
    area = (x * y.roll(-1, 1) - y * x.roll(-1, 1)).sum(dim=1).abs() / 2
    thickness = area / (polygon[:, 0] - polygon[:, 4]).norm(dim=-1).clamp(min=1.0)
    soft = soft * (thickness / softness_px).clamp(0, 1)[:, None, None]
    return F.pad(soft[:, None], (low[0], width - high[0], low[1], height - high[1]))


def visibility(grid: Tensor) -> Tensor:
    """Where the flow can be trusted: grid [B, H, W, 2] -> [B, 1, H, W] in 0..1, from its Jacobian.

    The determinant is how much of the source one target pixel covers: 1 for a shift, below 0 where the flow folds over,
    near 0 where one place of the source is smeared over many pixels. Full trust from 1/2 up, none from 1/8 down.
    """
    height, width = grid.shape[1:3]
    rows, columns = max(height // _JACOBIAN_STEP_PX, 2), max(width // _JACOBIAN_STEP_PX, 2)
    coarse = F.interpolate(grid.permute(0, 3, 1, 2), (rows, columns), mode="bilinear", align_corners=True)
    x, y = coarse[:, :, :-1, :-1].unbind(dim=1)  # the corner of each cell; differences to its neighbours
    step_x, step_y = (width - 1) / (columns - 1), (height - 1) / (rows - 1)
    x_by_x, y_by_x = (coarse[:, :, :-1, 1:].unbind(dim=1)[i] - (x, y)[i] for i in (0, 1))
    x_by_y, y_by_y = (coarse[:, :, 1:, :-1].unbind(dim=1)[i] - (x, y)[i] for i in (0, 1))
    area = (x_by_x * y_by_y - x_by_y * y_by_x) / (step_x * step_y)  # [B, rows - 1, columns - 1]
    trust = ((area - 0.125) / 0.375).clamp(0, 1)
    smooth = trust * trust * (3 - 2 * trust)
    return F.interpolate(smooth[:, None], (height, width), mode="bilinear", align_corners=False)


def border_anchors(height: int, width: int) -> Tensor:
    """16 points [16, 2] on the picture's border, corners included, evenly along each side."""
    quarter = torch.arange(4) / 4
    zero, one = torch.zeros(4), torch.ones(4)
    x = torch.cat([quarter, one, 1 - quarter, zero])
    y = torch.cat([zero, quarter, one, 1 - quarter])
    return torch.stack([x * (width - 1), y * (height - 1)], dim=-1)


def _check(src: Tensor, dst: Tensor) -> None:
    if src.shape != dst.shape or src.ndim != 3 or src.shape[1:] != (N_POINTS, 2):
        raise ValueError(f"a warp goes between landmarks [B, 68, 2], got {list(src.shape)} and {list(dst.shape)}")


def _kernel(points: Tensor, centres: Tensor) -> Tensor:
    """r² log r² between [B, N, 2] and [B, P, 2] -> [B, N, P]; zero at r = 0."""
    x, y = (points[:, :, None, i] - centres[:, None, :, i] for i in (0, 1))
    squared = x.square() + y.square()  # a third of the time of a sum over a last axis of two
    return squared * (squared + 1e-12).log()  # xlogy's gradient is infinite at zero


def _solve_spline(centres: Tensor, values: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Thin-plate spline through values [B, P, 2] at centres [B, P, 2]: kernel weights [B, P, 2], affine part [B, 3, 2].

    In float64: the system's condition number is about 1e8 where lips meet.
    """
    batch, n, _ = centres.shape
    centres, values_64 = centres.double(), values.double()
    system = centres.new_zeros(batch, n + 3, n + 3)
    system[:, :n, :n] = _kernel(centres, centres)
    system[:, :n, :n].diagonal(dim1=1, dim2=2).add_(smoothing)
    affine = F.pad(centres, (1, 0), value=1.0)
    system[:, :n, n:], system[:, n:, :n] = affine, affine.mT
    solved = torch.linalg.solve(system, F.pad(values_64, (0, 0, 0, 3)))
    return solved[:, :n].to(values.dtype), solved[:, n:].to(values.dtype)


def _window(points: Tensor, height: int, width: int, margin_px: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Whole-pixel box (x, y) low and high around points of the batch, inside the picture and never empty."""
    flat = points.detach().flatten(0, 1)
    sides = (width, height)
    low = [min(max(int(flat[:, i].min() - margin_px), 0), sides[i] - 1) for i in (0, 1)]
    high = [max(min(int(flat[:, i].max() + margin_px) + 2, sides[i]), low[i] + 1) for i in (0, 1)]
    return (low[0], low[1]), (high[0], high[1])
