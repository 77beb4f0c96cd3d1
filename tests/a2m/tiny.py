"""Small made-up material for the tests of stage one."""

import torch
from torch import Generator

from a2m.data import Clip, smooth
from a2m.samples import DataConfig
from common.face.model import LIP_STREAM, FaceModel, mouth_opening
from common.face.mouth import set_lip_gap
from common.face.pos import Pose
from common.face.rotations import from_euler_rad

# Clips as they are: nothing stretched, muted, known or left out.
PLAIN = DataConfig(
    stretch=0.0,
    identity_noise=0.0,
    rest_share=1.0,
    audio_dropout=0.0,
    silent_share=0.0,
    muted_share=0.0,
    prefix_share=0.0,
    keyframe_share=0.0,
)


def clip(name: str, seed: int = 0, T: int = 24, person: str = "") -> Clip:
    """Somebody whose mouth follows the loudness exactly, with a nodding head and a brow that goes its own way."""
    generator = Generator().manual_seed(seed)
    swing = smooth(torch.rand(T, generator=generator), 1.5)
    mean = set_lip_gap(FaceModel.builtin().mean, torch.full((3,), 0.003))
    motion = torch.zeros(T, 37, 3)
    for point in (8, 57, 66):
        motion[:, LIP_STREAM.index(point), 1] = -0.2 * swing
    motion[:, LIP_STREAM.index(48), 0] = 0.05 * swing.square()
    points = mean.repeat(T, 1, 1)
    points[:, LIP_STREAM, :] += motion
    points[:, [19, 24], 1] += 0.02 * smooth(torch.randn(T, generator=generator), 3.0)[:, None]
    nod = 0.1 * smooth(torch.randn(T, 3, generator=generator), 4.0)
    ones = torch.ones(T)
    pose = Pose(100 * ones, from_euler_rad(nod), 100 + 30 * nod[:, :2])
    noise = 0.05 * torch.randn(T, 4, 64, generator=generator)
    mel = noise + 8 * swing[:, None, None] - 4
    opening = mouth_opening(points)
    lm3d = points - FaceModel.builtin().mean
    return Clip(name, person or name, mel, torch.zeros(64), ones > 0, lm3d, pose, motion, ones, opening, 0.64)
