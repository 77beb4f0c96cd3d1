"""Takes: the way to metres and back is exact, retiming keeps what both rates have, headers survive JSON and garbage."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from common.export.take import CAMERA_DISTANCE_M, Take, plain_header
from common.face.pos import flip_image
from tests.common.export.takes import RATES, mirrored, smooth_take, takes
from tests.common.test_motion import random_motion

SCALARS = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def same(one: Take, other: Take, atol_m: float = 0.0) -> bool:
    """Whether two takes agree in all that they hold, lengths within `atol_m`, the rest within float32."""
    lengths = all(
        np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=atol_m)
        for name in ("points", "position", "neutral", "mean")
    )
    turns = all(
        np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-6 if atol_m else 0)
        for name in ("rotation", "rest_rotation")
    )
    cameras = np.isclose(one.camera.scale_px, other.camera.scale_px, rtol=1e-6) and np.allclose(
        one.camera.origin_px, other.camera.origin_px, rtol=1e-6
    )
    rest = (
        (take.fps, take.is_named, take.camera.image_size, take.model, take.convention, take.provenance)
        for take in (one, other)
    )
    return bool(lengths and turns and cameras and next(rest) == next(rest))


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_motion_comes_back_from_metres_within_float32(with_reference: bool) -> None:
    motion = random_motion(30, with_reference=with_reference)
    again = Take.of(motion).motion()
    torch.testing.assert_close(again.landmarks, motion.landmarks, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.posed(), motion.posed(), rtol=1e-6, atol=1e-3)  # float32 of hundreds of pixels
    torch.testing.assert_close(again.pose.scale, motion.pose.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(again.rest.landmarks, motion.rest.landmarks, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.rest.pose.rotation, motion.rest.pose.rotation)
    torch.testing.assert_close(again.rest.pose.translation, motion.rest.pose.translation)
    assert (again.fps, again.image_size, again.model, again.convention, again.provenance) == (
        *(motion.fps, motion.image_size, motion.model, motion.convention),
        motion.provenance,
    )
    assert (again.reference is None) == (motion.reference is None)


@given(takes())
def test_a_take_comes_back_from_pixels_within_float32(take: Take) -> None:
    assert same(Take.of(take.motion()), take, atol_m=1e-6)


def test_pixels_are_what_the_assumed_camera_sees_of_the_posed_points() -> None:
    take = smooth_take(20)
    width, height = take.camera.image_size
    centre = np.array([width - 1, height - 1]) / 2
    camera = (centre - take.camera.origin_px) / take.camera.scale_px  # metres beside the resting head
    distance = CAMERA_DISTANCE_M - take.position[:, 2]  # of the whole head: a face is flat to scaled orthography
    seen = (take.posed[..., :2] - camera) * (CAMERA_DISTANCE_M / distance)[:, None, None] * take.camera.scale_px
    pixels = flip_image(torch.from_numpy(seen + centre), height)
    torch.testing.assert_close(take.motion().posed()[..., :2].double(), pixels, atol=1e-3, rtol=0)


def test_a_mirrored_take_is_seen_mirrored() -> None:
    take = smooth_take(10)
    again = Take.of(mirrored(take).motion())
    assert same(mirrored(again), take, atol_m=1e-6)
    xs, mirrored_xs = take.motion().posed()[..., 0].mean(dim=1), again.motion().posed()[..., 0].mean(dim=1)
    torch.testing.assert_close(mirrored_xs, take.camera.image_size[0] - 1 - xs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("other_fps", RATES)
def test_retiming_keeps_the_keys_that_both_rates_have(fps: float, other_fps: float) -> None:
    take = smooth_take(101, fps)
    retimed = take.retimed(other_fps)
    assert retimed.fps == other_fps and 0 <= take.time_s[-1] - retimed.time_s[-1] < 1 / other_fps + 1e-9
    apart_s = np.abs(take.time_s[:, None] - retimed.time_s)
    here, there = np.nonzero(apart_s < 1e-6)
    assert here[0] == there[0] == 0
    np.testing.assert_allclose(retimed.points[there], take.points[here], atol=1e-7)
    np.testing.assert_allclose(retimed.position[there], take.position[here], atol=1e-7)
    np.testing.assert_allclose(retimed.rotation[there], take.rotation[here], atol=1e-6)


@given(takes(), st.sampled_from([2, 3, 4]))
def test_a_multiple_of_the_rate_and_back_is_the_identity(take: Take, factor: int) -> None:
    assert same(take.retimed(factor * take.fps).retimed(take.fps), take, atol_m=1e-9)


def test_at_another_rate_the_same_movement_is_seen() -> None:
    take, truth = smooth_take(250, 25.0), smooth_take(598, 60.0)  # the same functions of time
    retimed = take.retimed(60.0)
    assert retimed.n_keys == truth.n_keys
    inside = slice(6, -6)  # a spline's ends know one side only
    assert np.abs(retimed.points - truth.points)[inside].max() < 1e-4  # metres; up to 3 Hz at 25 keys a second
    turned = Rotation.from_matrix(retimed.rotation).inv() * Rotation.from_matrix(truth.rotation)
    assert np.degrees(turned.magnitude()).max() < 2  # slerp: chords of a turn of 3 Hz


def test_between_two_keys_the_head_turns_at_constant_speed_the_shorter_way() -> None:
    take = smooth_take(2, 1.0)
    ends = Rotation.from_rotvec(np.radians([[0, 170, 0], [0, 190, 0]]))
    turning = replace(take, rotation=ends.as_matrix()).retimed(10.0)
    yaw = Rotation.from_matrix(turning.rotation).as_euler("YXZ", degrees=True)[:, 0] % 360
    np.testing.assert_allclose(yaw, np.linspace(170, 190, 11), atol=1e-6)
    np.testing.assert_allclose(turning.points, np.linspace(take.points[0], take.points[1], 11), atol=1e-12)


@pytest.mark.parametrize("n_keys", [1, 2, 3, 4])
def test_a_few_keys_have_any_rate_too(n_keys: int) -> None:
    take = smooth_take(n_keys, 30.0)
    retimed = take.retimed(60.0)
    assert retimed.n_keys == 2 * n_keys - 1
    np.testing.assert_allclose(retimed.points[::2], take.points, atol=1e-12)
    retimed.motion()


@given(takes())
def test_quaternions_say_the_rotation_and_stay_on_one_side(take: Take) -> None:
    quaternion = take.quaternion
    np.testing.assert_allclose(Rotation.from_quat(quaternion).as_matrix(), take.rotation, atol=1e-12)
    assert ((quaternion[1:] * quaternion[:-1]).sum(axis=1) >= 0).all()


@pytest.mark.parametrize(
    ("position", "message"), [((0, 0, CAMERA_DISTANCE_M), "through the camera"), ((np.nan, 0, 0), "not finite")]
)
def test_a_head_that_no_picture_can_show_is_refused_in_a_sentence(position: tuple, message: str) -> None:
    take = smooth_take(3)
    with pytest.raises(ValueError, match=message):
        replace(take, position=np.array([(0, 0, 0), position, (0, 0, 0)], float)).motion()


@given(takes(most_keys=3))
def test_a_header_survives_json_and_gives_the_take_again(take: Take) -> None:
    header = json.loads(json.dumps(take.header()))
    assert same(Take.of_header(header, take.points, take.rotation, take.position), take)


@pytest.mark.parametrize("fps", RATES)
def test_a_take_without_a_header_is_the_mean_face_in_its_picture(fps: float) -> None:
    take = smooth_take(5, fps)
    plain = Take.of_header(json.loads(json.dumps(plain_header(fps))), take.points, take.rotation, take.position)
    pixels = plain.motion().posed()[..., :2]
    assert plain.fps == fps and not plain.is_named
    assert (pixels >= 0).all() and (pixels < torch.tensor(plain.camera.image_size)).all()


def places(value: Any) -> list[tuple[dict | list, Any]]:
    """Every spot in a JSON value: the thing that holds it and its key there; of a list of numbers, the first alone."""
    if isinstance(value, dict):
        return [spot for key, inner in value.items() for spot in ((value, key), *places(inner))]
    return [(value, 0), *places(value[0])] if isinstance(value, list) and value else []


@given(st.data())
def test_any_other_header_gives_a_motion_or_one_of_three_errors(data: st.DataObject) -> None:
    take = smooth_take(2)
    header: Any = json.loads(json.dumps(take.header()))
    if data.draw(st.booleans()):
        holder, key = data.draw(st.sampled_from(places(header)))
        holder[key] = data.draw(VALUES)
    else:
        header = data.draw(VALUES)
    try:
        Take.of_header(header, take.points, take.rotation, take.position).motion()
    except (ValueError, KeyError, TypeError) as error:
        assert str(error)
