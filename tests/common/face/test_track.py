"""From a video to a Motion: following, losing and finding a face again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from common.face.track import bridge_gaps, smooth, track, track_frames
from common.media import VideoWriter, read_picture

PORTRAIT = Path(__file__).parents[3] / "examples" / "portrait.jpg"


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    picture = read_picture(PORTRAIT)[:260, :300]
    return np.asarray(Image.fromarray(picture).resize((300, 260)))


def shifted(picture: np.ndarray, dx: int) -> np.ndarray:
    return np.roll(picture, dx, axis=1)


def test_landmarks_follow_a_moving_face(portrait: np.ndarray) -> None:
    shifts = [0, 3, 6, 9, 12, 9, 6]
    seen = list(track_frames(shifted(portrait, dx) for dx in shifts))
    assert all(points is not None for points in seen)
    moved = [float((points - seen[0])[:, 0].mean()) for points in seen if points is not None]
    assert np.allclose(moved, shifts, atol=1.0)


def test_a_lost_face_is_none_and_is_found_again(portrait: np.ndarray) -> None:
    empty = np.full_like(portrait, 60)
    seen = list(track_frames([portrait, empty, empty, shifted(portrait, 40)]))
    assert [points is not None for points in seen] == [True, False, False, True]


def test_another_person_does_not_take_over_before_the_face_is_given_up(portrait: np.ndarray) -> None:
    """The second face stands where the first never was; at 5 frames/s a face is given up after two frames."""
    height, width, _ = portrait.shape
    empty = np.full((height, 3 * width, 3), 60, np.uint8)
    first, other = empty.copy(), empty.copy()
    first[:, :width], other[:, 2 * width :] = portrait, portrait
    seen = list(track_frames([first, other, other, other], fps=5))
    assert [points is not None for points in seen] == [True, False, False, False]
    assert list(track_frames([first, other, other, other, other], fps=5))[-1] is not None


def test_short_gaps_are_filled_and_long_ones_cut() -> None:
    line = [np.full((68, 3), float(k), np.float32) for k in range(60)]
    gappy: list[np.ndarray | None] = list(line)
    for k in [0, 1, 10, 11, 12, *range(40, 55)]:
        gappy[k] = None
    points, kept, n_filled = bridge_gaps(gappy, fps=25)
    assert (kept.start, kept.stop, n_filled) == (2, 40, 3)
    assert np.allclose(points[:, 0, 0], np.arange(2, 40))  # the line is linear: interpolation restores it


def test_a_video_without_a_face_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    with VideoWriter(path, 64, 64) as writer:
        for _ in range(3):
            writer.write(np.full((64, 64, 3), 100, np.uint8))
    with pytest.raises(InputError, match=r"empty\.mp4.*no face"):
        track(path)


def test_smoothing_keeps_parabolas_and_short_tracks() -> None:
    time = np.arange(30, dtype=np.float32)[:, None, None]
    curve = np.broadcast_to(0.1 * time**2 - time, (30, 68, 3)).astype(np.float32)
    assert np.allclose(smooth(curve, 25), curve, atol=1e-3)
    assert np.array_equal(smooth(curve[:2], 25), curve[:2])


def test_a_tracked_video_is_a_motion_at_its_own_rate(tmp_path: Path, portrait: np.ndarray) -> None:
    path = tmp_path / "moving.mp4"
    with VideoWriter(path, 300, 260, fps=30) as writer:
        for k in range(12):
            writer.write(shifted(portrait, k))
    motion = track(path)
    assert motion.n_frames == 12 and motion.fps == 30 and tuple(motion.image_size) == (300, 260)
    moved = motion.posed()[:, :, 0].mean(1)
    assert np.allclose((moved - moved[0]).numpy(), np.arange(12), atol=1.0)
