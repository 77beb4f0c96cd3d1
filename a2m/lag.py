"""By how many frames each clip's sound is later than its face: one integer a clip, fixed before models are trained.

    python -m a2m.lag --data DIR --out lags.json

Recordings come with tracks that lead or trail their sound by a few frames, and a model that is to hear them all alike
must not learn the mean of their delays. In each round regressions on four fifths of the people predict the mouth of the
others; the shift at which a clip follows its prediction best, tolerantly, is its lag in the next round, in which the
regressions learn from realigned clips. Clips of the test split are given theirs at the end, by all five regressions,
which have seen none of them.

A second of one word says little about its own delay: such clips stay near the one that all of their label share.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from a2m.data import Clip, person_folds, read_clips
from a2m.regression import Regression, RegressionConfig
from a2m.regression_train import MEASURED_ONLY, TrainConfig, predict_opening, train_networks
from common.errors import InputError
from common.face.model import FaceModel
from common.files import atomic_path
from common.metrics.motion import correlation

log = logging.getLogger(__name__)

MOST = 6  # frames either way
N_FOLDS = 5
_INDEPENDENT = 4  # frames after which a mouth's opening is about independent of itself
_SPREAD, _WORD_SPREAD = 3.0, 1.5  # standard deviation of lags about none, and of words about their label's

Predict = Callable[[Clip], Tensor]


def evidence(predicted: Tensor, real: Tensor) -> Tensor:
    """[2 MOST + 1]: what the log-likelihood of lags -MOST..MOST gains over a still mouth; predicted, real: [T].

    That of a Gaussian whose mean is the prediction, scaled as it fits best: -T/2 log(1 - r²), T counted in independent
    frames. A lag at which the prediction is turned round gains nothing.
    """
    T, gains = len(real), []
    for lag in range(-MOST, MOST + 1):
        if T - abs(lag) < 2 * _INDEPENDENT:
            gains.append(0.0)
            continue
        r = max(0.0, correlation(predicted[max(0, lag) : T + min(0, lag)], real[max(0, -lag) : T - max(0, lag)]))
        gains.append(-(T - abs(lag)) / (2 * _INDEPENDENT) * math.log(1 - min(r, 0.999) ** 2))
    return torch.tensor(gains)


def most_likely(gains: Mapping[str, Tensor], clips: Sequence[Clip]) -> dict[str, int]:
    """The lag of each clip, from `evidence` and what is known beforehand."""
    shift = torch.arange(-MOST, MOST + 1)
    shared: dict[str, Tensor] = {}
    for clip in clips:
        if clip.is_word:
            shared[clip.person] = shared.get(clip.person, torch.zeros(len(shift))) + gains[clip.name]
    lags = {}
    for clip in clips:
        centre = int(shared[clip.person].argmax()) - MOST if clip.is_word else 0
        spread = _WORD_SPREAD if clip.is_word else _SPREAD
        lags[clip.name] = int((gains[clip.name] - (shift - centre) ** 2 / (2 * spread**2)).argmax()) - MOST
    return lags


def estimate(clips: Sequence[Clip], unseen: Sequence[Clip], n_rounds: int, options: TrainConfig) -> dict[str, int]:
    """Lags of clips, on which the regressions are trained in folds of people, and of unseen ones."""
    folds = person_folds(clips, N_FOLDS)
    lags: dict[str, int] = {}
    models: list[Regression] = []
    for k in range(n_rounds):
        models = []
        for fold in range(N_FOLDS):
            others = [c for c, of in zip(clips, folds, strict=True) if of != fold]
            aligned = [c.realigned(lags.get(c.name, 0)) for c in others if not c.name.startswith(MEASURED_ONLY)]
            models.append(train_networks(aligned, RegressionConfig(n_members=1), options))
        pairs = list(zip(clips, folds, strict=True))
        gains = {clip.name: evidence(predict_opening(models[fold], clip), clip.opening) for clip, fold in pairs}
        new = most_likely(gains, clips)
        n_changed = sum(new[name] != lags.get(name, 0) for name in new)
        follows = [correlation(predict_opening(models[f], a), a.opening) for a, f in _aligned(pairs, new, False)]
        words = [correlation(predict_opening(models[f], a), a.opening) for a, f in _aligned(pairs, new, True)]
        medians = [float(torch.tensor(part).median()) if part else math.nan for part in (follows, words)]
        log.info("round %d: %d lags changed; median correlation %.3f, of words %.3f", k + 1, n_changed, *medians)
        lags = new

    def mean(clip: Clip) -> Tensor:
        return torch.stack([predict_opening(model, clip) for model in models]).mean(dim=0)

    return lags | most_likely({clip.name: evidence(mean(clip), clip.opening) for clip in unseen}, unseen)


def _aligned(pairs: Sequence[tuple[Clip, int]], lags: Mapping[str, int], is_word: bool) -> list[tuple[Clip, int]]:
    return [(clip.realigned(lags[clip.name]), fold) for clip, fold in pairs if clip.is_word is is_word]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m a2m.lag", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    parser.add_argument("--rounds", type=int, default=3, help="a minute or two each on one core (default 3)")
    parser.add_argument("--steps", type=int, default=300, help="of each regression (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.steps < 1:
        raise InputError("--rounds and --steps must be 1 or more.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    torch.set_num_threads(1)
    face_model = FaceModel.builtin()
    train, val, test = (read_clips(args.data, split, face_model) for split in ("train", "val", "test"))
    if not train:
        raise InputError(f"{args.data} has no talking clip in its split 'train': see docs/data.md.")
    lags = estimate([*train, *val], test, args.rounds, TrainConfig(steps=args.steps, seed=args.seed))
    with atomic_path(args.out) as part:
        part.write_text(json.dumps(lags, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{args.out}: lags of {len(lags)} clips")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
