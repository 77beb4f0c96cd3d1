"""What stage two is to make: which picture every frame begins with, where its landmarks go, and what is around it.

A scene is a person's picture (or several), or a video that is dubbed. The renderer works on the square crop around the
face; `frames` gives that crop, as it is or enlarged, or the whole picture with the face put back into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from common.face.framing import Crop, ReferencePicture
from m2v.dub import Dub
from m2v.enlarge import Enlarger
from m2v.paste import Paster
from m2v.source import Dubbed, Several, Source, Still, as_picture


@dataclass(frozen=True)
class Scene:
    """source: what the renderer begins with; landmarks: [T, 68, 3], where they go, pixels of the crop; crops: of every

    frame, the same one for a picture; begin: [T or 1, 68, 2], landmarks before, pixels of the crop; whole: opens the
    uncropped pictures, uint8 [H, W, 3], one for each frame.
    """

    source: Source
    landmarks: Tensor
    fps: Fraction | float
    crops: Sequence[Crop]
    begin: Tensor
    whole_size: tuple[int, int]
    whole: Callable[[], Iterator[np.ndarray]]

    @classmethod
    def of_pictures(cls, references: Sequence[ReferencePicture], landmarks: Tensor, fps: float) -> Scene:
        """The first reference is the main one. As a whole it is shown if it kept its picture."""
        first = references[0]
        source = Still(first) if len(references) == 1 else Several(references)
        square = first.picture.shape[0]
        crop = first.crop if first.crop and first.whole is not None else Crop(0, 0, square, square)
        picture = first.picture if first.whole is None else first.whole
        return cls(
            source,
            landmarks,
            fps,
            [crop] * len(landmarks),
            first.landmarks[None, :, :2],
            (picture.shape[1], picture.shape[0]),
            lambda: repeat(picture, len(landmarks)),
        )

    @classmethod
    def of_video(cls, dub: Dub) -> Scene:
        crops = dub.crops()
        begin, landmarks = (in_crops(crops, points) for points in (dub.begin(), dub.motion.posed()))
        cut = (crop.cut(picture) for crop, picture in zip(crops, dub.pictures(), strict=True))
        source = Dubbed(cut, begin)
        return cls(source, landmarks, dub.footage.fps, crops, begin[..., :2], dub.motion.image_size, dub.pictures)

    @property
    def n_frames(self) -> int:
        return len(self.landmarks)

    def size(self, framing: str, size_px: int | None = None) -> tuple[int, int]:
        """Width and height of the frames: even, as H.264 needs them. size_px: of a crop; None: as it is rendered."""
        if framing != "full":
            height, width = (size_px, size_px) if size_px else self.source.picture.shape[:2]
        else:
            width, height = self.whole_size
        return width // 2 * 2, height // 2 * 2

    def frames(self, rendered: Iterator[Tensor], framing: str, size_px: int | None = None) -> Iterator[np.ndarray]:
        """Frames uint8 of `size` from a renderer's, [3, h, w]; framing: crop or full."""
        width, height = self.size(framing, size_px)
        if framing != "full" and (height, width) == self.source.picture.shape[:2]:
            yield from (as_picture(frame) for frame in rendered)
            return
        begin = self.begin.expand(self.n_frames, -1, -1)
        enlarger, paster = Enlarger(width), None
        for picture, crop, before, after, frame in zip(
            self.whole(), self.crops, begin, self.landmarks[..., :2], rendered, strict=True
        ):
            if framing != "full":
                yield enlarger.enlarge(picture, crop, before, after, frame)
                continue
            if paster is None or paster.crop != crop:
                paster = Paster(crop, *self.whole_size)
            yield paster.paste(picture, before, after, frame)[:height, :width]


def in_crops(crops: Sequence[Crop], landmarks: Tensor) -> Tensor:
    """Landmarks [T, 68, 3] of whole pictures in pixels of each frame's crop."""
    each = [crop.points(points) for crop, points in zip(crops, landmarks.numpy(), strict=True)]
    return torch.from_numpy(np.stack(each))
