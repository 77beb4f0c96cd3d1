"""Where a Motion puts the landmarks of a given picture.

A Motion is read as a change: against its `reference` frame (the picture it was made for) or, without one, its first
frame. So a Motion that says "as in the picture" gives exactly the picture. Another person's is fitted to the picture
first (`common.face.reenact`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.face.framing import ReferencePicture
from common.face.pos import Pose, flip_image
from common.face.rotations import axis_angle, from_axis_angle
from common.motion import Motion

LEAST_ASIDE_RAD = math.radians(5)


@dataclass(frozen=True)
class Limits:
    """How far a head may leave the picture's pose; what is beyond two thirds of it is softly held back.

    All are counted from the picture, wherever a pose comes from: a driving video's too. A head that the picture shows
    turned aside may turn less, since its far cheek is hardly in the picture: further aside it would fold over, back to
    the camera it would swell. aside_rad is what it may turn and what it is turned already, together; by
    `LEAST_ASIDE_RAD` it always may.
    """

    turn_rad: float = math.inf
    aside_rad: float = math.inf
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
    turned = hold_back(motion.pose.rotation @ rest.pose.rotation.mT, limits.turn_rad) @ reference.pose.rotation
    pose = Pose(
        scale=reference.pose.scale * held(log_zoom, limits.log_zoom)[:, 0].exp(),
        rotation=facing(turned, reference.pose.rotation, limits.aside_rad),
        translation=reference.pose.translation + held(shift, limits.shift * float(face_px)),
    )
    still = flip_image(reference.pose.project(mean + reference.lm3d), height)
    # Added to the detected landmarks, not put in their place: what frontalising lost to rounding stays exact.
    return reference.landmarks + (flip_image(pose.project(shape), height) - still)


def hold_back(rotation: Tensor, max_turn_rad: float) -> Tensor:
    """Rotations [T, 3, 3] about the same axes by less than max_turn_rad."""
    if math.isinf(max_turn_rad):
        return rotation
    return from_axis_angle(held(axis_angle(rotation), max_turn_rad))


def facing(rotation: Tensor, picture: Tensor, max_aside_rad: float) -> Tensor:
    """Rotations [T, 3, 3] turned about the head's own vertical axis to where the picture's face points, or near it.

    picture: [3, 3], the picture's rotation; what points aside as it does, or nearly so, stays exactly.
    """
    if math.isinf(max_aside_rad):
        return rotation
    aside, shown = (torch.atan2(-each[..., 2, 0], each[..., 2, 2]) for each in (rotation, picture))
    turn = (aside - shown)[:, None]  # [T, 1]
    back = turn - held(turn, max(max_aside_rad - float(shown.abs()), LEAST_ASIDE_RAD))
    undone = from_axis_angle(torch.nn.functional.pad(-back, (1, 1)))  # about the y axis
    return torch.where((back != 0)[..., None], rotation @ undone, rotation)


def held(vectors: Tensor, most: float) -> Tensor:
    """Vectors [T, D] shorter than `most`: the same up to two thirds of it, ever less of what is beyond."""
    if math.isinf(most):
        return vectors
    length = vectors.norm(dim=-1, keepdim=True)
    free = 2 / 3 * most
    kept = free + (most - free) * torch.tanh((length - free) / (most - free))
    return torch.where(length > free, vectors * kept / length.clamp(min=1e-9), vectors)
