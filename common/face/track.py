"""Landmarks of one face through a video, and from a video file to a Motion:

python -m common.face.track VIDEO MOTION.npz
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.face import detect
from common.face.fit import frontalise
from common.face.model import FaceModel
from common.files import check_output
from common.media import VideoReader
from common.motion import Motion

log = logging.getLogger(__name__)

MAX_GAP_S = 0.4  # a face that is gone for longer is not guessed
KEEP_SCORE = 0.5  # of the landmark network: below, the face is lost
TRUST_SCORE = 0.9  # below, the finder looks whether the face is really elsewhere


def track_frames(frames: Iterable[np.ndarray], fps: float = 25.0) -> Iterator[np.ndarray | None]:
    """Landmarks float32 [68, 3] in pixels for every frame uint8 [H, W, 3], or None where the face is lost.

    The largest face of the first frame that has one is followed: every frame starts from the last one's landmarks. A
    lost face is looked for again where it was; after `MAX_GAP_S`, the largest one is taken.
    """
    forget_after = MAX_GAP_S * fps
    last: Tensor | None = None  # [1, 68, 3]
    n_lost = 0
    for frame in frames:
        points, score = None, 0.0
        if last is not None:
            guess, _ = detect.look(frame, detect.upright(last))
            points, scores = detect.look(frame, detect.upright(guess), mirrored_too=True)
            score = float(scores[0])
        if score < TRUST_SCORE:
            face = _same(detect.find_faces(frame), last if n_lost <= forget_after else None)
            if face is not None and face.score > score:
                points, score = torch.from_numpy(face.landmarks)[None], face.score
        if points is None or score < KEEP_SCORE:
            n_lost += 1
            yield None
            continue
        last, n_lost = points, 0
        yield points[0].numpy()


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


def bridge_gaps(landmarks: list[np.ndarray | None], fps: float) -> tuple[np.ndarray, slice, int]:
    """Interpolate over frames without a face → landmarks [T, 68, 3], the frames that are kept, how many were filled in.

    Frames before the first and after the last sight of the face are cut; of a track broken for more than `MAX_GAP_S`,
    the longest part stays. Raises InputError when no frame has a face.
    """
    seen = np.array([points is not None for points in landmarks])
    at = np.flatnonzero(seen)
    if len(at) == 0:
        raise InputError(
            "no face was found in any frame: use a video in which a face is seen, upright and not too small"
        )
    breaks = np.flatnonzero(np.diff(at) > MAX_GAP_S * fps + 1)
    parts = np.split(at, breaks + 1)
    longest = max(parts, key=lambda part: part[-1] - part[0])
    first, end = int(longest[0]), int(longest[-1]) + 1
    known = np.stack([landmarks[k] for k in longest])
    frames = np.arange(first, end)
    after = np.searchsorted(longest, frames).clip(0, len(longest) - 1)
    before = np.maximum(after - (longest[after] > frames), 0)
    span = np.maximum(longest[after] - longest[before], 1)
    weight = ((frames - longest[before]) / span).clip(0, 1)[:, None, None]
    filled = (1 - weight) * known[before] + weight * known[after]
    return filled.astype(np.float32), slice(first, end), int(len(frames) - len(longest))


def smooth(landmarks: np.ndarray, fps: float) -> np.ndarray:
    """Savitzky-Golay over 0.2 s, quadratic: takes the network's tremble, leaves blinks and plosives standing."""
    from scipy.signal import savgol_filter

    window = max(3, 2 * round(0.1 * fps) + 1)
    if len(landmarks) < window:
        return landmarks
    return savgol_filter(landmarks, window, 2, axis=0).astype(np.float32)


def track(video_path: Path) -> Motion:
    """Any video with a face to a Motion at the video's own rate, in pixels of the video."""
    with VideoReader(video_path) as video:
        fps, size = float(video.fps), (video.width, video.height)
        landmarks = list(track_frames(video.frames_at(video.fps), fps))
    try:
        points, kept, n_filled = bridge_gaps(landmarks, fps)
    except InputError as error:
        raise InputError(f"{video_path}: {error}") from None
    if n_filled or kept.stop - kept.start < len(landmarks):
        log.warning(
            "%s: frames %d to %d of %d are used, %d of them interpolated, since the face was not seen in all",
            *(video_path, kept.start, kept.stop - 1, len(landmarks), n_filled),
        )
    model = FaceModel.builtin()
    lm3d, pose = frontalise(torch.from_numpy(smooth(points, fps)), size[1], model)
    provenance = {
        "made_by": "duet track (built-in landmark network)",
        "source": video_path.name,
        "first_frame": kept.start,
        "interpolated_frames": n_filled,
    }
    try:
        return Motion(lm3d, model.mean, pose, fps, size, model.name, model.convention, provenance)
    except ValueError as error:
        raise InputError(f"{video_path} gives no motion ({error}): convert it to MP4 at 25 frames/s first") from error


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m common.face.track", description="Follow the largest face of a video and save its motion."
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("motion", type=Path, help="the Motion to write (.npz)")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        check_output(args.motion, args.overwrite)
        motion = track(args.video)
        motion.save(args.motion, overwrite=args.overwrite)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{args.motion}: {motion.n_frames} frames at {motion.fps:g} frames/s, {motion.n_frames / motion.fps:.2f} s")


if __name__ == "__main__":
    main()
