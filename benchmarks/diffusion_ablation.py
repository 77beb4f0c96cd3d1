"""Is it diffusion that does the work?

    python -m benchmarks.diffusion_ablation --data DIR [--split val]

Stage two, the same decoder with four kinds of planes: sampled, zero, regressed in one step, and the true ones of the
real clip (the ceiling). Stage one: samples of the mouth's opening against the regression, as it is and stretched.
Every claim is put to the paired differences between people; the verdict is what their 95 % interval says.
"""

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from a2m.data import read_clips
from benchmarks import openings
from benchmarks.openings import ATOM, DEAF, FULL, REGRESSION, RESTORED, WITH_ERRORS, Forecast, baselines, sampled, score
from benchmarks.renders import PICTURE_COLUMNS, REAL, Quality, Scene, ceiling, judge, mcvdm, read_scenes
from benchmarks.report import by_person, count, differences, estimate, interval, run_main, table
from common.face.model import FaceModel
from common.memory import keep_freed_memory
from m2v.pipeline import AUTOENCODER, DENOISER, MCVDM

SAMPLED, ZERO, REGRESSED, TRUE = "planes sampled", "planes zero", "planes regressed", "true planes"
COMPARED = (REGRESSION, RESTORED, FULL, DEAF, WITH_ERRORS)  # by the energy score
DETAIL = {column.field: column for column in PICTURE_COLUMNS if column.is_ratio}


@dataclass(frozen=True)
class Claim:
    """That a difference, one value per clip, is below (or above) zero."""

    text: str
    values: Sequence[float]
    is_below: bool = True

    def verdict(self, persons: Sequence[str]) -> str:
        """ "holds" and "does not hold" are said only where the interval leaves zero out."""
        known = [(value, person) for value, person in zip(self.values, persons, strict=True) if math.isfinite(value)]
        values, of = [value for value, _ in known], [person for _, person in known]
        if len(set(of)) < 2:
            return f"{self.text}: cannot be told from {len(set(of))} person"
        low, high = interval(values, of)
        below, above = (high < 0, low > 0) if self.is_below else (low > 0, high < 0)
        word = "holds" if below else "does not hold" if above else "is not shown"
        side = "below" if self.is_below else "above"
        people = f"{len(values)} clips, {len(by_person(values, of))} people"
        return f"{self.text}: {word} ({estimate(values, of)}, to be {side} 0; {people})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
    parser.add_argument("--split", default="val", choices=["val", "test"])
    parser.add_argument("--stages", nargs="+", default=["m2v", "a2m"], choices=["m2v", "a2m"])
    parser.add_argument("--steps", type=int, help="of stage two (default: those of its weights)")
    parser.add_argument("--seeds", type=int, default=8, help="samples of stage one per clip (default 8)")
    parser.add_argument("--autoencoder", default=AUTOENCODER, help="built-in name, folder or hub id")
    parser.add_argument("--denoiser", default=DENOISER, help="likewise")
    parser.add_argument("--a2m-weights", default=ATOM, help="likewise")
    parser.add_argument("--clips-per-person", type=int, default=4)
    parser.add_argument("--max-frames", type=int, default=28, help="per clip (default 28: two clips of the renderer)")
    parser.add_argument("--threads", type=int, default=1, help="cores to use (default 1)")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    if "m2v" in args.stages:
        model = MCVDM.from_pretrained(args.autoencoder, args.denoiser)
        planes(read_scenes(args.data, args.split, args.clips_per_person, args.max_frames), model, args.steps)
    if "a2m" in args.stages:
        openings_of_mouths(args.data, args.split, args.a2m_weights, args.seeds)


def planes(scenes: Iterable[Scene], model: MCVDM, n_steps: int | None) -> None:
    methods = {
        SAMPLED: mcvdm(model, n_steps),
        ZERO: mcvdm(model, 0),
        REGRESSED: mcvdm(model, 1),
        TRUE: ceiling(model),
    }
    seen, values, _ = judge(scenes, methods, every=4)
    persons = [scene.person for scene in seen]
    shown = {name: scores for name, scores in values.items() if name != REAL}
    steps = n_steps or model.denoiser.config.n_steps
    print(f"Stage two: {count(persons)}, {steps} steps; detail is the Laplacian's energy, 1 as in the real frames\n")
    pairs = [(SAMPLED, other) for other in (ZERO, REGRESSED, TRUE)]
    print(table(PICTURE_COLUMNS, shown, pairs, persons) + "\n")
    for claim in plane_claims(shown):
        print("- " + claim.verdict(persons), flush=True)


def plane_claims(values: Mapping[str, Sequence[Quality]]) -> list[Claim]:
    """Zeroed planes lose detail, and samples come nearer to the real detail than the regression."""
    claims = []
    for field, column in DETAIL.items():
        logs = {name: [math.log(getattr(each, field)) for each in scores] for name, scores in values.items()}
        lost = [zero - full for zero, full in zip(logs[ZERO], logs[SAMPLED], strict=True)]
        nearer = differences(column, values[SAMPLED], values[REGRESSED])
        claims += [
            Claim(f"{column.title}: planes set to zero lose it", lost),
            Claim(f"{column.title}: samples are nearer to the real one than the regression", nearer),
        ]
    return claims


def openings_of_mouths(data_dir: Path, split: str, weights: str, n_seeds: int) -> None:
    face_model = FaceModel.builtin()
    others = read_clips(data_dir, "val", face_model)
    rivals = baselines([], others, n_seeds)
    forecasts: dict[str, Forecast] = {"ours": sampled(weights, n_seeds), **rivals}
    clips = others if split == "val" else read_clips(data_dir, split, face_model)
    for title, is_word in (("running speech", False), ("single words", True)):
        chosen = [clip for clip in clips if clip.is_word is is_word]
        persons = [clip.person for clip in chosen]
        values = {name: [score(each(clip), clip) for clip in chosen] for name, each in forecasts.items()}
        print(f"\nStage one, {split} split, {title}: {count(persons)}, {n_seeds} samples each\n")
        print(table(openings.COLUMNS, values, [("ours", name) for name in COMPARED], persons) + "\n")
        energy = next(column for column in openings.COLUMNS if column.field == "energy")
        for rival in COMPARED:
            claim = Claim(f"energy score below that of: {rival}", differences(energy, values["ours"], values[rival]))
            print("- " + claim.verdict(persons), flush=True)


if __name__ == "__main__":
    run_main(main)
