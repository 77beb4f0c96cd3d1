"""Does the mouth follow the voice? Tables of stage one against its rivals, and the bars of running speech."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from a2m.data import Clip, read_clips, read_lags, realigned
from benchmarks import bars
from benchmarks.bars import Bar
from benchmarks.openings import (
    COLUMNS,
    FULL,
    MORE_COLUMNS,
    REGRESSION,
    RESTORED,
    RETRIEVED,
    STILL,
    WITH_ERRORS,
    Score,
    baselines,
    sampled,
    score,
)
from benchmarks.report import count, table
from common.face.model import FaceModel

PARTS = (("Running speech", False), ("Single words (LRW-AR)", True))
SINGLE = "ours, single samples"
Scores = Mapping[str, Sequence[Score]]


def following(
    data_dir: Path,
    split: str,
    weights: str,
    n_seeds: int,
    regression: str,
    lags: Path | None,
    against: str | None,
    parts: Sequence[tuple[str, bool]] = PARTS,
) -> None:
    """against: other weights of AToM-Net, to be compared pair by pair; lags: what `a2m.lag` wrote."""
    known = read_lags(lags) if lags else {}

    def read(part: str) -> list[Clip]:
        return realigned(read_clips(data_dir, part, FaceModel.builtin()), known)

    train_clips, others = read("train"), read("val")
    clips = others if split == "val" else read(split)
    forecasts = baselines(train_clips, others, n_seeds, regression)
    mean = f"ours, mean of {n_seeds} samples"
    ours = {"": sampled(weights, n_seeds)} | ({f", {against}": sampled(against, n_seeds)} if against else {})
    pairs = [(mean, REGRESSION), (SINGLE, REGRESSION), (SINGLE, RESTORED), (SINGLE, WITH_ERRORS)]
    pairs += [(name, f"{name}, {against}") for name in (mean, SINGLE) if against]
    for title, is_word in parts:
        chosen = [clip for clip in clips if clip.is_word is is_word]
        persons = [clip.person for clip in chosen]
        if not chosen:
            continue
        values = {name: [score(each(clip), clip) for clip in chosen] for name, each in forecasts.items()}
        for suffix, forecast in ours.items():
            samples = [(forecast(clip), clip) for clip in chosen]
            values[mean + suffix] = [score(each.mean(), clip) for each, clip in samples]
            values[SINGLE + suffix] = [score(each, clip) for each, clip in samples]
        seconds = sum(len(clip.mel) for clip in chosen) / 25
        print(f"\n{title}: {count(persons)}, {seconds / 60:.1f} min\n")
        for columns in (COLUMNS, MORE_COLUMNS):
            print(table(columns, values, pairs, persons) + "\n", flush=True)
        if not is_word:
            print("\n".join(map(str, speech_bars(values, mean, persons))), flush=True)


def speech_bars(values: Scores, mean: str, persons: Sequence[str]) -> list[Bar]:
    """Medians are over clips (of single samples, each clip's mean over them), means over people."""

    def of(name: str, field: str) -> list[float]:
        return [getattr(each, field) for each in values[name]]

    def less(name: str, other: str, field: str) -> list[float]:
        return [a - b for a, b in zip(of(name, field), of(other, field), strict=True)]

    def median(name: str, field: str) -> bars.Figure:
        return bars.median(of(name, field), persons)

    ahead = bars.median_difference(of(mean, "correlation"), of(REGRESSION, "correlation"), persons)
    near = [1.0 if each > 0.5 else 0.0 for each in of(mean, "peak")]
    rivals = [name for name in (STILL, RETRIEVED, REGRESSION) if name in values]
    return [
        Bar("mean of the samples: median correlation of the opening", median(mean, "correlation"), least=0.5),
        Bar("the same less the regression's", ahead, least=0),
        Bar("its peak within ± 1 frame", bars.ratio(near, [1.0] * len(near), persons), least=0.75),
        Bar("single samples: median correlation", median(SINGLE, "correlation"), least=0.3),
        Bar("standard deviation by the tracks', median", median(SINGLE, "amplitude"), least=0.8, most=1.2),
        Bar("jerk by the smoothed tracks', median", median(SINGLE, "jerk"), least=0.6, most=1.3),
        *(
            Bar(f"energy score less that of: {name}", bars.mean(less(SINGLE, name, "energy"), persons), most=0)
            for name in (REGRESSION, FULL)
        ),
        *(
            Bar(
                f"LMD over the lips{how}, mean of the samples, less that of: {name}",
                bars.mean(less(mean, name, field), persons),
                most=0,
            )
            for how, field in (("", "lmd"), (" about their means", "lmd_course"))
            for name in rivals
        ),
    ]
