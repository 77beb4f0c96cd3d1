"""How good both stages are, beside what is simpler and what is the best they could reach:

    python -m benchmarks.quality a2m --data DIR [--split test]
    python -m benchmarks.quality m2v --data DIR [--split test] [--steps 1 4 8 16]

Figures are means over people, in brackets their 95 % interval by drawing people with replacement; digits are those that
it allows. Differences are paired: both methods on the same clip. Running speech and single words are told apart.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from a2m.data import read_clips
from benchmarks.openings import COLUMNS, baselines, score
from benchmarks.renders import MOTION_COLUMNS, PICTURE_COLUMNS, Render, judge, read_scenes, repeated, warped
from benchmarks.report import count, run_main, table
from common.face.model import FaceModel
from common.memory import keep_freed_memory

PARTS = (("Running speech", False), ("Single words (LRW-AR)", True))
REPEATED, WARP = "picture repeated", "warp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    a2m, m2v = stages.add_parser("a2m", help="speech to motion"), stages.add_parser("m2v", help="motion to video")
    for stage in (a2m, m2v):
        stage.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
        stage.add_argument("--split", default="test", choices=["val", "test"])
    a2m.add_argument("--seeds", type=int, default=8, help="samples per clip (default 8)")
    m2v.add_argument("--steps", type=int, nargs="+", default=[1, 4, 8, 16])
    m2v.add_argument("--clips-per-person", type=int, default=1)
    m2v.add_argument("--max-frames", type=int, default=32, help="per clip (default 32)")
    m2v.add_argument("--every", type=int, default=4, help="pictures are compared at every so manieth frame (default 4)")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    started = time.perf_counter()
    if args.stage == "a2m":
        speech_to_motion(args.data, args.split, args.seeds)
    else:
        motion_to_video(args.data, args.split, args.steps, args.clips_per_person, args.max_frames, args.every)
    print(f"\nmeasured in {time.perf_counter() - started:.0f} s")


# ---- stage one ------------------------------------------------------------------------------------------------------


def speech_to_motion(data_dir: Path, split: str, n_seeds: int) -> None:
    face_model = FaceModel.builtin()
    forecasts = baselines(read_clips(data_dir, "train", face_model), face_model)
    clips = read_clips(data_dir, split, face_model)
    for title, is_word in PARTS:
        chosen = [clip for clip in clips if clip.is_word is is_word]
        persons = [clip.person for clip in chosen]
        if not chosen:
            continue
        values = {
            name: [score(forecast(clip), clip.opening) for clip in chosen] for name, forecast in forecasts.items()
        }
        seconds = sum(len(clip.mel) for clip in chosen) / 25
        print(f"\n{title}: {count(persons)}, {seconds / 60:.1f} min\n")
        print(table(COLUMNS, values, [], persons), flush=True)


# ---- stage two ------------------------------------------------------------------------------------------------------


def motion_to_video(
    data_dir: Path, split: str, steps: Sequence[int], clips_per_person: int, max_frames: int, every: int
) -> None:
    methods: dict[str, Render] = {REPEATED: repeated, WARP: warped}
    scenes, values, seconds = judge(read_scenes(data_dir, split, clips_per_person, max_frames), methods, every)
    for title, is_word in PARTS:
        chosen = [k for k, scene in enumerate(scenes) if scene.is_word is is_word]
        persons = [scenes[k].person for k in chosen]
        if not chosen:
            continue
        part = {name: [scores[k] for k in chosen] for name, scores in values.items()}
        print(f"\n{title}: {count(persons)}, {sum(len(scenes[k].landmarks) for k in chosen)} frames")
        for columns in (PICTURE_COLUMNS, MOTION_COLUMNS):
            print("\n" + table(columns, part, [(WARP, REPEATED)], persons), flush=True)
    for name, spent in seconds.items():
        print(f"{name}: {spent:.3f} s a frame")


if __name__ == "__main__":
    run_main(main)
