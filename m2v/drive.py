"""Where a Motion puts the landmarks of a given picture.

A Motion is read as a change: against its `reference` frame (the picture it was made for) or, without one, its first
frame. So a Motion that says "as in the picture" gives exactly the picture, and anyone's Motion can drive anyone.
"""

from torch import Tensor

from common.face.framing import ReferencePicture
from common.face.pos import Pose, flip_image
from common.motion import Motion


def drive(motion: Motion, reference: ReferencePicture, mean: Tensor) -> Tensor:
    """Landmarks [T, 68, 3] in pixels of the reference picture (y down), and z.

    mean [68, 3]: of the face model in which the reference was frontalised. The motion's expression is added to the
    reference's own shape; its rotation, scale and translation, relative to the rest frame's, to the reference's pose.
    """
    height = reference.picture.shape[0]
    rest = motion.rest
    shape = mean + reference.lm3d + (motion.landmarks - rest.landmarks)  # [T, 68, 3]
    zoom = reference.pose.scale / rest.pose.scale
    pose = Pose(
        scale=motion.pose.scale * zoom,
        rotation=motion.pose.rotation @ rest.pose.rotation.mT @ reference.pose.rotation,
        translation=reference.pose.translation + (motion.pose.translation - rest.pose.translation) * zoom,
    )
    still = flip_image(reference.pose.project(mean + reference.lm3d), height)
    # Added to the detected landmarks, not put in their place: what frontalising lost to rounding stays exact.
    return reference.landmarks + (flip_image(pose.project(shape), height) - still)
