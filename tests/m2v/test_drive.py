"""What holds a head back that would turn further than its picture can follow."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from common.face.pos import Pose
from common.face.rotations import angle_rad, from_euler_rad
from common.motion import Motion, Reference
from m2v.drive import LEAST_ASIDE_RAD, drive, facing
from m2v.preview import LIMITS

MOST = math.radians(28)
TURNED_DEG = st.floats(-45, 45)


def turns(pitch: float, yaw: torch.Tensor, roll: float) -> torch.Tensor:
    return from_euler_rad(torch.stack([0 * yaw + pitch, yaw, 0 * yaw + roll], dim=-1))


def aside_rad(rotation: torch.Tensor) -> torch.Tensor:
    return torch.atan2(-rotation[..., 2, 0], rotation[..., 2, 2])


@given(shown_deg=TURNED_DEG, roll=st.floats(-0.5, 0.5))
@settings(deadline=None)
def test_the_picture_itself_and_all_that_is_near_it_stay(shown_deg: float, roll: float) -> None:
    shown = math.radians(shown_deg)
    picture = turns(0.1, torch.tensor(shown), 0.0)
    near = turns(0.1, shown + torch.linspace(-0.99, 0.99, 9) * 2 / 3 * LEAST_ASIDE_RAD, roll)
    assert torch.equal(facing(torch.cat([picture[None], near]), picture, MOST), torch.cat([picture[None], near]))


@given(shown_deg=TURNED_DEG, pitch=st.floats(-0.3, 0.3), roll=st.floats(-0.5, 0.5), side=st.sampled_from([-1, 1]))
@settings(deadline=None)
def test_a_head_turns_on_and_on_but_never_further_from_its_picture_than_that_bears(
    shown_deg: float, pitch: float, roll: float, side: int
) -> None:
    yaw = math.radians(shown_deg) + side * torch.linspace(0, 0.6, 60)
    rotation, picture = turns(pitch, yaw, roll), turns(pitch, yaw[0], roll)
    kept = facing(rotation, picture, MOST)
    turned = side * (aside_rad(kept) - aside_rad(picture))
    most = max(MOST - abs(float(aside_rad(picture))), LEAST_ASIDE_RAD)
    assert (turned.diff() > -1e-4).all() and turned.max() <= most + 1e-4
    is_little = side * (aside_rad(rotation) - aside_rad(picture)) < 2 / 3 * most - 1e-4
    assert torch.equal(kept[is_little], rotation[is_little])
    assert angle_rad(kept, rotation).max() < 0.7 - most  # nothing but the turn is undone


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shown_deg", [-30.0, -12.0, 0.0, 20.0, 30.0])
def test_who_follows_a_head_to_the_profile_stops_softly_where_the_picture_ends(shown_deg: float, axis: int) -> None:
    """Landmarks, a quarter of a degree apart from -60° to 60°: no jump, no jerk, no way back."""
    model = FaceModel.builtin()
    nobody = ReferencePicture.mean(model)
    turned = Pose(nobody.pose.scale, turns(0.05, torch.tensor(math.radians(shown_deg)), 0.02), nobody.pose.translation)
    points = turned.project(model.mean)
    points[:, 1], points[:, 2] = 255 - points[:, 1], -points[:, 2]
    reference = ReferencePicture(nobody.picture, points, nobody.lm3d, turned)
    asked = torch.zeros(481, 3)
    asked[:, axis] = torch.linspace(-60, 60, 481).deg2rad()
    poses = Pose(turned.scale.expand(481), from_euler_rad(asked) @ turned.rotation, turned.translation.expand(481, 2))
    motion = Motion(
        torch.zeros(481, 68, 3), model.mean, poses, 25.0, (256, 256), reference=Reference(nobody.lm3d, turned)
    )
    landmarks = drive(motion, reference, model.mean, LIMITS)
    torch.testing.assert_close(landmarks[240], reference.landmarks, atol=1e-3, rtol=0)
    step = landmarks.diff(dim=0).norm(dim=-1)  # [480, 68], pixels
    free = drive(motion, reference, model.mean).diff(dim=0).norm(dim=-1)
    assert step.max() < 1.05 * free.max()  # pixels for a quarter of a degree
    # Where 5° are left, the last third of them takes all speed: by at most 0.77 / 1.67° · 0.25°, tanh's steepest bend.
    assert step.diff(dim=0).abs().max() < 0.13 * free.max()
    assert step[[0, -1]].max() < 0.1 * free.max()  # by then the head hardly moves
    way = (landmarks - landmarks[240]).norm(dim=-1).mean(dim=1)
    assert (way[240:].diff() > -1e-3).all() and (way[:241].diff() < 1e-3).all()


def test_no_limit_is_no_limit() -> None:
    rotation = from_euler_rad(torch.tensor([[0.0, 1.2, 0.0]]))
    assert facing(rotation, torch.eye(3), math.inf) is rotation
