"""From a picture of any size to the square that the models see, and the reference that both stages start from.

The square follows the rule of the training clips: its side is the larger of 2.0 × the height of the face mesh and
1.08 × the extent of that mesh with 28 % of its height added above for the hair, limited by the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from common.face.fit import frontalise
from common.face.model import FaceModel, mouth_opening
from common.face.pos import Pose, flip_image

FOREHEAD = 0.19  # the mesh reaches above the 68 landmarks by this part of their height (median of 300 portraits)
HAIR = 0.28  # of the mesh's height
FOUR_K_PX = (3840, 2160)
FOLLOW_BEYOND = 1.3  # times the side of single frames: a shot that needs a larger square has it follow the head
FOLLOW_S = 0.4  # standard deviation of the Gaussian that smooths the square's path
CUT_BEFORE = 0.75  # of the side: tracks tremble, and the rule takes the median of a shot


@dataclass(frozen=True)
class Crop:
    """A square of a picture: x0, y0 (its corner) and side in pixels, shown at size_px."""

    x0: int
    y0: int
    side: int
    size_px: int

    def points(self, landmarks: np.ndarray) -> np.ndarray:
        """Landmarks [..., 3] of the picture in pixels of the crop; pixel k covers k - ½ to k + ½ in both."""
        zoom = self.size_px / self.side
        moved = landmarks.astype(np.float64)
        moved[..., :2] += 0.5 - np.array([self.x0, self.y0])
        moved *= zoom
        moved[..., :2] -= 0.5
        return moved.astype(np.float32)

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] → uint8 [size, size, 3]."""
        part = picture[self.y0 : self.y0 + self.side, self.x0 : self.x0 + self.side]
        if part.shape[:2] == (self.size_px, self.size_px):
            return part.copy()
        size = (self.size_px, self.size_px)
        return np.asarray(Image.fromarray(part).resize(size, Image.Resampling.LANCZOS))


def within_4k(picture: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 [H, W, 3] and landmarks [68, 3] in it, both made smaller where its sides are longer than those of

    a 4K video, lying or standing.
    """
    height, width = picture.shape[:2]
    zoom = min(1.0, FOUR_K_PX[0] / max(height, width), FOUR_K_PX[1] / min(height, width))
    if zoom == 1.0:
        return picture, landmarks
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    scale, centre = np.array([size[0] / width, size[1] / height, zoom]), np.array([0.5, 0.5, 0.0])
    moved = (landmarks + centre) * scale - centre  # pixel k covers k - ½ to k + ½
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    return small, moved.astype(np.float32)


def frame_shot(landmarks: np.ndarray, width: int, height: int, fps: float, size_px: int = 256) -> list[Crop]:
    """Squares of one size around a face in every frame of a shot: landmarks [T, 68, 2 or 3], picture width x height.

    One fixed square where the head stays about where it is; else a square that follows it smoothly.
    """
    fixed = frame_face(landmarks, width, height, size_px)
    each = [frame_face(frame, width, height, size_px) for frame in landmarks[:: max(1, len(landmarks) // 64)]]
    usual = float(np.median([crop.side for crop in each]))
    if fixed.side <= FOLLOW_BEYOND * usual or (width, height) == (size_px, size_px):
        return [fixed] * len(landmarks)
    side = min(round(1.15 * usual), width, height)  # room for what the smooth path does not follow
    low, high = landmarks[..., :2].min(1), landmarks[..., :2].max(1)
    tall = (high - low)[:, 1] * (1 + FOREHEAD)
    middle = np.stack([(low + high)[:, 0] / 2, (2 * high[:, 1] - tall * (1 + HAIR)) / 2], axis=1)  # [T, 2]
    path = gaussian_filter1d(middle, FOLLOW_S * fps, axis=0, mode="nearest")
    corners = (path - side / 2).round().astype(int).clip(0, (width - side, height - side))
    return [Crop(int(x0), int(y0), side, size_px) for x0, y0 in corners]


def frame_face(landmarks: np.ndarray, width: int, height: int, size_px: int = 256) -> Crop:
    """The square around a face: landmarks [68, 2 or 3], or [T, 68, 2 or 3] of a whole shot; picture width x height.

    A picture of `size_px` squared that the rule would hardly cut was cut before, and is taken as it is.
    """
    shot = landmarks.reshape(-1, 68, landmarks.shape[-1])[..., :2]
    low, high = shot.min(1), shot.max(1)  # [T, 2]
    mesh_height = (high[:, 1] - low[:, 1]) * (1 + FOREHEAD)
    top = high[:, 1] - mesh_height * (1 + HAIR)
    x0, y0, x1, y1 = low[:, 0].min(), top.min(), high[:, 0].max(), high[:, 1].max()
    wanted = max(2.0 * float(np.median(mesh_height)), 1.08 * max(x1 - x0, y1 - y0))
    if (width, height) == (size_px, size_px) and wanted > CUT_BEFORE * size_px:
        return Crop(0, 0, size_px, size_px)
    side = max(1, min(round(wanted), width, height))
    left = round((x0 + x1) / 2 - side / 2)
    up = round((y0 + y1) / 2 - side / 2)
    return Crop(min(max(0, left), width - side), min(max(0, up), height - side), side, size_px)


@dataclass(frozen=True)
class ReferencePicture:
    """One picture of the person to be animated.

    picture: uint8 [size, size, 3]; landmarks: float32 [68, 3] in its pixels (y down); lm3d [68, 3] and pose: the same,
    frontalised by the face model; crop: the square of a larger picture that it is, whole: that one, if it was kept.
    """

    picture: np.ndarray
    landmarks: Tensor
    lm3d: Tensor
    pose: Pose
    crop: Crop | None = None
    whole: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        picture: np.ndarray,
        landmarks: np.ndarray,
        model: FaceModel,
        size_px: int = 256,
        keep_whole: bool = False,
    ) -> ReferencePicture:
        """Cut a picture uint8 [H, W, 3] around the face whose landmarks [68, 3] are given, and frontalise them."""
        crop = frame_face(landmarks, picture.shape[1], picture.shape[0], size_px)
        points = torch.from_numpy(crop.points(landmarks))
        lm3d, pose = frontalise(points[None], size_px, model)
        return cls(crop.cut(picture), points, lm3d[0], pose[0], crop, picture if keep_whole else None)

    @classmethod
    def mean(cls, model: FaceModel, size_px: int = 256) -> ReferencePicture:
        """Nobody: the model's mean face, seen from the front, on grey."""
        extent = model.mean[:, :2].amax(0) - model.mean[:, :2].amin(0)
        middle = (model.mean[:, :2].amax(0) + model.mean[:, :2].amin(0)) / 2
        scale = 0.45 * size_px / extent.max()
        pose = Pose(scale, torch.eye(3), size_px / 2 - scale * middle)
        points = flip_image(pose.project(model.mean), size_px)
        grey = np.full((size_px, size_px, 3), 127, np.uint8)
        return cls(grey, points, torch.zeros_like(model.mean), pose)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        return self.picture.shape[1], self.picture.shape[0]

    @property
    def opening(self) -> float:
        """Of the mouth, by the distance of the eyes' centres."""
        return float(mouth_opening(self.landmarks[:, :2]))

    @property
    def turn_rad(self) -> float:
        """How far the head is turned away from the camera."""
        return float(torch.acos(self.pose.rotation[2, 2].clamp(-1, 1)))
