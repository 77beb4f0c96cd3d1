"""The head's prior: starts at the picture, stays in bounds, is stationary; blinks end where they began."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from a2m.data import Clip
from a2m.pose import (
    BUILT_IN,
    REACH,
    STRESS,
    HeadPrior,
    activity,
    apply_lids,
    apply_pose,
    find_blinks,
    fit_head_prior,
    head_motion,
    pose_deviation,
    refit,
    relative_aperture,
    spectral_radius,
)
from a2m.regression import WEIGHTS
from common import weights
from common.face.model import LID_PAIRS, FaceModel
from common.face.pos import Pose
from common.face.rotations import angle_rad, euler_rad, from_euler_rad


@pytest.fixture(scope="module")
def prior() -> HeadPrior:
    return HeadPrior.from_state(weights.from_pretrained(WEIGHTS)[0], WEIGHTS)


def some_pose() -> Pose:
    return Pose(torch.tensor(90.0), from_euler_rad(torch.tensor([0.1, -0.2, 0.05])), torch.tensor([120.0, 140.0]))


def test_the_first_frame_is_the_pictures_pose_exactly_and_motion_eases_in(prior: HeadPrior) -> None:
    deviation = prior.sample_pose(torch.ones(500), torch.Generator().manual_seed(0))
    moved = apply_pose(some_pose(), deviation)
    assert torch.equal(moved.rotation[0], some_pose().rotation)
    assert torch.equal(moved.translation[0], some_pose().translation) and moved.scale[0] == some_pose().scale
    limits = torch.tensor(REACH)
    assert ((deviation[:3].abs() / limits) < 0.05).all()  # no jump away from the picture
    assert (deviation.abs() <= limits).all()


@given(seed=st.integers(0, 2**31), T=st.integers(1, 400), agitation=st.sampled_from([1.0, 30.0]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_head_leaves_its_picture_by_more_than_ten_degrees(
    prior: HeadPrior, seed: int, T: int, agitation: float
) -> None:
    excited = HeadPrior()
    excited.load_state_dict(prior.state_dict())
    excited.noise *= agitation  # nothing in the tracks moves like that: it is a bound, not a habit
    deviation = excited.sample_pose(torch.ones(T), torch.Generator().manual_seed(seed))
    relative = apply_pose(some_pose(), deviation).rotation @ some_pose().rotation.mT
    assert float(euler_rad(relative)[:, 1].abs().max().rad2deg()) <= 10
    assert float(angle_rad(relative, torch.eye(3)).max().rad2deg()) <= 12  # so a renderer holds nothing back


def test_motion_is_stationary_smooth_and_alive(prior: HeadPrior) -> None:
    a = torch.cat(list(prior.transition), dim=1)
    assert spectral_radius(a) < 1
    path = prior.sample_pose(torch.ones(25 * 400), torch.Generator().manual_seed(1))
    halves = path[250:5000].std(dim=0), path[5000:].std(dim=0)
    assert (halves[0] / halves[1]).log().abs().max() < 0.7
    yaw_deg = path[:, 1].rad2deg()
    assert 0.5 < yaw_deg.std() < 6
    assert yaw_deg.diff().diff().abs().max() < 0.7  # degrees a frame squared, of 8.4 at most: no jitter
    R = from_euler_rad(path[:100, :3])
    torch.testing.assert_close(R @ R.mT, torch.eye(3).expand(100, 3, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("T", [1, 4, 5, 26])
def test_any_length_works_and_the_same_seed_gives_the_same(prior: HeadPrior, T: int) -> None:
    a, b = (prior.sample_pose(torch.ones(T), torch.Generator().manual_seed(7)) for _ in range(2))
    assert a.shape == (T, 6) and torch.equal(a, b)
    assert prior.sample_lids(T, torch.Generator().manual_seed(7)).shape == (T,)


def test_blinks_come_at_the_fitted_rate_and_close_the_lids_briefly(prior: HeadPrior) -> None:
    lids = prior.sample_lids(25 * 600, torch.Generator().manual_seed(3))
    n = len(find_blinks(lids))
    expected = 600 / float(prior.blink_interval_s)
    assert 0.7 * expected < n < 1.3 * expected
    assert 0.5 < expected / 10 / 15 < 2.5  # adults who talk blink 8 to 37 times a minute
    assert lids.max() <= 1 and lids.min() >= -0.05 and lids[0] == 1
    assert (lids < 0.5).float().mean() < 0.1


@pytest.mark.parametrize("every_s", [1.0, 4.0])
def test_blinks_asked_for_come_about_as_often_as_asked(prior: HeadPrior, every_s: float) -> None:
    found = find_blinks(prior.sample_lids(25 * 200, torch.Generator().manual_seed(0), every_s))
    intervals_s = torch.tensor(found).diff() / 25
    assert (intervals_s >= 0.75 * every_s - 0.1).all() and (intervals_s <= 1.25 * every_s + 0.1).all()
    assert abs(len(found) - 200 / every_s) < 0.1 * 200 / every_s


def test_deviations_of_poses_are_what_was_applied(prior: HeadPrior) -> None:
    deviation = prior.sample_pose(torch.ones(100), torch.Generator().manual_seed(2))
    again = pose_deviation(some_pose(), apply_pose(some_pose(), deviation))
    torch.testing.assert_close(again, deviation, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_a_scaled_head_goes_as_far_as_it_says_within_its_limits(prior: HeadPrior, scale: float) -> None:
    scaled, tiny = (prior.sample_pose(torch.ones(300), torch.Generator().manual_seed(2), s) for s in (scale, 1e-3))
    limits = torch.tensor(REACH)
    assert (scaled.abs() <= limits).all()
    path = tiny / 1e-3  # far from its limits
    torch.testing.assert_close(scaled, limits * torch.tanh(scale * path / limits), atol=1e-4, rtol=1e-3)


def test_lids_at_one_change_nothing_and_at_zero_meet() -> None:
    points = FaceModel.builtin().mean.repeat(3, 1, 1)
    moved = apply_lids(points, torch.tensor([1.0, 0.5, 0.0]))
    assert torch.equal(moved[0], points[0])
    for upper, lower in LID_PAIRS:
        torch.testing.assert_close(moved[2, upper], moved[2, lower])
    others = [k for k in range(68) if k not in {k for pair in LID_PAIRS for k in pair}]
    assert torch.equal(moved[:, others], points[:, others])


def test_a_blink_drawn_into_a_face_is_found_where_it_is() -> None:
    aperture = torch.ones(200)
    aperture[98:103] = torch.tensor([0.7, 0.3, 0.1, 0.4, 0.7])
    points = apply_lids(FaceModel.builtin().mean.repeat(200, 1, 1), aperture)
    assert find_blinks(relative_aperture(points)) == [100]


def test_loud_syllables_move_a_head_more_than_soft_ones_and_pauses_say_nothing() -> None:
    level_db = torch.tensor([-60.0, -20.0, -10.0, -15.0, -40.0])
    sound = torch.tensor([False, True, True, True, False])
    heard = activity(level_db, sound)
    assert (heard[~sound] == 0).all() and (heard[sound] >= 1 - STRESS).all() and (heard <= 1).all()
    assert heard[2] > heard[3] > heard[1]
    torch.testing.assert_close(activity(level_db - 30, sound), heard)  # a softer recording is no softer speech
    assert torch.equal(activity(level_db, torch.zeros(5, dtype=torch.bool)), torch.zeros(5))
    assert activity(torch.full((4,), -20.0), torch.ones(4, dtype=torch.bool)).isfinite().all()


def test_pauses_still_the_head(prior: HeadPrior) -> None:
    sound = (torch.arange(25 * 400) // 50) % 2 == 0  # two seconds of speech, two of silence
    quiet = HeadPrior()
    quiet.load_state_dict(prior.state_dict())
    quiet.pause_noise.fill_(0.2)
    squares = quiet.sample_pose(sound, torch.Generator().manual_seed(0)).diff(dim=0).square().sum(dim=1)
    of_phase = torch.nn.functional.pad(squares, (1, 0)).unflatten(0, (100, 100)).mean(dim=0)  # over the periods
    assert of_phase[65:90].mean() < 0.5 * of_phase[15:40].mean()


def acted_clips(prior: HeadPrior, n: int = 10, T: int = 500) -> list[Clip]:
    """Clips of people whose heads and lids the prior moves, faster than it would."""
    mean = FaceModel.builtin().mean
    lively = HeadPrior()
    lively.load_state_dict(prior.state_dict())
    lively.noise *= 0.5
    clips = []
    for k in range(n):
        sound = (torch.arange(T) + 20 * k) % 150 < 110
        pose = apply_pose(some_pose(), lively.sample_pose(sound, torch.Generator().manual_seed(k)))
        lm3d = apply_lids(mean.repeat(T, 1, 1), prior.sample_lids(T, torch.Generator().manual_seed(k), 3.0)) - mean
        empty = torch.zeros(T)
        clips.append(
            Clip(f"c{k}", f"p{k}", torch.zeros(T, 4, 64), torch.zeros(64), sound, lm3d, pose, empty, empty, empty, 1.0)
        )
    return clips


def test_a_prior_fitted_to_heads_moves_and_blinks_as_they_do(prior: HeadPrior) -> None:
    clips = acted_clips(prior)
    fitted = fit_head_prior(clips, FaceModel.builtin())
    made = [fitted.sample_pose(clip.sound, torch.Generator().manual_seed(50 + k)) for k, clip in enumerate(clips)]
    speeds = [
        torch.stack([motion.diff(dim=0).square().mean(dim=0) for motion in part]).mean(dim=0).sqrt()
        for part in (made, [head_motion(clip) for clip in clips])
    ]
    assert ((speeds[0] / speeds[1]).log().abs() < 0.3).all()
    assert 2.5 < float(fitted.blink_interval_s) < 3.6
    assert 0.05 <= float(fitted.pause_noise) <= 1


def test_refitting_replaces_the_prior_and_nothing_else(prior: HeadPrior, tmp_path: Path) -> None:
    state, config = weights.from_pretrained(BUILT_IN)
    weights.save(tmp_path / "w", state, config, dtype=torch.float32)
    refit(tmp_path / "w", acted_clips(prior), FaceModel.builtin())
    again, kept = weights.from_pretrained(tmp_path / "w")
    assert kept == config and again.keys() == state.keys()
    changed = {key for key in state if not torch.equal(again[key], state[key])}
    assert changed and all(key.startswith("head.") for key in changed)


def test_data_that_say_nothing_of_heads_leave_the_built_in_prior() -> None:
    state, _ = weights.from_pretrained(BUILT_IN)
    prior = fit_head_prior([], FaceModel.builtin())
    assert all(torch.equal(value, state[f"head.{key}"]) for key, value in prior.state_dict().items())
