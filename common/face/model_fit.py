"""Fitting the built-in face model to landmark tracks and portraits (what `common.face.model fit` runs).

Rounds of: frontalise every clip with the model so far; a clip's resting shape (mouth least open, eyes open) is a sample
of identity, what its frames do beyond it are samples of expression; a portrait's sample of identity is its shape
without the expression that the model so far sees in it. Mean and directions are mirror-symmetric by construction:
each covariance falls apart into its symmetric and its antisymmetric half, and each half has its own directions. Depth
counts half in choosing directions: it is the noisier coordinate.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from common.clip_index import is_word, read_index
from common.face.fit import fit, frontalise
from common.face.model import INNER_LIP, LID_PAIRS, N_POINTS, RIGID, FaceModel, mirror
from common.face.pos import align, flip_image
from common.face.rotations import euler_rad

METRES_PER_UNIT = 0.1  # as in BFM's published crops; about the size of a head
PUPIL_DISTANCE_M = 0.063  # adults' mean
_CLIP_SIZE_PX = 256
_DEPTH_METRIC = 0.5
_MAX_FRAMES = 24  # of a clip
_MAX_CLIPS = 60  # of a person label (which for some corpora is a group of look-alikes)
_CLIP_VOTES = 12.0  # of a person label: its clips share so many
_MAX_YAW_RAD = 0.6
_N_ROUNDS = 2


@dataclass(frozen=True)
class Clip:
    """points: image landmarks [T, 68, 3]; irises: [T, 2, 3], their centres; is_word: a clip of LRW-AR."""

    points: Tensor
    irises: Tensor
    person: str
    is_word: bool


def read_tracks(data_dir: Path, split: str, max_frames: int = _MAX_FRAMES) -> list[Clip]:
    """The tracks of a split, frames without a face left out, and without faces that a program made."""
    clips = []
    rows = [row for row in read_index(data_dir, "synthetic") if row["split"] == split and row["synthetic"] == "no"]
    n_of: Counter[str] = Counter()
    for row in sorted(rows, key=lambda row: crc32(row["clip_id"].encode())):  # a fixed shuffle
        n_of[row["person"]] += 1
        if n_of[row["person"]] > _MAX_CLIPS:
            continue
        with np.load(data_dir / "tracks" / f"{row['clip_id']}.npz") as track:
            good = np.flatnonzero(track["valid"])
            if len(good) < 10:
                continue
            good = good[np.linspace(0, len(good) - 1, min(len(good), max_frames)).round().astype(int)]
            points, irises = (torch.from_numpy(track[key][good].astype(np.float32)) for key in ("landmarks", "iris"))
        clips.append(Clip(points, irises, row["person"], is_word(row["clip_id"])))
    return clips


def read_portraits(data_dir: Path) -> list[Tensor]:
    """Image landmarks [1, 68, 3] of the train split's photographs and look-alikes, scaled to clips' size."""
    with (data_dir / "portraits.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    kinds = ("photo", "ai_generated_or_suspected")
    with np.load(data_dir / "portraits_landmarks.npz") as data:
        return [
            torch.from_numpy(points * (100.0 / np.ptp(points[:, 1])))[None]
            for name, points, valid in zip(data["names"], data["landmarks"], data["valid"], strict=True)
            if valid and rows[name]["split"] == "train" and rows[name]["kind"] in kinds
        ]


@dataclass(frozen=True)
class Samples:
    """Face-space shapes with weights: rest [N, 68, 3] (one a clip or portrait), moves [M, 68, 3] (frames less rest).

    pupil_distance: mean over the clips, in the units of the model they were frontalised with.
    """

    rest: Tensor
    rest_weight: Tensor
    moves: Tensor
    moves_weight: Tensor
    pupil_distance: float


def fit_face_model(data_dir: Path, n_identity: int, n_expression: int) -> FaceModel:
    """Fit the model to the train split under data_dir."""
    clips, portraits = read_tracks(data_dir, "train"), read_portraits(data_dir)
    model = _starting_model(clips)
    for _ in range(_N_ROUNDS):
        samples = take_samples(model, clips)
        rest = torch.cat([samples.rest, portrait_shapes(model, portraits)])
        weight = torch.cat([samples.rest_weight, torch.ones(len(rest) - len(samples.rest))])
        unit = samples.pupil_distance * METRES_PER_UNIT / PUPIL_DISTANCE_M  # the old model's, in the new one's
        mean = (rest * weight[:, None, None]).sum(dim=0) / weight.sum()
        mean = (mean + mirror(mean)) / 2
        identity, identity_std = directions((rest - mean) / unit, weight, n_identity)
        expression, expression_std = directions(samples.moves / unit, samples.moves_weight, n_expression)
        mean = (mean - mean[list(RIGID)].mean(dim=0)) / unit
        model = FaceModel(mean, identity, expression, identity_std, expression_std, METRES_PER_UNIT, "builtin")
    return model


def take_samples(model: FaceModel, clips: list[Clip]) -> Samples:
    """Frontalise clips with the model so far; frames turned far aside are left out."""
    rest, rest_weight, moves, moves_weight, pupils = [], [], [], [], []
    for clip, weight in zip(clips, _clip_weights(clips), strict=True):
        lm3d, pose = frontalise(clip.points, _CLIP_SIZE_PX, model)
        kept = euler_rad(pose.rotation)[:, 1].abs() < _MAX_YAW_RAD
        if kept.sum() < 5:
            continue
        shapes = lm3d[kept] + model.mean
        rest.append(resting_shape(shapes))
        rest_weight.append(weight)
        moves.append(shapes - rest[-1])
        moves_weight.append(torch.full((len(shapes),), weight / len(shapes)))
        distance_px = (clip.irises[:, 0] - clip.irises[:, 1])[kept, :2].norm(dim=-1)
        seen = pose.rotation[kept, :2, 0].norm(dim=-1)  # how much of the face's x axis lies in the picture
        pupils.append(float((distance_px / seen / pose.scale[kept]).median()))
    return Samples(
        torch.stack(rest),
        torch.tensor(rest_weight),
        torch.cat(moves),
        torch.cat(moves_weight),
        float(np.average(pupils, weights=rest_weight)),
    )


def portrait_shapes(model: FaceModel, portraits: list[Tensor]) -> Tensor:
    """Portraits [1, 68, 3] each -> resting shapes [N, 68, 3]: without the expression that the model sees in them."""
    shapes = []
    for points in portraits:
        lm3d, pose = frontalise(points, _CLIP_SIZE_PX, model)
        if euler_rad(pose.rotation)[0, 1].abs() < _MAX_YAW_RAD:
            expression = fit(model, points, _CLIP_SIZE_PX).expression
            shapes.append(model.mean + lm3d[0] - (model.shape(expression=expression)[0] - model.mean))
    return torch.stack(shapes)


def resting_shape(shapes: Tensor) -> Tensor:
    """A clip's frames [T, 68, 3] -> the face at rest [68, 3].

    The mean of the sixth with the least open mouth among the frames whose eyes are open (not under 0.7 of their median
    aperture).
    """
    upper, lower = (list(side) for side in zip(*LID_PAIRS, strict=True))
    aperture = (shapes[:, upper, 1] - shapes[:, lower, 1]).mean(dim=-1)
    shapes = shapes[aperture >= 0.7 * aperture.median()]
    gap = (shapes[:, list(INNER_LIP[1:4]), 1] - shapes[:, list(INNER_LIP[:4:-1]), 1]).mean(dim=-1)
    return shapes[gap.argsort()[: max(1, len(gap) // 6)]].mean(dim=0)


def directions(samples: Tensor, weights: Tensor, n_directions: int) -> tuple[Tensor, Tensor]:
    """Principal directions [n, 68, 3] of length 1 and their standard deviations [n], of samples [N, 68, 3].

    Every sample counts together with its mirror image, so each direction is symmetric or antisymmetric.
    """
    metric = samples.new_tensor([1.0, 1.0, _DEPTH_METRIC])
    mirrored = mirror(samples)
    found = []
    for half in ((samples + mirrored) / 2, (samples - mirrored) / 2):
        rows = (half * metric).flatten(1).double() * (weights[:, None] / weights.sum()).double().sqrt()
        variance, vectors = torch.linalg.eigh(rows.mT @ rows)
        found += list(zip(variance.tolist(), vectors.mT, strict=True))
    found = sorted(found, key=lambda pair: -pair[0])[:n_directions]
    basis = torch.stack([vector for _, vector in found]).unflatten(1, (N_POINTS, 3)) / metric
    length = basis.flatten(1).norm(dim=1)
    std = torch.tensor([variance for variance, _ in found]).double().clamp(min=0).sqrt() * length
    return (basis / length[:, None, None]).float(), std.float()


def _clip_weights(clips: list[Clip]) -> list[float]:
    """One vote a clip; a label with more than _CLIP_VOTES clips shares so many."""
    labels = [clip.person for clip in clips]
    return [min(1.0, _CLIP_VOTES / labels.count(label)) for label in labels]


def _starting_model(clips: list[Clip]) -> FaceModel:
    """A mean from the clips' most frontal frames, and one crude direction each: something to frontalise with."""
    frames = torch.stack([flip_image(clip.points, _CLIP_SIZE_PX)[len(clip.points) // 2] for clip in clips])
    frames = frames - frames[:, list(RIGID)].mean(dim=1, keepdim=True)
    frames = frames / (frames[:, 36] - frames[:, 45]).norm(dim=-1)[:, None, None]
    sideways = (frames[:, 0, 2] - frames[:, 16, 2]).abs()
    mean = frames[sideways < sideways.quantile(0.3)].mean(dim=0)
    for _ in range(3):
        mean = (mean + mirror(mean)) / 2
        skull = mean[list(RIGID)].expand(len(frames), -1, 3)
        pose = align(skull, frames[:, RIGID], depth_weight=1.0)
        upright = pose.unproject(frames)
        mean = (upright - upright[:, list(RIGID)].mean(dim=1, keepdim=True)).median(dim=0).values
    mean = (mean + mirror(mean)) / 2
    basis, std = directions(upright - mean, torch.ones(len(upright)), 4)
    return FaceModel(mean, basis, basis, std, std, METRES_PER_UNIT, "start")


def report(model: FaceModel, data_dir: Path) -> str:
    """The figures of the model card, as lines of text: explained variance, and errors of fits to the val split."""
    train, val = (take_samples(model, read_tracks(data_dir, split)) for split in ("train", "val"))
    lines = [
        f"identity {len(model.identity_std)}, expression {len(model.expression_std)} directions; "
        f"mean pupil distance {train.pupil_distance * model.metres_per_unit * 1000:.1f} mm",
        f"train: {len(train.rest)} clips, {len(train.moves)} frames, {len(read_portraits(data_dir))} portraits",
    ]
    for split, samples in (("train", train), ("val", val)):
        for name, rows, weight, basis in (
            ("identity", samples.rest - model.mean, samples.rest_weight, model.identity),
            ("expression", samples.moves, samples.moves_weight, model.expression),
        ):
            for axes, metric in (("x, y", (1.0, 1.0, 0.0)), ("x, y, half z", (1.0, 1.0, _DEPTH_METRIC))):
                share = explained_variance(rows, weight, basis, rows.new_tensor(metric))
                lines.append(f"{split} {name} variance explained ({axes}): {100 * share:.1f} %")
    for name, wanted in (("LRW-AR", True), ("the rest", False)):
        clips = [clip for clip in read_tracks(data_dir, "val") if clip.is_word == wanted]
        errors = torch.tensor([_fit_error_mm(model, clip) for clip in clips])
        lines.append(
            f"val, {name} ({len(clips)} clips): error of a fit in the picture, root mean square: "
            f"median {errors.median():.2f} mm, worst clip {errors.max():.2f} mm"
        )
    return "\n".join(lines)


def explained_variance(samples: Tensor, weights: Tensor, basis: Tensor, metric: Tensor) -> float:
    """The share of the second moment of samples [N, 68, 3] in the span of basis [n, 68, 3]; metric: [3], per axis."""
    rows = (samples * metric).flatten(1).double() * weights[:, None].double().sqrt()
    columns = (basis * metric).flatten(1).double().mT
    left = rows.mT - columns @ torch.linalg.lstsq(columns, rows.mT).solution
    return 1 - float(left.square().sum() / rows.square().sum())


def _fit_error_mm(model: FaceModel, clip: Clip) -> float:
    fitted = fit(model, clip.points, _CLIP_SIZE_PX)
    return float((fitted.residual_px / fitted.pose.scale).square().mean().sqrt()) * model.metres_per_unit * 1000
