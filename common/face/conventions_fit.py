"""Measuring how FaceMesh's 68 points lie to iBUG's, and fitting the mapping between them.

`pairs` runs dlib's 68-point predictor, trained on the annotations of iBUG 300-W, over pictures whose FaceMesh landmarks
are known; dlib and the predictor's file are brought by whoever measures (its licence allows research only), and
nothing of them is stored but 68 points per picture. `fit` chooses and fits the mapping from such pairs: ridge
regressions of the differences in the face's own frame, compared by cross-validation over people.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.clip_index import is_word, read_index
from common.errors import InputError
from common.face.conventions import GAPS, Correction, Mapping, eye_frame, features, in_frame, skull_pose
from common.face.model import MIRROR, FaceModel
from common.face.rotations import euler_rad
from common.files import atomic_path, check_input
from common.media import VideoReader, read_picture

log = logging.getLogger(__name__)

_PER_CLIP, _PER_PERSON, _PER_CROWD = 8, 48, 80  # frames; a label of LRW-AR is a crowd of look-alikes
_FACE_PX = 400.0  # the predictor sees faces at this size: its points are whole pixels
_JITTER = 0.04  # of the box's side: the predictor is asked from so many boxes, and the mean taken
_N_BOXES = 9
# Where dlib's own detector puts its box (521 of 528 train pictures): a little above the middle of the landmarks' box,
# as large as its longer side, and shifted the way the nose points, by this share of its offset from the eyes' middle.
_BOX_UP, _BOX_SIDE, _BOX_WITH_NOSE = 0.08, 1.04, 0.45


@dataclass(frozen=True)
class Pairs:
    """The same faces in two conventions.

    facemesh: float32 [N, 68, 3] and ibug: float32 [N, 68, 2], pixels, y down; spread: float32 [N], how far the
    predictor's answers from shifted boxes lie from their mean, in eye distances; person, split, source (clip or
    portrait): [N], texts.
    """

    facemesh: np.ndarray
    ibug: np.ndarray
    spread: np.ndarray
    person: np.ndarray
    split: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.facemesh)

    def part(self, which: np.ndarray) -> Pairs:
        return Pairs(*(getattr(self, name)[which] for name in _FIELDS))

    def save(self, path: Path, overwrite: bool = False) -> None:
        with atomic_path(path, overwrite) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{name: getattr(self, name) for name in _FIELDS})

    @staticmethod
    def load(path: Path) -> Pairs:
        """Read what `save` wrote; raises InputError where it doesn't fit."""
        check_input(path, "file of landmark pairs")
        try:
            with np.load(path, allow_pickle=False) as content:
                pairs = Pairs(*(content[name] for name in _FIELDS))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{path} is not a file of landmark pairs ({error}): make it again.") from error
        n = len(pairs)
        wanted = {"facemesh": (n, 68, 3), "ibug": (n, 68, 2)} | dict.fromkeys(_FIELDS[2:], (n,))
        wrong = [name for name in _FIELDS if getattr(pairs, name).shape != wanted[name]]
        if wrong or n == 0:
            raise InputError(f"{path} holds no usable pairs ({wrong[0] if wrong else 'it is empty'}): make it again.")
        return pairs


_FIELDS = ("facemesh", "ibug", "spread", "person", "split", "source")


def measure_pairs(data_dir: Path, predictor_path: Path, splits: tuple[str, ...] = ("train", "test")) -> Pairs:
    """Run dlib's predictor over frames and portraits of these splits; raises InputError where it can't be run."""
    predict = _predictor(predictor_path)
    rows: list[tuple[np.ndarray, np.ndarray, float, str, str, str]] = []
    for picture, points, person, split, source in _pictures(data_dir, splits):
        ibug, spread = _ask(predict, picture, points)
        rows.append((points, ibug, spread, person, split, source))
        if len(rows) % 500 == 0:
            log.info("%d pictures", len(rows))
    columns = list(zip(*rows, strict=True))
    numbers = [np.array(column, np.float32) for column in columns[:3]]
    return Pairs(*numbers, *(np.array(column) for column in columns[3:]))


def _pictures(data_dir: Path, splits: tuple[str, ...]) -> Iterator[tuple[np.ndarray, np.ndarray, str, str, str]]:
    """(picture uint8 [H, W, 3], FaceMesh landmarks [68, 3], person, split, source); no person dominates."""
    n_of: Counter[str] = Counter()
    rows = [row for row in read_index(data_dir, "synthetic", "overlay") if row["split"] in splits]
    for row in sorted(rows, key=lambda row: crc32(row["clip_id"].encode())):  # a fixed shuffle
        most = _PER_CROWD if is_word(row["clip_id"]) else _PER_PERSON
        if row["synthetic"] == "yes" or row["overlay"] or n_of[row["person"]] >= most:
            continue
        with np.load(data_dir / "tracks" / f"{row['clip_id']}.npz") as track:
            good, landmarks = np.flatnonzero(track["valid"]), track["landmarks"].astype(np.float32)
        wanted = set(good[np.linspace(0, len(good) - 1, _PER_CLIP).round().astype(int)].tolist()) if len(good) else {}
        with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
            for k, (_, frame) in enumerate(video):
                if k in wanted:
                    yield frame, landmarks[k], row["person"], row["split"], row["clip_id"]
        n_of[row["person"]] += len(wanted)
    with (data_dir / "portraits.csv").open(newline="", encoding="utf-8") as file:
        portraits = {row["name"]: row for row in csv.DictReader(file)}
    with np.load(data_dir / "portraits_landmarks.npz") as table:
        for name, points, valid in zip(table["names"], table["landmarks"], table["valid"], strict=True):
            row = portraits[str(name)]
            if valid and row["split"] in splits and row["kind"] in ("photo", "ai_generated_or_suspected"):
                picture = read_picture(data_dir / "portraits" / f"{name}.jpg")
                yield picture, points.astype(np.float32), f"portrait {name}", row["split"], str(name)


