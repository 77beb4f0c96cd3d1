"""What more steps of sampling bring, and what they cost: the knee is the default."""

import time
from collections.abc import Sequence
from pathlib import Path

from a2m.data import read_clips, read_lags, realigned
from benchmarks import bars
from benchmarks.openings import sampled, score
from benchmarks.report import Column, count, table
from common.errors import InputError
from common.face.model import FaceModel

COLUMNS = (
    Column("correlation", "correlation"),
    Column("amplitude", "amplitude"),
    Column("jerk", "jerk"),
    Column("energy score", "energy"),
)
_KNEE = 0.02


def knee(
    data_dir: Path,
    split: str,
    weights: str,
    n_seeds: int,
    steps: Sequence[int],
    guidance: float | None,
    lags: Path | None,
) -> None:
    """Running speech only; the knee: the fewest steps whose energy score is within 2 % of that of the most."""
    clips = realigned(read_clips(data_dir, split, FaceModel.builtin()), read_lags(lags) if lags else {})
    clips = [clip for clip in clips if not clip.is_word]
    if not clips:
        raise InputError(f"the split {split} has no running speech: choose other data")
    persons, minutes = [clip.person for clip in clips], sum(len(clip.mel) for clip in clips) / 1500
    values, spent = {}, []
    for n in sorted(steps):
        forecast = sampled(weights, n_seeds, n, guidance)
        started = time.perf_counter()
        courses = [forecast(clip) for clip in clips]
        spent.append(f"{n}: {(time.perf_counter() - started) / (minutes * n_seeds):.2f} s")
        values[str(n)] = [score(course, clip) for course, clip in zip(courses, clips, strict=True)]
    most = list(values)[-1]
    print(f"Steps of sampling, {split} split: {count(persons)}, {minutes:.1f} min, {n_seeds} samples each\n")
    print(table(COLUMNS, values, [(n, most) for n in values if n != most], persons))
    print(f"\nA minute of speech takes, {n_seeds} samples at a time, each: " + ", ".join(spent))
    for name, scores in values.items():
        energy, least = (bars.mean([each.energy for each in part], persons).value for part in (scores, values[most]))
        if energy <= (1 + _KNEE) * least:
            print(f"The fewest steps whose energy score is within {_KNEE:.0%} of that of {most}: {name}")
            break
