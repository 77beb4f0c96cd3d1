"""Does the reference picture's own mouth show in the result? One motion, three pictures of the same person.

The published code of the paper fails here: a picture with an open mouth stays open. Mouths of the results are found
again by the detector and their openings compared, by the range of the opening in the clip.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.renders import MOST_TURN_DEG, REAL, Render, Scene, mcvdm, read_scene, warped
from benchmarks.report import Column, clips, count, is_word, table
from common.errors import InputError
from common.face.fit import frontalise
from common.face.framing import ReferencePicture
from common.face.model import FaceModel, mouth_opening
from common.face.reenact import reenact
from common.metrics.landmarks import find_again
from common.motion import Motion
from m2v.drive import drive
from m2v.pipeline import MCVDM
from m2v.preview import LIMITS

LEAST_RANGE = 0.1  # of the mouth's opening in a clip, by the distance of the eyes: below, there is little to leak
WARP, OURS, ASKED = "warp", "ours", "landmarks asked for, re-enacted"

# frames uint8 [T, H, W, 3] and landmarks asked for [T, 68, 3] -> openings of the mouths in them [T]
Look = Callable[[np.ndarray, Tensor], np.ndarray]


def speakers(data_dir: Path, split: str) -> Iterator[Scene]:
    """One clip of running speech of each person, whole: the first in which the mouth opens by `LEAST_RANGE`."""
    model, seen = FaceModel.builtin(), set()
    for row in clips(data_dir, split):
        if is_word(row) or row["person"] in seen:
            continue
        scene = read_scene(data_dir, row, max_frames=2**31, model=model)
        if scene is not None and np.ptp(mouth_opening(scene.landmarks[scene.valid][..., :2]).numpy()) >= LEAST_RANGE:
            seen.add(row["person"])
            yield scene


def references(scene: Scene, model: FaceModel) -> list[ReferencePicture]:
    """Three frames of a clip: with the mouth as closed as it gets, half open, and as wide open as it gets."""
    asked = mouth_opening(scene.landmarks[..., :2]).numpy()
    judged = np.flatnonzero(scene.valid)
    low, high = asked[judged].min(), asked[judged].max()
    made = []
    for wanted in (low, (low + high) / 2, high):
        k = int(judged[np.abs(asked[judged] - wanted).argmin()])
        points, picture = scene.landmarks[k], scene.frames[k]
        lm3d, pose = frontalise(points[None], picture.shape[0], model)
        made.append(ReferencePicture(picture, points, lm3d[0], pose[0]))  # not cut anew: all three share their pixels
    return made


def liveliest(openings: np.ndarray, valid: np.ndarray, n_frames: int) -> slice:
    """Of all parts of n_frames with the most valid ones, that in which the mouth's opening [T] has the widest range."""
    n = min(n_frames, len(valid))
    n_valid, ranges = (
        read(np.lib.stride_tricks.sliding_window_view(values, n), axis=1)
        for read, values in ((np.sum, valid), (np.ptp, openings))
    )
    start = int(np.where(n_valid == n_valid.max(), ranges, -1).argmax())
    return slice(start, start + n)


def find_openings(frames: np.ndarray, asked: Tensor) -> np.ndarray:
    """By the detector."""
    found = [find_again(frame, points) for frame, points in zip(frames, asked.numpy(), strict=True)]
    return mouth_opening(torch.from_numpy(np.stack(found))[..., :2]).numpy()


@dataclass(frozen=True)
class Leak:
    """Openings of one person, by the range that they have in the clip: mean absolute differences of the results

    from two references; how much wider on the whole; and from what was asked for. NaN: not to be told.
    """

    closed_half: float
    half_wide: float
    closed_wide: float
    wider: float  # with the wide open reference than with the closed one: signed
    error: float

    @classmethod
    def of(cls, curves: np.ndarray, asked: np.ndarray, opening_range: float) -> "Leak":
        """curves: [3, T] for closed, half and wide open references; asked: [T], or [3, T] each its own."""
        closed, half, wide = curves / opening_range

        def apart(one: np.ndarray, other: np.ndarray) -> float:
            return float(np.abs(one - other).mean())

        return cls(
            apart(closed, half),
            apart(half, wide),
            apart(closed, wide),
            wider=float((wide - closed).mean()),
            error=apart(curves / opening_range, asked / opening_range),
        )


