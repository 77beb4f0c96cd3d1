"""Figures with the spread of people, and what is said of a bar."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import bars
from benchmarks.bars import Bar, Figure


def people(n: int) -> list[str]:
    return [f"p{k}" for k in range(n)]


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.6, 0.55, 0.65, "reached"),
        (0.6, 0.45, 0.75, "not shown"),
        (0.45, 0.40, 0.60, "not reached"),
        (0.9, 0.70, 1.30, "not shown"),
        (1.3, 1.25, 1.40, "not reached"),
        (math.nan, math.nan, math.nan, "cannot be told"),
    ],
)
def test_a_bar_is_reached_with_its_whole_interval(value: float, low: float, high: float, verdict: str) -> None:
    bar = Bar("it", Figure(value, low, high, 9, 3), least=0.5, most=1.2)
    assert bar.verdict == verdict
    assert str(bar).startswith("- it: ")
    assert f"asked for 0.5 to 1.2: {verdict} (n 9, people 3)" in str(bar)


def test_one_person_shows_nothing() -> None:
    assert Bar("it", bars.median([1.0, 1.0], ["ann", "ann"]), least=0.5).verdict == "not shown"


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=30), n=st.integers(1, 6))
def test_figures_lie_within_what_was_measured(values: list[float], n: int) -> None:
    persons = [f"p{k % n}" for k in range(len(values))]
    for found in (bars.median(values, persons), bars.mean(values, persons)):
        tiny = 1e-9
        assert min(values) - tiny <= found.low <= found.high <= max(values) + tiny
        assert min(values) - tiny <= found.value <= max(values) + tiny
        assert (found.n, found.n_persons) == (len(values), min(n, len(values)))


def test_intervals_are_of_people_not_of_clips() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 400).tolist()
    one = bars.mean(values, people(400))
    assert one.value == pytest.approx(float(np.mean(values)))
    assert one.high - one.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)  # normal theory
    again = bars.mean(values * 4, people(400) * 4)  # the same people, every clip four times
    assert (again.low, again.high) == pytest.approx((one.low, one.high))
    wide = bars.mean(values, [f"p{k % 20}" for k in range(400)])
    assert wide.n_persons == 20


def test_medians_of_the_same_clips_are_compared_in_the_same_draws() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 60).tolist()
    found = bars.median_difference([value + 0.1 for value in values], values, people(60))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert bars.median(values, people(60)).low < -0.1


def test_ratios_count_every_event_once() -> None:
    found = bars.ratio([3, 0, 1], [6, 1, 1], ["ann", "bea", "bea"])
    assert found.value == pytest.approx(4 / 8)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))  # either alone has a half
    assert math.isnan(bars.ratio([0.0], [0.0], ["ann"]).value)
    assert bars.mean([math.nan, 2.0], ["ann", "bea"]).n == 1
    assert math.isnan(bars.median([], []).value)
