"""The warp renderer and what a Motion asks of a picture."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.face import detect
from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from common.face.pos import Pose
from common.face.rotations import euler_rad, from_euler_rad
from common.media import read_picture
from common.motion import Motion
from m2v.drive import drive, hold_back
from m2v.preview import LIMITS, WarpRenderer
from m2v.source import Still, as_picture

PORTRAIT = Path(__file__).parents[2] / "examples" / "portrait.jpg"


@pytest.fixture(scope="module")
def reference() -> ReferencePicture:
    picture = read_picture(PORTRAIT)
    return ReferencePicture.of(picture, detect.find_faces(picture)[0].landmarks, FaceModel.builtin())


def still(reference: ReferencePicture, n_frames: int) -> Motion:
    model = FaceModel.builtin()
    parts = (reference.pose.scale, reference.pose.rotation, reference.pose.translation)
    pose = Pose(*(part.expand(n_frames, *part.shape) for part in parts))
    return Motion(
        reference.lm3d.expand(n_frames, -1, -1), model.mean, pose, 25.0, (256, 256), model.name, model.convention, {}
    )


def opened(reference: ReferencePicture, by: float) -> torch.Tensor:
    """The reference's landmarks with the lower lip and chin lowered by a part of the eyes' distance."""
    points = reference.landmarks.clone()
    distance = (points[36:42, :2].mean(0) - points[42:48, :2].mean(0)).norm()
    points[[6, 7, 8, 9, 10, *range(55, 60), 65, 66, 67], 1] += by * distance
    return points


def rendered(reference: ReferencePicture, landmarks: torch.Tensor) -> list[np.ndarray]:
    return [as_picture(frame) for frame in WarpRenderer(Still(reference)).render(landmarks)]


def test_a_motion_that_says_as_in_the_picture_gives_the_picture(reference: ReferencePicture) -> None:
    landmarks = drive(still(reference, 3), reference, FaceModel.builtin().mean)
    assert torch.allclose(landmarks, reference.landmarks.expand(3, -1, -1), atol=1e-3)
    for frame in rendered(reference, landmarks):
        assert np.abs(frame.astype(int) - reference.picture).max() <= 1


def test_turning_the_head_moves_the_nose_to_the_same_side(reference: ReferencePicture) -> None:
    motion = still(reference, 1)
    turn = from_euler_rad(torch.tensor([[0.0, 0.15, 0.0]]))  # yaw: the face turns to the image's right
    pose = Pose(motion.pose.scale, turn @ motion.pose.rotation, motion.pose.translation)
    landmarks = drive(replace(motion, pose=pose, reference=motion.rest), reference, FaceModel.builtin().mean)
    nose, eyes = (landmarks[0, list(group), 0] - reference.landmarks[list(group), 0] for group in ((30,), (36, 45)))
    assert nose.mean() - eyes.mean() > 0.05 * (reference.landmarks[45, 0] - reference.landmarks[36, 0])


def test_large_turns_are_held_back_and_small_ones_are_not() -> None:
    asked = torch.deg2rad(torch.tensor([0.0, 5.0, 11.9, 20.0, 45.0, 90.0]))
    angles = torch.stack([torch.zeros(6), asked, torch.zeros(6)], dim=1)
    given = euler_rad(hold_back(from_euler_rad(angles), math.radians(18)))[:, 1]
    assert torch.allclose(given[:3], asked[:3], atol=1e-5)
    assert (given.diff() > 0).all() and given.max() <= math.radians(18.001)
    assert torch.equal(hold_back(from_euler_rad(angles), math.inf), from_euler_rad(angles))


def test_a_head_that_walks_out_of_the_picture_is_held_back(reference: ReferencePicture) -> None:
    motion, mean = still(reference, 60), FaceModel.builtin().mean
    away = torch.arange(60.0)[:, None] * torch.tensor([20.0, 0.0])
    pose = Pose(motion.pose.scale * 1.1 ** torch.arange(60), motion.pose.rotation, motion.pose.translation + away)
    walking = replace(motion, pose=pose, reference=motion.rest)
    landmarks = drive(walking, reference, mean, LIMITS)
    size = (reference.landmarks[:, :2].amax(0) - reference.landmarks[:, :2].amin(0)).max()
    moved = (landmarks[..., :2] - reference.landmarks[:, :2]).norm(dim=-1)
    assert moved.max() < 0.7 * size and torch.allclose(landmarks[0], reference.landmarks, atol=1e-3)


def test_an_opened_mouth_is_dark_inside_and_the_border_stays(reference: ReferencePicture) -> None:
    frame = rendered(reference, opened(reference, 0.25)[None])[0]
    points = opened(reference, 0.25)
    x, y = points[[62, 66], :2].mean(0).round().int().tolist()
    inside = frame[y + 2 : y + 5, x - 2 : x + 3].mean()
    lip = reference.picture[int(reference.landmarks[57, 1]) - 1, int(reference.landmarks[57, 0])].mean()
    assert inside < 0.7 * lip
    assert np.abs(frame[:8].astype(int) - reference.picture[:8]).max() <= 2


def test_frames_do_not_depend_on_their_batch(reference: ReferencePicture) -> None:
    targets = torch.stack([opened(reference, 0.01 * k) for k in range(20)])
    together = rendered(reference, targets)
    alone = [rendered(reference, target[None])[0] for target in targets]
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(together, alone, strict=True)) <= 1


@given(dx=st.floats(-500, 500), dy=st.floats(-500, 500), zoom=st.floats(0.01, 8))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_face_that_leaves_the_picture_is_still_a_picture(
    reference: ReferencePicture, dx: float, dy: float, zoom: float
) -> None:
    targets = opened(reference, 0.3)[None, :, :2] * zoom + torch.tensor([dx, dy])
    frame = rendered(reference, targets)[0]
    assert frame.shape == reference.picture.shape and frame.dtype == np.uint8
