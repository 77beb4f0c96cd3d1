"""Bars: figures that were asked for beforehand, what came out, and whether that reaches them.

A figure has a 95 % interval from drawing people with replacement, all of a person's clips together. A bar is *reached*
where figure and interval lie on its right side, *not shown* where only the figure does, *not reached* otherwise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report import by_person

Statistic = Callable[[np.ndarray], float]  # of the clips with these numbers


@dataclass(frozen=True)
class Figure:
    value: float
    low: float
    high: float
    n: int
    n_persons: int

    def __str__(self) -> str:
        return f"{_digits(self.value)} ({_digits(self.low)} to {_digits(self.high)})"


def figure(statistic: Statistic, persons: Sequence[str], n_draws: int = 1000, seed: int = 0) -> Figure:
    """A statistic of all clips, and of draws of people. NaN from a draw (nothing to measure) is left out."""
    numbers: dict[str, list[int]] = {}
    for k, person in enumerate(persons):
        numbers.setdefault(person, []).append(k)
    groups = [np.array(each) for each in numbers.values()]
    if not groups:
        return Figure(math.nan, math.nan, math.nan, 0, 0)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(groups), size=(n_draws, len(groups)))
    drawn = np.array([statistic(np.concatenate([groups[k] for k in draw])) for draw in draws])
    known = drawn[np.isfinite(drawn)]
    low, high = np.quantile(known, [0.025, 0.975]).tolist() if len(known) else (math.nan, math.nan)
    return Figure(statistic(np.arange(len(persons))), low, high, len(persons), len(groups))


def median(values: Sequence[float], persons: Sequence[str]) -> Figure:
    """Over clips."""
    kept, of = _known(values, persons)
    return figure(lambda numbers: float(np.median(kept[numbers])), of)


def median_difference(one: Sequence[float], other: Sequence[float], persons: Sequence[str]) -> Figure:
    """The median of one less that of the other, on the same clips."""
    a, b = np.array(one), np.array(other)
    return figure(lambda numbers: float(np.median(a[numbers]) - np.median(b[numbers])), persons)


def mean(values: Sequence[float], persons: Sequence[str]) -> Figure:
    """Over people, of each one's mean."""
    kept, of = _known(values, persons)
    means = by_person(kept.tolist(), of)
    found = figure(lambda numbers: float(means[numbers].mean()) if len(means) else math.nan, sorted(set(of)))
    return Figure(found.value, found.low, found.high, len(kept), len(means))


def ratio(above: Sequence[float], below: Sequence[float], persons: Sequence[str]) -> Figure:
    """The sum of one by the sum of the other: shares and rates, each event counting once."""
    a, b = np.array(above, float), np.array(below, float)
    return figure(lambda numbers: float(a[numbers].sum() / b[numbers].sum()) if b[numbers].sum() else math.nan, persons)


@dataclass(frozen=True)
class Bar:
    """least, most: what is asked for."""

    text: str
    found: Figure
    least: float = -math.inf
    most: float = math.inf

    @property
    def verdict(self) -> str:
        f = self.found
        if not math.isfinite(f.value):
            return "cannot be told"
        if not self.least <= f.value <= self.most:
            return "not reached"
        return "reached" if f.n_persons > 1 and self.least <= f.low and f.high <= self.most else "not shown"

    def __str__(self) -> str:
        asked = f"{self.least:.2g} to {self.most:.2g}"
        if math.isinf(self.most):
            asked = f"at least {self.least:.2g}"
        elif math.isinf(self.least):
            asked = f"at most {self.most:.2g}"
        n = f"n {self.found.n}, people {self.found.n_persons}"
        return f"- {self.text}: {self.found}, asked for {asked}: {self.verdict} ({n})"


def _known(values: Sequence[float], persons: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    kept = [(value, person) for value, person in zip(values, persons, strict=True) if math.isfinite(value)]
    return np.array([value for value, _ in kept]), [person for _, person in kept]


def _digits(value: float) -> str:
    """Three digits, two decimals at most but for what is small."""
    if not math.isfinite(value):
        return "–"
    n_decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 or value == 0 else 3
    text = f"{value:.{n_decimals}f}"
    return text if float(text) else text.removeprefix("-")
