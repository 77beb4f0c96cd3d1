"""From what a published face model's files say to a `FaceModel`: units, origin, and whether it is a face at all.

The published models agree with face space on the axes (x to the image's right, y up, z to the camera); what differs is
units, origin, the triangles' sense of rotation, and how their files are broken.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from common.face.model import LEFT_EYE, N_POINTS, NOSE, RIGHT_EYE, RIGID, FaceModel
from common.unpickle import load_npy

METRES_PER_UNIT = 0.1  # as the built-in model has it
CONVENTION = "ibug68_3d"
_EYES_M = (0.045, 0.085)  # between the eye centres of any mean adult; other units or other landmarks miss it by far
_LARGEST_M = 100.0  # of any coordinate or direction
_MAX_ARRAY_BYTES = 2**31


@dataclass(frozen=True)
class Source:
    """Where a model comes from. get: what to do to have it, as an imperative; the licence in it."""

    name: str
    title: str
    get: str

    def missing(self, path: Path) -> InputError:
        return InputError(f"{path} is missing, which {self.title} needs: {self.get}, and put it there.")


@dataclass(frozen=True)
class Parts:
    """A model as its files have it.

    mean: [V, 3]; identity: [K, V, 3]; expression: [E, V, 3]; triangles: [F, 3]; landmark_vertices, landmark_weights:
    [68, 3]; identity_std: [K] and expression_std: [E], or one number for all.
    """

    mean: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    triangles: np.ndarray
    landmark_vertices: np.ndarray
    landmark_weights: np.ndarray
    metres_per_unit: float
    identity_std: np.ndarray | float = 1.0
    expression_std: np.ndarray | float = 1.0
    expression_names: tuple[str, ...] = ()


def assemble(name: str, parts: Parts) -> FaceModel:
    """The model in the built-in one's units and about its origin, triangles counter-clockwise from outside.

    Raises ValueError for numbers that are not finite, shapes and indices that don't fit, and what isn't a face.
    """
    scale = parts.metres_per_unit / METRES_PER_UNIT
    shapes = {"mean": parts.mean, "identity": parts.identity, "expression": parts.expression}
    for what, values in shapes.items():
        if values.size == 0 or not (np.abs(values) * parts.metres_per_unit < _LARGEST_M).all():  # nor NaN
            raise ValueError(f"its {what} has no numbers, or some that are not finite or not of a head")
    sums = parts.landmark_weights.sum(axis=-1, keepdims=True)
    if not (np.abs(sums - 1) < 0.05).all():
        raise ValueError("the weights of its landmarks don't add up to 1")
    mean, identity, expression = (
        torch.from_numpy(np.array(values, dtype=np.float32, order="C")).mul_(scale) for values in shapes.values()
    )
    model = FaceModel(
        mean,
        identity,
        expression,
        torch.from_numpy(np.broadcast_to(np.float32(parts.identity_std), len(identity)).copy()),
        torch.from_numpy(np.broadcast_to(np.float32(parts.expression_std), len(expression)).copy()),
        METRES_PER_UNIT,
        name,
        CONVENTION,
        whole_numbers(parts.triangles, "triangles"),
        whole_numbers(parts.landmark_vertices, "landmarks"),
        torch.from_numpy((parts.landmark_weights / sums).astype(np.float32)),
        parts.expression_names,
    )
    points = model.landmarks(model.mean)
    model.mean.sub_(points[list(RIGID)].mean(dim=0))
    _check_face(model.landmarks(model.mean) * METRES_PER_UNIT)
    _turn_outwards(model)
    return model


def whole_numbers(values: np.ndarray, what: str) -> torch.Tensor:
    """Indices, which files store as any type of number, as int64; ValueError where they are none."""
    if values.dtype.kind not in "iuf" or not (np.isfinite(values).all() and (values == np.trunc(values)).all()):
        raise ValueError(f"its {what} are not whole numbers")
    if values.size and not -(2**31) < values.min() <= values.max() < 2**31:
        raise ValueError(f"its {what} are no numbers of vertices")
    return torch.from_numpy(np.array(values, dtype=np.int64, order="C"))


def at_vertices(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks that are vertices [68] as landmark_vertices and landmark_weights [68, 3]."""
    if indices.shape != (N_POINTS,):
        raise ValueError(f"it has {indices.size} landmarks instead of {N_POINTS}")
    return np.repeat(indices[:, None], 3, axis=1), np.tile([1.0, 0.0, 0.0], (N_POINTS, 1))


def read_npz(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those arrays of an .npz file, check sums compared; KeyError for one that isn't there, else ValueError."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            missing = [key for key in keys if f"{key}.npy" not in names]
            if missing:
                raise KeyError(missing[0])
            if any(archive.getinfo(f"{key}.npy").file_size > _MAX_ARRAY_BYTES for key in keys):
                raise ValueError("it has an array of more than 2 GB")
            return {key: load_npy(archive.read(f"{key}.npy")) for key in keys}
    except (KeyError, ValueError):
        raise
    except Exception as error:  # zipfile and its decompressors share no base class
        raise ValueError(f"a damaged .npz file: {type(error).__name__}") from error


def _check_face(points_m: torch.Tensor) -> None:
    """ValueError unless the landmarks [68, 3], in metres, are those of an upright face that looks at the camera."""
    left, right, mouth, ears = (points_m[list(which)].mean(dim=0) for which in (LEFT_EYE, RIGHT_EYE, (48, 54), (0, 16)))
    across = right - left
    distance = float(across.norm())
    is_upright = left[1] > points_m[30, 1] > mouth[1] > points_m[8, 1]
    is_frontal = across[0] > 0.9 * distance and points_m[30, 2] > ears[2]
    if not (_EYES_M[0] < distance < _EYES_M[1] and is_upright and is_frontal):
        raise ValueError(
            f"its landmarks are not a face from the front with eyes some 63 mm apart, but {1000 * distance:.0f} mm; "
            "files of different versions"
        )


def _turn_outwards(model: FaceModel) -> None:
    """Swap two corners of all triangles if those at the nose, whose normals must look to the camera, don't."""
    assert model.triangles is not None and model.landmark_vertices is not None
    nose = model.landmark_vertices[list(NOSE)].flatten()
    corners = model.mean[model.triangles[torch.isin(model.triangles, nose).any(dim=1)]]  # [n, 3, 3]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if normals[:, 2].sum() < 0:
        model.triangles.copy_(model.triangles[:, [0, 2, 1]])