COLUMNS = (
    Column("closed, half open", "closed_half"),
    Column("half, wide open", "half_wide"),
    Column("closed, wide open", "closed_wide"),
    Column("wider with the wide open", "wider"),
    Column("from what was asked for", "error"),
)


def leaks(
    scene: Scene,
    pictures: Sequence[ReferencePicture],
    methods: dict[str, Render],
    n_frames: int,
    every: int,
    look: Look = find_openings,
) -> dict[str, Leak]:
    """Every renderer on one person, the detector on the real frames, and the landmarks of a Motion made to fit."""
    openings = mouth_opening(scene.landmarks[..., :2]).numpy()
    opening_range = float(np.ptp(openings[scene.valid]))
    part = liveliest(openings, scene.valid, n_frames)
    landmarks, frames = scene.landmarks[part], scene.frames[part]
    chosen = slice(every // 2, None, every)
    asked = openings[part][chosen]
    made = {}
    for name, render in methods.items():
        results = [render(picture, landmarks, frames)[chosen] for picture in pictures]
        curves = np.stack([look(each, landmarks[chosen]) for each in results])
        made[name] = Leak.of(curves, asked, opening_range)
    real = look(frames[chosen], landmarks[chosen])
    noise = float(np.abs(real - asked).mean()) / opening_range
    made[REAL] = Leak(math.nan, math.nan, math.nan, math.nan, noise)
    own = mouth_opening(reenacted(scene, pictures, FaceModel.builtin())[:, part][:, chosen, :, :2]).numpy()  # [3, T]
    made[ASKED] = Leak.of(own, asked, opening_range)
    return made


def reenacted(scene: Scene, pictures: Sequence[ReferencePicture], model: FaceModel) -> Tensor:
    """The clip as a Motion, fitted to each picture as `generate.py` does: landmarks [pictures, T, 68, 3]."""
    size = scene.frames.shape[1]
    lm3d, pose = frontalise(scene.landmarks, size, model)
    motion = Motion(lm3d, model.mean, pose, 25.0, (size, size), model.name, model.convention)
    return torch.stack([drive(reenact(motion, each, model), each, model.mean, LIMITS) for each in pictures])


def leak(scenes: Iterator[Scene], model: MCVDM, n_frames: int, every: int) -> str:
    """Heads turned far aside get a table of their own: there it is the far side of the face that is missing."""
    methods: dict[str, Render] = {WARP: warped, OURS: mcvdm(model)}
    found: dict[bool, list[tuple[str, dict[str, Leak]]]] = {False: [], True: []}
    for scene in scenes:
        pictures = references(scene, FaceModel.builtin())
        is_turned = max(math.degrees(each.turn_rad) for each in pictures) > MOST_TURN_DEG
        found[is_turned].append((scene.person, leaks(scene, pictures, methods, n_frames, every)))
    if not any(found.values()):
        raise InputError("no clip of running speech shows a mouth that opens and closes: choose other data")
    parts = []
    for is_turned, part in found.items():
        persons = [person for person, _ in part]
        if part:
            values = {name: [each[name] for _, each in part] for name in part[0][1]}
            which = f"Pictures turned by {'more than' if is_turned else 'at most'} {MOST_TURN_DEG:.0f}° from the camera"
            parts.append(f"{which}: {count(persons)}\n\n{table(COLUMNS, values, [(OURS, WARP)], persons)}")
    head = f"Openings of the mouth by their range in the clip; in one of {every} of {n_frames} frames"
    return "\n\n".join([head, *parts])
