"""Where a Motion puts the landmarks of a given picture.

A Motion is read as a change: against its `reference` frame (the picture it was made for) or, without one, its first
frame. So a Motion that says "as in the picture" gives exactly the picture, and anyone's Motion can drive anyone.
"""

import math
from dataclasses import dataclass

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.face.framing import ReferencePicture
from common.face.pos import Pose, flip_image
from common.motion import Motion


@dataclass(frozen=True)
class Limits:
    """How far a head may leave the picture's pose; what is beyond two thirds of it is softly held back."""

    turn_rad: float = math.inf
    shift: float = math.inf  # of the face's origin, in face heights
    log_zoom: float = math.inf  # of its size


def drive(motion: Motion, reference: ReferencePicture, mean: Tensor, limits: Limits | None = None) -> Tensor:
    """Landmarks [T, 68, 3] in pixels of the reference picture (y down), and z.

    mean [68, 3]: of the face model in which the reference was frontalised. The motion's expression is added to the
    reference's own shape; its rotation, scale and translation, relative to the rest frame's, to the reference's pose.
    """
    limits = limits or Limits()
    height = reference.picture.shape[0]
    rest = motion.rest
    shape = mean + reference.lm3d + (motion.landmarks - rest.landmarks)  # [T, 68, 3]
    zoom = reference.pose.scale / rest.pose.scale
    face_px = reference.pose.scale * (mean[:, 1].amax() - mean[:, 1].amin())
    shift = (motion.pose.translation - rest.pose.translation) * zoom  # [T, 2]
    log_zoom = (motion.pose.scale / rest.pose.scale).log()[:, None]  # [T, 1]
    pose = Pose(
        scale=reference.pose.scale * held(log_zoom, limits.log_zoom)[:, 0].exp(),
        rotation=hold_back(motion.pose.rotation @ rest.pose.rotation.mT, limits.turn_rad) @ reference.pose.rotation,
        translation=reference.pose.translation + held(shift, limits.shift * float(face_px)),
    )
    still = flip_image(reference.pose.project(mean + reference.lm3d), height)
    # Added to the detected landmarks, not put in their place: what frontalising lost to rounding stays exact.
    return reference.landmarks + (flip_image(pose.project(shape), height) - still)


def hold_back(rotation: Tensor, max_turn_rad: float) -> Tensor:
    """Rotations [T, 3, 3] about the same axes by less than max_turn_rad."""
    if math.isinf(max_turn_rad):
        return rotation
    vectors = torch.from_numpy(Rotation.from_matrix(rotation.double().numpy()).as_rotvec())  # [T, 3]
    return torch.from_numpy(Rotation.from_rotvec(held(vectors, max_turn_rad).numpy()).as_matrix()).to(rotation)


def held(vectors: Tensor, most: float) -> Tensor:
    """Vectors [T, D] shorter than `most`: the same up to two thirds of it, ever less of what is beyond."""
    if math.isinf(most):
        return vectors
    length = vectors.norm(dim=-1, keepdim=True)
    free = 2 / 3 * most
    kept = free + (most - free) * torch.tanh((length - free) / (most - free))
    return torch.where(length > free, vectors * kept / length.clamp(min=1e-9), vectors)
