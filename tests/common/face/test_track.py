"""From a video to a Motion: following, losing and finding a face again."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from common.errors import InputError
from common.face.track import (
    MAX_GAP_S,
    Follower,
    bridge_gaps,
    likeness,
    main,
    missing_ranges,
    smooth,
    thumbnail,
    track,
    track_frames,
)
from common.media import VideoWriter, read_picture
from common.motion import Motion

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


def two_people(portrait: np.ndarray, which: str) -> np.ndarray:
    """One shot (the wall stays): a face at the left, at the right, both or none."""
    height, width, _ = portrait.shape
    blocks = np.random.default_rng(0).integers(0, 256, (26, 60, 1))
    wall = np.kron(blocks, np.ones((20, 20, 3))).astype(np.uint8)[: 2 * height, : 4 * width]
    if which in ("left", "both"):
        wall[:height, :width] = portrait
    if which in ("right", "both"):
        wall[:height, 3 * width :] = portrait
    return wall


def test_another_person_does_not_take_over_before_the_face_is_given_up(portrait: np.ndarray) -> None:
    """The second face stands where the first never was; at 5 frames/s a face is given up after two frames."""
    first, other = (two_people(portrait, which) for which in ("left", "right"))
    seen = list(track_frames([first, other, other, other], fps=5))
    assert [points is not None for points in seen] == [True, False, False, False]
    assert list(track_frames([first, other, other, other, other], fps=5))[-1] is not None


def test_the_same_person_is_followed_while_another_comes_and_goes(portrait: np.ndarray) -> None:
    shown = ["left", "both", "left", "both", "both"]
    seen = [points for points in track_frames(two_people(portrait, which) for which in shown) if points is not None]
    assert len(seen) == 5 and all(points[:, 0].max() < portrait.shape[1] for points in seen)


def test_a_scene_cut_starts_anew_with_the_largest_face(portrait: np.ndarray) -> None:
    other = np.asarray(Image.fromarray(data.astronaut()[:260, 80:380]))
    follower = Follower(fps=2.5)  # two frames are longer than an interruption
    shots = []
    for frame in [portrait, portrait, other, other, portrait]:
        assert follower.see(frame) is not None
        shots.append(follower.shot)
    assert shots == [0, 0, 1, 1, 2]


def test_a_flash_interrupts_a_scene_and_does_not_end_it(tmp_path: Path, portrait: np.ndarray) -> None:
    """A white frame, and four of another person, at 25 frames/s; twelve of the other are another scene."""
    other = np.ascontiguousarray(data.astronaut()[:260, 80:380])
    flash = np.full_like(portrait, 250)
    follower, shots = Follower(fps=25), []
    for frame in [portrait, flash, portrait, *[other] * 4, portrait, *[other] * 12, portrait]:
        follower.see(frame)
        shots.append(follower.shot)
    assert shots == [0, 1, 0, 2, 2, 2, 2, 0, *[3] * 12, 4] and follower.n_shots == 5
    motion = track(write_video(tmp_path / "flash.mp4", [portrait] * 3 + [flash] + [portrait] * 2 + [other] * 2))
    assert motion.n_frames == 6 and motion.provenance["interpolated_frames"] == [[3, 3]]


def test_light_and_small_movements_are_no_scene_cut(portrait: np.ndarray) -> None:
    before = thumbnail(portrait)
    dark, flash = portrait // 3, np.clip(portrait.astype(int) * 3 // 2 + 40, 0, 255).astype(np.uint8)
    for frame in (portrait, dark, flash, shifted(portrait, 8)):
        assert likeness(thumbnail(frame), before) > 0.8
    assert likeness(thumbnail(np.zeros((5, 3, 3), np.uint8)), thumbnail(np.full((5, 3, 3), 9, np.uint8))) == 1
    assert likeness(thumbnail(np.zeros((40, 50, 3), np.uint8)), thumbnail(portrait[:40, :50])) == 0


@given(seen=st.lists(st.booleans(), min_size=1, max_size=80), fps=st.sampled_from([5.0, 23.976, 25.0, 60.0]))
@settings(deadline=None)
def test_no_gap_longer_than_allowed_is_ever_bridged(seen: list[bool], fps: float) -> None:
    landmarks = [np.full((68, 2), float(k), np.float32) if is_seen else None for k, is_seen in enumerate(seen)]
    if not any(seen):
        with pytest.raises(InputError, match="no face"):
            bridge_gaps(landmarks, fps)
        return
    points, kept, n_filled = bridge_gaps(landmarks, fps)
    ranges = missing_ranges(landmarks[kept])
    assert np.allclose(points[:, 0, 0], np.arange(kept.start, kept.stop))  # the line is linear
    assert sum(last - first + 1 for first, last in ranges) == n_filled
    assert all(0 < first <= last < len(points) - 1 for first, last in ranges)
    assert all((last - first + 1) / fps <= MAX_GAP_S for first, last in ranges)
    assert all(landmarks[kept][k] is None for first, last in ranges for k in range(first, last + 1))


def test_nothing_is_bridged_across_a_scene_cut() -> None:
    landmarks: list[np.ndarray | None] = [np.full((68, 3), float(k), np.float32) for k in range(20)]
    landmarks[7] = landmarks[8] = None
    whole, cut = bridge_gaps(landmarks, 25), bridge_gaps(landmarks, 25, [0] * 8 + [1] * 12)
    assert whole[1:] == (slice(0, 20), 2) and cut[1:] == (slice(9, 20), 0)
    assert bridge_gaps(landmarks, 25, [0] * 15 + [1] * 5)[1:] == (slice(0, 15), 2)


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


def write_video(path: Path, frames: list[np.ndarray], fps: int = 25) -> Path:
    with VideoWriter(path, frames[0].shape[1], frames[0].shape[0], fps=fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def test_filled_frames_are_marked_in_the_motion(tmp_path: Path, portrait: np.ndarray) -> None:
    """The wall stays, so that a face that comes and goes is no scene cut."""
    with_face, without = two_people(portrait, "left"), two_people(portrait, "none")
    frames = [without, without, *[with_face] * 4, without, without, *[with_face] * 4]
    path = write_video(tmp_path / "hidden.mp4", frames)
    main_with(["hidden.npz", "--smooth", "0"], path)
    motion = Motion.load(tmp_path / "hidden.npz")
    assert motion.n_frames == 10 and motion.provenance["first_frame"] == 2
    assert motion.provenance["interpolated_frames"] == [[4, 5]]
    assert motion.provenance["smoothing_s"] == 0


def test_of_two_scenes_the_longer_is_kept(tmp_path: Path, portrait: np.ndarray) -> None:
    other = np.ascontiguousarray(data.astronaut()[:260, 80:380])
    motion = track(write_video(tmp_path / "cut.mp4", [portrait] * 4 + [other] * 7))
    assert motion.n_frames == 7 and motion.provenance["first_frame"] == 4


def test_an_unknown_detector_and_a_wrong_window_are_one_sentence(tmp_path: Path, portrait: np.ndarray) -> None:
    path = write_video(tmp_path / "short.mp4", [portrait] * 2)
    with pytest.raises(InputError, match=r"'mtcnn'.*builtin"):
        track(path, "mtcnn")
    for wrong in ("-1", "nan", "3"):
        with pytest.raises(InputError, match="--smooth"):
            main_with(["a.npz", "--smooth", wrong], path)
    assert not (tmp_path / "a.npz").exists()


def test_a_video_is_not_replaced_by_its_motion(tmp_path: Path, portrait: np.ndarray) -> None:
    path = write_video(tmp_path / "short.mp4", [portrait] * 2)
    link = tmp_path / "link.npz"
    link.symlink_to(path)
    before = path.read_bytes()
    for name, said in (("short.mp4", r"end in \.npz"), ("link.npz", "is an input"), ("a.txt", r"end in \.npz")):
        with pytest.raises(InputError, match=said):
            main_with([name, "--overwrite"], path)
    assert path.read_bytes() == before and not (tmp_path / "a.txt").exists()


def main_with(arguments: list[str], path: Path) -> None:
    main([str(path), str(path.with_name(arguments[0])), *arguments[1:]])
