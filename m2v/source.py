"""What frames are made from: one picture of the person, several, or a video's own frames.

A source tells the renderer, clip by clip, which picture each frame begins with and where the landmarks lie in it. All
work in pixels of one square crop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.face import warp
from common.face.framing import ReferencePicture
from common.face.model import BROWS, JAW, eye_distance, mouth_opening
from m2v.condition import Conditions, build

YAW_WEIGHT = 2.0  # of a radian of turning, beside a mouth open by the distance of the eyes
# Levels of 255 by which the faces of two pictures differ in light, see `difference`: beyond, they are of other days,
# and a face that changed from clip to clip would show. Frames of one recording differ by 1 to 18 (22 of validation
# clips), photographs of one person from different days by 22 to 46 (11 pairs).
UNLIKE = 20.0
STAY = 0.05  # how much nearer another picture must be, before a clip changes to it


class Source(Protocol):
    """picture: uint8 [H, W, 3], the (first) one; landmarks: [68, 2 or 3] in its pixels."""

    picture: np.ndarray
    landmarks: Tensor

    def begin(self, first: int, n_frames: int) -> tuple[Tensor, Tensor]:
        """Pictures that frames begin with and landmarks in them: [S, 3, H, W] in [-1, 1] and [S, 68, 2], S = 1 where

        all frames begin with the same one.
        """
        ...

    def conditions(self, first: int, targets: Tensor) -> Conditions:
        """Conditions of the clip whose frame 0 is frame `first` of the whole; targets: landmarks [S, 68, 2] asked for.

        Clips are asked for in order; they may overlap.
        """
        ...


class Still:
    """One picture."""

    def __init__(self, reference: ReferencePicture) -> None:
        self.picture, self.landmarks = reference.picture, reference.landmarks
        self.pixels = as_tensor(reference.picture)

    def begin(self, first: int, n_frames: int) -> tuple[Tensor, Tensor]:
        return self.pixels[None], self.landmarks[None, :, :2]

    def conditions(self, first: int, targets: Tensor) -> Conditions:
        return build(self.pixels, self.landmarks[:, :2], targets)


class Several:
    """Several pictures of one person: for every clip the face comes from the one nearest in pose and mouth.

    Its colours are matched; hair, neck and background come from the first always, which framing and pose refer to.
    Pictures whose face is lit unlike the first one's (`UNLIKE`) lend nothing; lends: bool of each.
    """

    def __init__(self, references: Sequence[ReferencePicture]) -> None:
        self.references = references
        self.picture, self.landmarks = references[0].picture, references[0].landmarks
        self.pixels = [as_tensor(each.picture) for each in references]
        self.lends = [k == 0 or difference(references[0], each) <= UNLIKE for k, each in enumerate(references)]
        self.chosen = 0
        self.n_clips = [0] * len(references)  # how often each was

    def begin(self, first: int, n_frames: int) -> tuple[Tensor, Tensor]:
        return self.pixels[0][None], self.landmarks[None, :, :2]

    def conditions(self, first: int, targets: Tensor) -> Conditions:
        main = build(self.pixels[0], self.landmarks[:, :2], targets)
        self.chosen = self.nearest(targets)
        self.n_clips[self.chosen] += 1
        if self.chosen == 0:
            return main
        other = build(self.pixels[self.chosen], self.references[self.chosen].landmarks[:, :2], targets)
        face = face_region(targets, *self.picture.shape[:2])
        weight = face * (1 - main.inner)
        shift = (weight * (main.warped - other.warped)).sum(dim=(0, 2, 3)) / weight.sum().clamp(min=1)
        mixed = main.warped + face * (other.warped + shift[:, None, None] - main.warped)
        small = F.avg_pool2d(face, 2)
        visible = main.visible + small * (other.visible - main.visible)
        # The flow stays the main picture's: mixing it as well changed nothing that could be measured.
        return replace(main, warped=mixed, visible=visible)

    def nearest(self, targets: Tensor) -> int:
        """Which picture is nearest to a clip's landmarks [S, 68, 2], in the turn of the head and the mouth."""
        wanted = look_of(targets).median(dim=0).values
        costs = [
            float((look_of(each.landmarks[None, :, :2])[0] - wanted).norm()) if lends else math.inf
            for each, lends in zip(self.references, self.lends, strict=True)
        ]
        best = min(range(len(costs)), key=costs.__getitem__)
        return best if costs[best] < costs[self.chosen] - STAY else self.chosen


