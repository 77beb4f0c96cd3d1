"""Training samples made of single pictures: more people than the clips have, and real pixels for what was bent.

Three kinds, all with a clip's fields (`m2v.data`):

- *still*: every frame is the picture, and so is the reference: what is asked for is what is there.
- *bent*: the reference is the picture warped to another expression and turn of the head, taken from a frame of a clip;
  the frames are the picture as it was photographed. So the network sees a picture that was warped there and back, and
  learns to mend what that breaks. Over the frames the head moves with the clip's: shifted, rolled and scaled, which
  bends nothing in a face. In all of them the background stays where it is, as in clips, from a feather away from the
  head on.
- *opened*: the reference is a picture with closed lips; in the frames they part as a clip's do, and what is between
  them comes from that clip's frames, in the light of the picture's lips.

Points of a plane are complex numbers x + iy here: a similarity is a product and a sum.
"""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import InputError
from common.face import warp
from common.face.framing import frame_face
from common.face.model import LEFT_EYE, LIPS, REST, RIGHT_EYE, RIGID, eye_distance, mouth_opening
from common.face.mouth import LOWER, UPPER
from common.files import check_input
from common.media import read_picture
from m2v.condition import Window, dark_of
from m2v.data import (
    FRAME_PX,
    Clip,
    ClipSamples,
    DataConfig,
    Sample,
    assembled,
    check_config,
    clip_shares,
    flipped,
    pick_reference,
    pick_window,
    read_clips,
    recoloured,
)
from m2v.masks import head_mask

log = logging.getLogger(__name__)

KINDS = {"photo": 1.0, "ai_generated_or_suspected": 1.0, "painting_or_sculpture": 0.2}  # how often each is drawn
LEAST_SIDE_PX = 192  # of the square around the head: smaller ones would teach blur
FINE = 2  # pictures are kept at this many times the size of frames: being moved costs them no sharpness
STILL, OPENED = 0.15, 0.15  # of the samples; the others are bent
MOST_BENT, MOST_OPENED, MOST_SHIFT = 0.16, 0.4, 0.16  # by the eyes' distance: skull and cheeks; lips and chin; head
MOST_ROLL_RAD, MOST_LOG_ZOOM = 0.12, 0.06
TALKING = (*range(5, 12), *LIPS)  # the points that a talking mouth moves
SHUT, UNSEEN = 0.035, 0.08  # mouths that open less: closed; open, but too little is seen to be made larger
EYE_PARTS = (((36, 39), (37, 38, 40, 41)), ((42, 45), (43, 44, 46, 47)))  # corners, lids
LIGHT = (0.6, 1.5)  # a mouth's inside is brightened by no less and no more


@dataclass(frozen=True)
class Portrait:
    """picture: uint8 [FINE h, FINE h, 3] around a head; landmarks [68, 2] in pixels of it at size h, y down."""

    name: str
    kind: str
    picture: np.ndarray
    landmarks: Tensor


def training_samples(data_dir: Path, config: DataConfig, seed: int) -> Dataset[Sample]:
    """What the autoencoder is trained on: clips of the train split, talking and silent, and its portraits."""
    if not 0 <= config.portraits < 1:
        raise InputError(f"options.portraits={config.portraits} is no share: give 0 (none) or more, below 1.")
    clips = read_clips(data_dir, "train", config.n_frames, Path(config.cache_dir), ("talking", "silent"))
    of_clips = ClipSamples(clips, config, seed)
    portraits = read_portraits(data_dir, "train", config.size_px) if config.portraits else []
    return MixedSamples(of_clips, PortraitSamples(portraits, clips, config, seed)) if portraits else of_clips


def read_portraits(data_dir: Path, split: str, size_px: int) -> list[Portrait]:
    """Portraits of a split with known landmarks and large enough heads; none where there is no list of them."""
    if not (data_dir / "portraits.csv").is_file():
        log.info("%s has no portraits.csv: clips only", data_dir)
        return []
    check_input(data_dir / "portraits_landmarks.npz", "landmarks of the portraits")
    with (data_dir / "portraits.csv").open(newline="", encoding="utf-8") as file:
        kinds = {row["name"]: row["kind"] for row in csv.DictReader(file) if row["split"] == split}
    with np.load(data_dir / "portraits_landmarks.npz") as table:
        known = {
            str(name): points
            for name, points, valid in zip(table["names"], table["landmarks"], table["valid"], strict=True)
            if valid
        }
    names = [name for name, kind in kinds.items() if kind in KINDS and name in known]
    read = [read_portrait(data_dir / "portraits" / f"{n}.jpg", kinds[n], known[n], size_px) for n in names]
    usable = [portrait for portrait in read if portrait]
    log.info("%s: %d portraits, %d too small", split, len(usable), len(read) - len(usable))
    return usable


