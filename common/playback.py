"""A video played longer than it is: to and fro, or held at its end, without holding it in memory."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from typing import Literal

import numpy as np

from common.media import VideoReader

End = Literal["loop", "hold"]
PIECE_BYTES = 200 << 20  # of pictures held at a time where a video is read backwards


def order(n_frames: int, n_wanted: int, end: End) -> list[int]:
    """Numbers of the frames to show: 0, 1, ... and then back to 0 and so on (loop), or the last one for ever (hold).

    To and fro, since from the last frame to the first a head would jump.
    """
    if end == "hold" or n_frames == 1:
        return [min(k, n_frames - 1) for k in range(n_wanted)]
    period = 2 * (n_frames - 1)
    return [min(k % period, period - k % period) for k in range(n_wanted)]


def frames(video: VideoReader, numbers: Sequence[int], fps: Fraction | float) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, 3] of `video.frames_at(fps)` by their numbers, which go on, stay, or go back.

    Runs backwards are decoded in pieces of at most `PIECE_BYTES`.
    """
    most = max(2, PIECE_BYTES // (3 * video.width * video.height))
    ahead: Iterator[np.ndarray] = iter(())
    frame: np.ndarray | None = None
    at, k = 0, 0  # at: the number of `frame`
    while k < len(numbers):
        n = _length_of_run_down(numbers, k, most)
        if n > 1:
            low = numbers[k + n - 1]
            frame, piece = None, []  # not two pieces at a time
            piece = list(islice(video.frames_at(fps, low), numbers[k] - low + 1))
            yield from (piece[number - low] for number in numbers[k : k + n])
            frame, at, ahead = piece[0], low, video.frames_at(fps, low + 1)
            k += n
            continue
        if frame is None or numbers[k] < at:
            ahead, at = video.frames_at(fps, numbers[k]), numbers[k] - 1
        while at < numbers[k]:
            frame, at = next(ahead, frame), at + 1
        assert frame is not None
        yield frame
        k += 1


def _length_of_run_down(numbers: Sequence[int], start: int, most: int) -> int:
    """How many numbers from `start` on fall one by one, at most `most`."""
    n = 1
    while start + n < len(numbers) and n < most and numbers[start + n] == numbers[start + n - 1] - 1:
        n += 1
    return n