class Dubbed:
    """A video's own frames, each with its own landmarks: the renderer changes the mouth and leaves the rest.

    crops: yields the square part of every frame, uint8 [H, W, 3]; landmarks: [T, 68, 2 or 3] in pixels of those.
    """

    def __init__(self, crops: Iterator[np.ndarray], landmarks: Tensor) -> None:
        self.crops, self.all_landmarks = crops, landmarks[..., :2]
        self.held: dict[int, Tensor] = {}  # frames of the clip asked for last
        self.n_read = 0
        self.picture = self.next_crop()
        self.landmarks = landmarks[0]

    def next_crop(self) -> np.ndarray:
        crop = next(self.crops)
        self.held[self.n_read] = as_tensor(crop)
        self.n_read += 1
        return crop

    def begin(self, first: int, n_frames: int) -> tuple[Tensor, Tensor]:
        last = min(first + n_frames, len(self.all_landmarks))
        while self.n_read < last:
            self.next_crop()
        self.held = {k: crop for k, crop in self.held.items() if k >= first}
        frames = [min(k, last - 1) for k in range(first, first + n_frames)]  # the last one repeats
        return torch.stack([self.held[k] for k in frames]), self.all_landmarks[frames]

    def conditions(self, first: int, targets: Tensor) -> Conditions:
        pictures, points = self.begin(first, len(targets))
        return build(pictures, points, targets)


def difference(one: ReferencePicture, other: ReferencePicture) -> float:
    """How differently two pictures of a face are lit: root mean square over its upper half, levels of 255.

    The other is warped onto the one, and both are looked at in cells of an eighth of the picture: light and skin.
    """
    height, width = one.picture.shape[:2]
    target = one.landmarks[None, :, :2]
    grid = warp.backward_grid(other.landmarks[None, :, :2], target, height, width)
    change = as_tensor(one.picture) - warp.apply(as_tensor(other.picture)[None], grid)[0]  # [3, H, W]
    weight = face_region(target, height, width)[0]  # [1, H, W]
    weight[:, max(0, round(float(target[0, 33, 1]))) :] = 0  # mouths differ anyway
    share, sums = (F.avg_pool2d(each[None], max(1, height // 8))[0] for each in (weight, weight * change))
    cells = (sums / share.clamp(min=1e-3)).square().mean(dim=0)
    return float(((share[0] * cells).sum() / share.sum().clamp(min=1e-6)).sqrt() * 127.5)


def look_of(points: Tensor) -> Tensor:
    """How a head is turned and its mouth open, from landmarks [S, 68, 2]: [S, 3], comparable by distance.

    Turn and nod are read off the nose between the eyes and the jaw, whatever the face model.
    """
    eyes = eye_distance(points)
    centre = (points[:, 36:42].mean(dim=1) + points[:, 42:48].mean(dim=1)) / 2
    across = points[:, 42:48].mean(dim=1) - points[:, 36:42].mean(dim=1)
    across = across / across.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    down = torch.stack([-across[:, 1], across[:, 0]], dim=-1)
    nose = points[:, 30] - centre
    turned, nodded = ((nose * axis).sum(dim=-1) / eyes for axis in (across, down))
    return torch.stack([YAW_WEIGHT * turned, nodded, mouth_opening(points)], dim=-1)


def face_region(targets: Tensor, height: int, width: int) -> Tensor:
    """A soft mask of the face, from the brows to the chin: landmarks [S, 68, 2] -> [S, 1, H, W]."""
    outline = targets[:, [*JAW, *BROWS]]
    low, high = outline.amin(dim=1), outline.amax(dim=1)  # [S, 2]
    middle, half = (low + high) / 2, (high - low) / 2
    x = (torch.arange(width).to(targets) - middle[:, :1]) / half[:, :1]  # [S, W]
    y = (torch.arange(height).to(targets) - middle[:, 1:]) / half[:, 1:]  # [S, H]
    radius = (x[:, None, :].square() + y[:, :, None].square()).sqrt()
    return torch.sigmoid(12 * (0.85 - radius))[:, None]


def as_tensor(picture: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> [3, H, W] in [-1, 1]."""
    return torch.from_numpy(picture.copy()).movedim(-1, 0).float() / 127.5 - 1


def as_picture(frame: Tensor) -> np.ndarray:
    """A renderer's frame [3, H, W], about 0..255, -> uint8 [H, W, 3]."""
    return frame.round().clamp(0, 255).byte().movedim(0, -1).numpy()
