"""Landmarks of one face through a video, and from a video file to a Motion:

python -m common.face.track VIDEO MOTION.npz [--detector face-alignment-2d] [--smooth 0]
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import entry
from common.errors import InputError
from common.face import detect
from common.face.conventions import to_model
from common.face.fit import frontalise
from common.face.model import FaceModel
from common.files import check_result
from common.media import VideoReader
from common.motion import Motion

log = logging.getLogger(__name__)

MAX_GAP_S = 0.4  # a face that is gone for longer is not guessed
KEEP_SCORE = 0.5  # of the landmark network: below, the face is lost
TRUST_SCORE = 0.9  # below, the finder looks whether the face is really elsewhere
SMOOTH_S, MAX_SMOOTH_S = 0.2, 2.0
# Likeness of a frame to the one before, as `likeness` measures it, below which the camera has changed. Set on the train
# split: in 18841 frames of 160 clips it stays above 0.57; of pairs of frames of different people 95 % lie below 0.5.
SAME_SHOT = 0.5
_THUMBNAIL_PX = 32


class Follower:
    """Follows one face through the frames that `see` is given, one after the other.

    The largest face of the first frame that has one is followed: every frame starts from the last one's landmarks. A
    lost face is looked for again where it was; after `MAX_GAP_S`, and after a scene cut, the largest one is taken. Who
    a face belongs to is not known: two people who change places within a shot are told apart by place and size alone.

    shot: the number of the scene that the last frame belongs to; a flash, or another picture of no more than
    `MAX_GAP_S`, interrupts a scene and doesn't end it. n_shots: how many scenes there were so far.

    detector: one of `detect.BACK_ENDS`; the face is followed by the built-in networks in any case, and another one is
    asked for its points, in its own convention, where the face is.
    """

    def __init__(self, fps: float, detector: str = detect.BUILTIN, device: str = "cpu"):
        detect.check_back_end(detector, device)
        self.detector, self.device = detector, device
        self.shot, self.n_shots = 0, 1
        self._forget_after = MAX_GAP_S * fps
        self._last: Tensor | None = None  # [1, 68, 3]
        self._n_lost = 0
        self._before: np.ndarray | None = None  # thumbnail of the frame before
        self._interrupted: tuple[int, Tensor | None, np.ndarray] | None = None  # shot, landmarks, thumbnail
        self._n_since = 0  # frames since the interruption

    def see(self, frame: np.ndarray) -> np.ndarray | None:
        """Landmarks float32 [68, 2 or 3] in pixels of the next frame uint8 [H, W, 3], or None: the face is lost."""
        points = self._follow(frame)
        if points is None or self.detector == detect.BUILTIN:
            return points
        return detect.landmarks_by(self.detector, frame, detect.Face(points, 1.0).box, self.device)

    def _follow(self, frame: np.ndarray) -> np.ndarray | None:
        self._look_for_cut(thumbnail(frame))
        points, score = None, 0.0
        if self._last is not None:
            guess, _ = detect.look(frame, detect.upright(self._last))
            points, scores = detect.look(frame, detect.upright(guess), mirrored_too=True)
            score = float(scores[0])
        if score < TRUST_SCORE:
            face = _same(detect.find_faces(frame), self._last if self._n_lost <= self._forget_after else None)
            if face is not None and face.score > score:
                points, score = torch.from_numpy(face.landmarks)[None], face.score
        if points is None or score < KEEP_SCORE:
            self._n_lost += 1
            return None
        self._last, self._n_lost = points, 0
        return points[0].numpy()

    def _look_for_cut(self, seen: np.ndarray) -> None:
        """Begin a new scene, or go back to the one that was interrupted, where this frame's thumbnail says so."""
        self._n_since += 1
        if self._before is not None and likeness(seen, self._before) < SAME_SHOT:
            interrupted, self._interrupted = self._interrupted, None
            if (
                interrupted is not None
                and self._n_since <= self._forget_after
                and likeness(seen, interrupted[2]) >= SAME_SHOT
            ):
                self.shot, self._last, _ = interrupted
            else:
                self._interrupted, self._n_since = (self.shot, self._last, self._before), 0
                self.shot, self._last, self.n_shots = self.n_shots, None, self.n_shots + 1
            self._n_lost = 0
        self._before = seen


