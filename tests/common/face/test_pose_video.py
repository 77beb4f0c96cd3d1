"""The head of a driving video: exact times, ends that neither jump nor jerk, and a Motion that follows it."""

import logging
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from common.errors import InputError
from common.face.model import FaceModel
from common.face.pos import Pose, flip_image
from common.face.pose_video import EASE_S, PoseTrack, follow, played, pose_track, read_pose, smooth_at
from common.face.rotations import angle_rad, euler_rad, from_euler_rad
from common.face.track import smooth
from common.media import VideoWriter, read_picture
from common.motion import Motion, Reference
from common.playback import End

PORTRAIT = Path(__file__).parents[3] / "examples" / "portrait.jpg"
MODEL = FaceModel.builtin()
RATES = [Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(60000, 1001)]
rates = st.sampled_from([Fraction(10), *RATES])
ends: st.SearchStrategy[End] = st.sampled_from(["loop", "hold"])


def path_of(time_s: Tensor) -> Pose:
    """A head that moves for ever: pose at times [T], smooth, never twice the same."""
    angles = torch.stack([0.2 * torch.sin(0.9 * time_s), 0.4 * torch.sin(0.7 * time_s), 0.1 * torch.cos(time_s)], dim=1)
    place = torch.stack([100 + 20 * torch.sin(0.8 * time_s), 120 + time_s % 60], dim=1)
    return Pose(80 * torch.exp(0.1 * torch.sin(time_s)).float(), from_euler_rad(angles).float(), place.float())


def constant_rate(fps: Fraction, T: int) -> PoseTrack:
    middle_s = torch.tensor([float((2 * k + 1) / (2 * fps)) for k in range(T)], dtype=torch.float64)
    return PoseTrack(middle_s, path_of(middle_s))


def speech(n_frames: int, fps: float = 25.0) -> Motion:
    """A Motion of a picture whose head is turned a little, with landmarks that all differ."""
    landmarks = 0.01 * torch.randn(n_frames, 68, 3, generator=torch.Generator().manual_seed(1))
    rest = Pose(torch.tensor(60.0), from_euler_rad(torch.tensor([0.1, -0.2, 0.05])), torch.tensor([128.0, 120.0]))
    pose = Pose(*(part.expand(n_frames, *part.shape) for part in (rest.scale, rest.rotation, rest.translation)))
    return Motion(
        landmarks, MODEL.mean, pose, fps, (256, 256), reference=Reference(torch.zeros(68, 3), rest), provenance={"a": 1}
    )


def assert_same_pose(one: Pose, other: Pose, px: float = 2e-3) -> None:
    torch.testing.assert_close(one.scale, other.scale, rtol=1e-4, atol=0)
    torch.testing.assert_close(one.translation, other.translation, rtol=0, atol=px)
    assert float(angle_rad(one.rotation, other.rotation).max()) < 1e-3  # float32


# ---- time -----------------------------------------------------------------------------------------------------------


@given(fps=rates, T=st.integers(1, 200), data=st.data(), end=ends)
@settings(deadline=None, max_examples=50)
def test_at_the_videos_own_rate_every_frame_is_taken_as_it_is(
    fps: Fraction, T: int, data: st.DataObject, end: End
) -> None:
    track, n_frames = constant_rate(fps, T), data.draw(st.integers(1, T))
    assert_same_pose(track.at(n_frames, fps, end), track.pose[:n_frames])


@pytest.mark.parametrize("fps", RATES)
def test_ten_minutes_don_t_drift_whatever_the_rates(fps: Fraction) -> None:
    """The place tells the time: it moves by one pixel a second, and by sixty back on the minute."""
    n_frames = 600 * 25 - 25
    at = constant_rate(fps, 600 * round(fps)).at(n_frames, 25)
    time_s = (torch.arange(n_frames, dtype=torch.float64) + 0.5) / 25
    inside = (time_s % 60 > 0.1) & (time_s % 60 < 59.9)
    off_s = at.translation[:, 1].double() - 120 - time_s % 60
    assert off_s[inside].abs().max() < 1e-4  # float32 at 180 px; a frame is 0.04 s


def test_ten_minutes_of_a_variable_rate_don_t_drift() -> None:
    rng = np.random.default_rng(0)
    time_s = torch.from_numpy(rng.choice([1 / 60, 1 / 30, 1 / 24, 0.2], 12000).cumsum())
    at = PoseTrack(time_s, path_of(time_s)).at(n := int(25 * float(time_s[-1])), 25)
    wanted_s = (torch.arange(n, dtype=torch.float64) + 0.5) / 25
    inside = (wanted_s > time_s[0]) & (wanted_s % 60 > 0.3) & (wanted_s % 60 < 59.7)
    off_s = at.translation[:, 1].double() - 120 - wanted_s % 60
    assert off_s[inside].abs().max() < 1e-4


