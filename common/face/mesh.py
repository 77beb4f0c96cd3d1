"""Triangle meshes in a picture: an orthographic z-buffer in plain torch, and simple shading.

Everything is in image coordinates as elsewhere: pixels, x right, y down, z negative towards the camera, a pixel's
centre at whole numbers. `see` decides which triangle each pixel shows. Positions are rounded to 1/1024 of a pixel, so
that what lies inside a triangle is decided in whole numbers, without rounding: with the top-left rule of graphics
hardware (a pixel centre on an edge belongs to the triangle whose left or top edge it is) a mesh without holes has none
in the picture, and no pixel belongs to both sides of an edge.

No loop runs over triangles or pixels: triangles are cut into rows, rows into pixels, and the nearest one stays
(`scatter_reduce`). On any device; not differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from common.face.model import BROWS, INNER_LIP, LEFT_EYE, N_POINTS, RIGHT_EYE

GRID = 1024  # places per pixel
REACH_PX = 2**17  # corners of a visible triangle must lie within it: products of positions then fit 63 bits
_CHUNK = 1 << 18  # rows of triangles, or pixels of them, at a time: some 100 MB
_EMPTY = 2**63 - 1
_LIGHT = (-0.26, -0.40, -0.88)  # where it comes from: above the camera, at its left; of length 1
_AMBIENT = 0.25
_LOWER_LIP = (55, 56, 57, 58, 59, 65, 66, 67)


@dataclass(frozen=True)
class Visible:
    """The N pixels that show a mesh, row by row.

    row, column, face: [N] int64; barycentric: [N, 3] float32, of the face's corners, sum 1; depth: [N] float32, z.
    """

    row: Tensor
    column: Tensor
    face: Tensor
    barycentric: Tensor
    depth: Tensor


def rasterise(
    points: Tensor, triangles: Tensor, height: int, width: int, cull_back_faces: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`see` as pictures: face [H, W] int64 (-1: none), barycentric [H, W, 3] float32 (0) and depth [H, W] (inf)."""
    seen = see(points, triangles, height, width, cull_back_faces)
    face = torch.full((height, width), -1, device=points.device)
    barycentric = torch.zeros(height, width, 3, device=points.device)
    depth = torch.full((height, width), torch.inf, device=points.device)
    at = (seen.row, seen.column)
    face[at], barycentric[at], depth[at] = seen.face, seen.barycentric, seen.depth
    return face, barycentric, depth


def see(points: Tensor, triangles: Tensor, height: int, width: int, cull_back_faces: bool = False) -> Visible:
    """The nearest triangle at every pixel of a picture of height x width.

    points: [V, 3], pixels; triangles: [F, 3] int64, numbers of points; in front is what is counter-clockwise as seen
    (`cull_back_faces` leaves out the rest). Of equally near triangles, the first. Triangles without area, outside the
    picture or between pixel centres show nothing. Raises ValueError for points that are not finite, for shapes and
    numbers that don't fit, and for a visible triangle that reaches further than 131072 pixels.
    """
    check(points, triangles, height, width)
    grid = (points.double() * GRID).round()  # float64, as positions far outside must not overflow
    x, y = _rows(grid[:, 0], triangles), _rows(grid[:, 1], triangles)  # [F, 3]
    first_row, last_row = _whole_within(y, height)
    first_column, last_column = _whole_within(x, width)
    kept = ((first_row <= last_row) & (first_column <= last_column)).nonzero()[:, 0]
    x, y = _rows(x, kept), _rows(y, kept)
    if len(kept) and max(float(x.abs().max()), float(y.abs().max())) > REACH_PX * GRID:
        raise ValueError(f"a triangle in the picture reaches further than {REACH_PX} pixels: scale the mesh down")
    x, y = x.long(), y.long()
    twice_area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (y[:, 1] - y[:, 0]) * (x[:, 2] - x[:, 0])
    shown = twice_area < 0 if cull_back_faces else twice_area != 0  # y down: counter-clockwise is negative
    inside = shown.nonzero()[:, 0]
    kept = kept[inside]
    edges = _Edges.of(_rows(x, inside), _rows(y, inside), twice_area[inside])
    z = _rows(points[:, 2].double(), _rows(triangles, kept))  # [K, 3]
    first_row, z_slope = first_row[kept], edges.slope(z)  # along a row

    top = int(first_row.min()) if len(kept) else 0
    n_rows = int(last_row[kept].max()) + 1 - top if len(kept) else 0
    nearest = torch.full((n_rows * width,), _EMPTY, device=points.device)  # of the rows that the mesh may touch
    for triangle, step in _expand(last_row[kept] - first_row + 1):
        row = _rows(first_row, triangle) + step
        start, length, is_there = edges.spans(triangle, row, width)
        triangle, row, start, length = (_rows(value, is_there) for value in (triangle, row, start, length))
        depth = torch.einsum("nc,nc->n", edges.barycentric(triangle, row, start), _rows(z, triangle))
        slope = _rows(z_slope, triangle)
        pixel = (row - top) * width + start
        for part, step in _expand(length):
            key = _key(_rows(depth, part) + _rows(slope, part) * step, _rows(triangle, part))
            nearest.scatter_reduce_(0, _rows(pixel, part) + step, key, "amin")

    pixel = (nearest != _EMPTY).nonzero()[:, 0]
    winner = _rows(nearest, pixel) & 0xFFFFFFFF
    row, column = pixel // width + top, pixel % width
    barycentric = edges.barycentric(winner, row, column)
    depth = torch.einsum("nc,nc->n", barycentric, _rows(z, winner))
    return Visible(row, column, _rows(kept, winner), barycentric.float(), depth.float())