def read_portrait(picture_path: Path, kind: str, landmarks: np.ndarray, size_px: int) -> Portrait | None:
    """Cut around its head, whose landmarks [68, 3] are given; None where that is too small."""
    picture = read_picture(picture_path)
    crop = frame_face(landmarks, picture.shape[1], picture.shape[0], size_px)
    if crop.side < LEAST_SIDE_PX:
        return None
    part = Image.fromarray(picture[crop.y0 : crop.y0 + crop.side, crop.x0 : crop.x0 + crop.side])
    fine = part.resize((FINE * size_px, FINE * size_px), Image.Resampling.LANCZOS)
    return Portrait(picture_path.stem, kind, np.array(fine), torch.from_numpy(crop.points(landmarks)[:, :2]))


class MixedSamples(Dataset[Sample]):
    """Samples of clips and, `config.portraits` of them, of portraits; sample i depends on the seed and on i alone."""

    def __init__(self, clips: ClipSamples, portraits: PortraitSamples) -> None:
        self.clips, self.portraits, self.config, self.seed = clips, portraits, clips.config, clips.seed

    def __getitem__(self, index: int) -> Sample:
        is_portrait = np.random.default_rng((self.seed, index, 1)).random() < self.config.portraits
        return self.portraits[index] if is_portrait else self.clips[index]


