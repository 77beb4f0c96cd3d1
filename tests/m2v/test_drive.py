"""What holds a head back that would turn further than its picture can follow."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.face.rotations import angle_rad, from_euler_rad
from m2v.drive import LEAST_ASIDE_RAD, facing

MOST = math.radians(28)


def aside_rad(rotation: torch.Tensor) -> torch.Tensor:
    return torch.atan2(-rotation[..., 2, 0], rotation[..., 2, 2])


@pytest.mark.parametrize("shown_deg", [-40.0, -20.0, 0.0, 10.0, 27.0])
def test_the_picture_itself_and_all_that_is_turned_less_stay(shown_deg: float) -> None:
    shown = math.radians(shown_deg)
    yaw = torch.linspace(-abs(shown), abs(shown), 9)
    rotation = from_euler_rad(torch.stack([0.1 + 0 * yaw, yaw, 0 * yaw], dim=1))
    picture = from_euler_rad(torch.tensor([0.1, shown, 0.0]))
    kept = aside_rad(rotation).abs() <= aside_rad(picture).abs()
    assert kept.sum() >= 7 and torch.equal(facing(rotation, picture, MOST)[kept], rotation[kept])


@given(shown=st.floats(-0.8, 0.8), pitch=st.floats(-0.3, 0.3), roll=st.floats(-0.5, 0.5))
@settings(deadline=None)
def test_a_head_turns_on_and_on_but_never_further_aside_than_it_may(shown: float, pitch: float, roll: float) -> None:
    yaw = torch.linspace(0, 1.4, 60)
    rotation = from_euler_rad(torch.stack([0 * yaw + pitch, yaw, 0 * yaw + roll], dim=1))
    picture = from_euler_rad(torch.tensor([pitch, shown, roll]))
    held = aside_rad(facing(rotation, picture, MOST))
    most = max(MOST, abs(float(aside_rad(picture))) + LEAST_ASIDE_RAD)
    assert (held.diff() > -1e-4).all() and held.max() <= most + 1e-4
    little = aside_rad(rotation) < 2 / 3 * MOST
    assert float(angle_rad(facing(rotation, picture, MOST), rotation)[little & (held < 2 / 3 * most)].max()) < 0.06


def test_no_limit_is_no_limit() -> None:
    rotation = from_euler_rad(torch.tensor([[0.0, 1.2, 0.0]]))
    assert facing(rotation, torch.eye(3), math.inf) is rotation
