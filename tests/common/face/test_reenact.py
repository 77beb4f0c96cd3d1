"""One person's Motion for another's picture: whose frames, size and side don't matter; closed stays closed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.face.framing import ReferencePicture
from common.face.lids import CLOSED, aperture, open_lids
from common.face.model import EYES, LIP_STREAM, FaceModel, eye_distance, mirror
from common.face.mouth import lip_gap, opening_direction, set_lip_gap
from common.face.pos import Pose, flip_image
from common.face.reenact import nearest_pose, neutral, reenact, relative_pose
from common.face.rotations import angle_rad, from_euler_rad
from common.motion import Motion, Reference

MODEL = FaceModel.builtin()
GREY = np.full((256, 256, 3), 127, np.uint8)


def face(seed: int) -> Tensor:
    """Somebody [68, 3], with lips that touch and eyes that are open."""
    weights = torch.randn(len(MODEL.identity_std), generator=torch.Generator().manual_seed(seed)) * MODEL.identity_std
    return set_lip_gap(MODEL.shape(weights), torch.full((3,), 0.004))


def opening(points: Tensor) -> Tensor:
    return (points[..., 62, 1] - points[..., 66, 1]) / eye_distance(points)


def speaking(rest: Tensor, T: int = 40) -> Tensor:
    """[T, 68, 3]: the mouth opens and closes from frame to frame, the eyes close in frames 20 to 22."""
    points = rest.repeat(T, 1, 1)
    gap = 0.2 * torch.sin(torch.arange(T) / 2).clamp(min=0)
    points[:, LIP_STREAM, :] += gap[:, None, None] * opening_direction(MODEL)
    lids = torch.ones(T, 2)
    lids[20:23] = 0.1
    return open_lids(points, lids)


def poses(T: int = 40, start: float = 0.0) -> Pose:
    phase = torch.arange(T) / 7 + start
    angles = torch.stack([0.1 * phase.sin(), 0.3 * phase.cos(), 0.05 * phase.sin()], dim=1)
    place = torch.stack([120 + 9 * phase.sin(), 130 + 4 * phase.cos()], dim=1)
    return Pose(70 * (0.05 * phase.sin()).exp(), from_euler_rad(angles), place)


def motion_of(points: Tensor, pose: Pose | None = None) -> Motion:
    return Motion(points - MODEL.mean, MODEL.mean, pose or poses(len(points)), 25.0, (256, 256))


def picture_of(points: Tensor, pose: Pose) -> ReferencePicture:
    """A picture of a face [68, 3] in a pose without leading shape."""
    return ReferencePicture(GREY, flip_image(pose.project(points), 256), points - MODEL.mean, pose)


def facing() -> Pose:
    return Pose(torch.tensor(90.0), from_euler_rad(torch.tensor([0.02, 0.1, 0.0])), torch.tensor([128.0, 110.0]))


def shown(motion: Motion) -> Tensor:
    return motion.mean_landmarks + motion.landmarks


def test_a_motion_made_for_the_picture_is_kept() -> None:
    motion = replace(motion_of(speaking(face(1))), reference=Reference(torch.zeros(68, 3), facing()))
    assert reenact(motion, picture_of(face(2), facing()), MODEL) is motion


def test_the_drivers_own_picture_gives_the_same_motion_back() -> None:
    driver = speaking(face(1))
    motion = motion_of(driver)
    k = 8  # mouth closed, eyes open
    made = reenact(motion, picture_of(driver[k], motion.pose[k]), MODEL)
    assert (shown(made) - driver).norm(dim=-1).max() < 0.01 * eye_distance(driver[k])
    assert float(angle_rad(made.pose.rotation, motion.pose.rotation).max()) < 1e-3
    # Places and sizes are those of the video but for where the picture has the head.
    torch.testing.assert_close(
        made.pose.scale / motion.pose.scale, made.pose.scale[:1] / motion.pose.scale[:1] * torch.ones(40)
    )
    assert torch.equal(made.rest.landmarks, driver[k] - MODEL.mean) and made.image_size == (256, 256)


@given(seed=st.integers(0, 50))
@settings(deadline=None, max_examples=10)
def test_no_frame_is_special(seed: int) -> None:
    """Not the first one either: frames in another order give the same frames in that order."""
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    driver, picture = speaking(face(1)), picture_of(face(2), facing())
    made = reenact(motion_of(driver), picture, MODEL)
    shuffled = reenact(motion_of(driver[order], poses()[order]), picture, MODEL)
    torch.testing.assert_close(shuffled.landmarks, made.landmarks[order])
    torch.testing.assert_close(shuffled.pose.translation, made.pose.translation[order])


@given(zoom=st.floats(0.05, 20), units=st.floats(0.85, 1.2), x=st.floats(-300, 300))
@settings(deadline=None, max_examples=25)
def test_the_drivers_size_doesn_t_matter(zoom: float, units: float, x: float) -> None:
    """Neither in pixels nor, as far as people differ, in units of the face model."""
    driver, picture, pose = speaking(face(1)), picture_of(face(2), facing()), poses()
    larger = Pose(zoom * pose.scale, pose.rotation, zoom * pose.translation + x)
    made = reenact(motion_of(driver), picture, MODEL)
    other = reenact(motion_of(units * driver, larger), picture, MODEL)
    torch.testing.assert_close(other.landmarks, made.landmarks, rtol=0, atol=1e-4)
    torch.testing.assert_close(other.posed(), made.posed(), rtol=0, atol=0.05)


def test_a_mirrored_driver_moves_a_mirrored_picture_the_mirrored_way() -> None:
    def mirrored(pose: Pose) -> Pose:
        flip = torch.diag(torch.tensor([-1.0, 1, 1]))
        return Pose(pose.scale, flip @ pose.rotation @ flip, pose.translation * torch.tensor([-1.0, 1]))

    driver, person = speaking(face(1)), face(2)
    made = reenact(motion_of(driver), picture_of(person, facing()), MODEL)
    other = reenact(motion_of(mirror(driver), mirrored(poses())), picture_of(mirror(person), mirrored(facing())), MODEL)
    torch.testing.assert_close(shown(other), mirror(shown(made)), rtol=0, atol=1e-4)
    torch.testing.assert_close(other.pose.rotation, mirrored(made.pose).rotation, rtol=0, atol=1e-4)


@pytest.mark.parametrize("opened", [0.0, 0.1, 0.3])
def test_a_closed_mouth_is_closed_also_in_a_picture_with_an_open_one(opened: float) -> None:
    person = face(2)
    person[LIP_STREAM, :] += opened * opening_direction(MODEL)
    driver = speaking(face(1))
    made = shown(reenact(motion_of(driver), picture_of(person, facing()), MODEL))
    is_closed = opening(driver) < 0.02
    assert is_closed.any() and opening(made)[is_closed].max() < 0.03
    assert opening(made).max() > 0.7 * opening(driver).max()
    assert torch.corrcoef(torch.stack([opening(made), opening(driver)]))[0, 1] > 0.99


def test_lips_never_cross() -> None:
    driver = speaking(face(1))
    driver[:5] = set_lip_gap(driver[:5], torch.full((3,), -0.2))  # a tracker's mistake
    made = shown(reenact(motion_of(driver), picture_of(face(2), facing()), MODEL))
    assert (lip_gap(made) >= -1e-6).all()


def test_rest_is_the_closed_mouth_even_of_one_who_never_closes_it() -> None:
    driver = speaking(face(1))
    driver[:, LIP_STREAM, :] += 0.1 * opening_direction(MODEL)
    assert opening(neutral(driver, MODEL)) < 0.025
    torch.testing.assert_close(neutral(speaking(face(1)), MODEL), face(1), rtol=0, atol=1e-4)


def test_closed_eyes_are_closed_and_usual_ones_as_in_the_picture() -> None:
    person = open_lids(face(2), torch.tensor([0.6, 0.6]))  # narrower than the driver's
    driver = speaking(face(1))
    driver[30] = open_lids(driver[30], CLOSED / aperture(driver[30]))
    made = shown(reenact(motion_of(driver), picture_of(person, facing()), MODEL))
    torch.testing.assert_close(aperture(made)[0], aperture(person), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(aperture(made)[30], torch.full((2,), CLOSED), rtol=0, atol=2e-3)
    corners = [k for k in EYES if k in (36, 39, 42, 45)]
    torch.testing.assert_close(made[:, corners], person[corners].expand(40, -1, -1))


def test_where_the_driver_is_as_in_the_picture_the_pose_is() -> None:
    at_rest = nearest_pose(poses(), facing(), MODEL)
    made = relative_pose(poses(), at_rest, facing())
    k = int((made.translation - facing().translation).norm(dim=-1).argmin())
    torch.testing.assert_close(made.translation[k], facing().translation)
    torch.testing.assert_close(made.scale[k], facing().scale)
    assert float(angle_rad(made.rotation[k], facing().rotation)) < 0.08  # the nearest of a few frames


def test_of_moments_turned_alike_the_usual_place_counts() -> None:
    still = Pose(torch.full((9,), 70.0), torch.eye(3).expand(9, 3, 3), torch.zeros(9, 2))
    still.translation[0] = 90.0  # walks in
    assert torch.equal(nearest_pose(still, facing(), MODEL).translation, torch.zeros(2))


def test_landmarks_of_another_convention_are_refused() -> None:
    motion = replace(motion_of(speaking(face(1))), convention="ibug68")
    with pytest.raises(ValueError, match="ibug68"):
        reenact(motion, picture_of(face(2), facing()), MODEL)


def test_one_frame_is_enough() -> None:
    made = reenact(motion_of(speaking(face(1), 1)), picture_of(face(2), facing()), MODEL)
    torch.testing.assert_close(shown(made)[0], face(2), rtol=0, atol=1e-3)
