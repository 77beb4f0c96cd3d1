"""`common.face.mesh.see` through pytorch3d: the same answer from its rasteriser, which is fast on a GPU.

pytorch3d is not among the dependencies (the package index has no build of it for Linux); where a user has it, it is
imported here and nowhere else. Its space: x to the left, y up, z away from the camera and positive, from -1 to 1 over
the shorter side of the picture. It differs from `see` where a pixel's centre lies exactly on an edge (which belongs to
neither triangle there) and in triangles of less than 1e-8 of that space, which it leaves out.
"""

from importlib import import_module

import torch
from torch import Tensor

from common.face.mesh import Visible, check


def is_importable() -> bool:
    """Whether pytorch3d is there and fits this torch."""
    try:
        import_module("pytorch3d.renderer.mesh.rasterize_meshes")
    except (ImportError, OSError):  # not there; or built against another torch
        return False
    return True


def see(points: Tensor, triangles: Tensor, height: int, width: int, cull_back_faces: bool = False) -> Visible:
    """As `common.face.mesh.see`, which says what goes in and comes out. Raises ImportError without pytorch3d.

    Only the window around the mesh is rasterised: on a CPU pytorch3d asks every pixel about every triangle, and on a
    GPU the parts into which it cuts a picture hold few of them.
    """
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    check(points, triangles, height, width)
    used = points[triangles.flatten().unique()].float()
    low = used[:, :2].amin(dim=0).floor().clamp(min=0) if len(used) else points.new_zeros(2)
    high = used[:, :2].amax(dim=0).ceil().clamp(max=max(height, width)) if len(used) else low
    left, top = (int(value) for value in low)
    columns, rows = min(int(high[0]) + 1, width) - left, min(int(high[1]) + 1, height) - top
    if rows <= 0 or columns <= 0 or len(triangles) == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=points.device)
        return Visible(nothing, nothing, nothing, points.new_zeros(0, 3).float(), points.new_zeros(0).float())
    nearest = used[:, 2].amin()
    x, y, z = points.float().unbind(1)
    half = min(rows, columns) / 2
    # Pixel i of n, from the left or the top, has its centre at n / 2 - (i + 1/2), in halves of the shorter side.
    across = (columns / 2 - (x - left + 0.5)) / half
    up = (rows / 2 - (y - top + 0.5)) / half
    mesh = Meshes(verts=[torch.stack([across, up, z - nearest + 1], dim=1)], faces=[triangles])
    face, depth, barycentric, _ = rasterize_meshes(
        mesh,
        image_size=(rows, columns),
        faces_per_pixel=1,
        max_faces_per_bin=len(triangles),
        perspective_correct=False,
        cull_backfaces=cull_back_faces,
    )
    row, column = (face[0, ..., 0] >= 0).nonzero().unbind(1)
    at = (0, row, column, 0)
    return Visible(row + top, column + left, face[at], barycentric[at], depth[at] + nearest - 1)
