"""Landmarks that a user brings: 68 points of a picture in a file of numbers (`--landmarks`).

Files seldom say which convention they follow (`common.face.conventions`). Those of dlib, of iBUG (.pts) and of
face-alignment in 2D are `ibug68`; face-alignment in 3D is `ibug68_3d`; what FaceMesh or this
project's detector gave is `facemesh68`. iBUG's own format is taken for `ibug68`; for others the caller, or the file's
own "convention" (JSON), decides.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from common.face.conventions import CONVENTIONS, IBUG68, to_model
from common.face.fit import check_posable
from common.face.model import FaceModel
from common.files import check_input

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class LandmarkFile:
    """points: float32 [68, 2 or 3], pixels, x right, y down; convention: what the file says of them, None: nothing."""

    points: np.ndarray
    convention: str | None = None


def read_landmarks(path: Path) -> LandmarkFile:
    """68 points, iBUG order, pixels, x right and y down.

    .npy; .json (a list, or an object with "landmarks" and, if it says so, "convention"); anything else is text: a row
    of 2 or 3 numbers a point, as in .txt, .csv, .lms and iBUG's .pts, which is ibug68. Raises InputError for everything
    else.
    """
    check_input(path, "landmark file")
    wanted = "it must hold 68 points of 2 or 3 numbers (pixels, x to the right, y down; iBUG order)"
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path} is too large for the landmarks of one picture: {wanted}.")
    try:
        points, convention = _parse(path)
    except (OSError, ValueError, TypeError, KeyError, EOFError, OverflowError, RecursionError) as error:
        raise InputError(f"can't read landmarks from {path}: {wanted}.") from error
    if points.shape == (68, 3) and (np.diff(points[:, 0]) == 1).all():
        points = points[:, 1:]  # a first column that counts the points
    if points.shape not in {(68, 2), (68, 3)} or not np.isfinite(points).all():
        raise InputError(f"{path} holds numbers of shape {list(points.shape)}, or some that are not finite: {wanted}.")
    if convention is not None and convention not in CONVENTIONS:
        raise InputError(
            f'{path} says that its "convention" is {convention!r}: it must be one of {", ".join(CONVENTIONS)}.'
        )
    return LandmarkFile(points.astype(np.float32), convention)


def as_model_has_them(file: LandmarkFile, convention: str | None, height: int, model: FaceModel) -> np.ndarray:
    """Points of a file in the face model's convention, with depth: float32 [68, 3].

    convention: what the user says of the file, which wins over what the file says; where neither says anything, the
    points are taken for iBUG's, as nearly all such files are (dlib, face-alignment). Depth in which the nose lies
    behind the ears grows towards the camera, as face-alignment's does: it is turned round. height: of the picture.
    """
    known, points = convention or file.convention or IBUG68, file.points
    if points.shape[-1] == 3 and points[30, 2] > (points[0, 2] + points[16, 2]) / 2:
        points = points * np.array([1, 1, -1], np.float32)
    return to_model(torch.from_numpy(points)[None], known, model, height)[0].numpy()


def _parse(path: Path) -> tuple[np.ndarray, str | None]:
    """Points of any shape, and the convention that the file names."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False), np.float64), None
    text = path.read_text(encoding="utf-8")
    if suffix == ".json":
        content = json.loads(text)
        if not isinstance(content, dict):
            return np.asarray(content, np.float64), None
        return np.asarray(content["landmarks"], np.float64), content.get("convention")
    rows = [
        _NUMBER.findall(line) for line in text.splitlines() if line.strip() and not re.search(r"[A-Za-z]\w*\s*:", line)
    ]
    rows = [row for row in rows if row]
    convention = IBUG68 if suffix == ".pts" and re.search(r"n_points\s*:", text) else None
    return np.array([[float(number) for number in row] for row in rows]), convention


def check_landmarks(points: np.ndarray, path: Path, width: int, height: int) -> None:
    """Raise InputError unless the points [68, 2 or 3] can be a face of a picture of that size."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    eyes = points[36:42, :2].mean(0) - points[42:48, :2].mean(0)
    down = points[48:68, :2].mean(0) - (points[36:48, :2]).mean(0)
    is_upright = down[1] > 0 and -eyes[0] * down[1] + eyes[1] * down[0] > 0.1 * float(np.hypot(*eyes) * np.hypot(*down))
    if not is_upright:
        raise InputError(
            f"{path} does not describe an upright face: eyes must lie above the mouth, the eye at the picture's "
            "left first (iBUG order; pixels, x to the right, y down)."
        )
    if (high < 0).any() or (low > (width, height)).any() or (high - low).max() < 12 or np.hypot(*eyes) < 2:
        raise InputError(
            f"{path} does not describe a face in this picture of {width}x{height} pixels: its points span x "
            f"{low[0]:.0f} to {high[0]:.0f} and y {low[1]:.0f} to {high[1]:.0f}; they must be pixels of the picture."
        )
    try:
        check_posable(torch.from_numpy(points)[None])
    except ValueError as error:
        raise InputError(f"{path} does not describe a face: {error}.") from error
