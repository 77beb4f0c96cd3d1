"""Re-dubbing: a video of a person who says something else. The mouth is new; head, eyes and all else stay the video's.

The video's landmarks are tracked and frontalised (`common.face.track`); their lips and jaw are replaced by those that
stage one made for this person's face, and every frame is rendered from itself (`m2v.source.Dubbed`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import playback
from common.face.detect import BUILTIN
from common.face.framing import Crop, ReferencePicture, frame_shot
from common.face.model import LIP_STREAM, FaceModel
from common.face.mouth import keep_lips_apart, lip_gap
from common.face.pos import flip_image
from common.face.reenact import neutral
from common.face.track import track
from common.media import VideoReader
from common.motion import Motion

NOSE_BASE = (31, 32, 33, 34, 35)  # moves with the upper jaw


@dataclass(frozen=True)
class Footage:
    """A video whose face was followed. motion: of the frames that are used, in pixels of the video, at its own rate;

    first: the number of the first of them; rest: the person at rest, LM3D [68, 3].
    """

    path: Path
    motion: Motion
    fps: Fraction
    first: int
    rest: Tensor

    @classmethod
    def read(cls, path: Path, detector: str = BUILTIN, device: str = "cpu") -> Footage:
        """Follow the largest face; raises InputError where there is none, or the detector can't be had."""
        motion = track(path, detector, device=device)
        with VideoReader(path) as video:
            fps = video.fps
        rest = neutral(motion.mean_landmarks + motion.landmarks, FaceModel.builtin()) - motion.mean_landmarks
        return cls(path, motion, fps, int(motion.provenance["first_frame"]), rest)

    def person(self) -> ReferencePicture:
        """Who speaks, for stage one: at rest, in the pose of the first frame; all black, it is not rendered."""
        width, height = self.motion.image_size
        pose = self.motion.pose[0]
        points = flip_image(pose.project(self.motion.mean_landmarks + self.rest), height)
        return ReferencePicture(np.broadcast_to(np.uint8(0), (height, width, 3)), points, self.rest, pose)


@dataclass(frozen=True)
class Dub:
    """Frames to be made. numbers [T]: which frame of the footage each begins with; motion: what it is to become."""

    footage: Footage
    numbers: list[int]
    motion: Motion

    def begin(self) -> Tensor:
        """Landmarks [T, 68, 3] of the frames as they are, pixels of the video."""
        return self.footage.motion.posed()[self.numbers]

    def crops(self) -> list[Crop]:
        """The square of every frame that is rendered."""
        width, height = self.motion.image_size
        each = frame_shot(self.footage.motion.posed().numpy(), width, height, self.motion.fps)
        return [each[k] for k in self.numbers]

    def pictures(self) -> Iterator[np.ndarray]:
        """The video's frames uint8 [H, W, 3] in the order of `numbers`."""
        first = self.footage.first
        with VideoReader(self.footage.path) as video:
            yield from playback.frames(video, [first + k for k in self.numbers], self.footage.fps)


def dub(footage: Footage, speech: Motion, end: playback.End) -> Dub:
    """The footage, speaking: lips and jaw of `speech`, a Motion made for `footage.person`, at the video's own rate.

    Where the video is shorter it is played to and fro, or its last frame held.
    """
    n_frames = max(1, round(speech.duration_s * footage.fps))
    numbers = playback.order(footage.motion.n_frames, n_frames, end)
    own = footage.motion.landmarks[numbers]
    # What frontalising got wrong about the upper jaw of a frame, a turn or a tilt, it got wrong about the lips too.
    error = (own - footage.rest)[:, NOSE_BASE, :].mean(dim=1, keepdim=True)  # [T, 1, 3]
    lips = list(LIP_STREAM)
    points = footage.motion.mean_landmarks + own
    points[:, lips] = (footage.motion.mean_landmarks + speech.landmarks_at(float(footage.fps), n_frames))[
        :, lips
    ] + error
    touching = lip_gap(footage.motion.mean_landmarks + footage.rest).clamp(max=0)
    points = keep_lips_apart(points, touching)
    motion = replace(
        footage.motion,
        landmarks=points - footage.motion.mean_landmarks,
        pose=footage.motion.pose[torch.tensor(numbers)],
        provenance=speech.provenance | {"dubbed": footage.path.name},
        reference=None,
    )
    return Dub(footage, numbers, motion)
