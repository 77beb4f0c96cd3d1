"""The head of a driving video: its pose by POS in every frame, at exact times, and a Motion made to follow it.

The paper aligns five points (eyes, nose tip, mouth corners) of the generated landmarks to each frame. We align the
points that move with the skull, on the driver's own shape: a speaking mouth then doesn't nod the head, and the pose
trembles less (docs/geometry.md has both). What is taken over is the driver's movement, relative to the moment at which
the driver holds the head as the picture does: nobody's size in pixels, picture or sound matters.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.face import detect
from common.face.conventions import to_model
from common.face.fit import frontalise
from common.face.model import CONVENTION, FaceModel
from common.face.pos import Pose
from common.face.reenact import nearest_pose, relative_pose
from common.face.rotations import slerp
from common.face.track import MAX_GAP_S, Follower, longest_part
from common.media import VideoReader, exact_fps
from common.motion import Motion
from common.playback import End

log = logging.getLogger(__name__)


EASE_S = 0.4  # half the time in which a head that turns back or stops does so
SMOOTHING_S = 0.2


@dataclass(frozen=True)
class PoseTrack:
    """The pose of one head in T frames of a video.

    time_s: float64 [T], the middle of each frame, from the moment at which the first one begins; pose: Pose [T], v up,
    in pixels of the video and units of a face model.
    """

    time_s: Tensor
    pose: Pose

    def __post_init__(self) -> None:
        shapes = [list(part.shape) for part in (self.time_s, self.pose.scale, self.pose.translation)]
        T = len(self.time_s) if self.time_s.ndim else 0
        if T == 0 or shapes != [[T], [T], [T, 2]] or list(self.pose.rotation.shape) != [T, 3, 3]:
            raise ValueError(f"a pose track needs times [T] and poses [T], T at least 1, got {shapes}")
        if not self.time_s.isfinite().all() or not (self.time_s.diff() > 0).all():
            raise ValueError("the times of a pose track must be finite and rise from frame to frame")

    def at(self, n_frames: int, fps: Fraction | float, end: End = "loop") -> Pose:
        """The pose in the middle of n_frames frames at a constant rate: Pose [n_frames].

        Rotations go from frame to frame at constant speed (slerp), the logarithm of the scale and the translation on
        straight lines. A track that is too short is played to and fro or held at its end, see `played`.
        """
        rate = exact_fps(fps)
        # Whole numbers up to the one division: frame 10^6 is as exact as frame 1, whatever the rates.
        middle_s = (2 * np.arange(n_frames) + 1) * rate.denominator / (2 * rate.numerator)
        times_s = self.time_s.double().numpy()
        # The last frame is shown for as long after its middle as the first one before.
        asked_s = played(middle_s, float(times_s[-1] + times_s[0]), end)

        def line(values: Tensor) -> Tensor:
            return torch.from_numpy(np.interp(asked_s, times_s, values.double().numpy())).to(values)

        return Pose(
            scale=line(self.pose.scale.double().log()).exp().to(self.pose.scale),
            rotation=slerp(self.pose.rotation, self.time_s, torch.from_numpy(asked_s)),
            translation=torch.stack([line(each) for each in self.pose.translation.unbind(-1)], dim=-1),
        )


def played(time_s: np.ndarray, length_s: float, end: End) -> np.ndarray:
    """Which moment [N] of a recording of length_s is shown at times [N], both from its start; times may be unordered.

    Where no time is beyond the end, they are the moments. Else the recording is played to and fro (`loop`) or holds its
    last moment (`hold`). Neither jumps nor jerks: around an end the speed changes evenly over 2 EASE_S, so a head that
    turns back does so EASE_S / 2 before the end.
    """
    if end not in ("loop", "hold"):
        raise ValueError(f"a pose track ends with loop or hold, got {end!r}")
    time_s = np.maximum(time_s, 0.0)
    if length_s <= 0:
        return np.zeros_like(time_s)
    if time_s.max(initial=0.0) <= length_s:
        return time_s
    if end == "hold":
        ease = min(EASE_S, length_s)
        left = np.clip(length_s + ease - time_s, 0.0, None)
        return np.where(time_s <= length_s - ease, time_s, length_s - left**2 / (4 * ease))
    ease = min(EASE_S, length_s / 2)
    phase = np.mod(time_s, 2 * length_s)
    from_end, from_start = np.abs(phase - length_s), np.minimum(phase, 2 * length_s - phase)
    moment = length_s - from_end
    moment = np.where(from_end < ease, length_s - ease / 2 - from_end**2 / (2 * ease), moment)
    turns_at_start = (from_start < ease) & (time_s > length_s)  # at the very beginning it is already under way
    return np.where(turns_at_start, ease / 2 + from_start**2 / (2 * ease), moment)


# ---- from a video ---------------------------------------------------------------------------------------------------


def read_pose(video_path: Path, model: FaceModel, detector: str = detect.BUILTIN, device: str = "cpu") -> PoseTrack:
    """Follow the largest face of a video, whatever its rate, constant or not, and find its pose in every frame.

    Where the face is gone for more than `MAX_GAP_S`, or the scene changes, the longest part is used and a warning says
    so; shorter gaps are interpolated. Memory: the landmarks, 0.8 KB a frame. Raises InputError where no frame has a
    face.
    """
    times: list[float] = []
    landmarks: list[np.ndarray | None] = []
    shots: list[int] = []
    with VideoReader(video_path) as video:
        follower, height = Follower(float(video.fps), detector, device), video.height
        for time_s, frame in video:
            times.append(time_s)
            landmarks.append(follower.see(frame))
            shots.append(follower.shot)
    try:
        track = pose_track(landmarks, np.array(times), height, model, shots, detect.CONVENTION_OF[detector])
    except InputError as error:
        raise InputError(f"{video_path}: {error}") from None
    used_s = float(track.time_s[-1] - track.time_s[0])
    if times[-1] - times[0] - used_s > MAX_GAP_S:
        log.warning(
            "%s: the head is followed for %.1f s of %.1f s, since the face was not seen in all%s",
            *(video_path, used_s, times[-1] - times[0]),
            f" or in one scene ({follower.n_shots})" if follower.n_shots > 1 else "",
        )
    return track


def pose_track(
    landmarks: Sequence[np.ndarray | None],
    times_s: np.ndarray,
    height: int,
    model: FaceModel,
    shots: Sequence[int] | None = None,
    convention: str = CONVENTION,
) -> PoseTrack:
    """Landmarks [68, 2 or 3] (y down, pixels) or None of frames that begin at times [T] -> poses where a face was seen.

    Of a track broken for more than `MAX_GAP_S`, or by a scene cut (shots: the number of every frame's scene), the
    longest part is kept; it begins the time of the result. Landmarks are smoothed over `SMOOTHING_S` first. Raises
    InputError when no frame has a face.
    """
    frame_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.04
    part = longest_part(landmarks, times_s, MAX_GAP_S + 1.5 * frame_s, shots)
    begin_s = times_s[part] - times_s[part[0]]
    points = smooth_at(np.stack([landmarks[k] for k in part]), begin_s)
    _, pose = frontalise(to_model(torch.from_numpy(points), convention, model, height), height, model)
    return PoseTrack(torch.from_numpy(begin_s + frame_s / 2), pose)


def smooth_at(values: np.ndarray, times_s: np.ndarray, window_s: float = SMOOTHING_S) -> np.ndarray:
    """Values [T, ...] at rising times [T], each replaced by a parabola through the nearest ones within window_s.

    At a constant rate this is `common.face.track.smooth`, Savitzky and Golay's filter, ends included. A track shorter
    than the window stays as it is.
    """
    T = len(values)
    half = max(1, round(window_s / 2 / float(np.median(np.diff(times_s))))) if T > 1 else 1
    if 2 * half + 1 > T:
        return values
    first = (np.arange(T) - half).clip(0, T - 1 - 2 * half)
    window = first[:, None] + np.arange(2 * half + 1)  # [T, n]: at the ends the same frames serve several times
    apart = (times_s[window] - times_s[:, None]) / window_s  # [T, n]
    # The parabola's value in the middle is a weighted sum: the first row of (Vᵀ V)⁻¹ Vᵀ.
    weights = np.linalg.pinv(apart[..., None] ** np.arange(3))[:, 0]  # [T, n]
    smoothed = np.zeros(values.shape)
    for k in range(window.shape[1]):
        smoothed += weights[:, k].reshape(T, *[1] * (values.ndim - 1)) * values[window[:, k]]
    return smoothed.astype(values.dtype)


# ---- to a Motion ----------------------------------------------------------------------------------------------------


def follow(motion: Motion, track: PoseTrack, model: FaceModel, end: End = "loop") -> Motion:
    """The same Motion with the head of a driving video: its mouth, blinks and brows stay, its pose is replaced.

    The driver's poses are taken relative to the one that equals the picture (`common.face.reenact.nearest_pose`), which
    the Motion's reference speaks of. The driving video's frame rate, size and person don't matter.
    """
    at_rest = nearest_pose(track.pose, motion.rest.pose, model)
    pose = relative_pose(track.at(motion.n_frames, motion.fps, end), at_rest, motion.rest.pose)
    return replace(
        motion, pose=pose, reference=motion.rest, provenance=motion.provenance | {"pose": "video", "pose_end": end}
    )