def track_frames(frames: Iterable[np.ndarray], fps: float = 25.0) -> Iterator[np.ndarray | None]:
    """What a `Follower` sees in every frame uint8 [H, W, 3]: landmarks float32 [68, 3] in pixels, or None."""
    follower = Follower(fps)
    for frame in frames:
        yield follower.see(frame)


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float64 [n, n], grey, n at most 32: mean 0, length 1 (0 for a plain picture)."""
    height, width = frame.shape[:2]
    step = max(1, min(height, width) // (4 * _THUMBNAIL_PX))
    grey = frame[::step, ::step].mean(axis=-1)
    for axis in (0, 1):
        edges = np.linspace(0, grey.shape[axis], min(_THUMBNAIL_PX, grey.shape[axis]) + 1).astype(int)
        sums = np.add.reduceat(grey, edges[:-1], axis=axis)
        grey = sums / np.expand_dims(np.diff(edges), 1 - axis)
    grey = grey - grey.mean()
    return grey / max(float(np.linalg.norm(grey)), 1e-6)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two thumbnails, -1..1: neither brightness nor contrast counts. Two plain pictures are alike."""
    if one.shape != other.shape:
        return 0.0
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    return float((one * other).sum())


def _same(faces: list[detect.Face], last: Tensor | None) -> detect.Face | None:
    """The face that can be the one last seen: about where it was and as large. Before any was seen, the largest.

    Another person's face must not take over when this one turns away.
    """
    if last is None:
        return faces[0] if faces else None
    before = detect.Face(last[0].numpy(), 1.0)
    middle, size = before.landmarks[:, :2].mean(0), before.size_px

    def distance(face: detect.Face) -> float:
        return float(np.linalg.norm(face.landmarks[:, :2].mean(0) - middle)) / size

    near = [face for face in faces if distance(face) < 1 and 1 / 1.5 < face.size_px / size < 1.5]
    return min(near, key=distance, default=None)


def bridge_gaps(
    landmarks: Sequence[np.ndarray | None], fps: float, shots: Sequence[int] | None = None
) -> tuple[np.ndarray, slice, int]:
    """Interpolate over frames without a face → landmarks [T, 68, 2 or 3], the frames kept, how many were filled in.

    Frames before the first and after the last sight of the face are cut; of a track broken for more than `MAX_GAP_S`,
    or by a scene cut (shots: the number of its scene for every frame), the longest part stays; frames of another scene
    within it count as frames without a face. Raises InputError when no frame has a face.
    """
    longest = longest_part(landmarks, np.arange(len(landmarks)), MAX_GAP_S * fps + 1, shots)
    first, end = int(longest[0]), int(longest[-1]) + 1
    known = np.stack([landmarks[k] for k in longest])
    frames = np.arange(first, end)
    after = np.searchsorted(longest, frames).clip(0, len(longest) - 1)
    before = np.maximum(after - (longest[after] > frames), 0)
    span = np.maximum(longest[after] - longest[before], 1)
    weight = ((frames - longest[before]) / span).clip(0, 1)[:, None, None]
    filled = (1 - weight) * known[before] + weight * known[after]
    return filled.astype(np.float32), slice(first, end), int(len(frames) - len(longest))


def longest_part(
    landmarks: Sequence[np.ndarray | None], at: np.ndarray, most_step: float, shots: Sequence[int] | None
) -> np.ndarray:
    """Numbers of the frames that saw the face in the longest part of a track, with no step above most_step in `at` [T],

    nor from one scene (shots: its number for every frame) to another. Raises InputError when no frame has a face.
    """
    seen = np.array([points is not None for points in landmarks])
    if not seen.any():
        raise InputError(
            "no face was found in any frame: use a video in which a face is seen, upright and not too small"
        )
    of_frame = np.zeros(len(landmarks), int) if shots is None else np.asarray(shots)
    parts: list[np.ndarray] = []
    for shot in dict.fromkeys(of_frame[seen].tolist()):
        frames = np.flatnonzero(seen & (of_frame == shot))
        parts += np.split(frames, np.flatnonzero(np.diff(at[frames]) > most_step) + 1)
    return max(parts, key=lambda part: at[part[-1]] - at[part[0]])


def missing_ranges(landmarks: Sequence[np.ndarray | None]) -> list[list[int]]:
    """[first, last] of every run of frames without a face."""
    missing = np.array([points is None for points in landmarks], dtype=int)
    edges = np.flatnonzero(np.diff(np.pad(missing, 1)))
    return [[int(first), int(end) - 1] for first, end in zip(edges[::2], edges[1::2], strict=True)]


def smooth(landmarks: np.ndarray, fps: float, window_s: float = SMOOTH_S) -> np.ndarray:
    """Savitzky-Golay, quadratic, over 0.2 s: takes the network's tremble, leaves blinks and plosives standing.

    window_s: 0 leaves everything as it is, as does a window of fewer than three frames.
    """
    from scipy.signal import savgol_filter

    window = 2 * round(window_s / 2 * fps) + 1
    if window_s == SMOOTH_S:
        window = max(3, window)
    if window < 3 or len(landmarks) < window:
        return landmarks
    return savgol_filter(landmarks, window, 2, axis=0).astype(np.float32)


