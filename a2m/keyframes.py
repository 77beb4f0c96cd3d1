"""Frames of an edited Motion that stay as they are, while the rest is made around them.

The network is given them as known frames, in its own space. What that space cannot hold, the gate closes in a pause or
the head's prior does not know of is made up for afterwards: the difference at kept frames fades over those around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from a2m.control import Control
from a2m.data import raw_aperture
from a2m.pose import apply_lids, pose_deviation
from a2m.space import MotionSpace
from a2m.streaming import Known, fitted
from common.audio import FPS
from common.errors import InputError
from common.face.model import LIP_STREAM, REST
from common.face.mouth import keep_lips_apart, lip_gap
from common.face.pos import Pose
from common.motion import Motion, Reference

HEAD_FADE = 25  # frames: a head takes its time
_MOST_VALUE = 4.0  # deviations: the network has seen no face that goes further
_SAME_UNITS, _SAME_PX = 1e-3, 0.1  # of the face model and of the picture: the same picture, stored


@dataclass(frozen=True)
class Keyframes:
    """motion: an edited one; is_kept: [T] bool, its frames that stay."""

    motion: Motion
    is_kept: Tensor

    @staticmethod
    def of(motion: Motion, frames: Sequence[int]) -> Keyframes:
        """The frames of that number; raises InputError where there are none such."""
        outside = [frame for frame in frames if not 0 <= frame < motion.n_frames]
        if outside or not frames:
            what = f"frame {outside[0]}" if outside else "frame that is named"
            raise InputError(f"The keyframes' Motion has no {what}: keep some of 0 to {motion.n_frames - 1}")
        is_kept = torch.zeros(motion.n_frames, dtype=torch.bool)
        is_kept[list(frames)] = True
        return Keyframes(motion, is_kept)

    def over(self, n_frames: int, picture: Reference) -> Keyframes:
        """For a recording of n_frames and this picture; raises InputError where they don't belong together."""
        last, motion = int(self.is_kept.nonzero()[-1]), self.motion
        if last >= n_frames:
            raise InputError(
                f"Frame {last} is to be kept, and the recording ends with frame {n_frames - 1}: keep others"
            )
        if motion.fps != FPS:
            raise InputError(f"Keyframes come at {FPS} frames/s, not {motion.fps:g}: edit a Motion of stage one")
        theirs = motion.rest
        far = (theirs.landmarks - picture.landmarks).abs().max() > _SAME_UNITS
        if far or (theirs.pose.translation - picture.pose.translation).abs().max() > _SAME_PX:
            raise InputError(
                "The keyframes' Motion was made for another picture: make one for this one (--motion-only) and edit it"
            )
        missing = max(0, n_frames - motion.n_frames)
        index = torch.arange(n_frames).clamp(max=motion.n_frames - 1)
        kept = replace(motion, landmarks=motion.landmarks[index], pose=motion.pose[index])
        return Keyframes(kept, torch.nn.functional.pad(self.is_kept, (0, missing))[:n_frames])

    def known(self, space: MotionSpace, rest: Tensor, control: Control) -> Known:
        """What the network is given: values [T, K], which the control's scales will not change.

        rest: the picture's points with its mouth closed [68, 3].
        """
        points = self.motion.mean_landmarks + self.motion.landmarks
        lips = (points - rest)[:, LIP_STREAM] / (control.mouth_scale or 1.0)
        aperture = raw_aperture(rest) / raw_aperture(points).clamp(min=0.2 * float(raw_aperture(rest)))
        opened = apply_lids(points, aperture)  # blinks are not the expression's
        brows = (opened - rest)[:, REST] / (control.expression_scale or 1.0)
        deviation = pose_deviation(self.motion.rest.pose, self.motion.pose) / (control.head_scale or 1.0)
        slow = torch.cat([deviation, (1 / aperture - 1)[:, None]], dim=1)
        device = space.slow_std.device
        values = space.encode(lips.to(device), brows.to(device), slow.to(device)).cpu()
        return Known(values.clamp(-_MOST_VALUE, _MOST_VALUE), self.is_kept)

    def turn(self, deviation: Tensor) -> Tensor:
        """Deviations of the head [T, 6] that go through the kept frames', and start at rest as they did."""
        kept = torch.where(self.is_kept[:, None], pose_deviation(self.motion.rest.pose, self.motion.pose), deviation)
        is_fixed = self.is_kept | (torch.arange(len(kept)) == 0)
        return fitted(deviation[None], kept[None], is_fixed, HEAD_FADE)[0]

    def hold(self, made: Motion, rest: Tensor) -> Motion:
        """The Motion with the kept frames exactly as they are, and frames around them bent towards them."""
        kept, is_kept = self.motion, self.is_kept
        here, there = (motion.landmarks.flatten(1)[None] for motion in (made, kept))  # [1, T, 204]
        points = fitted(here, there, is_kept)[0].unflatten(1, (68, 3))
        points = keep_lips_apart(made.mean_landmarks + points, lip_gap(rest).clamp(max=0)) - made.mean_landmarks
        pose = Pose(
            torch.where(is_kept, kept.pose.scale, made.pose.scale),
            torch.where(is_kept[:, None, None], kept.pose.rotation, made.pose.rotation),
            torch.where(is_kept[:, None], kept.pose.translation, made.pose.translation),
        )
        return replace(made, landmarks=torch.where(is_kept[:, None, None], kept.landmarks, points), pose=pose)
