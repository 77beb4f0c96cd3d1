"""Landmarks that a user brings: 68 points of a picture in a file of numbers (`--landmarks`)."""

import json
import re
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from common.face.fit import fit
from common.face.model import FaceModel
from common.face.pos import flip_image
from common.files import check_input

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_MAX_BYTES = 1_000_000


def read_landmarks(path: Path) -> np.ndarray:
    """68 points, iBUG order, pixels, x right and y down → float32 [68, 2 or 3].

    .npy; .json (a list, or an object with "landmarks"); anything else is text: a row of 2 or 3 numbers a point, as in
    .txt, .csv, .lms and iBUG's .pts. Raises InputError for everything else.
    """
    check_input(path, "landmark file")
    wanted = "it must hold 68 points of 2 or 3 numbers (pixels, x to the right, y down; iBUG order)"
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path} is too large for the landmarks of one picture: {wanted}.")
    try:
        points = _parse(path)
    except (OSError, ValueError, TypeError, KeyError, EOFError, OverflowError, RecursionError) as error:
        raise InputError(f"can't read landmarks from {path}: {wanted}.") from error
    if points.shape == (68, 3) and (np.diff(points[:, 0]) == 1).all():
        points = points[:, 1:]  # a first column that counts the points
    if points.shape not in {(68, 2), (68, 3)} or not np.isfinite(points).all():
        raise InputError(f"{path} holds numbers of shape {list(points.shape)}, or some that are not finite: {wanted}.")
    return points.astype(np.float32)


def _parse(path: Path) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False), np.float64)
    text = path.read_text(encoding="utf-8")
    if suffix == ".json":
        content = json.loads(text)
        return np.asarray(content["landmarks"] if isinstance(content, dict) else content, np.float64)
    rows = [
        _NUMBER.findall(line) for line in text.splitlines() if line.strip() and not re.search(r"[A-Za-z]\w*\s*:", line)
    ]
    rows = [row for row in rows if row]
    return np.array([[float(number) for number in row] for row in rows])


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


def with_depth(points: np.ndarray, height: int, model: FaceModel) -> np.ndarray:
    """Landmarks [68, 2] get the depth of the face model fitted to them; [68, 3] stay as they are → float32 [68, 3]."""
    if points.shape[-1] == 3:
        return points
    fitted = fit(model, torch.from_numpy(points)[None], height)
    shape = model.shape(fitted.identity, fitted.expression)
    depth = flip_image(fitted.pose.project(shape), height)[0, :, 2:].numpy()
    return np.concatenate([points, depth - depth.mean()], axis=1).astype(np.float32)