@given(fps=rates, other=rates, T=st.integers(12, 60))
@settings(deadline=None, max_examples=50)
def test_between_frames_the_head_is_between_their_poses(fps: Fraction, other: Fraction, T: int) -> None:
    track = constant_rate(fps, T)
    n_frames = int(T / fps * other)
    at = track.at(n_frames, other)
    middle_s = (torch.arange(n_frames, dtype=torch.float64) + 0.5) / float(other)
    inside = (middle_s >= track.time_s[0]) & (middle_s <= track.time_s[-1])
    truth = path_of(middle_s)
    # Half way between frames a chord is off by an eighth of the second difference: 10 frames/s are the worst.
    assert float(angle_rad(at.rotation, truth.rotation)[inside].max()) < 2e-3
    assert float((at.translation - truth.translation)[inside].norm(dim=-1).max()) < 0.05
    torch.testing.assert_close(torch.linalg.det(at.rotation), torch.ones(n_frames))


@given(length_s=st.floats(0.04, 100), end=ends, times_s=st.lists(st.floats(0, 1e4), min_size=1, max_size=40))
@settings(deadline=None)
def test_what_is_played_lies_in_the_video_and_goes_no_faster(length_s: float, end: End, times_s: list[float]) -> None:
    times = np.sort(np.array([*times_s, length_s + 1]))
    at = played(times, length_s, end)
    assert (at >= 0).all() and (at <= length_s + 1e-9).all()
    assert (np.abs(np.diff(at)) <= np.diff(times) + 1e-7).all()  # neither jumps nor hurries
    if end == "hold":
        assert (np.diff(at) >= 0).all()


@given(length_s=st.floats(0.04, 20), end=ends)
@settings(deadline=None)
def test_the_speed_never_jumps(length_s: float, end: End) -> None:
    step_s = 1e-3
    at = played(np.arange(0, 3 * length_s + 2, step_s), length_s, end)
    speed = np.diff(at) / step_s
    ease = min(EASE_S, length_s / (2 if end == "loop" else 1))
    assert np.abs(np.diff(speed)).max() <= step_s / ease * (1.01 if end == "loop" else 0.51) + 1e-6


@given(length_s=st.floats(1, 50), time_s=st.floats(0, 500), n_turns=st.integers(1, 20))
@settings(deadline=None)
def test_to_and_fro_comes_round_and_back_the_same_way(length_s: float, time_s: float, n_turns: int) -> None:
    after = time_s + length_s  # not in the first pass, which begins at full speed
    asked = np.array([after, after + 2 * n_turns * length_s, 2 * n_turns * length_s + 2 * length_s - after % length_s])
    at = played(asked, length_s, "loop")
    assert abs(at[0] - at[1]) < 1e-6
    there, back = played(np.array([2 * length_s + time_s, 4 * length_s - time_s % (2 * length_s)]), length_s, "loop")
    assert abs(there - back) < 1e-6


@given(length_s=st.floats(1, 50), data=st.data(), end=ends)
@settings(deadline=None)
def test_the_video_is_followed_to_the_moment_before_its_end(length_s: float, data: st.DataObject, end: End) -> None:
    time_s = data.draw(st.floats(0, length_s - EASE_S))
    assert played(np.array([time_s, length_s + 1]), length_s, end)[0] == pytest.approx(time_s, abs=1e-9)
    assert played(np.array([time_s, length_s]), length_s, end)[1] == length_s  # long enough: to its very end
    assert played(np.array([length_s + EASE_S, length_s + 1e4]), length_s, "hold").tolist() == [length_s] * 2


def test_one_frame_is_held_and_the_ends_are_the_ends() -> None:
    for end in ("loop", "hold"):
        track = constant_rate(Fraction(25), 1)
        assert_same_pose(track.at(7, 30, end), track.pose[torch.zeros(7, dtype=torch.long)])
    track = constant_rate(Fraction(10), 20)
    held = track.at(200, 60, "hold")  # its first frame lies before the middle of the track's first
    assert_same_pose(held[:1], track.pose[:1])
    assert_same_pose(held[-1:], track.pose[-1:])


def test_an_unknown_end_and_times_that_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="loop or hold"):
        played(np.zeros(1), 1.0, "bounce")  # type: ignore[arg-type]
    track = constant_rate(Fraction(25), 3)
    with pytest.raises(ValueError, match="rise"):
        PoseTrack(track.time_s.flip(0), track.pose)
    with pytest.raises(ValueError, match="at least 1"):
        PoseTrack(track.time_s[:0], track.pose[:0])