@dataclass(frozen=True)
class _Edges:
    """Edge functions of K triangles in whole numbers: a x + b y + c, at places x, y, is at least 0 inside.

    a, b, c: [K, 3] int64, edge i lies opposite corner i and reaches twice_area [K] there; closed: [K, 3], 0 where
    the edge itself belongs to the triangle and -1 where it doesn't.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    closed: Tensor
    twice_area: Tensor

    @staticmethod
    def of(x: Tensor, y: Tensor, twice_area: Tensor) -> _Edges:
        sign = twice_area.sign()[:, None]
        x_from, y_from, x_to, y_to = x.roll(-1, 1), y.roll(-1, 1), x.roll(-2, 1), y.roll(-2, 1)
        a, b = (y_from - y_to) * sign, (x_to - x_from) * sign
        is_left_or_top = (a > 0) | ((a == 0) & (b > 0))
        return _Edges(a, b, -(a * x_from + b * y_from), is_left_or_top.long() - 1, twice_area.abs())

    def barycentric(self, triangle: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Coordinates of pixel centres in their triangles, [n, 3] float64: in float32 slivers would lose them."""
        by_column = _rows(self.a, triangle) * (column * GRID)[:, None]
        by_row = _rows(self.b, triangle) * (row * GRID)[:, None]
        return (by_column + by_row + _rows(self.c, triangle)).double() / _rows(self.twice_area, triangle)[:, None]

    def slope(self, values: Tensor) -> Tensor:
        """Change from column to column, [K], of what has these values [K, 3] at the corners."""
        return torch.einsum("kc,kc->k", self.a.double(), values) * GRID / self.twice_area

    def spans(self, triangle: Tensor, row: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """First column and number of columns of each triangle's row [n], and which rows have any."""
        a = _rows(self.a, triangle)  # [n, 3]
        rest = _rows(self.b, triangle) * (row * GRID)[:, None] + _rows(self.c + self.closed, triangle)
        crossing = torch.div(rest, (a.abs() * GRID).clamp(min=1), rounding_mode="floor")
        start = _most(torch.where(a > 0, -crossing, 0), torch.maximum)  # the edges to the left
        end = _most(torch.where(a < 0, crossing, width - 1), torch.minimum)  # to the right
        # A level edge bounds rows, not columns: all of the row lies inside it or none.
        beyond = _most(torch.where(a == 0, rest, 0), torch.minimum) < 0
        return start, end - start + 1, ((start <= end) & ~beyond).nonzero()[:, 0]


def _rows(values: Tensor, numbers: Tensor) -> Tensor:
    """values[numbers], [..., C] of [n, C] or [...] of [n]; index_select takes a quarter of the time of indexing."""
    return values.index_select(0, numbers.flatten()).view(*numbers.shape, *values.shape[1:])


def _most(values: Tensor, of_two: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The greatest or least of three [n, 3] -> [n]; torch's own reduction of whole numbers is 40 times slower."""
    first, second, third = values.unbind(1)
    return of_two(of_two(first, second), third)


def _whole_within(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The first and last whole pixel in 0..n-1 between the least and the greatest of values [F, 3] (places): [F]."""
    first, last = (_most(values, torch.minimum) / GRID).ceil(), (_most(values, torch.maximum) / GRID).floor()
    return first.clamp(0, n).long(), last.clamp(-1, n - 1).long()


def _expand(lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each of lengths [n] as so many rows (its number, 0..length - 1), [m] each; in parts of bounded size."""
    ends = lengths.cumsum(dim=0)
    first, done = 0, 0
    while first < len(lengths):
        stop = max(int(torch.searchsorted(ends, done + _CHUNK, right=True)), first + 1)
        number = torch.arange(first, stop, device=lengths.device).repeat_interleave(lengths[first:stop])
        step = torch.arange(done, done + len(number), device=lengths.device) - _rows(ends - lengths, number)
        yield number, step
        first, done = stop, int(ends[stop - 1])


def _key(depth: Tensor, triangle: Tensor) -> Tensor:
    """Depth, then number of the triangle, as one int64 [n] of the same order."""
    bits = (depth.float() + 0.0).view(torch.int32)  # + 0: there is no zero below zero
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # floats below zero count backwards
    return ordered.long() << 32 | triangle


def check(points: Tensor, triangles: Tensor, height: int, width: int) -> None:
    """Raise ValueError unless this can be seen: points [V, 3], finite; triangles [F, 3] int64, numbers of points."""
    if points.ndim != 2 or points.shape[1] != 3 or not points.is_floating_point():
        raise ValueError(f"points must be floats [V, 3], got {points.dtype} {list(points.shape)}")
    if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.dtype != torch.int64:
        raise ValueError(f"triangles must be int64 [F, 3], got {triangles.dtype} {list(triangles.shape)}")
    if not 0 < height <= 65536 or not 0 < width <= 65536:
        raise ValueError(f"a picture has 1 to 65536 rows and columns, got {height} and {width}")
    if not points.isfinite().all():
        raise ValueError("points hold numbers that are not finite: check the pose and the coefficients")
    if len(triangles) and not 0 <= int(triangles.min()) <= int(triangles.max()) < len(points):
        low, high = int(triangles.min()), int(triangles.max())
        raise ValueError(f"triangles must be numbers of the {len(points)} points, got {low} to {high}")


def interpolate(seen: Visible, triangles: Tensor, values: Tensor) -> Tensor:
    """Values [V, C] of the points, at the visible pixels: [N, C]."""
    corners = _rows(triangles, seen.face)  # [N, 3]
    return torch.einsum("nk,nkc->nc", seen.barycentric, _rows(values, corners))


def vertex_normals(points: Tensor, triangles: Tensor) -> Tensor:
    """Unit normals [V, 3] of points [V, 3], outwards; 0 without a triangle. Larger triangles count more."""
    a, b, c = (_rows(points, corners) for corners in triangles.unbind(1))
    across = torch.linalg.cross(b - a, c - a)  # [F, 3], as long as twice the area
    total = torch.zeros_like(points)
    for i in range(3):
        total.index_add_(0, triangles[:, i], across)
    return total / total.norm(dim=1, keepdim=True).clamp(min=torch.finfo(points.dtype).tiny)


def grey(normals: Tensor) -> Tensor:
    """Lambert's shading of a white, dull surface under one light: normals [..., 3] -> brightness [..., 3] in 0..1."""
    lit = (normals @ normals.new_tensor(_LIGHT)).clamp(0, 1)
    return (_AMBIENT + (1 - _AMBIENT) * lit)[..., None].expand(*normals.shape)


def normal_colours(normals: Tensor) -> Tensor:
    """Normals [..., 3] as colours in 0..1, as normal maps show them: red to the right, green up, blue to the camera."""
    return (normals * normals.new_tensor([1.0, -1.0, -1.0]) + 1) / 2


def paint(frame: Tensor, seen: Visible, colours: Tensor, alpha: float) -> Tensor:
    """A copy of a frame uint8 [H, W, 3] with colours [N, 3] in 0..1 over its visible pixels, alpha of them."""
    painted = frame.reshape(-1, 3).clone()
    at = seen.row * frame.shape[1] + seen.column
    mixed = torch.lerp(painted.index_select(0, at).float(), 255 * colours, alpha)
    painted.index_copy_(0, at, mixed.round().clamp(0, 255).to(torch.uint8))
    return painted.view(frame.shape)


def landmark_triangles(landmarks: Tensor) -> Tensor:
    """Triangles [F, 3] between the 68 landmarks of a face in rest [68, 3] (face space), eyes and mouth left open.

    Delaunay's, in the frontal plane, over a mouth that is held open: closed lips would be sewn together. The outline is
    jaw and brows.
    """
    from scipy.spatial import Delaunay

    if landmarks.shape != (N_POINTS, 3):
        raise ValueError(f"landmarks must be [68, 3], got shape {list(landmarks.shape)}")
    flat = landmarks[:, :2].double().clone()
    mouth_width = float((landmarks[54] - landmarks[48]).norm())
    flat[_LOWER_LIP, 1] -= 0.15 * mouth_width
    corners = torch.from_numpy(Delaunay(flat.numpy()).simplices).long()  # counter-clockwise
    holes = [torch.isin(corners, torch.tensor(hole)).all(dim=1) for hole in (LEFT_EYE, RIGHT_EYE, INNER_LIP, BROWS)]
    return corners[~torch.stack(holes).any(dim=0)]
