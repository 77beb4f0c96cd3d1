"""`--size 512`: how sharp an enlarged frame is, how still its background, and what it costs:

    python -m benchmarks.enlarge --data DIR

Portraits of one split whose square has at least 512 pixels, driven by 2.56 s of examples/speech.wav and rendered; 16
frames of each, enlarged (*ours*) and just scaled up (*plain*).

sharpness: energy of the Laplacian against that of the picture's square at 512, in the face (the mouth's inside left
out) and around the head; flicker: the mean difference of neighbouring frames around the head, levels of 255; seen at
256: by how much the result, averaged over two by two pixels, is off the frame in the face, against that scaled up.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import laplace
from torch import Tensor
from torch.nn import functional as F

from benchmarks.geometry.paste import Shot, Shots, portraits
from benchmarks.report import markdown, run_main
from common.errors import InputError
from common.face import warp
from m2v.enlarge import Enlarger, scaled
from m2v.masks import face_mask, head_mask

SIZE = 512
SHOWN = tuple(range(24, 40))  # of the frames rendered, in a row: two clips are joined among them
METHODS = ("ours", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.enlarge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with portraits.csv and portraits/")
    parser.add_argument("--split", default="test")
    parser.add_argument("--renderer", choices=("mcvdm", "warp"), default="mcvdm")
    parser.add_argument("--most", type=int, help="only so many portraits")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shots = Shots(args.renderer, SHOWN)
    figures: list[Figures] = []
    for path in portraits(args.data, args.split):
        if len(figures) == args.most:
            break
        if min(Image.open(path).size) >= SIZE:
            figures += [measure(shot) for shot in shots(path) if shot.crop.side >= SIZE]
    if not figures:
        raise InputError(f"{args.data} has no portrait of {SIZE} pixels in its split '{args.split}': choose another.")
    print(table(figures))
    ms = [each.ms for each in figures]
    print(f"\n{np.median(ms):.0f} ms a frame, {args.threads} threads, load of the machine {os.getloadavg()[0]:.1f}.")


@dataclass(frozen=True)
class Figures:
    """Of one picture, means over its frames; by method."""

    face: dict[str, float]
    around: dict[str, float]
    flicker: dict[str, float]
    off: dict[str, float]
    ms: float


def measure(shot: Shot) -> Figures:
    enlarger, seconds = Enlarger(SIZE), []
    made: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    for target, frame in zip(shot.targets, shot.frames, strict=True):
        begun = time.perf_counter()
        made["ours"].append(enlarger.enlarge(shot.picture, shot.crop, shot.source, target, frame))
        seconds.append(time.perf_counter() - begun)
        made["plain"].append(scaled(frame, SIZE))
    own = sharpness(replace(shot.crop, size_px=SIZE).cut(shot.picture))
    own_face, own_around = own[face_of(shot.source)].mean(), own[around(shot.source, shot.targets)].mean()
    still = around(shot.source, shot.targets)
    face, outside, flicker, off = (dict.fromkeys(METHODS, 0.0) for _ in range(4))
    for name, frames in made.items():
        sharp = [sharpness(frame) for frame in frames]
        inside = [face_of(target) for target in shot.targets]
        face[name] = float(np.mean([each[where].mean() for each, where in zip(sharp, inside, strict=True)]) / own_face)
        outside[name] = float(np.mean([each[still].mean() for each in sharp]) / own_around)
        changes = np.abs(np.diff(np.stack(frames).astype(np.float32), axis=0))
        flicker[name] = float(changes[:, still].mean())
        halved = [F.avg_pool2d(torch.from_numpy(each).movedim(-1, 0).float(), 2) for each in frames]
        seen = [where.reshape(SIZE // 2, 2, -1, 2).all(axis=(1, 3)) for where in inside]
        each_off = [(a - b).abs().numpy()[:, w].mean() for a, b, w in zip(halved, shot.frames, seen, strict=True)]
        off[name] = float(np.mean(each_off))
    return Figures(face, outside, flicker, off, 1000 * float(np.median(seconds)))


def sharpness(picture: np.ndarray) -> np.ndarray:
    return np.square(laplace(picture.astype(np.float32).mean(-1)))


def face_of(points: Tensor) -> np.ndarray:
    """The face without the mouth's inside: bool [SIZE, SIZE]; landmarks [68, 2] in pixels of half of that."""
    mouth = warp.inner_mouth_mask(points[None], SIZE // 2, SIZE // 2, softness_px=2.0)[0, 0]
    return doubled(face_mask(points, SIZE // 2) * (mouth < 0.1)) > 0.98


def around(source: Tensor, targets: Tensor) -> np.ndarray:
    """What no frame's head reaches."""
    heads = torch.stack([head_mask(source, target, SIZE // 2) for target in targets])
    return doubled(heads.amax(dim=0)) == 0


def doubled(mask: Tensor) -> np.ndarray:
    return F.interpolate(mask[None, None], scale_factor=2, mode="bilinear")[0, 0].numpy()


def table(figures: list[Figures]) -> str:
    """Medians over pictures, 5 % to 95 %."""
    rows = []
    for name in METHODS:
        columns = ([getattr(each, field)[name] for each in figures] for field in ("face", "around", "flicker", "off"))
        cells = [np.quantile(column, (0.5, 0.05, 0.95)) for column in columns]
        rows.append([name, *(f"{middle:.3f} ({low:.3f} to {high:.3f})" for middle, low, high in cells)])
    header = [f"{len(figures)} pictures", "sharpness, face", "around the head", "flicker around", "seen at 256, off by"]
    return markdown(header, rows)


if __name__ == "__main__":
    run_main(main)
