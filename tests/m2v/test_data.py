"""Training samples: decided by seed and number alone, with landmarks where the face is."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import InputError
from common.face.model import FaceModel, mouth_opening
from m2v.condition import Conditions
from m2v.data import (
    Clip,
    ClipSamples,
    DataConfig,
    clip_shares,
    conditions_of,
    decoded,
    flipped,
    pick_reference,
    pick_window,
    projected,
    read_clips,
    recoloured,
    smoothed,
)
from tests.m2v.tiny import training_clips
from tests.tiny_data import track

KINDS = ("talking", "silent")
CONFIG = DataConfig(size_px=128, crop_px=64, n_frames=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("m2v-data")


@pytest.fixture(scope="module")
def clips(folder: Path) -> list[Clip]:
    return training_clips(folder)


def a_clip(valid: np.ndarray, opening: np.ndarray, n_frames: int = 4) -> Clip:
    """Without pictures."""
    starts = [k for k in range(len(valid) - n_frames + 1) if valid[k : k + n_frames].all()]
    tracks = torch.zeros(3, len(valid), 68, 2)
    return Clip("x", "x", np.zeros((len(valid), 1)), tracks, valid, opening, np.array(starts))


def test_a_sample_is_its_number_and_seed(clips: list[Clip]) -> None:
    samples, again = ClipSamples(clips, CONFIG, seed=3), ClipSamples(clips, CONFIG, seed=3)
    backwards = [again[i] for i in (7, 2, 0)][::-1]
    for i, sample in zip((0, 2, 7), backwards, strict=True):
        for name, value in samples[i].items():
            assert torch.equal(value, sample[name]), name
    one, two, other = samples[0]["clip"], samples[1]["clip"], ClipSamples(clips, CONFIG, seed=4)[0]["clip"]
    assert not torch.equal(one, two) and not torch.equal(one, other)


def test_a_sample_has_a_clip_its_conditions_and_where_the_mouth_is(clips: list[Clip]) -> None:
    for i in range(4):
        sample = ClipSamples(clips, CONFIG, seed=0)[i]
        assert set(sample) == {"clip", "reference", "warped", "inner", "visible", "maps", "flow", "region", "mouth"}
        assert sample["clip"].shape == (3, 4, 64, 64) and sample["mouth"].shape == (4, 4)
        assert isinstance(conditions_of(sample), Conditions) and sample["maps"].shape == (4, 3, 32, 32)
        for name in ("clip", "reference", "warped"):
            assert sample[name].min() >= -1 and sample[name].max() <= 1 + 1e-5


def test_the_mouth_lies_where_the_lips_are_drawn(clips: list[Clip]) -> None:
    config = DataConfig(size_px=128, crop_px=128, n_frames=4)
    for i in range(6):  # some of them mirrored
        sample = ClipSamples(clips, config, seed=1)[i]
        for drawn, (x, y, half_width, half_height) in zip(sample["maps"][:, 2], sample["mouth"].tolist(), strict=True):
            rows, columns = (places * 2 + 0.5 for places in torch.nonzero(drawn > 0.3, as_tuple=True))
            assert abs((columns.min() + columns.max()) / 2 - x) < 2.5 and abs((rows.min() + rows.max()) / 2 - y) < 2.5
            assert abs((columns.max() - columns.min()) / 2 - half_width) < 3
            assert abs((rows.max() - rows.min()) / 2 - half_height) < 3


def test_frames_of_an_undisturbed_sample_are_the_videos(clips: list[Clip]) -> None:
    config = DataConfig(size_px=256, crop_px=256, n_frames=4)
    sample = ClipSamples(clips, config, seed=0, is_disturbed=False).sample(clips[0], 5, 2, np.random.default_rng(0))
    frames = ((sample["clip"] + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    assert (frames == clips[0].frames[5:9]).all()
    reference = ((sample["reference"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert (reference == clips[0].frames[2]).all()


@pytest.mark.parametrize("mouth_share", [0.0, 1.0])
def test_windows_lie_inside_on_multiples_of_8(clips: list[Clip], mouth_share: float) -> None:
    config = replace(CONFIG, mouth_share=mouth_share)
    rng = np.random.default_rng(0)
    targets = clips[0].tracks[0, :4] / 2
    mouth, near = targets[2, 48:68].mean(dim=0), 0
    for away in (0.0, 500.0, -500.0):  # faces outside the picture as well
        for _ in range(40):
            top, left, side = pick_window(targets + away, config, rng)
            assert top % 8 == left % 8 == 0 and side == 64
            assert 0 <= top <= 64 and 0 <= left <= 64
            near += away == 0 and bool(left < mouth[0] < left + side and top < mouth[1] < top + side)
    assert near >= 35 if mouth_share else near < 35


def test_a_reference_is_a_valid_frame_and_mostly_far_away() -> None:
    rng = np.random.default_rng(0)
    valid = rng.random(200) < 0.8
    valid[90:110] = True
    clip = a_clip(valid, rng.random(200))
    chosen = np.array([pick_reference(clip, 100, 4, rng) for _ in range(300)])
    assert valid[chosen].all()
    assert 2 <= (chosen == 100).sum() < 60
    assert np.abs(chosen - 100).mean() > 25
    assert clip.opening[chosen].mean() < clip.opening[valid].mean()  # closed mouths are preferred


def test_landmarks_of_a_mirrored_picture_stay_on_the_face(clips: list[Clip]) -> None:
    points, config = clips[0].tracks[0], DataConfig()
    mirrored = flipped(points, config)
    assert torch.allclose(flipped(mirrored, config), points)
    assert (mirrored[:, 36, 0] < mirrored[:, 45, 0]).all() and (mirrored[:, 0, 0] < mirrored[:, 16, 0]).all()
    # Each point lands on the mirror image of a point, and what is in the middle stays there.
    assert torch.allclose(mirrored[:, 30], torch.stack([255 - points[:, 30, 0], points[:, 30, 1]], dim=-1))
    assert torch.allclose(mouth_opening(mirrored), mouth_opening(points), atol=1e-4)


def test_recolouring_is_the_same_for_all_pictures_of_a_sample() -> None:
    grey = torch.linspace(-0.5, 0.5, 16).view(1, 1, 4, 4).expand(3, 3, 4, 4)
    for seed in range(5):
        changed = recoloured(grey, np.random.default_rng(seed))
        assert torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])
        assert not torch.equal(changed[0], grey[0]) and changed.abs().max() <= 1
        assert (changed[0, 0].flatten().diff() >= 0).all()


def shares(*clips: tuple[str, str, int], most_minutes: float) -> list[float]:
    one = a_clip(np.ones(4, bool), np.zeros(4))
    made = [replace(one, name=name, person=person, frames=np.zeros((n, 1))) for name, person, n in clips]
    given = clip_shares(made, most_minutes)
    assert given.sum() == pytest.approx(1)
    return given.tolist()


def test_a_person_counts_by_length_up_to_a_cap() -> None:
    a, b, c = shares(("1", "ann", 100), ("2", "ann", 300), ("3", "bob", 200), most_minutes=1.0)
    assert (a, b, c) == pytest.approx((1 / 6, 3 / 6, 2 / 6))
    a, b, c = shares(("1", "ann", 1500), ("2", "ann", 4500), ("3", "bob", 1500), most_minutes=1.0)
    assert (a, b, c) == pytest.approx((1 / 8, 3 / 8, 4 / 8))  # ann is cut to what bob has
    words, bob = shares(("lrwar_1", "many", 60000), ("3", "bob", 60000), most_minutes=1.0)
    assert words == pytest.approx(4 * bob)


def test_smoothing_keeps_still_faces_and_calms_trembling_ones() -> None:
    still = torch.rand(1, 68, 2, generator=torch.Generator().manual_seed(0)).expand(10, -1, -1) * 200
    assert torch.allclose(smoothed(still), still, atol=1e-3)
    trembling = still + torch.randn(10, 68, 2, generator=torch.Generator().manual_seed(1))
    assert smoothed(trembling).diff(dim=0).std() < 0.5 * trembling.diff(dim=0).std()
    steady = torch.arange(20.0).view(-1, 1, 1).expand(-1, 68, 2)  # and does not lag behind
    assert torch.allclose(smoothed(steady)[4:-4], steady[4:-4], atol=1e-4)
    assert smoothed(still[:1]).shape == (1, 68, 2)


def test_projection_keeps_a_still_face_and_most_of_a_talking_one() -> None:
    model = FaceModel.builtin()
    talking = torch.from_numpy(track(40, np.random.default_rng(0))).float()
    still = talking[:1].expand(6, -1, -1)
    assert torch.allclose(projected(still, model), still[..., :2], atol=0.05)
    error = (projected(talking, model) - talking[..., :2]).norm(dim=-1)
    assert error.mean() < 1.0  # pixels
    opening, kept = mouth_opening(talking[..., :2]), mouth_opening(projected(talking, model))
    assert torch.corrcoef(torch.stack([opening, kept]))[0, 1] > 0.9


def test_only_clips_of_the_split_with_enough_frames_are_used(clips: list[Clip], folder: Path) -> None:
    assert {clip.name for clip in clips} == {"ann-1", "ann-2", "bob-1"}
    assert [len(clip.starts) for clip in clips] == [len(clip.frames) - 3 for clip in clips]
    long = read_clips(folder / "data", "train", 15, folder / "cache", KINDS)
    assert {clip.name for clip in long} == {"ann-1", "bob-1"}
    assert {c.name for c in read_clips(folder / "data", "train", 4, folder / "cache", ("silent",))} == {"ann-2"}
    with pytest.raises(InputError, match="no clip of 99 valid frames"):
        read_clips(folder / "data", "train", 99, folder / "cache", KINDS)
    with pytest.raises(InputError, match="index of the data"):
        read_clips(folder / "nowhere", "train", 4, folder / "cache", KINDS)


def test_clips_with_something_drawn_over_them_are_left_out(folder: Path, clips: list[Clip], tmp_path: Path) -> None:
    with (folder / "data" / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["overlay"] = "logo"
    for name in ("clips", "tracks"):
        (tmp_path / name).symlink_to(folder / "data" / name)
    with (tmp_path / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    kept = read_clips(tmp_path, "train", 4, folder / "cache", KINDS)
    assert {clip.name for clip in kept} == {clip.name for clip in clips} - {rows[0]["clip_id"]}


def test_videos_are_decoded_once_and_broken_arrays_are_not_used(
    folder: Path, clips: list[Clip], tmp_path: Path
) -> None:
    video_path = folder / "data" / "clips" / "ann-2.mp4"
    frames = np.array(decoded(video_path, tmp_path))
    (cached,) = tmp_path.iterdir()
    stamp = cached.stat().st_mtime_ns
    assert (decoded(video_path, tmp_path) == frames).all() and cached.stat().st_mtime_ns == stamp
    whole = cached.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"nonsense"):
        cached.unlink()
        cached.write_bytes(broken)
        assert (decoded(video_path, tmp_path) == frames).all()
    (tmp_path / f".{cached.stem}.0123.part.npy").write_bytes(whole[:1000])  # as a killed process leaves it
    assert (decoded(video_path, tmp_path) == frames).all()
    with pytest.raises(InputError, match="nowhere"):
        decoded(tmp_path / "nowhere.mp4", tmp_path)
