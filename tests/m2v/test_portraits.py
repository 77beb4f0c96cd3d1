"""Samples of portraits: like those of clips, of train pictures alone, with landmarks on what they marked."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from common.errors import InputError
from common.face.model import mouth_opening
from m2v.data import Clip, ClipSamples, DataConfig, Sample
from m2v.portraits import (
    FINE,
    MixedSamples,
    Portrait,
    PortraitSamples,
    Similarity,
    alike,
    bend,
    lips_apart,
    read_portraits,
    training_samples,
)
from tests.m2v.tiny import face, training_clips

CONFIG = DataConfig(size_px=128, crop_px=64, n_frames=4)
WHOLE = replace(CONFIG, crop_px=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("m2v-portraits")


@pytest.fixture(scope="module")
def clips(folder: Path) -> list[Clip]:
    return training_clips(folder)


def waves(side: int, phase: float = 0.0) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] * (2 * np.pi * 5 / side)
    return (128 + 90 * np.sin(np.stack([rows + phase, columns, rows + columns], axis=-1))).astype(np.uint8)


def a_portrait(name: str = "p", opened: float = 0.0) -> Portrait:
    """Of waves; its mouth closed, or open."""
    return Portrait(name, "photo", waves(FINE * CONFIG.size_px), lips_apart(face(CONFIG.size_px, opened)))


@pytest.fixture(scope="module")
def portraits() -> list[Portrait]:
    return [a_portrait("shut"), a_portrait("open", 0.1)]


def write_portraits(data_dir: Path, rows: list[tuple[str, str, str, int]]) -> None:
    """rows: name, kind, split, side of the picture in pixels. Spots mark some landmarks."""
    (data_dir / "portraits").mkdir(parents=True)
    with (data_dir / "portraits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "kind", "split"])
        for name, kind, split, side in rows:
            writer.writerow([name, kind, split])
            Image.fromarray(spots(face(side)[MARKED], side, 1)).save(data_dir / "portraits" / f"{name}.jpg", quality=95)
    points = np.stack([F.pad(face(side), (0, 1)).numpy() for *_, side in rows])
    names = np.array([name for name, *_ in rows])
    np.savez(data_dir / "portraits_landmarks.npz", names=names, landmarks=points, valid=names != "lost")


def same(a: Sample, b: Sample) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kinds_of(samples: PortraitSamples, portrait: Portrait, clip: Clip) -> dict[str, Sample]:
    return {
        kind: getattr(samples, kind)(portrait, clip, 3, np.random.default_rng(1))
        for kind in ("still", "bent", "opened")
    }


def test_samples_look_like_those_of_clips(clips: list[Clip], portraits: list[Portrait]) -> None:
    for config in (CONFIG, WHOLE):
        samples, of_clip = PortraitSamples(portraits, clips, config, seed=0), ClipSamples(clips, config, seed=0)[0]
        for sample in kinds_of(samples, portraits[0], clips[0]).values():
            assert sample.keys() == of_clip.keys()
            for name, value in sample.items():
                assert value.shape == of_clip[name].shape and value.dtype == of_clip[name].dtype, name
                assert value.isfinite().all()
            for name in ("clip", "reference", "warped"):
                assert sample[name].min() >= -1 - 1e-5 and sample[name].max() <= 1 + 1e-5


def test_a_sample_is_its_number_and_seed(clips: list[Clip], portraits: list[Portrait]) -> None:
    config = replace(CONFIG, portraits=0.5)
    one, two, other = (
        MixedSamples(ClipSamples(clips, config, seed), PortraitSamples(portraits, clips, config, seed))
        for seed in (3, 3, 4)
    )
    backwards = [two[i] for i in range(7, -1, -1)][::-1]
    assert all(same(one[i], backwards[i]) for i in range(8))
    assert not same(one[0], one[1]) and not same(one[0], other[0])


def test_a_share_of_the_samples_is_of_portraits(clips: list[Clip], portraits: list[Portrait]) -> None:
    class Numbers:
        """What is asked of it."""

        def __init__(self, config: DataConfig) -> None:
            self.config, self.seed, self.asked = config, 0, 0

        def __getitem__(self, index: int) -> int:
            self.asked += 1
            return index

    for share in (0.0, 0.15, 0.5):
        of_clips, of_portraits = (Numbers(replace(CONFIG, portraits=share)) for _ in range(2))
        mixed = MixedSamples(of_clips, of_portraits)  # type: ignore[arg-type]
        assert [mixed[i] for i in range(1000)] == list(range(1000))
        assert of_portraits.asked + of_clips.asked == 1000
        assert abs(of_portraits.asked / 1000 - share) < 0.05


def test_a_still_clip_is_its_reference(clips: list[Clip], portraits: list[Portrait]) -> None:
    samples = PortraitSamples(portraits, clips, CONFIG, seed=0)
    for seed in range(4):  # mirrored, trembling
        sample = samples.still(portraits[0], clips[0], 3, np.random.default_rng(seed))
        for frame in sample["clip"].unbind(1):
            assert torch.equal(frame, sample["reference"])


def test_frames_keep_the_background(clips: list[Clip], portraits: list[Portrait]) -> None:
    """And so does the reference: what is far from the head is where it was, in all of them."""
    samples = PortraitSamples(portraits, clips, WHOLE, seed=0)
    for kind, sample in kinds_of(samples, portraits[0], clips[0]).items():
        for picture in (*sample["clip"].unbind(1), sample["reference"]):
            assert torch.allclose(picture[:, :, :6], sample["clip"][:, 0, :, :6], atol=1e-4), kind


def spots(points: Tensor, side: int, fine: int = FINE) -> np.ndarray:
    """White spots on black at points [P, 2] of a picture, drawn at `fine` times its size: uint8 [side, side, 3]."""
    at = (torch.arange(side) + 0.5) / fine - 0.5
    x, y = points[:, 0, None, None], points[:, 1, None, None]
    away = (at[None, None] - x).square() + (at[None, :, None] - y).square()
    return (255 * (-away / 4).exp().amax(dim=0)).byte()[..., None].repeat(1, 1, 3).numpy()


def assert_marked(frame: Tensor, points: Tensor, tolerance: float) -> None:
    """There is the middle of a spot at each of points [P, 2] of a picture [h, w] in 0..1."""
    for x, y in points.tolist():
        left, top = round(x) - 4, round(y) - 4
        part = frame[top : top + 9, left : left + 9]
        ys, xs = torch.meshgrid(torch.arange(9.0) + top, torch.arange(9.0) + left, indexing="ij")
        assert abs(float((part * xs).sum() / part.sum()) - x) < tolerance
        assert abs(float((part * ys).sum() / part.sum()) - y) < tolerance


MARKED = [0, 8, 16, 30, 36, 45]  # far from each other: the middle of each one's spot can be measured


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 6), seed=st.integers(0, 1000))
def test_landmarks_lie_on_what_they_marked(clips: list[Clip], start: int, seed: int) -> None:
    """In moved frames and in a bent reference: where the landmark is asked for, there is its spot."""
    rng, own = np.random.default_rng(seed), face(128)
    samples = PortraitSamples([], clips, WHOLE, seed=0)
    fine = torch.from_numpy(spots(own[MARKED], FINE * 128)).movedim(-1, 0)[None].float() / 127.5 - 1
    moves = [
        Similarity(complex(np.exp(complex(*rng.uniform(-0.06, 0.06, 2)))), 64 + 60j, complex(*rng.uniform(-4, 4, 2)))
        for _ in range(3)
    ]
    moved = samples.moved(fine, own, moves, (0, 0, 128))
    bent = own + bend(clips[0], [start], alike(clips[0], own, rng), own)[0]
    cases = [(frame, move(own)) for frame, move in zip(moved, moves, strict=True)]
    cases.append((samples.picture(fine, own, bent[None])[0], bent))
    for frame, points in cases:
        assert_marked((frame[0] + 1) / 2, points[MARKED], 0.6)


@settings(max_examples=30, deadline=None)
@given(st.floats(-1, 1), st.floats(0.5, 2), st.floats(-50, 50), st.floats(-50, 50))
def test_similarities_are_found_and_undone(roll: float, zoom: float, x: float, y: float) -> None:
    points = face(128)
    move = Similarity(complex(zoom * np.exp(1j * roll)), 40 + 70j, complex(x, y))
    assert torch.allclose(move.back(move(points)), points, atol=1e-2)
    found = Similarity.between(points, move(points))
    assert torch.allclose(found(points), move(points), atol=1e-2)
    turned = torch.tensor([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]], dtype=torch.float32)
    assert torch.allclose((move(points) - move(points[:1])), zoom * (points - points[:1]) @ turned, atol=1e-2)


def test_only_the_mouth_opens_and_shows_the_clips(clips: list[Clip]) -> None:
    samples, portrait = PortraitSamples([a_portrait()], clips, WHOLE, seed=0), a_portrait()
    white = replace(clips[0], frames=np.full_like(np.array(clips[0].frames), 255))
    black = replace(clips[0], frames=np.zeros_like(white.frames))
    a, b = (samples.opened(portrait, clip, 3, np.random.default_rng(1)) for clip in (white, black))
    differs = (a["clip"] - b["clip"]).abs().amax(dim=0)  # [S, h, w]
    assert differs.amax() > 0.5
    assert (differs * (a["inner"][:, 0] < 0.01)).amax() < 0.02
    assert torch.equal(a["reference"], b["reference"]) and torch.equal(a["warped"], b["warped"])


def test_lips_never_cross() -> None:
    crossed = face(128, -0.1)
    mended = lips_apart(crossed)
    assert (mended[[65, 66, 67], 1] >= mended[[63, 62, 61], 1] - 1e-3).all()
    assert torch.equal(mended[:60], lips_apart(mended)[:60]) and mouth_opening(mended) < mouth_opening(crossed)
    opened = face(128, 0.1)
    assert torch.allclose(lips_apart(opened), opened, atol=1e-3)


def test_only_train_pictures_of_faces_that_are_large_enough_are_used(tmp_path: Path) -> None:
    rows = [
        ("a", "photo", "train", 300),
        ("b", "painting_or_sculpture", "train", 300),
        ("c", "cartoon", "train", 300),
        ("d", "photo", "test", 300),
        ("e", "photo", "exclude", 300),
        ("small", "photo", "train", 120),
        ("lost", "photo", "train", 300),
    ]
    write_portraits(tmp_path, rows)
    read = read_portraits(tmp_path, "train", 128)
    assert [portrait.name for portrait in read] == ["a", "b"]
    for portrait in read:
        assert portrait.picture.shape == (FINE * 128, FINE * 128, 3)
        assert (portrait.landmarks > 0).all() and (portrait.landmarks < 128).all()
        marks = torch.from_numpy(portrait.picture[..., 0]).float()[None] / 255
        assert_marked(F.avg_pool2d(marks, FINE)[0], portrait.landmarks[MARKED], 0.3)
    (tmp_path / "portraits" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"a\.jpg"):
        read_portraits(tmp_path, "train", 64)


def test_portraits_are_mixed_in_where_there_are_any(folder: Path, clips: list[Clip]) -> None:
    config, data_dir = replace(CONFIG, cache_dir=str(folder / "cache")), folder / "data"
    without = training_samples(data_dir, config, 0)
    assert isinstance(without, ClipSamples) and same(without[0], ClipSamples(clips, config, 0)[0])
    write_portraits(data_dir, [("a", "photo", "train", 300), ("b", "photo", "test", 300)])
    mixed = training_samples(data_dir, config, 0)
    assert isinstance(mixed, MixedSamples) and [each.name for each in mixed.portraits.portraits] == ["a"]
    assert isinstance(training_samples(data_dir, replace(config, portraits=0.0), 0), ClipSamples)
    with pytest.raises(InputError, match=r"options\.portraits=1\.5"):
        training_samples(data_dir, replace(config, portraits=1.5), 0)