class PortraitSamples(Dataset[Sample]):
    """Endless samples of portraits that move as clips do."""

    def __init__(self, portraits: list[Portrait], clips: list[Clip], config: DataConfig, seed: int) -> None:
        check_config(config)
        self.portraits, self.clips, self.config, self.seed = portraits, clips, config, seed
        shares = np.array([KINDS[portrait.kind] for portrait in portraits])
        self.shares, self.clip_shares = shares / shares.sum(), clip_shares(clips, config.most_minutes)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index, 2))
        portrait = self.portraits[rng.choice(len(self.portraits), p=self.shares)]
        clip = self.clips[rng.choice(len(self.clips), p=self.clip_shares)]
        start = int(rng.choice(clip.starts))
        kind = rng.random()
        if kind < STILL:
            return self.still(portrait, clip, start, rng)
        if kind < STILL + OPENED and mouth_opening(portrait.landmarks) < SHUT:
            return self.opened(portrait, clip, start, rng)
        return self.bent(portrait, clip, start, rng)

    def still(self, portrait: Portrait, clip: Clip, start: int, rng: np.random.Generator) -> Sample:
        """Every frame is the reference picture; its landmarks tremble as a clip's do, or not at all."""
        fine, own = self.shown(portrait, rng)
        picture = F.avg_pool2d(fine, FINE)[0]
        targets = own + self.tremble(clip, start, own, rng)
        window = top, left, side = pick_window(targets, self.config, rng)
        frames = picture[:, top : top + side, left : left + side].expand(len(targets), -1, -1, -1)
        return assembled(frames, picture, own, targets, window)

    def bent(self, portrait: Portrait, clip: Clip, start: int, rng: np.random.Generator) -> Sample:
        """The reference is bent; in the frames the picture's head moves as the clip's does, its face as it was."""
        fine, own = self.shown(portrait, rng)
        n_frames = self.config.n_frames
        bend_to = pick_reference(clip, start, n_frames, rng)
        like_own = alike(clip, own, rng)
        moved = head_moves(clip, start + n_frames // 2, [bend_to, *range(start, start + n_frames)], own)
        source = moved[0](lips_apart(own + bend(clip, [bend_to], like_own, own)[0]))
        picture = self.picture(fine, own, source[None])
        if mouth_opening(own) < UNSEEN and mouth_opening(source) > mouth_opening(own) + SHUT:
            picture = self.with_mouths(picture, clip, [bend_to], source[None], dark_of(picture[0], own))
        places = torch.stack([move(own) for move in moved[1:]])
        targets = places + self.tremble(clip, start, own, rng)
        window = pick_window(targets, self.config, rng)
        return assembled(self.moved(fine, own, moved[1:], window), picture[0], source, targets, window)

    def opened(self, portrait: Portrait, clip: Clip, start: int, rng: np.random.Generator) -> Sample:
        """The reference is the picture, its lips closed; in the frames they part, and the clip's mouth is seen."""
        fine, own = self.shown(portrait, rng)
        part = list(range(start, start + self.config.n_frames))
        bends = bend(clip, part, alike(clip, own, rng), own)
        bends[:, list(REST)] = 0
        moved = head_moves(clip, part[len(part) // 2], part, own)
        targets = torch.stack([move(lips_apart(own + each)) for move, each in zip(moved, bends, strict=True)])
        picture = F.avg_pool2d(fine, FINE)[0]
        window = pick_window(targets, self.config, rng)
        frames = self.picture(fine, own, targets, window)
        frames = self.with_mouths(frames, clip, part, targets, dark_of(picture, own), window)
        return assembled(frames, picture, own, targets, window)

    def shown(self, portrait: Portrait, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A portrait in another light, mirrored or not: [1, 3, FINE h, FINE h] in [-1, 1], landmarks [68, 2]."""
        picture = torch.from_numpy(portrait.picture).movedim(-1, 0)[None].float() / 127.5 - 1
        picture, own = recoloured(picture, rng), portrait.landmarks
        return (picture.flip(-1), flipped(own, self.config)) if rng.random() < 0.5 else (picture, own)

    def tremble(self, clip: Clip, start: int, own: Tensor, rng: np.random.Generator) -> Tensor:
        """What the tracker's noise adds to landmarks like `own` in the clip's frames, half the time: [S, 68, 2]."""
        raw, smooth = clip.tracks[:2, start : start + self.config.n_frames]
        scale = eye_distance(own) / eye_distance(smooth).mean()
        return (raw - smooth) * scale * float(rng.random() < 0.5)

    def picture(self, fine: Tensor, own: Tensor, targets: Tensor, window: Window | None = None) -> Tensor:
        """A picture warped to landmarks [S, 68, 2], its background left where it is: [S, 3, h, w]."""
        size = self.config.size_px
        grid = warp.backward_grid(own.expand(len(targets), -1, -1), targets, size, size)
        masks = torch.stack([head_mask(own, each, size) for each in targets])[..., None]
        here = warp.places(size, size, own)
        return warp.apply(fine, finely(seen(here + masks * (grid - here), window)))

    def moved(self, fine: Tensor, own: Tensor, moves: list[Similarity], window: Window) -> Tensor:
        """As `picture`, of similarities of all landmarks: nothing in the face is bent."""
        size = self.config.size_px
        here = warp.places(size, size, own)
        masks = [head_mask(own, move(own), size) for move in moves]
        each = [
            seen(here + mask[..., None] * (move.back(here) - here), window)
            for mask, move in zip(masks, moves, strict=True)
        ]
        return warp.apply(fine, finely(torch.stack(each)))

    def with_mouths(
        self, frames: Tensor, clip: Clip, which: list[int], targets: Tensor, dark: Tensor, window: Window | None = None
    ) -> Tensor:
        """Frames [S, 3, h, w] with a clip's frames seen between the lips of landmarks [S, 68, 2].

        dark: [3, 1, 1], `dark_of` the picture: in its light the clip's mouths are shown.
        """
        size = self.config.size_px
        inner = warp.inner_mouth_mask(targets, size, size)
        if float(inner.amax()) < 0.5:
            return frames
        shown = torch.from_numpy(np.stack([clip.frames[k] for k in which])).movedim(-1, 1).float() / 127.5 - 1
        points = clip.tracks[0, which]
        light = ((dark + 1).mean() / (dark_of(shown, points) + 1).mean().clamp(min=0.01)).clamp(*LIGHT)
        zoom = size / FRAME_PX
        grid = warp.backward_grid((points + 0.5) * zoom - 0.5, targets, size, size)
        mouths = warp.apply(shown, (seen(grid, window) + 0.5) / zoom - 0.5)
        inner = seen(inner.movedim(1, -1), window).movedim(-1, 1)
        return frames + inner * (((mouths + 1) * light - 1).clamp(-1, 1) - frames)


@dataclass(frozen=True)
class Similarity:
    """Points of a plane turned and scaled about a pivot, then shifted."""

    factor: complex
    pivot: complex
    shift: complex

    def __call__(self, points: Tensor) -> Tensor:
        """[..., 2] -> [..., 2]."""
        return as_points((as_complex(points) - self.pivot) * self.factor + self.pivot + self.shift)

    def back(self, points: Tensor) -> Tensor:
        """Where points [..., 2] were."""
        return as_points((as_complex(points) - self.pivot - self.shift) / self.factor + self.pivot)

    @classmethod
    def between(cls, old: Tensor, new: Tensor) -> Similarity:
        """That which best carries the points of the skull of landmarks [68, 2] to others."""
        a, b = as_complex(old)[list(RIGID)], as_complex(new)[list(RIGID)]
        pivot, middle = a.mean(), b.mean()
        a, b = a - pivot, b - middle
        factor = (a.conj() * b).sum() / a.abs().square().sum()
        return cls(complex(factor), complex(pivot), complex(middle - pivot))


def head_moves(clip: Clip, rest: int, which: list[int], own: Tensor) -> list[Similarity]:
    """How a clip's head lies in some frames against frame `rest`, carried over to landmarks `own` and held back."""
    track = clip.tracks[1]
    pivot, carry = complex(as_complex(own)[list(RIGID)].mean()), eyes(own) / eyes(track[rest])
    moves = []
    for k in which:
        move = Similarity.between(track[rest], track[k])
        log_zoom, roll = np.log(abs(move.factor)), np.angle(move.factor)
        factor = np.exp(held(log_zoom, MOST_LOG_ZOOM) + 1j * held(roll, MOST_ROLL_RAD))
        shift = move.shift * carry
        length = abs(shift) or 1.0
        moves.append(Similarity(complex(factor), pivot, shift * held(length, MOST_SHIFT * abs(eyes(own))) / length))
    return moves


def bend(clip: Clip, which: list[int], rest: int, own: Tensor) -> Tensor:
    """How a clip's face is bent in some frames against frame `rest`, its head's place, roll and size apart.

    Carried over to landmarks `own`: displacements [K, 68, 2]. Lids go with the corners of their eyes: a lid that a warp
    pulls over an eye is no blink. Where a part would go too far, all goes less far.
    """
    track = clip.tracks[1]
    carry = eyes(own) / eyes(track[rest])
    bends = []
    for k in which:
        aligned = Similarity.between(track[k], track[rest])(track[k])
        moved = as_points((as_complex(aligned) - as_complex(track[rest])) * carry)
        for corners, lids in EYE_PARTS:
            moved[list(lids)] = moved[list(corners)].mean(dim=0)
        far = moved.norm(dim=-1) / abs(eyes(own))
        far[list(TALKING)] *= MOST_BENT / MOST_OPENED
        bends.append(moved * min(1.0, MOST_BENT / max(float(far.amax()), 1e-6)))
    return torch.stack(bends)


def alike(clip: Clip, own: Tensor, rng: np.random.Generator) -> int:
    """Of a few valid frames, that whose mouth is open as far as that of landmarks `own`."""
    few = rng.choice(np.flatnonzero(clip.valid), 12)
    return int(few[np.abs(clip.opening[few] - float(mouth_opening(own))).argmin()])


def lips_apart(points: Tensor) -> Tensor:
    """Landmarks [68, 2] whose inner lips don't pass through each other: where they would, they meet halfway."""
    upright = as_complex(points) / eyes(points)  # the eyes are level, y down
    gap = (upright[list(LOWER)] - upright[list(UPPER)]).imag
    half = (-gap).clamp(min=0) / 2 * 1j
    upright[list(UPPER)] -= half
    upright[list(LOWER)] += half
    return as_points(upright * eyes(points))


def eyes(points: Tensor) -> complex:
    """From the middle of the eye at the image's left to that of the other: landmarks [68, 2]."""
    left, right = (as_complex(points)[list(eye)].mean() for eye in (LEFT_EYE, RIGHT_EYE))
    return complex(right - left)


def held(value: float, most: float) -> float:
    """About the value where it is small; never beyond `most`."""
    return float(most * np.tanh(value / most))


def as_complex(points: Tensor) -> Tensor:
    """[..., 2] -> [...], x + iy."""
    return torch.view_as_complex(points.contiguous())


def as_points(values: Tensor) -> Tensor:
    return torch.view_as_real(values)


def seen(grid: Tensor, window: Window | None) -> Tensor:
    """The part of [..., H, W, C] that lies in a window."""
    if window is None:
        return grid
    top, left, side = window
    return grid[..., top : top + side, left : left + side, :]


def finely(grid: Tensor) -> Tensor:
    """Places in pixels of the frame -> in those of the fine picture."""
    return (grid + 0.5) * FINE - 0.5