def _predictor(path: Path) -> Any:
    check_input(path, "shape predictor")
    try:
        import dlib
    except ImportError as error:
        raise InputError("Measuring pairs needs dlib: install it with `uv pip install dlib-bin`.") from error
    try:
        return dlib.shape_predictor(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} is not a shape predictor of dlib ({error}): give the 68-point one.") from error


def _ask(predict: Any, picture: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean of the predictor's points [68, 2] over several boxes around the landmarks, and their spread."""
    import dlib

    low, high = points[:, :2].min(0), points[:, :2].max(0)
    size = float((high - low).max())
    zoom = _FACE_PX / size
    corner = (low + high) / 2 - size  # in coordinates whose pixel k covers k - ½ to k + ½
    zoomed = Image.fromarray(picture).transform(
        (round(2 * _FACE_PX),) * 2,
        Image.Transform.EXTENT,
        tuple(float(v) for v in (*(corner + 0.5), *(corner + 0.5 + 2 * size))),  # Pillow's covers k to k + 1
        Image.Resampling.BICUBIC,
    )
    shown = np.asarray(zoomed)
    eyes = points[36:42, :2].mean(0), points[42:48, :2].mean(0)
    turned = (points[30, 0] - (eyes[0] + eyes[1])[0] / 2) / max(float(np.hypot(*(eyes[1] - eyes[0]))), 1e-6)
    shift = np.array([_BOX_WITH_NOSE * np.clip(turned, -0.6, 0.6), -_BOX_UP])
    centre = ((low + high) / 2 + size * shift - corner) * zoom - 0.5
    rng = np.random.default_rng(0)
    several = []
    for k in range(_N_BOXES):
        dx, dy, grow = (0.0, 0.0, 0.0) if k == 0 else rng.uniform(-_JITTER, _JITTER, 3)
        half = 0.5 * _BOX_SIDE * _FACE_PX * (1 + grow)
        x, y = centre[0] + dx * _FACE_PX, centre[1] + dy * _FACE_PX
        box = dlib.rectangle(round(x - half), round(y - half), round(x + half), round(y + half))
        parts = predict(shown, box).parts()
        several.append([(part.x, part.y) for part in parts])
    answers = (np.array(several, np.float64) + 0.5) / zoom + corner
    mean = answers.mean(0)
    apart = float(np.hypot(*(mean[36:42].mean(0) - mean[42:48].mean(0))))
    return mean.astype(np.float32), float(np.linalg.norm(answers - mean, axis=-1).mean() / max(apart, 1e-6))


# ---- fitting --------------------------------------------------------------------------------------------------------

_N_FOLDS = 5
_PENALTIES = (0.1, 1.0, 10.0)
_FRONTAL_RAD = 0.26  # 15°: here the contour and a jaw that stays on the skull are nearly the same line
_MAX_SPREAD, _MAX_APART = 0.05, 0.2  # eye distances: the predictor is not sure, or the two saw different faces

Features = Callable[[Tensor], Tensor]


def usable(pairs: Pairs) -> np.ndarray:
    """bool [N]: the predictor agrees with itself, and both saw the same face."""
    x, y = own_frame(pairs.facemesh, pairs.ibug)
    return (pairs.spread < _MAX_SPREAD) & ((y - x)[:, 17:].norm(dim=-1).mean(dim=-1).numpy() < _MAX_APART)


def own_frame(source: np.ndarray, target: np.ndarray) -> tuple[Tensor, Tensor]:
    """Both [N, 68, 2 or 3] -> float64 [N, 68, 2] in the frame of the source's face."""
    seen, wanted = torch.from_numpy(source).double(), torch.from_numpy(target).double()
    frame = eye_frame(seen)
    return in_frame(seen, *frame), in_frame(wanted, *frame)


def nothing(shape: Tensor) -> Tensor:
    return shape.new_zeros(*shape.shape[:-2], 0)


def every_point(shape: Tensor) -> Tensor:
    return shape.flatten(-2)


def fit_mapping(pairs: Pairs) -> tuple[Mapping, str]:
    """The mapping from the train split's pairs, and the cross-validated errors that it was chosen by.

    What a correction may depend on is compared by people that it was not fitted to. One that reads every point is a
    yardstick only: it would carry the mouth's movement into the jaw and learns the predictor's habits with the
    convention.
    """
    train = pairs.part((pairs.split == "train") & usable(pairs))
    if len(set(train.person.tolist())) < _N_FOLDS:
        raise InputError(f"The pairs hold {len(train)} usable pictures of the train split: more people are needed.")
    lines, corrections = (
        [f"{len(train)} pictures of {len(set(train.person.tolist()))} people; % of the eyes' distance"],
        [],
    )
    for title, source, target in (
        ("facemesh68 to ibug68", train.facemesh, train.ibug),
        ("ibug68 to facemesh68", train.ibug, train.facemesh),
    ):
        x, y = own_frame(source, target)
        still = {penalty: cross_validate(x, y, train.person, features, penalty) for penalty in _PENALTIES}
        every = {penalty: cross_validate(x, y, train.person, every_point, penalty) for penalty in _PENALTIES}
        penalty = min(still, key=lambda each: still[each])
        lines.append(
            f"{title}: as they are {100 * float((y - x).norm(dim=-1).mean()):.2f}, an offset per point "
            f"{100 * cross_validate(x, y, train.person, nothing, 1.0):.2f}, one that varies with the still points "
            f"{100 * still[penalty]:.2f} (penalty {penalty:g}), with every point {100 * min(every.values()):.2f}"
        )
        corrections.append(fit_correction(x, y, features, penalty))
    return Mapping(corrections[0], corrections[1], fit_skull_offset(train)), "\n".join(lines)


def cross_validate(x: Tensor, y: Tensor, persons: np.ndarray, of: Features, penalty: float) -> float:
    """Mean distance, in eye distances, on people that the correction was not fitted to."""
    people, index = np.unique(persons, return_inverse=True)
    fold = torch.from_numpy(np.random.default_rng(0).permutation(len(people))[index] % _N_FOLDS)
    errors = []
    for k in range(_N_FOLDS):
        held = fold == k
        correction = fit_correction(x[~held], y[~held], of, penalty)
        errors.append((x[held] + moved_by(correction, of(x[held])) - y[held]).norm(dim=-1).mean(dim=-1))
    return float(torch.cat(errors).mean())


def moved_by(correction: Correction, seen: Tensor) -> Tensor:
    """Displacement [N, 68, 2] in the face's own frame for features [N, F]."""
    held = seen.clamp(min=correction.low.to(seen), max=correction.high.to(seen)) - correction.mean.to(seen)
    return correction.offset.to(seen) + torch.einsum("nf,fpc->npc", held, correction.slope.to(seen))


def fit_correction(x: Tensor, y: Tensor, of: Features, penalty: float) -> Correction:
    """Ridge regression of y - x [N, 68, 2] on features; symmetric, and alike for points that touch (GAPS)."""
    mirrored = x.new_tensor([-1.0, 1.0])
    x, y = (torch.cat([each, each[:, list(MIRROR)] * mirrored]) for each in (x, y))
    seen, moved = of(x), (y - x).clone()
    for one, other in GAPS:
        moved[:, [one, other]] = moved[:, [one, other]].mean(dim=1, keepdim=True)
    mean, offset = seen.mean(dim=0), moved.mean(dim=0)
    centred = seen - mean
    normal = centred.mT @ centred + penalty * torch.eye(centred.shape[1], dtype=x.dtype)
    slope = torch.linalg.solve(normal, centred.mT @ (moved - offset).flatten(1)).unflatten(-1, offset.shape)
    # The outermost hundredth may be the predictor's failures: how far they go is no range to trust.
    low, high = (torch.quantile(seen, q, dim=0) if seen.shape[1] else mean for q in (0.005, 0.995))
    return Correction(*(part.float() for part in (mean, low, high, offset, slope)))


def fit_skull_offset(pairs: Pairs) -> Tensor:
    """Offset [68, 3] of ibug68_3d from facemesh68 on the head, in units of the built-in model, from frontal faces.

    Least squares of the pictures' differences over the turned offset's x and y; one camera doesn't tell its depth: 0.
    """
    model = FaceModel.builtin()
    pose = skull_pose(torch.from_numpy(pairs.facemesh), model.mean)
    pitch_yaw = euler_rad(pose.rotation)[:, :2].abs()
    frontal = (pitch_yaw < _FRONTAL_RAD).all(dim=-1)
    moved = torch.from_numpy(pairs.ibug - pairs.facemesh[..., :2])[frontal] * torch.tensor([1.0, -1.0])
    turn = pose.rotation[frontal, :2, :2]
    normal = (turn.mT @ turn).sum(dim=0)
    right = (turn.mT @ (moved / pose.scale[frontal, None, None]).mT).sum(dim=0)  # [2, 68]
    offset = torch.linalg.solve(normal, right).mT
    offset = (offset + offset[list(MIRROR)] * torch.tensor([-1.0, 1.0])) / 2
    for one, other in GAPS:
        offset[[one, other]] = offset[[one, other]].mean(dim=0)
    return torch.nn.functional.pad(offset, (0, 1))