# ---- from a video ---------------------------------------------------------------------------------------------------


def seen(pose: Pose) -> list[np.ndarray | None]:
    """The mean face as a tracker sees it in a picture of 256 rows."""
    return list(flip_image(pose.project(MODEL.mean), 256).numpy())


def test_smoothing_is_that_of_the_tracker_and_knows_irregular_times() -> None:
    noise = np.random.default_rng(0).normal(size=(40, 3, 2)).astype(np.float32)
    times_s = np.arange(40) / 25
    assert np.allclose(smooth_at(noise, times_s), smooth(noise, 25), atol=1e-5)
    assert np.array_equal(smooth_at(noise[:2], times_s[:2]), noise[:2])
    uneven_s = np.random.default_rng(1).choice([0.02, 0.04, 0.2], 40).cumsum()
    parabola = (3 * uneven_s**2 - uneven_s)[:, None]
    assert np.allclose(smooth_at(parabola, uneven_s), parabola, atol=1e-9)


def test_short_gaps_are_crossed_and_long_ones_cut() -> None:
    times_s = np.arange(100) / 25
    points = seen(path_of(torch.from_numpy(times_s) + 0.02))
    for k in [*range(5), 30, 31, 32, *range(70, 85)]:
        points[k] = None
    track = pose_track(points, times_s, 256, MODEL)
    assert len(track.time_s) == 62 and float(track.time_s[0]) == pytest.approx(0.02)  # frames 5 to 69 but three
    at = track.at(65, 25)
    truth = path_of(torch.arange(65) / 25 + 5 / 25 + 0.02)
    assert float(angle_rad(at.rotation, truth.rotation).max()) < 0.01
    with pytest.raises(InputError, match="no face"):
        pose_track([None] * 3, times_s[:3], 256, MODEL)


def test_a_scene_cut_ends_the_track_and_a_cutaway_is_crossed() -> None:
    times_s = np.arange(60) / 25
    points = seen(path_of(torch.from_numpy(times_s) + 0.02))
    shots = [0] * 20 + [1] * 30 + [2] * 10
    shots[30:33] = [3] * 3
    track = pose_track(points, times_s, 256, MODEL, shots)
    truth = path_of(torch.arange(30) / 25 + 20 / 25 + 0.02)
    assert len(track.time_s) == 27
    assert float(angle_rad(track.at(30, 25).rotation, truth.rotation).max()) < 0.01


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30)])
def test_a_video_is_read_at_its_own_times(tmp_path: Path, fps: Fraction) -> None:
    picture = np.asarray(Image.fromarray(read_picture(PORTRAIT)[:260, :300]).resize((150, 130)))
    path, n_frames = tmp_path / "moving.mp4", 24
    with VideoWriter(path, 150, 130, fps=fps) as writer:
        for k in range(n_frames):
            writer.write(np.roll(picture, k, axis=1))
    track = read_pose(path, MODEL)
    wanted_s = torch.tensor([float((2 * k + 1) / (2 * fps)) for k in range(n_frames)], dtype=torch.float64)
    torch.testing.assert_close(track.time_s, wanted_s, rtol=0, atol=1e-4)  # MP4's clock
    speed_px = (track.pose.translation[-4:, 0] - track.pose.translation[:4, 0]).mean() / (n_frames - 4)
    assert float(speed_px) == pytest.approx(1, abs=0.1)


def test_a_variable_rate_is_read_at_its_exact_times(tmp_path: Path) -> None:
    picture = np.asarray(Image.fromarray(read_picture(PORTRAIT)[:260, :300]).resize((150, 130)))
    path, ticks = tmp_path / "phone.mkv", [0, 33, 67, 100, 233, 267, 300, 400, 433]  # ms
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, width=150, height=130, options={"bf": "0"})
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for tick in ticks:
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    track = read_pose(path, MODEL)
    half_s = float(np.median(np.diff(ticks))) / 2000
    assert np.allclose(track.time_s.numpy(), np.array(ticks) / 1000 + half_s, atol=1e-9)


def test_a_video_without_a_face_is_one_sentence_and_a_long_loss_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grey = np.full((130, 150, 3), 100, np.uint8)
    picture = np.asarray(Image.fromarray(read_picture(PORTRAIT)[:260, :300]).resize((150, 130)))
    for name, shown in (("empty", [grey] * 3), ("lost", [picture] * 4 + [grey] * 10)):
        with VideoWriter(tmp_path / f"{name}.mp4", 150, 130, fps=10) as writer:
            for frame in shown:
                writer.write(frame)
    with pytest.raises(InputError, match=r"empty\.mp4: no face"):
        read_pose(tmp_path / "empty.mp4", MODEL)
    with caplog.at_level(logging.WARNING):
        assert len(read_pose(tmp_path / "lost.mp4", MODEL).time_s) == 4
    assert "lost.mp4" in caplog.text


