"""Motion: what travels between the stages, and the one file that holds it.

Landmarks are frontal (LM3D = M − M̄, dual-diffusion paper, eq. 2) in face space: x to the image's right, y up, z towards
the camera. Pose is scaled orthography with v up, in pixels of a picture of `image_size`. On disk an `.npz` of plain
arrays that needs nothing else to be understood; nothing in it is ever unpickled.

    python -m common.motion view take.npz           # a video of it in outputs/; or: view take.npz take.png
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from common.face.model import CONVENTION, N_POINTS
from common.face.pos import Pose, flip_image
from common.files import atomic_path, reading

_MAX_BYTES = 2 << 30  # of one array, unpacked: 14 days of landmarks; a bigger claim is a broken or hostile file
_MAX_TEXT = 1 << 20
_ROTATION_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Reference:
    """The frame that equals the reference picture: landmarks (LM3D) [68, 3] and a pose without leading shape."""

    landmarks: Tensor
    pose: Pose


@dataclass(frozen=True)
class Motion:
    """T frames of landmarks and pose; all tensors float32.

    landmarks: LM3D [T, 68, 3] and mean_landmarks [68, 3], in the face model's units; pose: Pose [T]; image_size: width
    and height in pixels of the picture that the pose speaks of; model, convention: the face model's name and its
    landmarks' convention; provenance: what made it (JSON-able); reference: the frame that equals the reference
    picture, frame 0 where it is None. Raises ValueError with one sentence where something doesn't fit.
    """

    landmarks: Tensor
    mean_landmarks: Tensor
    pose: Pose
    fps: float
    image_size: tuple[int, int]
    model: str = "builtin"
    convention: str = CONVENTION
    provenance: dict[str, Any] = field(default_factory=dict)
    reference: Reference | None = None

    def __post_init__(self) -> None:
        n = len(self.landmarks) if self.landmarks.ndim else 0
        if n == 0:
            raise ValueError("a motion needs at least one frame: landmarks are empty")
        _check_tensor("landmarks", self.landmarks, (n, N_POINTS, 3))
        _check_tensor("mean_landmarks", self.mean_landmarks, (N_POINTS, 3))
        _check_pose("", self.pose, (n,))
        if self.reference is not None:
            _check_tensor("reference_landmarks", self.reference.landmarks, (N_POINTS, 3))
            _check_pose("reference_", self.reference.pose, ())
        if not 0.1 <= self.fps <= 1000:  # what a video file can have
            raise ValueError(f"fps must lie between 0.1 and 1000, got {self.fps}")
        if len(self.image_size) != 2 or not all(0 < side <= 65536 for side in self.image_size):
            raise ValueError(f"image_size must be width and height in pixels, got {self.image_size}")

    @property
    def n_frames(self) -> int:
        return len(self.landmarks)

    @property
    def duration_s(self) -> float:
        return self.n_frames / self.fps

    def posed(self) -> Tensor:
        """Image landmarks [T, 68, 3]: pixels, x right, y down, z negative towards the camera (no common origin)."""
        return flip_image(self.pose.project(self.mean_landmarks + self.landmarks), self.image_size[1])

    @property
    def rest(self) -> Reference:
        """The frame that equals the reference picture: the one that is named, else frame 0."""
        return self.reference or Reference(self.landmarks[0], self.pose[0])

    def slice(self, start: int, stop: int) -> Motion:
        """Frames start to stop - 1. The reference stays what it was: frame 0 of the whole, where none was named."""
        return replace(self, landmarks=self.landmarks[start:stop], pose=self.pose[start:stop], reference=self.rest)

    def landmarks_at(self, fps: float, n_frames: int) -> Tensor:
        """LM3D [n_frames, 68, 3] at another rate: cubic through time, frame k of either at (k + 1/2) / fps."""
        if fps == self.fps and n_frames == self.n_frames:
            return self.landmarks
        times = (np.arange(n_frames) + 0.5) / fps * self.fps - 0.5
        numbers = np.arange(self.n_frames)
        spline = make_interp_spline(numbers, self.landmarks.double().numpy(), k=3 if self.n_frames > 3 else 0)
        return torch.from_numpy(spline(times.clip(0, self.n_frames - 1))).float()

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write an .npz; raises InputError where `path` exists (unless overwrite) or can't be written."""
        with atomic_path(path, overwrite) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **self.arrays())

    def arrays(self) -> dict[str, Any]:
        """What the file holds, by the names that it has there."""
        arrays: dict[str, Any] = {
            "landmarks": _array(self.landmarks),
            "mean_landmarks": _array(self.mean_landmarks),
            "scale": _array(self.pose.scale),
            "rotation": _array(self.pose.rotation),
            "translation": _array(self.pose.translation),
            "fps": np.float64(self.fps),
            "image_size": np.array(self.image_size, np.int64),
            "model": np.array(self.model),
            "convention": np.array(self.convention),
            "provenance": np.array(json.dumps(self.provenance, ensure_ascii=False)),
        }
        if self.reference is not None:
            arrays["reference_landmarks"] = _array(self.reference.landmarks)
            arrays["reference_scale"] = _array(self.reference.pose.scale)
            arrays["reference_rotation"] = _array(self.reference.pose.rotation)
            arrays["reference_translation"] = _array(self.reference.pose.translation)
        return arrays

    @staticmethod
    def load(path: Path) -> Motion:
        """Read what `save` wrote, or anyone who keeps to the format; raises InputError that names the file."""
        with reading(path, "motion file", "make it again"), zipfile.ZipFile(path) as archive:
            return _from_arrays(_read_arrays(archive))


