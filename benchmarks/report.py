"""What every benchmark shares: rows of the data's index, means and their spread over persons, Markdown tables."""

import math
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import clip_index
from common.errors import InputError

FEW = 10  # persons


def run_main(main: Callable[[], None]) -> None:
    """What is wrong with the given data is one sentence, as everywhere."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")


def clips(data_dir: Path, split: str, kind: str = "talking") -> list[dict[str, str]]:
    """Rows of index.csv of one split."""
    return [row for row in clip_index.read_index(data_dir, "kind") if row["split"] == split and row["kind"] == kind]


def is_word(row: Mapping[str, str]) -> bool:
    """LRW-AR: single words of about a second, told apart from running speech everywhere."""
    return clip_index.is_word(row["clip_id"])


def by_person(values: Sequence[float], persons: Sequence[str]) -> np.ndarray:
    """The mean of each person's values: persons are what a figure generalises over, not clips."""
    table: dict[str, list[float]] = {}
    for value, person in zip(values, persons, strict=True):
        table.setdefault(person, []).append(value)
    return np.array([np.mean(each) for each in table.values()])


def interval(
    values: Sequence[float], persons: Sequence[str], n_draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over persons (persons drawn with replacement)."""
    means = by_person(values, persons)
    rng = np.random.default_rng(seed)
    draws = rng.choice(means, (n_draws, len(means))).mean(axis=1)
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def estimate(values: Sequence[float], persons: Sequence[str], is_ratio: bool = False) -> str:
    """Mean over persons and its 95 % interval, with the digits that the interval allows and no more.

    is_ratio: the geometric mean of positive ratios. Values that are not finite (nothing to measure in that clip) are
    left out. One person has no interval, and few have one that says little: then two digits must do.
    """
    known = [(float(value), person) for value, person in zip(values, persons, strict=True) if np.isfinite(value)]
    if is_ratio:
        known = [(math.log(value), person) for value, person in known if value > 0]
    if not known:
        return "–"
    kept, of = [value for value, _ in known], [person for _, person in known]
    bounds = [float(by_person(kept, of).mean()), *interval(kept, of)]
    mean, low, high = np.exp(bounds) if is_ratio else bounds
    if high - low <= 1e-5 * abs(mean):
        return f"{mean:.2g}"  # a constant, or one person
    half, unit = (high - low) / 2, 3.0
    if len(set(of)) < FEW:
        half, unit = max(half, 0.05 * abs(mean)), 1.0
    # A half width of 0.3 to 3 allows one decimal, of 0.03 to 0.3 two, ...; of few people a third of that.
    n_decimals = max(0, math.ceil(-math.log10(half / unit)))
    mean_text, low_text, high_text = (_fixed(value, n_decimals) for value in (mean, low, high))
    return f"{mean_text} ({low_text} to {high_text})"


def _fixed(value: float, n_decimals: int) -> str:
    """Without the sign of a zero."""
    text = f"{value:.{n_decimals}f}"
    return text if float(text) else text.removeprefix("-")


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


@dataclass(frozen=True)
class Column:
    """field: of a clip's scores. is_ratio: 1 is real; means are geometric, and differences are of |ln ratio|."""

    title: str
    field: str
    is_ratio: bool = False


def table(
    columns: Sequence[Column],
    values: Mapping[str, Sequence[object]],
    pairs: Sequence[tuple[str, str]],
    persons: Sequence[str],
) -> str:
    """A row for each method, then one for each pair: the first less the second.

    values: method -> the scores of each clip, in the order of persons.
    """
    rows: list[list[object]] = []
    for name, scores in values.items():
        rows.append([name, *(estimate(_field(scores, c), persons, c.is_ratio) for c in columns)])
    for one, other in pairs:
        cells = [estimate(differences(c, values[one], values[other]), persons) for c in columns]
        rows.append([f"{one} − {other}", *cells])
    return markdown(["", *(column.title for column in columns)], rows)


def differences(column: Column, one: Sequence[object], other: Sequence[object]) -> list[float]:
    """Clip by clip. Of ratios |ln one| - |ln other|: below 0 the first is nearer to the real one."""
    a, b = _field(one, column), _field(other, column)
    if column.is_ratio:
        a, b = ([abs(math.log(max(value, 0.01))) for value in values] for values in (a, b))
    return [x - y for x, y in zip(a, b, strict=True)]


def _field(scores: Sequence[object], column: Column) -> list[float]:
    return [float(getattr(each, column.field)) for each in scores]


def count(persons: Sequence[str]) -> str:
    return f"{len(persons)} clips, {len(set(persons))} person labels"


def peak_memory_mb() -> float:
    """The largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
