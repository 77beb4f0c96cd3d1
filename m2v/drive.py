"""Where a Motion puts the landmarks of a given picture.

A Motion is read as a change: against its `reference` frame (the picture it was made for) or, without one, its first
frame. So a Motion that says "as in the picture" gives exactly the picture, and anyone's Motion can drive anyone.
"""

import math

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.face.framing import ReferencePicture
from common.face.pos import Pose, flip_image
from common.motion import Motion


def drive(motion: Motion, reference: ReferencePicture, mean: Tensor, max_turn_rad: float = math.inf) -> Tensor:
    """Landmarks [T, 68, 3] in pixels of the reference picture (y down), and z.

    mean [68, 3]: of the face model in which the reference was frontalised. The motion's expression is added to the
    reference's own shape; its rotation, scale and translation, relative to the rest frame's, to the reference's pose.
    max_turn_rad: how far the head may turn from the picture; larger turns are softly held back.
    """
    height = reference.picture.shape[0]
    rest = motion.rest
    shape = mean + reference.lm3d + (motion.landmarks - rest.landmarks)  # [T, 68, 3]
    zoom = reference.pose.scale / rest.pose.scale
    pose = Pose(
        scale=motion.pose.scale * zoom,
        rotation=hold_back(motion.pose.rotation @ rest.pose.rotation.mT, max_turn_rad) @ reference.pose.rotation,
        translation=reference.pose.translation + (motion.pose.translation - rest.pose.translation) * zoom,
    )
    still = flip_image(reference.pose.project(mean + reference.lm3d), height)
    # Added to the detected landmarks, not put in their place: what frontalising lost to rounding stays exact.
    return reference.landmarks + (flip_image(pose.project(shape), height) - still)


def hold_back(rotation: Tensor, max_turn_rad: float) -> Tensor:
    """Rotations [T, 3, 3] by less than max_turn_rad: the same up to two thirds of it, ever less of what is beyond."""
    vectors = torch.from_numpy(Rotation.from_matrix(rotation.double().numpy()).as_rotvec())  # [T, 3]
    angle = vectors.norm(dim=-1, keepdim=True)
    free = 2 / 3 * max_turn_rad
    if not bool((angle > free).any()):
        return rotation
    held = free + (max_turn_rad - free) * torch.tanh((angle - free) / (max_turn_rad - free))
    scaled = torch.where(angle > free, vectors * held / angle.clamp(min=1e-9), vectors)
    return torch.from_numpy(Rotation.from_rotvec(scaled.numpy()).as_matrix()).to(rotation)
