"""Measures of motion: known values, what must not change them, and that honesty wins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from common.metrics.motion import (
    amplitude_ratio,
    best_lag,
    centred,
    correlation,
    energy_score,
    error_by_still,
    jerk_ratio,
    landmark_distance,
    rescaled,
    roughness_ratio,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_the_real_motion_is_perfect() -> None:
    real = noise(50)
    assert correlation(real, real) == pytest.approx(1)
    assert amplitude_ratio(real, real) == pytest.approx(1)
    assert error_by_still(real, real) == pytest.approx(0, abs=1e-9)
    assert energy_score(real[None], real) == 0
    assert energy_score(real.repeat(8, 1), real) == 0


def test_a_still_mouth_says_nothing() -> None:
    real, still = noise(50), torch.full((50,), 0.3, dtype=torch.float64)
    assert correlation(still, real) == pytest.approx(0, abs=1e-6)
    assert amplitude_ratio(still, real) == pytest.approx(0, abs=1e-9)
    assert error_by_still(still, real) == pytest.approx(1)
    assert correlation(still, still) == 0


@settings(max_examples=50, deadline=None)
@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_level_and_size_do_not_matter_where_they_should_not(scale: float, shift: float, seed: int) -> None:
    real, predicted = noise(30, seed=seed), noise(30, seed=seed + 1)
    other = scale * predicted + shift
    assert correlation(other, real) == pytest.approx(correlation(predicted, real), abs=1e-6)
    assert correlation(-other, real) == pytest.approx(-correlation(predicted, real), abs=1e-6)
    assert amplitude_ratio(other, real) == pytest.approx(scale * amplitude_ratio(predicted, real), rel=1e-6)
    assert error_by_still(predicted + shift, real) == pytest.approx(error_by_still(predicted, real))
    full = rescaled(other, real)
    assert amplitude_ratio(full, real) == pytest.approx(1)
    assert float(full.mean()) == pytest.approx(float(other.mean()), abs=1e-6)


def test_half_the_motion_has_half_the_error() -> None:
    real = noise(40)
    assert error_by_still(real / 2, real) == pytest.approx(0.5)
    assert amplitude_ratio(real / 2 + 3, real) == pytest.approx(0.5)
    assert (rescaled(torch.full((5,), 2.0), noise(5).float()) == 2).all()  # nothing to stretch


def test_trembling_is_rough_and_steady_motion_is_not() -> None:
    time = torch.arange(60, dtype=torch.float64)
    real = torch.sin(time / 4)
    assert roughness_ratio(real + 5 + 0.3 * time, real) == pytest.approx(1)
    # The second difference of ±a is 4a at every frame, that of a wave of frequency w about w² at its peaks.
    tremble = 0.01 * (-1) ** time
    assert roughness_ratio(tremble, real) == pytest.approx(0.04 / (math.sqrt(0.5) / 16), rel=0.05)
    assert roughness_ratio(real + 0.1 * (-1) ** time, real) > 8
    assert roughness_ratio(torch.zeros(60, dtype=torch.float64), real) == 0


def test_jerk_is_measured_against_the_smoothed_track() -> None:
    """Slow waves pass the track's filter: their jerk is the track's; a tracker's trembling is no jerk to be reached."""
    time = torch.arange(200, dtype=torch.float64)
    wave = torch.sin(time / 4)  # 1 Hz
    trembling = wave + 0.1 * (-1) ** time
    assert jerk_ratio(wave, wave) == pytest.approx(1, abs=0.05)
    assert jerk_ratio(trembling, wave) > 20
    # Of what alternates, the filter leaves 13 / 35.
    raw = float(wave.diff(n=3).norm() / trembling.diff(n=3).norm())
    assert jerk_ratio(wave, trembling) == pytest.approx(raw * 35 / 13, rel=0.05)
    assert jerk_ratio(2 * wave + 3, wave) == pytest.approx(2 * jerk_ratio(wave, wave))
    assert math.isnan(jerk_ratio(wave[:4], wave[:4]))


@pytest.mark.parametrize("lag", [-5, -1, 0, 3])
def test_the_best_lag_is_that_of_a_delayed_copy(lag: int) -> None:
    both = noise(60)
    real, late = both[10:50], both[10 - lag : 50 - lag]
    assert best_lag(late, real) == lag
    assert best_lag(-3 * late + 1, -real) == lag
    assert best_lag(torch.zeros(40), torch.zeros(40)) == 0  # nothing to follow
    assert abs(best_lag(late[:4], real[:4])) <= 1  # what is left must be a course


