"""The benchmarks' own arithmetic: means over people, intervals, overlaps, boxes and the sign of a lag."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from a2m.data import Clip
from benchmarks import faces, regression, report, warp
from common.face.pos import Pose

# Means and intervals over people


def test_people_count_once_however_many_clips_they_have() -> None:
    means = report.by_person([1.0, 3.0, 8.0, 2.0, 3.0], ["ann", "ann", "bea", "ann", "ann"])
    assert means.tolist() == [2.25, 8.0]
    with pytest.raises(ValueError, match="zip"):
        report.by_person([1.0, 2.0], ["ann"])


def test_interval_is_that_of_people() -> None:
    rng = np.random.default_rng(0)
    values, persons = rng.normal(5, 2, 400).tolist(), [f"p{k}" for k in range(400)]
    low, high = report.interval(values, persons)
    # Normal theory: mean ± 1.96·2/√400 = ± 0.196; 2000 draws leave some percent of it.
    mean = float(np.mean(values))
    assert low == pytest.approx(mean - 0.196, abs=0.03)
    assert high == pytest.approx(mean + 0.196, abs=0.03)
    # The same people with every clip four times over know no more.
    assert report.interval(values * 4, persons * 4) == pytest.approx((low, high))
    assert report.interval(values, persons) == (low, high)  # the same seed
    assert report.interval([1.0, 3.0, 2.0], ["ann"] * 3) == (2.0, 2.0)


def test_markdown_is_a_table() -> None:
    table = report.markdown(["name", "n"], [["a", 1], ["b", 2.5]])
    assert table.splitlines() == ["| name | n |", "|---|---|", "| a | 1 |", "| b | 2.5 |"]


# The face finder's figures


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(0, True), (4, True), (5, False), (10, False), (12, False)],  # overlap (10 − d) / (10 + d): 1, 0.43, 0.33, 0, 0
)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_hit_overlaps_by_more_than_two_fifths(shift: int, expected: bool, axis: int) -> None:
    truth = (20.0, 30.0, 30.0, 40.0)
    move = [0.0, 0.0]
    move[axis] = shift
    box = (20 + move[0], 30 + move[1], 30 + move[0], 40 + move[1])
    assert faces.hit(box, truth) is expected
    assert faces.hit(truth, box) is expected


def test_a_box_of_another_size_or_none_is_no_hit() -> None:
    assert not faces.hit(None, (0, 0, 10, 10))
    assert faces.hit((0, 0, 15, 15), (0, 0, 10, 10))  # 100 / 225
    assert not faces.hit((0, 0, 16, 16), (0, 0, 10, 10))  # 100 / 256


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [
        (10, 10, "10 = 100% (72%-100%)"),  # 10 / (10 + 1.96²) = 0.7225
        (0, 10, "0 = 0% (0%-28%)"),
        (50, 100, "50 = 50% (40%-60%)"),  # (51.92 ± 9.99) / 103.84
        (1, 4, "1 = 25% (5%-70%)"),  # (2.9208 ± 1.96·√(0.75 + 0.9604)) / 7.8416 = 0.3725 ± 0.3269
    ],
)
def test_share_has_wilsons_interval(k: int, n: int, expected: str) -> None:
    assert faces._share([True] * k + [False] * (n - k)) == expected


# The warp's mouth


@settings(max_examples=200, deadline=None)
@given(
    x=st.floats(-50, 306),
    y=st.floats(-50, 306),
    width=st.floats(0, 200),
    height=st.floats(0, 120),
    size_px=st.sampled_from([16, 64, 255, 256]),
)
def test_mouth_box_stays_inside_and_is_large_enough(
    x: float, y: float, width: float, height: float, size_px: int
) -> None:
    """SSIM's window is 7 pixels: a box of 16 always has room for it, wherever the mouth lies."""
    points = np.zeros((68, 3), np.float32)
    points[48:68, 0] = x + width * np.linspace(-0.5, 0.5, 20)
    points[48:68, 1] = y + height * np.linspace(-0.5, 0.5, 20) ** 3 * 4
    rows, columns = warp.mouth_box(points, size_px)
    assert np.zeros((size_px, size_px))[rows, columns].shape == (rows.stop - rows.start, columns.stop - columns.start)
    for part in (rows, columns):
        assert 0 <= part.start <= part.stop - 16
        assert part.stop <= size_px


def test_mouth_box_holds_the_lips_and_a_margin() -> None:
    points = np.zeros((68, 2), np.float32)
    points[48:68] = (128, 180)
    points[48], points[54], points[51], points[57] = (98, 180), (158, 180), (128, 170), (128, 200)
    rows, columns = warp.mouth_box(points, 256)
    # 0.35 of the width of 60 px, 21 px, on every side.
    assert (columns.start, columns.stop, rows.start, rows.stop) == (77, 179, 149, 221)


# The regression's lag


def spoken(n: int = 120) -> Tensor:
    """A mouth that opens without a period: smoothed noise."""
    noise = torch.randn(1, 1, n + 4, generator=Generator().manual_seed(0))
    return 0.1 + 0.02 * torch.nn.functional.avg_pool1d(noise, 5, stride=1)[0, 0]


def clip_of(opening: Tensor) -> Clip:
    n = len(opening)
    pose = Pose(torch.ones(n), torch.eye(3).expand(n, 3, 3), torch.zeros(n, 2))
    lips, lm3d = torch.zeros(n, 37, 3), torch.zeros(n, 68, 3)
    sound = torch.ones(n, dtype=torch.bool)
    return Clip(
        "a", "ann", torch.zeros(n, 4, 64), torch.zeros(64), sound, lm3d, pose, lips, torch.ones(n), opening, 1.0
    )


def late_by(opening: Tensor, frames: int) -> Tensor:
    """What happens at t happens at t + frames; the end that is missing repeats."""
    return opening[(torch.arange(len(opening)) - frames).clamp(0, len(opening) - 1)]


@pytest.mark.parametrize("lag", [-5, -2, 0, 1, 2, 5])
def test_a_late_prediction_has_a_positive_lag(lag: int) -> None:
    opening = spoken()
    score = regression.score(clip_of(opening), late_by(opening, lag))
    assert score.lag == lag
    assert score.best_correlation == pytest.approx(1, abs=1e-4)
    assert (score.correlation == score.best_correlation) == (lag == 0)


def test_score_of_a_prediction_ignores_its_level_and_tells_its_size() -> None:
    opening = spoken()
    exact = regression.score(clip_of(opening), opening + 3)
    assert exact.correlation == pytest.approx(1, abs=1e-3)  # float32: 3 beside 0.01
    assert exact.amplitude == pytest.approx(1, abs=1e-3)
    assert exact.error == pytest.approx(0, abs=1e-3)
    half = regression.score(clip_of(opening), opening / 2)
    assert half.amplitude == pytest.approx(0.5, abs=1e-5)
    assert half.error == pytest.approx(0.5, abs=1e-5)
    still = regression.score(clip_of(opening), torch.zeros(len(opening)))
    assert (still.correlation, still.lag, still.amplitude) == (0, 0, 0)
    assert still.error == pytest.approx(1, abs=1e-5)