_REQUIRED = ("landmarks", "mean_landmarks", "scale", "rotation", "translation", "fps", "image_size")
_TEXTS = ("model", "convention", "provenance")
_REFERENCE = ("reference_landmarks", "reference_scale", "reference_rotation", "reference_translation")
_KEYS = {*_REQUIRED, *_TEXTS, *_REFERENCE}


def _read_arrays(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """What `np.load` would, but with check sums compared before a byte is parsed and no array of absurd size."""
    arrays = {}
    for key in _KEYS & {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}:
        entry = archive.getinfo(f"{key}.npy")
        if entry.file_size > _MAX_BYTES:
            raise ValueError(f"{key} would unpack to {entry.file_size} bytes")
        content = io.BytesIO(archive.read(entry))
        arrays[key] = np.lib.format.read_array(content, allow_pickle=False)
    return arrays


def _from_arrays(arrays: dict[str, np.ndarray]) -> Motion:
    missing = [key for key in (*_REQUIRED, *_TEXTS) if key not in arrays]
    n_reference = sum(key in arrays for key in _REFERENCE)
    if n_reference:
        missing += [key for key in _REFERENCE if key not in arrays]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    tensors = {key: _tensor(key, arrays[key]) for key in arrays if key not in (*_TEXTS, "fps", "image_size")}
    model, convention, provenance = (_text(key, arrays[key]) for key in _TEXTS)
    size = _numbers("image_size", arrays["image_size"], 2)
    if not all(float(side).is_integer() for side in size):
        raise ValueError(f"image_size must be whole numbers, got {size}")
    history = json.loads(provenance or "{}")
    if not isinstance(history, dict):
        raise ValueError("provenance must be the text of a JSON object")
    reference = None
    if n_reference:
        pose = Pose(*(tensors[key] for key in _REFERENCE[1:]))
        reference = Reference(tensors["reference_landmarks"], pose)
    return Motion(
        tensors["landmarks"],
        tensors["mean_landmarks"],
        Pose(tensors["scale"], tensors["rotation"], tensors["translation"]),
        fps=_numbers("fps", arrays["fps"], 1)[0],
        image_size=(int(size[0]), int(size[1])),
        model=model,
        convention=convention,
        provenance=history,
        reference=reference,
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).numpy()


def _tensor(key: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{key} must be numbers, got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape))


def _numbers(key: str, array: np.ndarray, n: int) -> list[float]:
    if array.dtype.kind not in "fiu" or array.size != n or not np.isfinite(array).all():
        raise ValueError(f"{key} must be {n} finite number{'s' * (n > 1)}, got {array.dtype} {list(array.shape)}")
    return [float(value) for value in array.ravel()]


def _text(key: str, array: np.ndarray) -> str:
    if array.dtype.kind != "U" or array.size != 1 or array.dtype.itemsize > 4 * _MAX_TEXT:
        raise ValueError(f"{key} must be one text, got {array.dtype} {list(array.shape)}")
    return str(array.item())


def _check_tensor(key: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{key} must have shape {list(shape)}, got {list(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{key} holds numbers that are not finite")


def _check_pose(prefix: str, pose: Pose, shape: tuple[int, ...]) -> None:
    _check_tensor(f"{prefix}scale", pose.scale, shape)
    _check_tensor(f"{prefix}rotation", pose.rotation, (*shape, 3, 3))
    _check_tensor(f"{prefix}translation", pose.translation, (*shape, 2))
    if not (pose.scale > 0).all():
        raise ValueError(f"{prefix}scale must be positive")
    identity = torch.eye(3, dtype=pose.rotation.dtype, device=pose.rotation.device)
    error = (pose.rotation @ pose.rotation.mT - identity).abs().max()
    if error > _ROTATION_TOLERANCE or not (torch.linalg.det(pose.rotation) > 0).all():
        raise ValueError(f"{prefix}rotation must hold rotation matrices (rows at right angles, determinant 1)")


if __name__ == "__main__":
    from common import entry, motion_view  # which import this module

    entry.run(motion_view.main)
