"""GNM Head (Google 2026): `gnm_head.npz`, with its landmarks in `head_sparse_68.txt`.

17,821 vertices with eyes, teeth and tongue; 253 identity directions (head, eyeballs, teeth) and 383 of expression (eye
regions, lower face, tongue, iris), each as long as one standard deviation; metres. The mouth opens by expression alone:
the model's joints are neck, head and eyes, which pose and gaze stand for and which are left out here. A line of the
landmark file is three vertices, each followed by its weight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.face.model import JAW, N_POINTS, FaceModel
from common.face.published.assemble import Parts, Source, assemble, read_npz, whole_numbers

FILE_NAME, LANDMARKS_NAME = "gnm_head.npz", "head_sparse_68.txt"
SOURCE = Source(
    "gnm",
    "GNM Head",
    "download gnm_head.npz (gnm/shape/data/versions/v3_0) and head_sparse_68.txt (gnm/shape/data/landmarks) from "
    "github.com/google/GNM (Apache 2.0)",
)
TEMPLATE = "template_vertex_positions"
_KEYS = (TEMPLATE, "vertex_identity_basis", "expression_basis", "triangles", "expression_names")
_METRES_PER_UNIT = 1.0


def read(path: Path) -> FaceModel:
    """Read the file and the landmarks beside it, or where the repository has them; raises as `bfm.read`."""
    if not path.is_file():
        raise SOURCE.missing(path)
    places = [path.parent / LANDMARKS_NAME, path.absolute().parent / "../../landmarks" / LANDMARKS_NAME]
    landmarks_path = next((place for place in places if place.is_file()), None)
    if landmarks_path is None:
        raise SOURCE.missing(places[0])
    arrays = read_npz(path, _KEYS)
    names = arrays.pop("expression_names")
    for key, values in arrays.items():
        if values.dtype.kind not in "iuf":
            raise ValueError(f"{key} are not numbers")
    vertices, weights = _read_landmarks(landmarks_path, arrays[TEMPLATE])
    return assemble(
        "gnm",
        Parts(
            arrays[TEMPLATE],
            arrays["vertex_identity_basis"],
            arrays["expression_basis"],
            arrays["triangles"],
            vertices,
            weights,
            _METRES_PER_UNIT,
            expression_names=tuple(str(name) for name in names.reshape(-1)),
        ),
    )


def _read_landmarks(path: Path, template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [68, 3] and weights [68, 3] of the landmarks, the jaw line in iBUG's order.

    As published (v3.0), points 2 to 6 run backwards (github.com/google/GNM/issues/75): of the two orders the one is
    taken in which the jaw line is shorter.
    """
    try:
        table = np.array([line.split() for line in path.read_text("ascii").splitlines()], dtype=np.float64)
    except (ValueError, OSError) as error:  # ValueError: not numbers, not ASCII, lines of several lengths
        raise ValueError(f"{path.name} is damaged") from error
    if table.shape != (N_POINTS, 6) or not np.isfinite(table).all():
        raise ValueError(f"{path.name} must have {N_POINTS} lines of 6 numbers")
    vertices, weights = whole_numbers(table[:, ::2], "landmarks").numpy(), table[:, 1::2]
    if template.ndim != 2 or vertices.min() < 0 or vertices.max() >= len(template):
        raise ValueError(f"{path.name} names vertices that the model hasn't")
    points = (template[vertices] * weights[..., None]).sum(axis=1)  # [68, 3]
    as_stored = list(range(N_POINTS))
    turned = [*as_stored[:2], *as_stored[6:1:-1], *as_stored[7:]]

    def length(order: list[int]) -> float:
        return float(np.linalg.norm(np.diff(points[order][list(JAW)], axis=0), axis=1).sum())

    order = min(as_stored, turned, key=length)
    return vertices[order], weights[order]