@dataclass(frozen=True)
class Followed:
    """The longest stretch of a video in which one face was seen.

    points: float32 [T, 68, 2 or 3], pixels of the video, gaps filled in, not smoothed; convention: theirs; fps, size
    (width, height) and n_frames: of the video; first: which of its frames is frame 0; gaps: [first, last] of the T
    frames that were filled in.
    """

    points: np.ndarray
    convention: str
    fps: float
    size: tuple[int, int]
    n_frames: int
    first: int
    gaps: list[list[int]]


def follow(video_path: Path, detector: str = detect.BUILTIN, device: str = "cpu") -> Followed:
    """Follow the largest face of a video (see `Follower`); what could not be seen is said in the log.

    Memory: a frame, and a kilobyte for every one seen. Raises InputError.
    """
    with VideoReader(video_path) as video:
        fps, size = float(video.fps), (video.width, video.height)
        follower = Follower(fps, detector, device)
        landmarks: list[np.ndarray | None] = []
        shots: list[int] = []
        for frame in video.frames_at(video.fps):
            landmarks.append(follower.see(frame))
            shots.append(follower.shot)
    try:
        points, kept, n_filled = bridge_gaps(landmarks, fps, shots)
    except InputError as error:
        raise InputError(f"{video_path}: {error}") from None
    if n_filled or kept.stop - kept.start < len(landmarks):
        cuts = f" or in one scene ({follower.n_shots})" if follower.n_shots > 1 else ""
        log.warning(
            "%s: frames %d to %d of %d are used, %d of them interpolated, since the face was not seen in all of them%s",
            *(video_path, kept.start, kept.stop - 1, len(landmarks), n_filled, cuts),
        )
    of_part = [each if shot == shots[kept.start] else None for each, shot in zip(landmarks, shots, strict=True)][kept]
    convention = detect.CONVENTION_OF[detector]
    return Followed(points, convention, fps, size, len(landmarks), kept.start, missing_ranges(of_part))


def track(video_path: Path, detector: str = detect.BUILTIN, smooth_s: float = SMOOTH_S, device: str = "cpu") -> Motion:
    """Any video with a face to a Motion at the video's own rate, in pixels of the video.

    Whatever the detector's convention, the Motion has the built-in face model's: the points go through the measured
    mapping (`common.face.conventions`). provenance["interpolated_frames"] lists the gaps that were filled, as
    [first, last] frame of the Motion.
    """
    model, seen = FaceModel.builtin(), follow(video_path, detector, device)
    height = seen.size[1]
    points = to_model(torch.from_numpy(smooth(seen.points, seen.fps, smooth_s)), seen.convention, model, height)
    lm3d, pose = frontalise(points, height, model)
    provenance = {
        "made_by": "duet track",
        "detector": detector,
        "detected_convention": seen.convention,  # what was converted to the Motion's own, where they differ
        "smoothing_s": smooth_s,
        "source": video_path.name,
        "first_frame": seen.first,
        "interpolated_frames": seen.gaps,
    }
    try:
        return Motion(lm3d, model.mean, pose, seen.fps, seen.size, model.name, model.convention, provenance)
    except ValueError as error:
        raise InputError(f"{video_path} gives no motion ({error}): convert it to MP4 at 25 frames/s first") from error


def main(argv: list[str]) -> None:
    parser = entry.Parser(
        prog="python -m common.face.track", description="Follow the largest face of a video and save its motion."
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("motion", type=Path, help="the Motion to write (.npz)")
    parser.add_argument(
        "--detector",
        choices=detect.BACK_ENDS,
        default=detect.BUILTIN,
        help="whose landmarks (face-alignment: extra `detectors`, weights fetched on first use)",
    )
    parser.add_argument(
        "--smooth", type=float, default=SMOOTH_S, metavar="SECONDS", help=f"window, {SMOOTH_S:g}; 0: not at all"
    )
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    if not 0 <= args.smooth <= MAX_SMOOTH_S:
        raise InputError(f"--smooth takes 0 to {MAX_SMOOTH_S:g} seconds, not {args.smooth:g}")
    check_result(args.motion, (".npz",), [args.video], args.overwrite)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    motion = track(args.video, args.detector, args.smooth, device)
    motion.save(args.motion, overwrite=args.overwrite)
    print(f"{args.motion}: {motion.n_frames} frames at {motion.fps:g} frames/s, {motion.n_frames / motion.fps:.2f} s")


if __name__ == "__main__":
    entry.run(main)
