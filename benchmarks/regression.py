"""How well a predicted mouth follows real ones: `python -m benchmarks.regression --data DIR`.

On clips of people that training has not seen; running speech and single words apart. The measured mouth opening is the
tracked one after frontalising (distance 62-66 by the eye centres'). Per clip: the correlation with the prediction at
lag 0 and at the best lag within ±5 frames, whether that lag is within ±1, the ratio of standard deviations, and the
mean absolute error about the clip's mean beside that of a mouth held still. Intervals: 95 %, bootstrap over people.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from a2m.data import Clip, read_clips
from a2m.regression import WEIGHTS, Regression
from a2m.regression_train import clip_correlation
from benchmarks.openings import regressed
from benchmarks.report import run_main
from common.face.model import FaceModel

MAX_LAG = 5
Predictor = Callable[[Clip], Tensor]


@dataclass(frozen=True)
class Score:
    """One clip. lag > 0: the prediction comes later than the track."""

    person: str
    correlation: float
    best_correlation: float
    lag: int
    amplitude: float
    error: float


def score(clip: Clip, predicted: Tensor) -> Score:
    """predicted: [T], mouth opening up to a constant."""
    real, T = clip.opening, len(clip.opening)
    by_lag = {
        lag: clip_correlation(real[max(0, -lag) : T - max(0, lag)], predicted[max(0, lag) : T + min(0, lag)])
        for lag in range(-MAX_LAG, MAX_LAG + 1)
    }
    best = max(by_lag, key=lambda lag: (by_lag[lag], -abs(lag)))
    still = (real - real.mean()).abs().mean().clamp(min=1e-6)
    error = ((real - real.mean()) - (predicted - predicted.mean())).abs().mean()
    amplitude = float(predicted.std() / real.std().clamp(min=1e-6))
    return Score(clip.person, by_lag[0], by_lag[best], best, amplitude, float(error / still))


def loudness(clip: Clip) -> Tensor:
    """The cheap rival: the level of the sound, smoothed over five frames; it has no scale of its own."""
    level = clip.mel.mean(dim=(1, 2)).clamp(min=float(clip.mel.mean()) - 3)
    padded = torch.nn.functional.pad(level[None, None], (2, 2), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, 5, stride=1)[0, 0]


def bootstrap(scores: list[Score], n_draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the median correlation at lag 0, people drawn with replacement."""
    people = sorted({s.person for s in scores})
    by_person = [torch.tensor([s.correlation for s in scores if s.person == p]) for p in people]
    generator = torch.Generator().manual_seed(seed)
    medians = []
    for _ in range(n_draws):
        chosen = torch.randint(len(people), (len(people),), generator=generator)
        medians.append(torch.cat([by_person[k] for k in chosen.tolist()]).median())
    low, high = torch.stack(medians).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def row(name: str, scores: list[Score], has_scale: bool = True) -> str:
    def middle(field: str) -> float:
        return float(torch.tensor([getattr(s, field) for s in scores]).quantile(0.5))

    if middle("amplitude") == 0:  # no correlation to speak of
        return f"| {name} | – | – | – | – | {middle('amplitude'):.2f} | {middle('error'):.2f} |"
    mean = sum(s.correlation for s in scores) / len(scores)
    near = sum(abs(s.lag) <= 1 for s in scores) / len(scores)
    low, high = bootstrap(scores)
    scale = f"{middle('amplitude'):.2f} | {middle('error'):.2f}" if has_scale else "– | –"
    return (
        f"| {name} | {middle('correlation'):.2f} ({low:.2f} to {high:.2f}) | {mean:.2f} | "
        f"{middle('best_correlation'):.2f} | {100 * near:.0f} % | {scale} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
    parser.add_argument("--weights", default=WEIGHTS)
    parser.add_argument("--split", default="test", choices=["val", "test"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    face_model = FaceModel.builtin()
    report(read_clips(arguments.data, arguments.split, face_model), arguments.weights)


def report(clips: list[Clip], weights: str) -> None:
    """Print one table for running speech and one for single words."""
    model = Regression.from_pretrained(weights)
    predictors: dict[str, Predictor] = {
        "mouth held still": lambda clip: torch.zeros_like(clip.opening),
        "loudness": loudness,
        "regression, raw": lambda clip: regressed(model, False)(clip).opening[0],
        "regression, variance restored": lambda clip: regressed(model, True)(clip).opening[0],
    }
    for title, is_word in (("Running speech", False), ("Single words", True)):
        chosen = [clip for clip in clips if clip.is_word is is_word]
        people = len({clip.person for clip in chosen})
        seconds = sum(len(clip.mel) for clip in chosen) / 25
        print(f"\n{title}: {len(chosen)} clips, {people} person labels, {seconds / 60:.1f} min\n")
        print(
            "| | correlation, median (95 %) | mean | best lag ±5 | peak within ±1 frame | amplitude | error / still |"
        )
        print("|---|---|---|---|---|---|---|")
        for name, predict in predictors.items():
            print(row(name, [score(clip, predict(clip)) for clip in chosen], has_scale=name != "loudness"))


if __name__ == "__main__":
    run_main(main)