# ---- to a Motion ----------------------------------------------------------------------------------------------------


def test_only_the_head_follows() -> None:
    motion = speech(50)
    made = follow(motion, constant_rate(Fraction(24000, 1001), 30), MODEL, "hold")
    assert torch.equal(made.landmarks, motion.landmarks) and made.fps == motion.fps
    assert made.reference is motion.reference and made.image_size == motion.image_size
    assert made.provenance == {"a": 1, "pose": "video", "pose_end": "hold"}


@given(zoom=st.floats(0.05, 20), x=st.floats(-500, 500), y=st.floats(-500, 500))
@settings(deadline=None, max_examples=25)
def test_the_drivers_size_in_pixels_and_place_don_t_matter(zoom: float, x: float, y: float) -> None:
    track, motion = constant_rate(Fraction(30), 60), speech(40)
    moved = Pose(track.pose.scale * zoom, track.pose.rotation, track.pose.translation * zoom + torch.tensor([x, y]))
    other = follow(motion, PoseTrack(track.time_s, moved), MODEL)
    assert_same_pose(other.pose, follow(motion, track, MODEL).pose, px=0.05)


def test_a_mirrored_driver_moves_a_mirrored_picture_the_mirrored_way() -> None:
    def mirrored(pose: Pose) -> Pose:
        flip = torch.diag(torch.tensor([-1.0, 1, 1]))
        return Pose(pose.scale, flip @ pose.rotation @ flip, pose.translation * torch.tensor([-1.0, 1]))

    track, motion = constant_rate(Fraction(30), 60), speech(40)
    reference = Reference(motion.rest.landmarks, mirrored(motion.rest.pose))
    made = follow(replace(motion, reference=reference), PoseTrack(track.time_s, mirrored(track.pose)), MODEL)
    assert_same_pose(made.pose, mirrored(follow(motion, track, MODEL).pose))


def test_the_pictures_own_video_gives_its_own_turns_back() -> None:
    track, motion = constant_rate(Fraction(25), 60), speech(60)
    rest = replace(motion.rest.pose, rotation=track.pose.rotation[17])
    made = follow(replace(motion, reference=Reference(motion.rest.landmarks, rest)), track, MODEL)
    assert float(angle_rad(made.pose.rotation, track.pose.rotation).max()) < 1e-3


@given(aside=st.floats(-0.7, 0.7))
@settings(deadline=None, max_examples=20)
def test_who_never_looks_ahead_doesn_t_twist_the_picture_and_nods_straight(aside: float) -> None:
    assume(abs(aside) > 0.1)
    nod = 0.2 * torch.sin(torch.arange(60.0) / 5)
    zero = torch.zeros(60)
    driver = from_euler_rad(torch.stack([zero, zero + aside, zero], dim=1)) @ from_euler_rad(
        torch.stack([nod, zero, zero], dim=1)
    )
    track = constant_rate(Fraction(25), 60)
    motion = speech(60)
    upright = Reference(motion.rest.landmarks, replace(motion.rest.pose, rotation=torch.eye(3)))
    turned = PoseTrack(track.time_s, replace(track.pose, rotation=driver))
    pitch, yaw, roll = euler_rad(follow(replace(motion, reference=upright), turned, MODEL).pose.rotation).unbind(-1)
    assert float(yaw.abs().max()) < 1e-3 and float(roll.abs().max()) < 1e-3
    torch.testing.assert_close(pitch - pitch.mean(), nod - nod.mean(), rtol=0, atol=1e-3)


def test_a_start_turned_away_is_not_taken_for_the_pictures_pose() -> None:
    """The driver looks aside for a second and then ahead: the picture, which looks ahead, first looks aside too."""
    yaw = torch.cat([torch.full((25,), 0.5), torch.linspace(0.5, 0, 25), torch.zeros(50)])
    track = constant_rate(Fraction(25), 100)
    driver = replace(track.pose, rotation=from_euler_rad(torch.stack([yaw * 0, yaw, yaw * 0], dim=1)))
    motion = speech(100)
    upright = Reference(motion.rest.landmarks, replace(motion.rest.pose, rotation=torch.eye(3)))
    made = follow(replace(motion, reference=upright), PoseTrack(track.time_s, driver), MODEL)
    torch.testing.assert_close(euler_rad(made.pose.rotation)[:, 1], yaw, rtol=0, atol=1e-3)
