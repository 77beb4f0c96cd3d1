"""A take: a Motion in metres and seconds, which is what animation tools want.

World space is face space seen by the camera: right-handed, x to the picture's right (the person's left), y up, z
towards the camera, which is where an unturned face looks. Its origin is where that of the head rests: the middle of
the points that move with the skull (`common.face.model.RIGID`), 7 mm below the middle between the eyes.

A Motion's pose is scaled orthography, in pixels: it knows how large a head looks, not how far away it is. Metres need a
camera, so one is assumed: `CAMERA_DISTANCE_M` in front of the resting head, looking at the middle of the picture. Then
a head that looks larger has come nearer, and position and scale say the same; `Take.motion` is the exact way back.

Key k lies at k / fps seconds, where frame k of a video begins; the sound begins at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation, Slerp

from common.face.model import N_POINTS
from common.face.pos import Pose
from common.face.published.assemble import METRES_PER_UNIT  # of every face model, the built-in one too
from common.motion import Motion, Reference

CAMERA_DISTANCE_M = 1.0


@dataclass(frozen=True)
class Camera:
    """What turns metres into pixels again.

    image_size: width and height of the picture; scale_px: pixels per metre of the head at rest; origin_px: [2], where
    its origin is in the picture, v up.
    """

    image_size: tuple[int, int]
    scale_px: float
    origin_px: np.ndarray


@dataclass(frozen=True)
class Take:
    """T keys of a face; all arrays float64, metres.

    points: [T, 68, 3], frontal (M̄ + LM3D), the head's motion taken out; rotation: [T, 3, 3] and position: [T, 3], of
    the head: `posed` is points turned and moved; neutral: [68, 3] and rest_rotation: [3, 3], the face and head of the
    reference picture, or of the first key where none was named (is_named False); mean: [68, 3], the face model's.
    """

    points: np.ndarray
    rotation: np.ndarray
    position: np.ndarray
    fps: float
    neutral: np.ndarray
    rest_rotation: np.ndarray
    is_named: bool
    mean: np.ndarray
    camera: Camera
    model: str
    convention: str
    provenance: dict[str, Any]

    @staticmethod
    def of(motion: Motion) -> Take:
        """A Motion in metres."""
        rest, mean = motion.rest, _array(motion.mean_landmarks)
        origin_px, scale = _array(rest.pose.translation), float(rest.pose.scale)
        camera = Camera(motion.image_size, scale / METRES_PER_UNIT, origin_px)
        nearer = camera.scale_px * METRES_PER_UNIT / _array(motion.pose.scale)  # [T], distance by that at rest
        centre = _centre(motion.image_size)
        beside = (_array(motion.pose.translation) - centre) * nearer[:, None] - (origin_px - centre)  # [T, 2], pixels
        position = np.column_stack([beside / camera.scale_px, CAMERA_DISTANCE_M * (1 - nearer)])
        return Take(
            points=(mean + _array(motion.landmarks)) * METRES_PER_UNIT,
            rotation=_array(motion.pose.rotation),
            position=position,
            fps=motion.fps,
            neutral=(mean + _array(rest.landmarks)) * METRES_PER_UNIT,
            rest_rotation=_array(rest.pose.rotation),
            is_named=motion.reference is not None,
            mean=mean * METRES_PER_UNIT,
            camera=camera,
            model=motion.model,
            convention=motion.convention,
            provenance=motion.provenance,
        )

    def motion(self) -> Motion:
        """The Motion that this is; raises ValueError, as Motion does, where it can't be one."""
        if not np.isfinite(self.position).all():
            raise ValueError("the head's position holds numbers that are not finite")
        if (self.position[:, 2] >= CAMERA_DISTANCE_M).any():
            raise ValueError(f"the head comes through the camera, {CAMERA_DISTANCE_M:g} m in front of where it rests")
        nearer = 1 - self.position[:, 2] / CAMERA_DISTANCE_M
        centre, scale_px = _centre(self.camera.image_size), self.camera.scale_px
        beside = self.position[:, :2] * scale_px + (self.camera.origin_px - centre)
        translation = beside / nearer[:, None] + centre
        pose = Pose(_tensor(scale_px * METRES_PER_UNIT / nearer), _tensor(self.rotation), _tensor(translation))
        reference = None
        if self.is_named:
            at_rest = Pose(
                _tensor(np.array(scale_px * METRES_PER_UNIT)),
                _tensor(self.rest_rotation),
                _tensor(self.camera.origin_px),
            )
            reference = Reference(_tensor((self.neutral - self.mean) / METRES_PER_UNIT), at_rest)
        return Motion(
            _tensor((self.points - self.mean) / METRES_PER_UNIT),
            _tensor(self.mean / METRES_PER_UNIT),
            pose,
            fps=self.fps,
            image_size=self.camera.image_size,
            model=self.model,
            convention=self.convention,
            provenance=self.provenance,
            reference=reference,
        )

    @property
    def n_keys(self) -> int:
        return len(self.points)

    @property
    def time_s(self) -> np.ndarray:
        """[T], of each key."""
        return np.arange(self.n_keys) / self.fps

    @property
    def posed(self) -> np.ndarray:
        """[T, 68, 3]: the points in world space."""
        return self.points @ self.rotation.swapaxes(-1, -2) + self.position[:, None]

    @property
    def quaternion(self) -> np.ndarray:
        """[T, 4] x, y, z, w of the head's rotation, neighbours on one side of the sphere (so that tools may lerp)."""
        found = Rotation.from_matrix(self.rotation).as_quat()
        turns = np.cumprod(np.where((found[1:] * found[:-1]).sum(axis=1) < 0, -1.0, 1.0))
        return found * np.concatenate([[1.0], turns])[:, None]

    def retimed(self, fps: float) -> Take:
        """The same take at another rate: points and position by cubic spline, rotation by slerp.

        Keys lie at k / fps, from the first of this take to at most its last: keys that both rates have stay as they
        are, and nothing is made up beyond the end.
        """
        if fps == self.fps or self.n_keys == 1:
            return replace(self, fps=fps)
        at = np.arange(int((self.n_keys - 1) / self.fps * fps + 1e-6) + 1) / fps * self.fps  # in keys of this take
        at = at.clip(0, self.n_keys - 1)
        keys, degree = np.arange(self.n_keys), min(3, self.n_keys - 1)
        return replace(
            self,
            points=make_interp_spline(keys, self.points, k=degree)(at),
            position=make_interp_spline(keys, self.position, k=degree)(at),
            rotation=Slerp(keys, Rotation.from_matrix(self.rotation))(at).as_matrix(),
            fps=fps,
        )

    def header(self) -> dict[str, Any]:
        """All but the keys themselves, for JSON: what a file must say so that `of_header` gives this take again."""
        return {
            "fps": self.fps,
            "model": self.model,
            "convention": self.convention,
            "camera": {
                "image_size": list(self.camera.image_size),
                "distance_m": CAMERA_DISTANCE_M,
                "pixels_per_m": self.camera.scale_px,
                "origin_px": self.camera.origin_px.tolist(),
            },
            "mean_m": self.mean.tolist(),
            "reference": {"points_m": self.neutral.tolist(), "rotation": self.rest_rotation.tolist()}
            if self.is_named
            else None,
            "provenance": self.provenance,
        }

    @staticmethod
    def of_header(header: dict[str, Any], points: np.ndarray, rotation: np.ndarray, position: np.ndarray) -> Take:
        """`header` and the keys, a Motion; raises ValueError or KeyError where they aren't that."""
        try:
            take = Take._of_header(header, points, rotation, position)
            take.motion()
            return take
        except OverflowError as error:  # JSON has numbers of any size
            raise ValueError(f"it holds a number that is none of a take's ({error})") from error
        except TypeError as error:
            raise ValueError("its header holds something of another kind than a take's") from error

    @staticmethod
    def _of_header(header: dict[str, Any], points: np.ndarray, rotation: np.ndarray, position: np.ndarray) -> Take:
        camera, reference, provenance = header["camera"], header["reference"], header["provenance"]
        if float(camera["distance_m"]) != CAMERA_DISTANCE_M:
            raise ValueError(f"its camera is {camera['distance_m']} m away, ours {CAMERA_DISTANCE_M:g} m")
        width, height = (int(side) for side in camera["image_size"])
        if not (0 < width <= 65536 and 0 < height <= 65536):
            raise ValueError("image_size must be width and height in pixels")
        scale_px = float(camera["pixels_per_m"])
        if not (0 < scale_px < np.inf):
            raise ValueError(f"pixels_per_m must be positive, got {scale_px}")
        if len(points) == 0:
            raise ValueError("a take needs at least one key")
        if not isinstance(provenance, dict):
            raise ValueError("provenance must be an object")
        named = reference or {"points_m": points[0], "rotation": rotation[0]}
        return Take(
            points=np.asarray(points, np.float64),
            rotation=np.asarray(rotation, np.float64),
            position=np.asarray(position, np.float64),
            fps=float(header["fps"]),
            neutral=np.asarray(named["points_m"], np.float64).reshape(N_POINTS, 3),
            rest_rotation=np.asarray(named["rotation"], np.float64).reshape(3, 3),
            is_named=reference is not None,
            mean=np.asarray(header["mean_m"], np.float64).reshape(N_POINTS, 3),
            camera=Camera((width, height), scale_px, np.asarray(camera["origin_px"], np.float64).reshape(2)),
            model=str(header["model"]),
            convention=str(header["convention"]),
            provenance=provenance,
        )


def plain_header(fps: float) -> dict[str, Any]:
    """The header of a take that comes without one, from somebody's tool: the built-in model's mean face, seen whole.

    Raises ValueError where a Motion can't have that rate.
    """
    from common.face.framing import ReferencePicture
    from common.face.model import FaceModel

    model = FaceModel.builtin()
    nobody = ReferencePicture.mean(model)
    pose = Pose(nobody.pose.scale[None], nobody.pose.rotation[None], nobody.pose.translation[None])
    return Take.of(Motion(nobody.lm3d[None], model.mean, pose, fps, nobody.size, model.name)).header()


def _centre(image_size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture: a pixel's own is at whole numbers."""
    return (np.array(image_size, np.float64) - 1) / 2


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))
