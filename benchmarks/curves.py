"""ARKit's curves against the tracks that they are solved from: what they leave, and whether they say what happens.

    python -m benchmarks.curves --data DIR [--split test] [--face-model FOLDER]

Running speech, figures by person with 95 % intervals. A track's neutral face is that of a frame with open eyes and
the mouth about as closed as it gets, and closed where it isn't. Blinks are found in the tracks as `a2m.pose` does.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from a2m.data import Clip, read_clip
from a2m.pose import find_blinks, relative_aperture
from benchmarks.report import by_person, clips, count, estimate, is_word, markdown, run_main
from common.audio import FPS
from common.export import formats
from common.export.arkit import CURVES, SEEN, closed_mouth
from common.export.take import Take
from common.face.model import JAW, LIPS, FaceModel
from common.motion import Motion, Reference

NEUTRAL_FRAMES = 10
SATURATED = 0.97
BLINK_FRAMES = 3  # either side of a blink's deepest frame: what is further away is no blink
PARTS = {"all 68 points": range(68), "lips": LIPS, "jaw line": JAW}


@dataclass(frozen=True)
class Score:
    """Of one clip: moved and left by part, mm; the rest as the table's titles say."""

    moved_mm: dict[str, float]
    left_mm: dict[str, float]
    jaw: float
    blink: float
    no_blink: float
    saturated: float


def neutral(clip: Clip, aperture: torch.Tensor) -> int:
    """The number of a frame with the mouth about as closed as it gets and the eyes open."""
    closed = clip.opening + 10.0 * (aperture < 0.8)
    return int(closed.argsort()[min(NEUTRAL_FRAMES, len(closed)) // 2])


def score(clip: Clip, model: FaceModel, arkit_model: FaceModel | None) -> Score:
    aperture = relative_aperture(clip.lm3d + model.mean)
    frame = neutral(clip, aperture)
    rest = Reference(clip.lm3d[frame], clip.pose[frame])
    take = Take.of(Motion(clip.lm3d, model.mean, clip.pose, FPS, (256, 256), reference=rest))
    curves = formats.curves_of(take, arkit_model)
    moves = take.points - closed_mouth(take)  # what the curves are solved from
    left = moves - np.einsum("tk,kpc->tpc", curves.values, curves.basis)
    both = curves.values[:, [CURVES.index("eyeBlinkLeft"), CURVES.index("eyeBlinkRight")]].mean(axis=1)  # [T]
    blinks, is_near = find_blinks(aperture), np.zeros(take.n_keys, bool)
    peaks = []
    for blink in blinks:
        near = slice(max(0, blink - BLINK_FRAMES), blink + BLINK_FRAMES + 1)
        peaks.append(both[near].max())
        is_near[near] = True
    seen = curves.values[:, [CURVES.index(name) for name in SEEN]]
    return Score(
        {part: rms_mm(moves[:, list(points)]) for part, points in PARTS.items()},
        {part: rms_mm(left[:, list(points)]) for part, points in PARTS.items()},
        jaw=float(np.corrcoef(curves.values[:, CURVES.index("jawOpen")], clip.opening)[0, 1]),
        blink=float(np.mean(peaks)) if peaks else np.nan,
        no_blink=float(both[~is_near].mean()) if not is_near.all() else np.nan,
        saturated=float((seen > SATURATED).any(axis=1).mean()),
    )


def rms_mm(moves: np.ndarray) -> float:
    """[T, P, 3] metres: the root mean square length."""
    return 1000 * float(np.sqrt(np.square(moves).sum(axis=-1).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--face-model", help="ICT-FaceKit's folder: its expressions instead of our basis")
    args = parser.parse_args()

    torch.set_num_threads(1)
    model = FaceModel.builtin()
    arkit_model = FaceModel.load(args.face_model) if args.face_model else None
    rows = [row for row in clips(args.data, args.split) if not is_word(row)]
    scores = [
        score(read_clip(args.data, row["clip_id"], row["person"], model, has_sound=False), model, arkit_model)
        for row in rows
    ]
    persons = [row["person"] for row in rows]
    print(f"{count(persons)}\n")
    table = []
    for part in PARTS:
        moved, left = [s.moved_mm[part] for s in scores], [s.left_mm[part] for s in scores]
        table.append([part, estimate(moved, persons), estimate(left, persons)])
    print(markdown(["points", "moved, mm", "left by the curves, mm"], table) + "\n")
    whole = [
        ("correlation of jawOpen with the mouth's opening", [s.jaw for s in scores]),
        ("eyeBlink's peak in a blink", [s.blink for s in scores]),
        ("eyeBlink elsewhere", [s.no_blink for s in scores]),
        ("keys with any curve above 0.97", [s.saturated for s in scores]),
    ]
    print(markdown(["", "mean over people", "least of a person", "most"], [_row(*each, persons) for each in whole]))


def _row(title: str, values: list[float], persons: list[str]) -> list[str]:
    known = [(value, person) for value, person in zip(values, persons, strict=True) if np.isfinite(value)]
    means = by_person(*map(list, zip(*known, strict=True)))
    return [title, estimate(values, persons), f"{means.min():.2f}", f"{means.max():.2f}"]


if __name__ == "__main__":
    run_main(main)
