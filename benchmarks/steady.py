"""Does a long video stay as good as it began, and does the picture's own mouth show through?

    python -m benchmarks.steady length --data DIR [--split test] [--seconds 60]
    python -m benchmarks.steady leak --data DIR [--split test]

length: the longest clip of running speech, played to and fro, drives its own first frame; what is shown at the end is
compared with what was shown at the beginning for the very same landmarks, the joins of the renderer's clips with what
lies between them, and memory is watched. leak: one motion and three reference pictures of the same person, with the
mouth closed, half open and wide open: the mouths of the results, found again by the detector, should be one.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.leaks import leak, speakers
from benchmarks.renders import MOST_PSNR, REAL, Scene, read_scene
from benchmarks.report import clips, is_word, markdown, peak_memory_mb, run_main
from common.errors import InputError
from common.face.model import LIPS, FaceModel
from common.memory import keep_freed_memory
from common.metrics.image import mouth_box, psnr
from common.metrics.landmarks import find_again, landmark_error
from common.playback import order
from m2v.pipeline import AUTOENCODER, DENOISER, MCVDM, N_FADE, clip_spans
from m2v.source import Still, as_picture

FPS = 25
N_COMPARED = 2 * FPS  # frames: the first and the last two seconds
BEGINNING_S, LATER_S = 10, 30  # memory should not grow between the first and the end; later says if it still does
Film = Callable[[Tensor, int], Iterator[Tensor]]  # landmarks [T, 68, 3] and a seed -> frames [3, H, W], 0..255
SHORTER = 0.98  # a whole number of times to and fro may make it this much shorter than asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    long, leaking = parts.add_parser("length", help="a minute"), parts.add_parser("leak", help="three open mouths")
    for part in (long, leaking):
        part.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
        part.add_argument("--split", default="test", choices=["val", "test"])
        part.add_argument("--autoencoder", default=AUTOENCODER, help="built-in name, folder or hub id")
        part.add_argument("--denoiser", default=DENOISER, help="likewise")
        part.add_argument("--threads", type=int, default=1, help="cores to use (default 1)")
    long.add_argument("--seconds", type=float, default=60.0, help="of the film, about (default 60)")
    leaking.add_argument("--max-frames", type=int, default=16, help="rendered (default 16: a clip of the renderer)")
    leaking.add_argument("--every", type=int, default=4, help="mouths are found in one of so many (default 4)")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    model = MCVDM.from_pretrained(args.autoencoder, args.denoiser)
    if args.part == "length":
        scene = longest(args.data, args.split)
        source = Still(scene.reference)
        print(length(scene, lambda landmarks, seed: model.render(source, landmarks, seed=seed), args.seconds))
    else:
        print(leak(speakers(args.data, args.split), model, args.max_frames, args.every))


def longest(data_dir: Path, split: str) -> Scene:
    """The longest clip of running speech, all of what follows its first frame."""
    rows = [row for row in clips(data_dir, split) if not is_word(row)]
    for row in sorted(rows, key=lambda row: -float(row["seconds"])):
        scene = read_scene(data_dir, row, max_frames=2**31, model=FaceModel.builtin())
        if scene is not None and len(scene.landmarks) > N_COMPARED:
            return scene
    raise InputError(f"{data_dir} has no clip of running speech above 2 s in the split {split}: choose other data")


def to_and_fro(n_frames: int, seconds: float) -> list[int]:
    """Which of a clip's n_frames to show: the last `N_COMPARED` are the first ones again, in the same direction.

    So it is a whole number of times to and fro and these, of the whole clip or, where that would take too long, of its
    beginning.
    """
    between = max(1, round(seconds * FPS) - N_COMPARED)
    n_times = max(1, math.ceil(SHORTER * between / (2 * (n_frames - 1))))
    last = max(N_COMPARED - 1, min(n_frames - 1, math.ceil(between / (2 * n_times))))
    return order(last + 1, 2 * n_times * last + N_COMPARED, "loop")


def is_join(n_frames: int) -> np.ndarray:
    """Whether a cross-fade changes anything from frame k to k + 1: bool [n_frames - 1]."""
    joins = np.zeros(n_frames - 1, bool)
    for first, _ in clip_spans(n_frames)[1:]:
        joins[first - 1 : first + N_FADE] = True  # from the last frame that is all old to the first that is all new
    return joins


@dataclass(frozen=True)
class Ends:
    """What the first or the last two seconds are like; NaN where no frame is judged."""

    psnr: float  # dB, against the real frames
    mouth_psnr: float
    landmarks: float  # found again, from those asked for: percent of the outer-eye distance
    lips: float

    @classmethod
    def of(cls, scene: Scene, shown: np.ndarray) -> "Ends":
        """Of the clip's first frames, as they were rendered."""
        values = []
        for k in np.flatnonzero(scene.valid[: len(shown)]):
            frame, truth, points = shown[k], scene.frames[k], scene.landmarks[k].numpy()
            box = mouth_box(points, len(frame))
            found = find_again(frame, points)
            errors = [100 * landmark_error(found, points), 100 * landmark_error(found, points, LIPS)]
            values.append([_psnr(frame, truth), _psnr(frame[box], truth[box]), *errors])
        return cls(*(np.mean(values, axis=0).tolist() if values else [math.nan] * 4))