def test_landmark_distance_is_the_mean_over_points_and_frames() -> None:
    real = noise(5, 4, 2)
    moved = real.clone()
    moved[1, 2] += torch.tensor([3.0, 4.0])
    assert landmark_distance(real, real) == 0
    assert landmark_distance(moved, real) == pytest.approx(5 / 20)


# Energy score


def test_of_one_sample_the_energy_score_is_its_distance() -> None:
    real, predicted = noise(30), noise(30, seed=1)
    rms = float((real - predicted).square().mean().sqrt())
    assert energy_score(predicted[None], real) == pytest.approx(rms)
    assert energy_score(predicted.repeat(5, 1), real) == pytest.approx(rms)  # the same sample again is no news
    one_frame = energy_score(torch.tensor([[2.0]]), torch.tensor([5.0]))
    assert one_frame == pytest.approx(3)  # |x - y|: the energy score of one number is CRPS


def test_energy_score_is_its_formula() -> None:
    samples, real = noise(4, 7), noise(7, seed=1)
    to_real = sum(math.dist(x, real.tolist()) for x in samples.tolist()) / 4
    pairs = [math.dist(a, b) for i, a in enumerate(samples.tolist()) for j, b in enumerate(samples.tolist()) if i != j]
    assert energy_score(samples, real) == pytest.approx((to_real - sum(pairs) / len(pairs) / 2) / math.sqrt(7))


def test_energy_score_has_the_units_of_the_motion_and_ignores_the_order() -> None:
    samples, real = noise(6, 20), noise(20, seed=1)
    score = energy_score(samples, real)
    assert energy_score(3 * samples, 3 * real) == pytest.approx(3 * score)
    assert energy_score(samples + 5, real + 5) == pytest.approx(score)
    assert energy_score(samples.flip(0), real) == pytest.approx(score)
    # Twice the same course is as wrong as once.
    assert energy_score(samples.repeat(1, 2), real.repeat(2)) == pytest.approx(score)


def forecasts(kind: str, cause: Tensor, n: int, seed: int) -> Tensor:
    """Samples [n, T] of what follows a cause [T]; in truth it is the cause plus unit noise."""
    if kind == "mean":
        return cause[None]
    if kind == "mean, full amplitude":  # the variance of truth is twice that of the cause
        return math.sqrt(2) * cause[None]
    if kind == "lively, deaf":
        return math.sqrt(2) * noise(n, len(cause), seed=seed)
    sigma = {"truth": 1.0, "too bold": 1.6, "too timid": 0.5}[kind]
    return cause + sigma * noise(n, len(cause), seed=seed)


@pytest.mark.parametrize("wrong", ["mean", "mean, full amplitude", "lively, deaf", "too bold", "too timid"])
def test_honest_samples_have_the_best_energy_score(wrong: str) -> None:
    """Propriety by simulation: 300 clips of 20 frames, 8 samples each, as in the tables."""
    difference = []
    for k in range(300):
        cause = noise(20, seed=10 * k)
        real = cause + noise(20, seed=10 * k + 1)
        scores = [energy_score(forecasts(kind, cause, 8, 10 * k + 2), real) for kind in ("truth", wrong)]
        difference.append(scores[0] - scores[1])
    d = torch.tensor(difference)
    assert float(d.mean()) < -3 * float(d.std()) / math.sqrt(len(d))


def test_energy_score_does_not_depend_on_the_number_of_samples() -> None:
    """Pairs of different samples only: eight are judged as many would be."""
    few, many = [], []
    for k in range(100):
        real, samples = noise(10, seed=5 * k), noise(24, 10, seed=5 * k + 1)
        few.append(energy_score(samples[:4], real))
        many.append(energy_score(samples, real))
    gap = torch.tensor(few) - torch.tensor(many)
    assert abs(float(gap.mean())) < 3 * float(gap.std()) / math.sqrt(len(gap))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[2, 5\] and \[4\]"):
        energy_score(noise(2, 5), noise(4))
    with pytest.raises(ValueError, match="samples must be"):
        energy_score(noise(0, 5), noise(5))


def test_centred_is_about_each_course_of_its_own() -> None:
    x = noise(3, 9) + torch.tensor([[1.0], [2.0], [3.0]])
    assert centred(x).mean(dim=-1).abs().max() < 1e-12
