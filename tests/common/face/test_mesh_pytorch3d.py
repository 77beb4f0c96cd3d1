"""The same mesh through pytorch3d, where it is installed, and through our own z-buffer."""

import pytest
import torch
from torch import Tensor

from common.face import mesh, mesh_pytorch3d
from common.face.model import FaceModel

pytest.importorskip("pytorch3d.renderer.mesh.rasterize_meshes", exc_type=ImportError)


def crumpled(n_points: int, n_triangles: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Triangles all over a picture of width and height, and beyond it."""
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([1.4 * size[0], 1.4 * size[1], 60.0])
    points = torch.rand(n_points, 3, generator=generator) * extent - 0.2 * extent
    return points, torch.randint(n_points, (n_triangles, 3), generator=generator)


def face_at(height: int, width: int) -> tuple[Tensor, Tensor]:
    mean = FaceModel.builtin().mean
    turned = mean * mean.new_tensor([1, -1, -1]) * (0.8 * height) + mean.new_tensor([width / 2 + 0.3, height / 2, 0])
    return turned, mesh.landmark_triangles(mean)


@pytest.mark.parametrize("culled", [False, True])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (60, 91), (91, 60)])
@pytest.mark.parametrize("kind", ["crumpled", "face"])
def test_pytorch3d_sees_the_same(kind: str, height: int, width: int, culled: bool) -> None:
    points, triangles = crumpled(40, 50, (width, height)) if kind == "crumpled" else face_at(height, width)
    ours = mesh.see(points, triangles, height, width, culled)
    theirs = mesh_pytorch3d.see(points, triangles, height, width, culled)
    assert len(ours.row) > 500
    where = [(seen.row * width + seen.column) for seen in (ours, theirs)]
    # Positions are rounded to 1/1024 px here and to float32 there: that may decide a pixel in a thousand.
    either, both = torch.cat(where).unique(), where[0][torch.isin(where[0], where[1])]
    assert len(either) - len(both) <= 1 + len(either) // 1000
    one, other = (torch.searchsorted(places, both) for places in where)
    same = ours.face[one] == theirs.face[other]
    assert (~same).sum() <= 1 + len(both) // 1000
    assert torch.allclose(ours.depth[one][same], theirs.depth[other][same], atol=0.2)
    assert (ours.depth[one][same] - theirs.depth[other][same]).abs().median() < 0.01
    assert (ours.barycentric[one][same] - theirs.barycentric[other][same]).abs().median() < 1e-3


def test_a_mesh_outside_the_picture_or_none_at_all_is_harmless() -> None:
    points, triangles = face_at(64, 64)
    for away in (points + 500, points - 500):
        assert len(mesh_pytorch3d.see(away, triangles, 64, 64).row) == 0
    assert len(mesh_pytorch3d.see(points, triangles[:0], 64, 64).row) == 0
