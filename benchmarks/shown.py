"""What stage one shows for a recording, from end to end: the opening of the mouth, for measuring."""

import torch
from torch import Tensor

from a2m.pipeline import AudioToMotion
from common.face.model import FaceModel, mouth_opening
from common.face.mouth import closed
from common.face.pos import Pose
from common.motion import Motion

SIZE_PX = (256, 256)
# Of a picture that nobody sees: the head as it is, a hundred pixels to a unit of the face model.
POSE = Pose(torch.tensor(100.0), torch.eye(3), torch.tensor([128.0, 128.0]))
MEAN_FACE = torch.zeros(68, 3)


def openings(motion: Motion) -> Tensor:
    """Of each frame as seen from the front (depth apart), by the eyes' distance: [T]."""
    return mouth_opening((motion.landmarks + motion.mean_landmarks)[..., :2])


def speaking(pipeline: AudioToMotion, audio: Tensor, reference: Tensor = MEAN_FACE, seed: int = 0) -> Tensor:
    """Openings [T] of a head that keeps still while it says audio [n] at 16 kHz; reference: LM3D [68, 3]."""
    return openings(pipeline(audio, reference, POSE, SIZE_PX, pose="still", seed=seed))


def at_rest(pipeline: AudioToMotion, reference: Tensor = MEAN_FACE) -> float:
    """The opening that the pipeline comes back to when nothing is said."""
    points = closed(reference + FaceModel.builtin().mean, pipeline.opening_direction)
    return float(mouth_opening(points[..., :2]))
