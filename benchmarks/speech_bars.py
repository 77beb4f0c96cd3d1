"""What is asked of stage one beside following the voice (`benchmarks.quality a2m`), one part at a time:

    python -m benchmarks.speech_bars silence --data DIR [--split test] [--weights NAME]
    python -m benchmarks.speech_bars leak --data DIR ...
    python -m benchmarks.speech_bars head --data DIR ... [--seeds 4]
    python -m benchmarks.speech_bars closure [--voices 4] [--seeds 1]
    python -m benchmarks.speech_bars steps --data DIR [--split val] [--steps 1 2 4 8 16 32]

silence: the mouth is closed where nothing is said. leak: the picture's own mouth does not show in the motion. head:
blinks and the head's movement against the tracks'. closure: lips meet at /p b m/ of synthesised speech. steps: what
more steps of sampling bring. All is measured on what the pipeline shows, gate included.
"""

import argparse
from pathlib import Path

import torch

from a2m.pipeline import AudioToMotion
from benchmarks.closures import closures
from benchmarks.heads import heads
from benchmarks.knee import knee
from benchmarks.open_pictures import open_pictures
from benchmarks.openings import ATOM
from benchmarks.report import run_main
from benchmarks.silences import silences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("silence", "leak", "head", "closure", "steps"):
        part = parts.add_parser(name)
        part.add_argument("--weights", default=ATOM, help="built-in name, folder or hub id")
        part.add_argument("--threads", type=int, default=1, help="cores to use (default 1)")
        if name != "closure":
            part.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
            default = "val" if name == "steps" else "test"
            part.add_argument("--split", default=default, choices=["val", "test"], help=f"default {default}")
        if name in ("head", "closure", "steps"):
            n = {"head": 4, "closure": 1, "steps": 8}[name]
            part.add_argument("--seeds", type=int, default=n, help=f"samples of each recording (default {n})")
        if name == "closure":
            part.add_argument("--voices", type=int, default=4, help="of espeak-ng for each language (default 4)")
        if name == "steps":
            part.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
            part.add_argument("--guidance", type=float, help="guidance scale (default: the weights' own)")
            part.add_argument("--lags", type=Path, metavar="JSON", help="of python -m a2m.lag")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.part == "steps":
        knee(args.data, args.split, args.weights, args.seeds, args.steps, args.guidance, args.lags)
        return
    pipeline = AudioToMotion.from_pretrained(args.weights)
    if args.part == "silence":
        silences(args.data, args.split, pipeline)
    elif args.part == "leak":
        open_pictures(args.data, args.split, pipeline)
    elif args.part == "head":
        heads(args.data, args.split, pipeline, args.seeds)
    else:
        closures(pipeline, args.voices, args.seeds)


if __name__ == "__main__":
    run_main(main)
