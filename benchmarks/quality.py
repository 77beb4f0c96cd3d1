"""How good both stages are, beside what is simpler and what is the best they could reach:

    python -m benchmarks.quality a2m --data DIR [--split test] [--lags JSON]
    python -m benchmarks.quality m2v --data DIR [--split test] [--steps 1 4 8 16]

Figures are means over people, in brackets their 95 % interval by drawing people with replacement; digits are those that
it allows. Differences are paired: both methods on the same clip. Running speech and single words are told apart. What
is asked of running speech stands below its tables (`benchmarks.bars`); `benchmarks.speech_bars` has what else is asked.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from a2m.regression import WEIGHTS
from benchmarks.following import PARTS, following
from benchmarks.openings import ATOM
from benchmarks.renders import (
    MOTION_COLUMNS,
    PICTURE_COLUMNS,
    Scene,
    ceiling,
    judge,
    mcvdm,
    read_scenes,
    repeated,
    warped,
)
from benchmarks.report import count, run_main, table
from common.memory import keep_freed_memory
from m2v.pipeline import AUTOENCODER, DENOISER, MCVDM

REPEATED, WARP, ZERO, CEILING = "picture repeated", "warp", "ours, planes zero", "autoencoder, true planes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    a2m, m2v = stages.add_parser("a2m", help="speech to motion"), stages.add_parser("m2v", help="motion to video")
    for stage in (a2m, m2v):
        stage.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
        stage.add_argument("--split", default="test", choices=["val", "test"])
        stage.add_argument("--threads", type=int, default=1, help="cores to use (default 1)")
    a2m.add_argument("--seeds", type=int, default=8, help="samples per clip (default 8)")
    a2m.add_argument("--weights", default=ATOM, help="built-in name, folder or hub id")
    a2m.add_argument("--against", help="other weights of AToM-Net, compared on the same clips")
    a2m.add_argument("--regression", default=WEIGHTS, help="weights of the yardstick")
    a2m.add_argument("--no-words", action="store_true", help="running speech only")
    a2m.add_argument("--lags", type=Path, metavar="JSON", help="of python -m a2m.lag: clips are realigned first")
    m2v.add_argument("--steps", type=int, nargs="+", default=[1, 4, 8, 16])
    m2v.add_argument("--autoencoder", default=AUTOENCODER, help="built-in name, folder or hub id")
    m2v.add_argument("--denoiser", default=DENOISER, help="likewise")
    m2v.add_argument("--clips-per-person", type=int, default=1)
    m2v.add_argument("--max-frames", type=int, default=28, help="per clip (default 28: two clips of the renderer)")
    m2v.add_argument("--every", type=int, default=4, help="pictures are compared at every so manieth frame (default 4)")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    if args.stage == "a2m":
        parts = PARTS[: 1 if args.no_words else None]
        following(args.data, args.split, args.weights, args.seeds, args.regression, args.lags, args.against, parts)
    else:
        model = MCVDM.from_pretrained(args.autoencoder, args.denoiser)
        scenes = read_scenes(args.data, args.split, args.clips_per_person, args.max_frames)
        motion_to_video(scenes, model, args.steps, args.every)
    print(f"\nmeasured in {time.perf_counter() - started:.0f} s")


# ---- stage two ------------------------------------------------------------------------------------------------------


def motion_to_video(scenes: Iterable[Scene], model: MCVDM, steps: Sequence[int], every: int) -> None:
    ours = {f"ours, {n} step{'s' * (n > 1)}": mcvdm(model, n) for n in steps}
    methods = {REPEATED: repeated, WARP: warped, **ours, ZERO: mcvdm(model, 0), CEILING: ceiling(model)}
    most = list(ours)[-1]
    pairs = [(WARP, REPEATED), *((name, WARP) for name in ours), (most, ZERO), (most, CEILING)]
    seen, values, seconds = judge(scenes, methods, every)
    for title, is_word in PARTS:
        chosen = [k for k, scene in enumerate(seen) if scene.is_word is is_word]
        persons = [seen[k].person for k in chosen]
        if not chosen:
            continue
        part = {name: [scores[k] for k in chosen] for name, scores in values.items()}
        n_judged = sum(int(seen[k].valid.sum()) for k in chosen)
        print(f"\n{title}: {count(persons)}, {n_judged} frames judged")
        for columns in (PICTURE_COLUMNS, MOTION_COLUMNS):
            print("\n" + table(columns, part, pairs, persons), flush=True)
    print()
    for name, spent in seconds.items():
        print(f"{name}: {spent:.3f} s a frame")


if __name__ == "__main__":
    run_main(main)