def length(scene: Scene, film: Film, seconds: float) -> str:
    """Looks at frames as they come, holding no more than the two ends."""
    numbers = to_and_fro(len(scene.landmarks), seconds)
    n = len(numbers)
    ends = [np.ones((N_COMPARED, *scene.frames.shape[1:]), np.uint8) for _ in range(2)]  # memory that is in use by now
    changes: dict[str, list[float]] = {"ours": [], REAL: []}
    before: np.ndarray | None = None
    peaks_mb = {"before": peak_memory_mb()}
    for k, frame in enumerate(film(scene.landmarks[numbers], 0)):
        shown = as_picture(frame)
        if before is not None:
            i, j = numbers[k - 1 : k + 1]
            face = scene.face[i] & scene.face[j]
            changes["ours"].append(change_inside(before, shown, face))
            changes[REAL].append(change_inside(scene.frames[i], scene.frames[j], face))
        before = shown
        if k < N_COMPARED:
            ends[0][k] = shown
        if k >= n - N_COMPARED:
            ends[1][k - n] = shown
        if k + 1 in (BEGINNING_S * FPS, LATER_S * FPS):
            peaks_mb[f"after {(k + 1) // FPS} s"] = peak_memory_mb()
    peaks_mb["at the end"] = peak_memory_mb()
    another = np.stack([as_picture(frame) for frame in film(scene.landmarks[:N_COMPARED], 1)])
    n_judged = int(scene.valid[:N_COMPARED].sum())
    lines = [
        f"{scene.name}, {max(numbers) + 1} frames to and fro: {n} frames, {n / FPS:.1f} s; {n_judged} of the first and "
        f"last {N_COMPARED} frames judged",
        ends_table(*(Ends.of(scene, each) for each in (*ends, another))),
        f"The same frames in the last and in the first two seconds: {apart(scene, *ends)}",
        joins_table(changes, is_join(n)),
        "Largest resident set: " + ", ".join(f"{mb:.0f} MB {when}" for when, mb in peaks_mb.items()),
    ]
    return "\n\n".join(lines)


def change_inside(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of two frames within a mask, grey levels; NaN where it is empty.

    Its arrays are of the same size whatever the mask: others would break up the memory that is watched.
    """
    levels = np.abs(np.subtract(one, other, dtype=np.int16))
    return float(levels.mean(where=mask[..., None])) if mask.any() else math.nan


def ends_table(first: Ends, last: Ends, another: Ends) -> str:
    """another: the first two seconds once more, from another seed: what differs by no more is no drift."""
    titles = {"psnr": "PSNR dB", "mouth_psnr": "mouth PSNR dB", "landmarks": "landmarks %", "lips": "lips %"}
    rows = []
    for name, title in titles.items():
        begun, ended, sample = (getattr(each, name) for each in (first, last, another))
        change_percent = 100 * (ended / begun - 1)
        cells = [f"{begun:.2f}", f"{ended:.2f}", f"{ended - begun:+.2f} ({change_percent:+.1f} %)", f"{sample:.2f}"]
        rows.append([title, *cells])
    return markdown(["", "first 2 s", "last 2 s", "difference", "first 2 s, another seed"], rows)


def apart(scene: Scene, first: np.ndarray, last: np.ndarray) -> str:
    """How unlike two renders of the same frames are: only the drawn samples and the clips' bounds differ."""
    boxes = [mouth_box(points.numpy(), len(first[0])) for points in scene.landmarks[: len(first)]]
    whole = [_psnr(a, b) for a, b in zip(first, last, strict=True)]
    mouth = [_psnr(a[box], b[box]) for a, b, box in zip(first, last, boxes, strict=True)]
    grey = np.mean([np.abs(a.astype(np.int16) - b).mean() for a, b in zip(first, last, strict=True)])
    return f"{grey:.2f} grey levels apart (PSNR {np.mean(whole):.1f} dB, mouth {np.mean(mouth):.1f} dB)"


def joins_table(changes: dict[str, list[float]], joins: np.ndarray) -> str:
    """Change from frame to frame in the face: at the joins, and inside clips. Frames without a face don't count."""
    rows = []
    for name, values in changes.items():
        each = np.array(values)
        inside, at = (part[np.isfinite(part)] for part in (each[~joins], each[joins]))
        if not len(inside) or not len(at):
            continue
        most = np.quantile(inside, 0.95)
        cells = [f"{inside.mean():.2f}", f"{at.mean():.2f}", f"{most:.2f}", f"{100 * (at > most).mean():.1f} %"]
        rows.append([name, *cells, len(at)])
    return markdown(
        ["change in the face, grey levels", "inside clips", "at joins", "95 % inside", "joins above", "n"], rows
    )


def _psnr(frame: np.ndarray, truth: np.ndarray) -> float:
    return min(psnr(frame, truth), MOST_PSNR)


if __name__ == "__main__":
    run_main(main)
