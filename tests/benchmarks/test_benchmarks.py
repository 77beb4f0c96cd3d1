"""The benchmarks' own arithmetic: means over people, intervals, overlaps and the sign of a lag."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from a2m.data import Clip
from benchmarks import faces, regression, report
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


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        (40.0, "5 (1 to 9)"),  # half widths of about 4, 0.4, 0.04: 1.96 · spread / √400
        (4.0, "5.0 (4.6 to 5.4)"),
        (0.4, "5.00 (4.96 to 5.04)"),
        (0.0, "5"),
    ],
)
def test_an_estimate_has_the_digits_that_its_interval_allows(spread: float, expected: str) -> None:
    noise = np.random.default_rng(0).normal(0, 1, 400)
    values = 5 + spread * (noise - noise.mean()) / noise.std()
    found = report.estimate(values.tolist(), [f"p{k}" for k in range(400)])
    assert len(found) == len(expected)
    assert [len(part) for part in found.split()] == [len(part) for part in expected.split()]
    assert float(found.split()[0]) == 5


def test_few_people_have_two_digits() -> None:
    assert report.estimate([24.401, 24.403], ["ann", "bea"]) == "24 (24 to 24)"
    assert report.estimate([1.3446, 1.3478], ["ann", "bea"]) == "1.35 (1.34 to 1.35)"
    assert report.estimate([-0.0126, -0.0075], ["ann", "bea"]) == "-0.010 (-0.013 to -0.007)"


def test_what_cannot_be_measured_is_left_out() -> None:
    nan = float("nan")
    assert report.estimate([nan, 2.0, 2.0], ["ann", "bea", "cid"]) == "2"
    assert report.estimate([nan], ["ann"]) == "–"
    assert report.estimate([], []) == "–"


def test_the_mean_of_ratios_is_geometric_and_their_differences_are_distances_from_one() -> None:
    ratios = [0.5, 2.0] * 8
    persons = [f"p{k}" for k in range(16)]
    assert report.estimate(ratios, persons, is_ratio=True).startswith("1.0 (")
    column = report.Column("detail", "value", is_ratio=True)

    def of(*values: float) -> list[SimpleNamespace]:
        return [SimpleNamespace(value=value) for value in values]

    # Half and double are equally far from 1; 1 is nearer than either.
    assert report.differences(column, of(0.5, 1.0), of(2.0, 2.0)) == pytest.approx([0, -np.log(2)])
    plain = report.Column("PSNR", "value")
    assert report.differences(plain, of(0.5, 1.0), of(2.0, 2.0)) == [-1.5, -1.0]


def test_a_table_has_its_differences_below() -> None:
    values = {
        "ours": [SimpleNamespace(x=k + 1.0) for k in range(12)],
        "warp": [SimpleNamespace(x=k) for k in range(12)],
    }
    table = report.table([report.Column("X", "x")], values, [("ours", "warp")], [f"p{k}" for k in range(12)])
    rows = table.splitlines()
    assert rows[0] == "|  | X |"
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| ours", "| warp", "| ours − warp"]
    assert rows[-1] == "| ours − warp | 1 |"  # paired: always the same


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
