"""Scenes of real video and how well a renderer makes them again: what the tables of stage two share.

A scene is driven by the clip's own track, exact and absolute; the reference picture is the clip's first valid frame.
Judged are frames in which the whole face is seen and not turned far from the reference's pose.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Column, clips, is_word
from common.face.fit import frontalise
from common.face.framing import ReferencePicture, frame_face
from common.face.model import LIPS, FaceModel
from common.media import VideoReader
from common.metrics.image import (
    CODEC_NOISE,
    background_masks,
    change,
    change_error,
    face_masks,
    laplacian_energy,
    lips_mask,
    mouth_box,
    psnr,
    ssim,
)
from common.metrics.landmarks import find_again, landmark_error
from common.triplane import TriPlane
from m2v.condition import Conditions
from m2v.pipeline import MCVDM, N_FRAMES, clip_spans
from m2v.preview import WarpRenderer
from m2v.source import Still, as_picture

# reference, landmarks [T, 68, 3] in its pixels, real frames uint8 [T, H, W, 3] (only ceilings look at them) → frames
Render = Callable[[ReferencePicture, Tensor, np.ndarray], np.ndarray]

MOST_PSNR = 60.0  # dB: a frame that is exactly the real one would make every mean infinite
LEAST_FRAMES, MOST_TURN_DEG, EDGE_PX = 8, 25.0, 8
REAL = "real frames"
OPEN_PX = 40  # pixels between the lips, below which nothing is seen of the mouth's inside


@dataclass
class Scene:
    """landmarks: float32 [T, 68, 3] in pixels of the reference; frames: uint8 [T, H, W, 3]; valid: bool [T], where

    results are judged: see `judged_frames`.
    """

    name: str
    person: str
    is_word: bool
    reference: ReferencePicture
    landmarks: Tensor
    frames: np.ndarray
    valid: np.ndarray

    @cached_property
    def face(self) -> np.ndarray:
        """Masks bool [T, H, W]."""
        return self._masks(face_masks)

    @cached_property
    def background(self) -> np.ndarray:
        return self._masks(background_masks)

    def _masks(self, masks: Callable[[np.ndarray, int, int], np.ndarray]) -> np.ndarray:
        height, width = self.frames.shape[1:3]
        return masks(self.landmarks.numpy(), height, width) & self.valid[:, None, None]

    @cached_property
    def real(self) -> "Changes":
        return Changes.of(self, self.frames)

    @cached_property
    def still_error(self) -> float:
        """F-MSE in the face of a picture that stands still."""
        return change_error(np.zeros_like(self.frames), self.frames, self.face)


@dataclass(frozen=True)
class Changes:
    """Grey levels from frame to frame: in the face, in the background, and of second order (tremble) in that."""

    face: float
    background: float
    tremble: float

    @classmethod
    def of(cls, scene: Scene, frames: np.ndarray) -> "Changes":
        background = scene.background
        return cls(change(frames, scene.face), change(frames, background), change(frames, background, order=2))


def read_scenes(data_dir: Path, split: str, clips_per_person: int, max_frames: int) -> Iterator[Scene]:
    """The first clips of every person in a split; of each, the middle max_frames of what follows the reference."""
    model = FaceModel.builtin()
    n_taken: dict[str, int] = {}
    for row in clips(data_dir, split):
        person = row["person"]
        if n_taken.get(person, 0) < clips_per_person:
            scene = read_scene(data_dir, row, max_frames, model)
            if scene is not None:
                n_taken[person] = n_taken.get(person, 0) + 1
                yield scene


def read_scene(data_dir: Path, row: dict[str, str], max_frames: int, model: FaceModel) -> Scene | None:
    """One clip; None where hardly a frame beside the reference can be judged."""
    with np.load(data_dir / "tracks" / f"{row['clip_id']}.npz") as track:
        valid, landmarks = track["valid"], track["landmarks"].astype(np.float32)
    with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
        frames = [frame for _, frame in video][: len(valid)]
    first = int(np.flatnonzero(valid)[0])
    height, width = frames[first].shape[:2]
    crop = frame_face(landmarks[first], width, height)  # small faces are cut out, here as in the reference
    reference = ReferencePicture.of(frames[first], landmarks[first], model)
    points = crop.points(landmarks)
    judged = valid & judged_frames(points, reference, model)
    part = best_part(judged, first + 1, max_frames)
    if judged[part].sum() < LEAST_FRAMES:
        return None
    return Scene(
        name=row["clip_id"],
        person=row["person"],
        is_word=is_word(row),
        reference=reference,
        landmarks=torch.from_numpy(points[part]),
        frames=np.stack([crop.cut(frame) for frame in frames[part]]),
        valid=judged[part],
    )


def judged_frames(points: np.ndarray, reference: ReferencePicture, model: FaceModel) -> np.ndarray:
    """Where landmarks [T, 68, 3] lie in the picture, or just outside, and the head is turned by less than

    `MOST_TURN_DEG` from the reference's pose: bool [T]. No renderer here is asked for the far side of a head.
    """
    size = reference.picture.shape[0]
    is_inside = ((points[..., :2] >= -EDGE_PX) & (points[..., :2] < size + EDGE_PX)).all(axis=(1, 2))
    _, pose = frontalise(torch.from_numpy(points), size, model)
    turn = pose.rotation @ reference.pose.rotation.mT
    cosine = ((turn.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2).clamp(-1, 1)
    return is_inside & (cosine.acos().rad2deg() <= MOST_TURN_DEG).numpy()


def best_part(judged: np.ndarray, first: int, n_frames: int) -> slice:
    """Of all parts of n_frames from frame `first` on, the one with the most judged frames; of those the middlemost."""
    n = min(n_frames, len(judged) - first)
    sums = np.convolve(judged[first:], np.ones(n), "valid")
    best = np.flatnonzero(sums == sums.max())
    start = first + int(best[np.abs(best - (len(sums) - 1) / 2).argmin()])
    return slice(start, start + n)


# ---- renderers ------------------------------------------------------------------------------------------------------


def repeated(reference: ReferencePicture, landmarks: Tensor, frames: np.ndarray) -> np.ndarray:
    """The picture, as often as asked."""
    return np.repeat(reference.picture[None], len(landmarks), axis=0)


def warped(reference: ReferencePicture, landmarks: Tensor, frames: np.ndarray) -> np.ndarray:
    """`--renderer warp`."""
    return np.stack([as_picture(frame) for frame in WarpRenderer(Still(reference)).render(landmarks)])


def mcvdm(model: MCVDM, n_steps: int | None = None) -> Render:
    """`--renderer mcvdm`, one sample. n_steps: 1 gives the conditional mean of the planes, 0 planes of zeros."""

    def render(reference: ReferencePicture, landmarks: Tensor, frames: np.ndarray) -> np.ndarray:
        return np.stack([as_picture(frame) for frame in model.render(Still(reference), landmarks, n_steps=n_steps)])

    return render


def ceiling(model: MCVDM) -> Render:
    """The autoencoder alone: planes of the real frames instead of sampled ones, everything else the same."""

    def render(reference: ReferencePicture, landmarks: Tensor, frames: np.ndarray) -> np.ndarray:
        told = Told(model.autoencoder, model.denoiser, model.device, real=clips_of(frames))
        return np.stack([as_picture(frame) for frame in told.render(Still(reference), landmarks)])

    return render


@dataclass
class Told(MCVDM):
    """Is told the real clips [1, 3, S, H, W], one after the other."""

    real: Iterator[Tensor] = field(default_factory=lambda: iter(()))

    def planes(
        self,
        clips: list[Conditions],
        noise: Tensor,
        n_steps: int | None,
        guidance_scale: float,
        show: Callable[[TriPlane], None] | None = None,
    ) -> list[TriPlane]:
        return [self.autoencoder.encode(next(self.real).to(self.device), conditions) for conditions in clips]


def clips_of(frames: np.ndarray) -> Iterator[Tensor]:
    """Frames uint8 [T, H, W, 3] as the renderer cuts them: clips [1, 3, S, H, W] in [-1, 1]; the last frame repeats."""
    pictures = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1
    for first, last in clip_spans(len(frames)):
        clip = pictures[:, first:last]
        yield torch.cat([clip, clip[:, -1:].expand(-1, N_FRAMES - (last - first), -1, -1)], dim=1)[None]


# ---- measures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """One renderer on one scene; NaN where there is nothing to measure."""

    psnr: float  # dB
    ssim: float
    mouth_psnr: float
    mouth_ssim: float
    mouth_energy: float  # ratio to the real frames': 1 is as much fine detail as there
    inside_energy: float  # the same between the lips, over frames in which the mouth is open
    landmarks: float  # percent of the outer-eye distance
    lips: float
    motion_error: float  # F-MSE inside the face, by that of a picture that stands still
    flicker: float  # change from frame to frame, by the real one: in the face
    background: float  # in the background
    tremble: float  # in the background, of second order


PICTURE_COLUMNS = (
    Column("PSNR dB", "psnr"),
    Column("SSIM", "ssim"),
    Column("mouth PSNR dB", "mouth_psnr"),
    Column("mouth SSIM", "mouth_ssim"),
    Column("mouth detail", "mouth_energy", is_ratio=True),
    Column("detail between the lips", "inside_energy", is_ratio=True),
)
MOTION_COLUMNS = (
    Column("landmarks %", "landmarks"),
    Column("lips %", "lips"),
    Column("F-MSE / still", "motion_error"),
    Column("flicker, face", "flicker"),
    Column("flicker, background", "background"),
    Column("tremble, background", "tremble"),
)


def measure(scene: Scene, shown: np.ndarray, every: int = 4) -> Quality:
    """shown: uint8 [T, H, W, 3]. Pictures at every so manieth frame, landmarks at every second of these."""
    if shown.shape != scene.frames.shape:
        raise ValueError(f"{scene.name} has frames {list(scene.frames.shape)}, the result {list(shown.shape)}")
    height, width = shown.shape[1:3]
    pictures, energies, insides, errors = [], [], [], []
    for n, k in enumerate(np.flatnonzero(scene.valid)[every // 2 :: every]):
        frame, truth, points = shown[k], scene.frames[k], scene.landmarks[k].numpy()
        box = mouth_box(points, height)
        inside = lips_mask(points, height, width)
        whole = min(psnr(frame, truth), MOST_PSNR), ssim(frame, truth)
        mouth = min(psnr(frame[box], truth[box]), MOST_PSNR), ssim(frame[box], truth[box])
        pictures.append([*whole, *mouth])
        energies.append([laplacian_energy(each, box) for each in (frame, truth)])
        if inside[box].sum() >= OPEN_PX:
            insides.append([laplacian_energy(each, box, inside) for each in (frame, truth)])
        if n % 2 == 0:
            found = find_again(frame, points)
            errors.append([100 * landmark_error(found, points), 100 * landmark_error(found, points, LIPS)])
    changes, real = Changes.of(scene, shown), scene.real
    psnr_db, similarity, mouth_psnr_db, mouth_similarity = _means(pictures, 4)
    landmarks, lips = _means(errors, 2)
    return Quality(
        psnr=psnr_db,
        ssim=similarity,
        mouth_psnr=mouth_psnr_db,
        mouth_ssim=mouth_similarity,
        mouth_energy=_ratio(energies),
        inside_energy=_ratio(insides),
        landmarks=landmarks,
        lips=lips,
        motion_error=change_error(shown, scene.frames, scene.face) / max(scene.still_error, CODEC_NOISE),
        flicker=changes.face / max(real.face, CODEC_NOISE),
        background=changes.background / max(real.background, CODEC_NOISE),
        tremble=changes.tremble / max(real.tremble, CODEC_NOISE),
    )


def _means(rows: list[list[float]], width: int) -> list[float]:
    return np.mean(rows, axis=0).tolist() if rows else [math.nan] * width


def _ratio(energies: list[list[float]]) -> float:
    """Of the sums over frames: a frame without detail does not decide alone."""
    made, real = np.sum(energies, axis=0) if energies else (0.0, 0.0)
    return float(made / real) if made > 0 and real > 0 else math.nan


def judge(
    scenes: Iterable[Scene], methods: Mapping[str, Render], every: int
) -> tuple[list[Scene], dict[str, list[Quality]], dict[str, float]]:
    """Every method on every scene → the scenes (without their pictures), scores, seconds of rendering a frame."""
    seen: list[Scene] = []
    values: dict[str, list[Quality]] = {name: [] for name in [*methods, REAL]}
    seconds = dict.fromkeys(methods, 0.0)
    for scene in scenes:
        for name, render in methods.items():
            started = time.perf_counter()
            shown = render(scene.reference, scene.landmarks, scene.frames)
            seconds[name] += time.perf_counter() - started
            values[name].append(measure(scene, shown, every))
        values[REAL].append(detector_only(measure(scene, scene.frames, every)))
        seen.append(replace(scene, frames=scene.frames[:0].copy()))  # a view would keep all of them
    n_frames = sum(len(scene.landmarks) for scene in seen)
    return seen, values, {name: spent / max(n_frames, 1) for name, spent in seconds.items()}


def detector_only(quality: Quality) -> Quality:
    """Of real frames against themselves only the detector's own error says anything."""
    kept = ("landmarks", "lips")
    return replace(quality, **{each.name: math.nan for each in fields(Quality) if each.name not in kept})
