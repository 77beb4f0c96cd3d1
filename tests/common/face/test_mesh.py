"""The z-buffer against a slow, exact one and against what geometry says; shading; the triangles between landmarks."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.face import mesh
from common.face.mesh import (
    GRID,
    REACH_PX,
    grey,
    interpolate,
    landmark_triangles,
    normal_colours,
    paint,
    rasterise,
    see,
    vertex_normals,
)
from common.face.model import BROWS, EYES, INNER_LIP, JAW, FaceModel


def slow(points: Tensor, triangles: Tensor, height: int, width: int) -> list[list[dict[int, Fraction]]]:
    """For every pixel the depth of each triangle there, in exact numbers.

    The top-left rule says the same as moving every pixel's centre to the right by an infinitesimal, and down by an
    infinitesimal of that: where an edge function is 0, its change to the right decides; where that is 0 too, down.
    """
    exact = [
        (Fraction(round(x * GRID), GRID), Fraction(round(y * GRID), GRID), Fraction(z))
        for x, y, z in points.double().tolist()
    ]
    found: list[list[dict[int, Fraction]]] = [[{} for _ in range(width)] for _ in range(height)]
    for number, corners in enumerate(triangles.tolist()):
        a, b, c = (exact[i] for i in corners)
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        for row in range(height):
            for column in range(width):
                shares = []
                for p, q in ((b, c), (c, a), (a, b)):
                    edge = (q[0] - p[0]) * (row - p[1]) - (q[1] - p[1]) * (column - p[0])
                    signs = [edge / area, (p[1] - q[1]) / area, (q[0] - p[0]) / area]
                    if next(sign for sign in signs if sign) < 0:
                        break
                    shares.append(edge / area)
                else:
                    found[row][column][number] = sum(
                        (share * corner[2] for share, corner in zip(shares, (a, b, c), strict=True)), Fraction(0)
                    )
    return found


def sheet(n: int, generator: torch.Generator, step: float = 0.5) -> tuple[Tensor, Tensor]:
    """A square sheet 0..n-1 of triangles, its inner corners moved about in steps of half a pixel; [V, 3], [F, 3]."""
    y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    points = torch.stack([x, y, torch.zeros_like(x)], dim=-1).float() * 4
    points[1:-1, 1:-1, :2] += step * torch.randint(-2, 3, (n - 2, n - 2, 2), generator=generator)
    number = torch.arange(n * n).view(n, n)
    a, b, c, d = (each.flatten() for each in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))
    return points.view(-1, 3), torch.cat([torch.stack([a, c, b], dim=1), torch.stack([b, c, d], dim=1)])


def sphere(radius: float, centre: tuple[float, float], n: int = 48) -> tuple[Tensor, Tensor]:
    """Longitudes and latitudes, counter-clockwise from outside; the poles are slivers without area."""
    angle, height = torch.arange(2 * n) * torch.pi / n, torch.linspace(0, torch.pi, n + 1)
    up, around = torch.meshgrid(height, angle, indexing="ij")
    x, y, z = up.sin() * around.cos(), -up.cos(), up.sin() * around.sin()
    points = radius * torch.stack([x, y, z], dim=-1).reshape(-1, 3) + torch.tensor([*centre, 0.0])
    number = torch.arange((n + 1) * 2 * n).view(n + 1, 2 * n)
    right = number.roll(-1, 1)
    a, b, c, d = (each.flatten() for each in (number[:-1], right[:-1], number[1:], right[1:]))
    return points, torch.cat([torch.stack([a, c, b], dim=1), torch.stack([b, c, d], dim=1)])


coordinate = st.integers(-20, 52).map(lambda k: k / 4)
corner = st.tuples(coordinate, coordinate, st.integers(-8, 8).map(float))


@settings(max_examples=40, deadline=None)
@given(points=st.lists(corner, min_size=3, max_size=7), data=st.data())
def test_same_as_exact_arithmetic_pixel_by_pixel(points: list[tuple[float, float, float]], data: st.DataObject) -> None:
    """Corners on quarters of a pixel: many edges run exactly through pixel centres."""
    number = st.integers(0, len(points) - 1)
    corners = data.draw(st.lists(st.tuples(number, number, number), max_size=6))
    p, triangles = torch.tensor(points), torch.tensor(corners, dtype=torch.int64).view(-1, 3)
    face, barycentric, depth = rasterise(p, triangles, 8, 9)
    expected = slow(p, triangles, 8, 9)
    for row in range(8):
        for column in range(9):
            there, shown = expected[row][column], int(face[row, column])
            assert (shown >= 0) == bool(there)
            if there:
                nearest = float(min(there.values()))
                assert float(there[shown]) == pytest.approx(nearest, abs=1e-5)  # equally near, to float32's rounding
                assert float(depth[row, column]) == pytest.approx(nearest, abs=1e-5)
                assert float(barycentric[row, column].sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_shared_edges_are_covered_exactly_once(seed: int) -> None:
    points, triangles = sheet(6, torch.Generator().manual_seed(seed))
    times = sum((rasterise(points, triangle[None], 24, 24)[0] >= 0).int() for triangle in triangles)
    assert isinstance(times, Tensor)
    # The sheet reaches from 0 to 20: its left and top edge belong to it, its right and bottom one don't.
    assert (times[:20, :20] == 1).all() and times.sum() == 400
    assert torch.equal(rasterise(points, triangles, 24, 24)[0] >= 0, times == 1)


def test_the_nearer_of_two_triangles_is_seen_also_where_they_cut_each_other() -> None:
    points = torch.tensor([[0.0, 0, -5], [20, 0, 5], [0, 20, -5], [0, 0, 0], [20, 0, 0], [0, 20, 0]])
    face, _, depth = rasterise(points, torch.tensor([[0, 2, 1], [3, 5, 4]]), 20, 20)
    row = face[3, :17]  # the first one's depth is -5 + x / 2, the second one's 0
    assert row.tolist() == [0] * 11 + [1] * 6
    assert torch.allclose(depth[3, :17], (torch.arange(17) / 2 - 5).clamp(max=0), atol=1e-5)


def test_depth_of_a_sphere() -> None:
    radius = 40.0
    points, triangles = sphere(radius, (50, 48))
    face, _, depth = rasterise(points, triangles, 96, 100)
    y, x = torch.meshgrid(torch.arange(96) - 48.0, torch.arange(100) - 50.0, indexing="ij")
    squared = x**2 + y**2
    inside = squared < (radius - 1) ** 2
    assert (face[inside] >= 0).all() and (face[squared > radius**2] == -1).all()
    # A chord over pi / 48 lies (1 - cos(pi / 96)) r = 0.02 px below the sphere, seen ever more steeply to the rim.
    steep = radius / (radius**2 - squared[inside]).sqrt()
    assert ((depth[inside] + (radius**2 - squared[inside]).sqrt()).abs() < 0.06 * steep).all()


def test_back_faces_make_no_difference_to_a_closed_surface_and_nothing_to_its_inside_out() -> None:
    points, triangles = sphere(20, (24.3, 23.6), n=16)  # no pixel's centre is on an edge at the rim, where both meet
    whole, culled = (rasterise(points, triangles, 48, 48, cull_back_faces=cull) for cull in (False, True))
    for one, other in zip(whole, culled, strict=True):
        assert torch.equal(one, other)
    _, _, depth = rasterise(points, triangles.flip(1), 48, 48, cull_back_faces=True)
    assert torch.equal(depth < torch.inf, whole[0] >= 0) and (depth[depth < torch.inf] > -1).all()  # the far side


def test_order_of_triangles_and_corners_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, generator=generator) * torch.tensor([40.0, 30.0, 20.0])
    triangles = torch.randint(60, (80, 3), generator=generator)
    face, barycentric, depth = rasterise(points, triangles, 30, 40)
    order = torch.randperm(80, generator=generator)
    face2, barycentric2, depth2 = rasterise(points, triangles[order].roll(1, 1), 30, 40)
    seen = face >= 0
    assert torch.equal(order[face2[seen]], face[seen]) and (face2[~seen] == -1).all()
    assert torch.allclose(barycentric2.roll(-1, 2), barycentric, atol=1e-6)
    assert torch.allclose(depth2[seen], depth[seen], atol=1e-5)


def test_positions_interpolated_over_the_picture_are_the_pixels_own() -> None:
    points, triangles = sphere(30, (32.3, 31.7), n=24)
    seen = see(points, triangles, 64, 64)
    at = interpolate(seen, triangles, points)
    assert torch.allclose(at[:, :2], torch.stack([seen.column, seen.row], dim=1).float(), atol=1.5 / GRID)
    assert torch.allclose(at[:, 2], seen.depth, atol=1e-4)


def test_parts_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points, triangles = sphere(20, (24, 24), n=16)
    whole = rasterise(points, triangles, 48, 48)
    monkeypatch.setattr(mesh, "_CHUNK", 7)  # less than a row of pixels
    for one, other in zip(whole, rasterise(points, triangles, 48, 48), strict=True):
        assert torch.equal(one, other)


def test_what_has_no_area_or_lies_outside_is_harmless() -> None:
    points = torch.tensor(
        [[2.0, 2, 0], [9, 2, 0], [2, 9, 0], [5, 5, -9], [1e9, 3, -9], [1e9, 1e20, -9], [-40, 4, -9], [-3, 5, -9]]
    )
    good = torch.tensor([[0, 2, 1]])
    bad = torch.tensor([[3, 3, 3], [0, 3, 3], [4, 5, 4], [4, 5, 5], [6, 7, 6], [6, 6, 7], [6, 7, 7]])
    alone = rasterise(points, good, 12, 12)
    for one, other in zip(alone, rasterise(points, torch.cat([good, bad]), 12, 12), strict=True):
        assert torch.equal(one, other)
    nothing = rasterise(points, good[:0], 12, 12)
    assert (nothing[0] == -1).all() and nothing[2].isinf().all()
    between = torch.tensor([[3.1, 3.1, 0], [3.9, 3.1, 0], [3.5, 3.9, 0]])  # between pixel centres
    assert (rasterise(between, torch.tensor([[0, 1, 2]]), 12, 12)[0] == -1).all()


def test_huge_triangles_are_drawn_and_impossible_ones_refused() -> None:
    reach = REACH_PX - 1.0
    points = torch.tensor([[-reach, -reach, 1.0], [-reach, reach, 1.0], [reach, 0, 1.0]])
    face, _, depth = rasterise(points, torch.tensor([[0, 1, 2]]), 64, 64)
    assert (face == 0).all() and torch.allclose(depth, torch.ones(()))
    with pytest.raises(ValueError, match="131072 pixels"):
        rasterise(points * 2, torch.tensor([[0, 1, 2]]), 64, 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_points_that_are_not_numbers_are_refused(value: float) -> None:
    points = torch.zeros(3, 3)
    points[1, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        rasterise(points, torch.tensor([[0, 1, 2]]), 8, 8)


@pytest.mark.parametrize(
    ("points", "triangles", "height"),
    [
        (torch.zeros(3, 2), torch.zeros(1, 3, dtype=torch.int64), 8),
        (torch.zeros(3, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64), 8),
        (torch.zeros(3, 3), torch.zeros(1, 3), 8),
        (torch.zeros(3, 3), torch.tensor([[0, 1, 3]]), 8),
        (torch.zeros(3, 3), torch.tensor([[0, 1, -1]]), 8),
        (torch.zeros(3, 3), torch.zeros(1, 3, dtype=torch.int64), 0),
    ],
)
def test_wrong_shapes_and_numbers_are_refused(points: Tensor, triangles: Tensor, height: int) -> None:
    with pytest.raises(ValueError, match=r"must be|picture has"):
        rasterise(points, triangles, height, 8)


def test_normals_of_a_sphere_point_outwards() -> None:
    points, triangles = sphere(1.0, (0, 0))
    normals = vertex_normals(points, triangles)
    away = (normals * points).sum(dim=1)[96:-96]  # without the poles, each a ring of points with a share of it
    assert (away > 0.999).all()
    assert torch.equal(vertex_normals(torch.rand(4, 3), torch.tensor([[0, 1, 2]]))[3], torch.zeros(3))


def test_shading_is_lambert_and_normal_colours_are_a_normal_maps() -> None:
    towards_light = torch.tensor(mesh._LIGHT)
    assert towards_light.norm() == pytest.approx(1, abs=1e-2)
    aside = torch.linalg.cross(towards_light, torch.tensor([1.0, 0, 0]))
    bright, dark, away = grey(torch.stack([towards_light, aside / aside.norm(), -towards_light]))
    assert bright.tolist() == pytest.approx([1, 1, 1], abs=1e-2)
    assert torch.allclose(dark, away) and dark.tolist() == pytest.approx([0.25] * 3, abs=1e-6)
    camera, up, right = torch.tensor([0.0, 0, -1]), torch.tensor([0.0, -1, 0]), torch.tensor([1.0, 0, 0])
    assert torch.equal(
        normal_colours(torch.stack([camera, up, right])),
        torch.tensor([[0.5, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 0.5]]),
    )


def test_paint_touches_only_what_is_seen_by_its_share() -> None:
    frame = torch.randint(256, (16, 18, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[2.0, 2, 0], [12, 3, 0], [5, 13, 0]])
    seen = see(points, torch.tensor([[0, 1, 2]]), 16, 18)
    colours = torch.rand(len(seen.row), 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(paint(frame, seen, colours, 0.0), frame)
    painted = paint(frame, seen, colours, 1.0)
    assert torch.equal(painted[seen.row, seen.column], (255 * colours).round().to(torch.uint8))
    untouched = torch.ones(16, 18, dtype=torch.bool)
    untouched[seen.row, seen.column] = False
    assert torch.equal(painted[untouched], frame[untouched])
    half = paint(frame, seen, colours, 0.5).float()
    assert ((half - (frame.float() + painted.float()) / 2).abs() <= 1).all()


def edges_once(triangles: Tensor) -> set[tuple[int, int]]:
    """Directed edges whose reverse no other triangle has: the rims."""
    directed = {(t[i], t[(i + 1) % 3]) for t in triangles.tolist() for i in range(3)}
    assert len(directed) == 3 * len(triangles)  # a surface whose sides agree
    return {(a, b) for a, b in directed if (b, a) not in directed}


def test_landmark_mesh_is_a_face_with_three_holes() -> None:
    mean = FaceModel.builtin().mean
    triangles = landmark_triangles(mean)
    assert set(triangles.flatten().tolist()) == set(range(68))
    n_edges = len({frozenset(pair) for t in triangles.tolist() for pair in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))})
    assert 68 - n_edges + len(triangles) == 1 - 3  # Euler: a disc with three holes
    rims = edges_once(triangles)
    for hole in (EYES[:6], EYES[6:], INNER_LIP):
        ring = {frozenset((hole[i - 1], hole[i])) for i in range(len(hole))}
        assert ring == {frozenset(edge) for edge in rims if set(edge) <= set(hole)}
    outline = {i for edge in rims for i in edge} - {*EYES, *INNER_LIP}
    assert set(JAW) <= outline <= {*JAW, *BROWS, 27}
    side = mean[triangles][..., :2]
    one, other = side[:, 1] - side[:, 0], side[:, 2] - side[:, 0]
    area = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
    outer = ~torch.isin(triangles, torch.tensor(INNER_LIP)).any(dim=1)  # Delaunay's mouth was open, this one isn't
    assert (area[outer] > 0).all()  # counter-clockwise, seen from the camera


def test_landmark_mesh_of_anything_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[68, 3\]"):
        landmark_triangles(torch.zeros(67, 3))
