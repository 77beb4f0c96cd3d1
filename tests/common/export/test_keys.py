"""Keys that are left out: what tools interpolate in their place is as near as was asked for, by whichever way."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from common.export.keys import face_keys, head_keys, kept_keys
from common.export.take import Take
from tests.common.export.takes import mirrored, smooth_take, takes

ROUNDING_M = 1e-9
ERRORS_M = st.sampled_from([1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0])


def lerped(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[T, ...] with straight lines between the kept keys."""
    flat = values.reshape(len(values), -1)
    return np.column_stack(
        [np.interp(np.arange(len(values)), kept, column[kept]) for column in flat.T],
    ).reshape(values.shape)


def slerped(take: Take, kept: np.ndarray) -> np.ndarray:
    return Slerp(kept, Rotation.from_matrix(take.rotation[kept]))(np.arange(take.n_keys)).as_matrix()


def quaternions_lerped(take: Take, kept: np.ndarray) -> np.ndarray:
    return Rotation.from_quat(lerped(take.quaternion, kept)).as_matrix()


def farthest_m(take: Take, points: np.ndarray, rotation: np.ndarray, position: np.ndarray) -> float:
    tracks = replace(take, points=points, rotation=rotation, position=position)
    return float(np.linalg.norm(tracks.posed - take.posed, axis=-1).max())


def resting(take: Take, n_keys: int) -> Take:
    """The first key of a take, over and over."""
    points, rotation, position = (
        np.repeat(track[:1], n_keys, axis=0) for track in (take.points, take.rotation, take.position)
    )
    return replace(take, points=points, rotation=rotation, position=position)


@pytest.mark.parametrize("turned", [slerped, quaternions_lerped])
@given(take=takes(), error_m=ERRORS_M)
@settings(max_examples=40, deadline=None)
def test_no_posed_point_of_any_take_is_further_off_than_is_stated(
    turned: Callable[[Take, np.ndarray], np.ndarray], take: Take, error_m: float
) -> None:
    face, head = face_keys(take, error_m), head_keys(take, error_m)
    if take.n_keys == 1:
        assert face.tolist() == head.tolist() == [0]
        return
    rotation, position, points = turned(take, head), lerped(take.position, head), lerped(take.points, face)
    assert farthest_m(take, points, rotation, position) <= error_m + ROUNDING_M
    assert farthest_m(take, take.points, rotation, position) <= error_m / 2 + ROUNDING_M
    assert np.linalg.norm(points - take.points, axis=-1).max() <= error_m / 2 + ROUNDING_M


@pytest.mark.parametrize("turned", [slerped, quaternions_lerped])
@pytest.mark.parametrize("error_m", [1e-4, 5e-4, 2e-3])
def test_a_fast_take_needs_few_keys_and_stays_within_the_error(
    turned: Callable[[Take, np.ndarray], np.ndarray], error_m: float
) -> None:
    take = smooth_take(900, fps=1000)
    face, head = face_keys(take, error_m), head_keys(take, error_m)
    assert max(len(face), len(head)) < 400
    assert farthest_m(take, lerped(take.points, face), turned(take, head), lerped(take.position, head)) <= error_m


@given(take=takes(), error_m=ERRORS_M)
@settings(max_examples=30, deadline=None)
def test_first_and_last_key_stay_and_keys_rise(take: Take, error_m: float) -> None:
    for kept in (face_keys(take, error_m), head_keys(take, error_m)):
        assert kept[0] == 0 and kept[-1] == take.n_keys - 1
        assert (np.diff(kept) > 0).all() and kept.dtype == np.int64


def test_no_error_keeps_every_key_even_of_a_face_that_rests() -> None:
    take = smooth_take(9)
    for each in (take, resting(take, 9)):
        assert face_keys(each, 0.0).tolist() == head_keys(each, 0.0).tolist() == list(range(9))


def test_a_face_and_a_head_that_rest_keep_two_keys() -> None:
    still = resting(smooth_take(1), 1000)
    assert face_keys(still, 1e-6).tolist() == head_keys(still, 1e-6).tolist() == [0, 999]


@given(st.lists(st.integers(2, 30), min_size=1, max_size=8), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_broken_line_keeps_its_corners_and_at_most_as_many_keys_again(lengths: list[int], seed: int) -> None:
    corners = np.concatenate([[0], np.cumsum(lengths)])
    at_corners = np.random.default_rng(seed).normal(size=(len(corners), 4, 3))
    points = np.zeros((corners[-1] + 1, 4, 3))
    points[corners, :] = at_corners
    points = lerped(points, corners)
    kept = face_keys(replace(smooth_take(1), points=points), 2e-9)
    assert set(corners.tolist()) <= set(kept.tolist())
    assert len(kept) <= 2 * len(corners)


def test_a_mirrored_take_keeps_the_same_keys() -> None:
    take = smooth_take(200, fps=60)
    other = mirrored(take)
    assert face_keys(take, 1e-3).tolist() == face_keys(other, 1e-3).tolist()
    assert head_keys(take, 1e-3).tolist() == head_keys(other, 1e-3).tolist()


def test_over_no_gap_does_a_head_turn_so_far_that_tools_could_go_the_other_way_round() -> None:
    take = smooth_take(400)
    spinning = replace(take, rotation=Rotation.from_rotvec(np.arange(400)[:, None] * [0, 0.2, 0]).as_matrix())
    kept = head_keys(spinning, 1.0)  # a metre: the head could be anywhere
    turns = Rotation.from_matrix(spinning.rotation[kept])
    assert np.degrees((turns[:-1].inv() * turns[1:]).magnitude()).max() <= 45
    assert len(kept) < 200


@pytest.mark.parametrize("error_m", [-1e-9, np.nan, np.inf])
def test_an_error_that_is_none_is_refused(error_m: float) -> None:
    for reduce in (face_keys, head_keys):
        with pytest.raises(ValueError, match="0 or more"):
            reduce(smooth_take(3), error_m)


@given(st.integers(1, 200), st.integers(0, 20))
def test_of_what_is_always_allowed_up_to_a_length_the_longest_is_taken(n_keys: int, most: int) -> None:
    kept = kept_keys(n_keys, 1.0, lambda start, stop: stop - start <= most)
    steps = np.diff(kept)
    assert (steps[:-1] == max(most, 1)).all() and (steps <= max(most, 1)).all()
