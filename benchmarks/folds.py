"""What the mouth's opening can be told from, by people left out in turn: five folds of the train and val splits.

    python -m benchmarks.folds --data DIR [--lags FILE] [--phonetics small/a2m_phonetics] [--words 0.4]

Regressions of a minute stand in for AToM-Net, of which five would take hours: front ends, lags and the mixture of clips
are chosen by these. Nothing is trained on clips that may only measure. Medians over clips and means over people, in
brackets the 95 % interval by drawing people.
"""

import argparse
from pathlib import Path

import torch

from a2m.data import Clip, person_folds, read_clips, read_lags, realigned
from a2m.lag import N_FOLDS
from a2m.phonetics.encoder import PhoneticEncoder
from a2m.regression import RegressionConfig
from a2m.regression_train import MEASURED_ONLY, TrainConfig, predict_opening, train_networks
from benchmarks import bars
from benchmarks.report import count, run_main
from common.face.model import FaceModel
from common.metrics.motion import correlation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
    parser.add_argument("--lags", type=Path, help="file of python -m a2m.lag (default: sound and face as they are)")
    parser.add_argument(
        "--phonetics", help="weights of the phonetic encoder to listen through (default: log-mel alone)"
    )
    parser.add_argument("--words", type=float, default=0.4, help="share of the samples: single words (default 0.4)")
    parser.add_argument("--steps", type=int, default=300, help="of each regression (default 300)")
    parser.add_argument("--members", type=int, default=1, help="regressions averaged (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    face_model = FaceModel.builtin()
    clips = [clip for part in ("train", "val") for clip in read_clips(args.data, part, face_model)]
    clips = realigned(clips, read_lags(args.lags) if args.lags else {})
    encoder = PhoneticEncoder.from_pretrained(args.phonetics) if args.phonetics else None
    config, options = RegressionConfig(n_members=args.members), TrainConfig(steps=args.steps, words_share=args.words)
    found = left_out(clips, config, options, encoder)
    for title, is_word in (("running speech", False), ("single words", True)):
        chosen = [clip for clip in clips if clip.is_word is is_word]
        values, persons = [found[clip.name] for clip in chosen], [clip.person for clip in chosen]
        print(f"{title}: {count(persons)}: median {bars.median(values, persons)}, mean {bars.mean(values, persons)}")


def left_out(
    clips: list[Clip], config: RegressionConfig, options: TrainConfig, encoder: PhoneticEncoder | None
) -> dict[str, float]:
    """For each clip the correlation of its opening with what a regression says that knows nothing of its person."""
    folds, found = person_folds(clips, N_FOLDS), dict[str, float]()
    for fold in sorted(set(folds)):
        others = [clip for clip, of in zip(clips, folds, strict=True) if of != fold]
        seen = [clip for clip in others if not clip.name.startswith(MEASURED_ONLY)]
        model = train_networks(seen, config, options, encoder)
        unseen = [clip for clip, of in zip(clips, folds, strict=True) if of == fold]
        found |= {clip.name: correlation(predict_opening(model, clip), clip.opening) for clip in unseen}
    return found


if __name__ == "__main__":
    run_main(main)
