"""What every benchmark shares: rows of the data's index, means and their spread over persons, Markdown tables."""

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import check_input


def run_main(main: Callable[[], None]) -> None:
    """What is wrong with the given data is one sentence, as everywhere."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")


def clips(data_dir: Path, split: str, kind: str = "talking") -> list[dict[str, str]]:
    """Rows of index.csv of one split."""
    check_input(data_dir / "index.csv", "index of the data")
    with (data_dir / "index.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["split"] == split and row["kind"] == kind]


def is_word(row: Mapping[str, str]) -> bool:
    """LRW-AR: single words of about a second, told apart from running speech everywhere."""
    return row["clip_id"].startswith("lrwar_")


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


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])
