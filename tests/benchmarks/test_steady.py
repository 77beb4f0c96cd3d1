"""What says that a long video is steady and that no mouth leaks: which frames are compared, and who is found out."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import leaks, steady
from benchmarks.renders import REAL, Scene, repeated
from common.face.framing import ReferencePicture
from common.face.model import FaceModel, mouth_opening
from m2v.pipeline import N_FADE, clip_spans

SIZE, N = 96, 60


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A face on noise, 60 frames long, whose mouth opens and closes; a corner says by how much: see `look`."""
    nobody = ReferencePicture.mean(FaceModel.builtin(), SIZE)
    landmarks = nobody.landmarks.repeat(N, 1, 1)
    shift = 4 + 4 * torch.sin(0.37 * torch.arange(N)) + 0.01 * torch.arange(N)  # no two frames are the same
    landmarks[:, [55, 56, 57, 58, 59, 65, 66, 67], 1] += shift[:, None]
    frames = np.random.default_rng(0).integers(60, 200, (N, SIZE, SIZE, 3), np.uint8)
    frames[:, :8, :8] = drawn(mouth_opening(landmarks[..., :2]))[:, None, None]
    valid = np.ones(N, bool)
    valid[3:48] = False  # the detector is slow
    return Scene("a", "ann", False, nobody, landmarks, frames, valid)


def drawn(openings: Tensor) -> np.ndarray:
    return (400 * openings[:, None]).round().clamp(0, 255).byte().numpy()


def look(frames: np.ndarray, asked: Tensor) -> np.ndarray:
    return frames[:, 2, 2, 0] / 400.0


def obedient(reference: ReferencePicture, landmarks: Tensor, frames: np.ndarray) -> np.ndarray:
    made = repeated(reference, landmarks, frames)
    made[:, :8, :8] = drawn(mouth_opening(landmarks[..., :2]))[:, None, None]
    return made


# Length


@given(n_frames=st.integers(steady.N_COMPARED + 1, 900), seconds=st.floats(0.1, 200))
def test_it_ends_with_the_very_frames_that_it_began_with(n_frames: int, seconds: float) -> None:
    numbers = steady.to_and_fro(n_frames, seconds)
    n = steady.N_COMPARED
    assert numbers[:n] == numbers[-n:] == list(range(n))
    assert set(np.abs(np.diff(numbers))) == {1}  # never a jump
    assert max(numbers) < n_frames
    n_wanted = round(25 * seconds)
    assert len(numbers) >= steady.SHORTER * n_wanted
    round_trip = max(2 * n, 2 * math.ceil(n_wanted / n))  # of the fewest frames, or a frame more each way of each one
    assert len(numbers) <= max(n_wanted + round_trip, 3 * n)


@pytest.mark.parametrize("n_frames", [2, 16, 17, 28, 29, 100])
def test_inside_of_a_clip_both_frames_are_its_alone(n_frames: int) -> None:
    made_by: list[set[int]] = [set() for _ in range(n_frames)]
    for clip, (first, last) in enumerate(clip_spans(n_frames)):
        for k in range(first, last):
            made_by[k].add(clip)
    inside = [a == b and len(a) == 1 for a, b in pairwise(made_by)]
    assert steady.is_join(n_frames).tolist() == [not each for each in inside]
    assert steady.is_join(n_frames).sum() == (N_FADE + 1) * (len(clip_spans(n_frames)) - 1)


def test_a_perfect_renderer_does_not_drift(scene: Scene) -> None:
    def film(landmarks: Tensor, seed: int) -> Iterator[Tensor]:
        for points in landmarks:
            k = int((scene.landmarks - points).abs().sum(dim=(1, 2)).argmin())
            yield torch.from_numpy(scene.frames[k]).movedim(-1, 0).float()

    report = steady.length(scene, film, seconds=8)
    assert "| PSNR dB | 60.00 | 60.00 | +0.00 (+0.0 %) | 60.00 |" in report
    assert "0.00 grey levels apart (PSNR 60.0 dB, mouth 60.0 dB)" in report
    ours, real = (line for line in report.splitlines() if line.startswith(("| ours", f"| {REAL}")))
    assert ours.removeprefix("| ours") == real.removeprefix(f"| {REAL}")


def test_jumps_at_the_joins_are_told() -> None:
    joins = steady.is_join(400)
    rng = np.random.default_rng(0)
    even, jumping = rng.uniform(1, 2, 399), rng.uniform(1, 2, 399) + 2 * joins
    rows = steady.joins_table({"even": even.tolist(), "jumping": jumping.tolist()}, joins).splitlines()[2:]
    shares = [float(row.split("|")[-3].strip(" %")) for row in rows]
    assert shares[0] < 12
    assert shares[1] == 100


# Leak


def test_the_three_pictures_are_closed_half_open_and_wide_open(scene: Scene) -> None:
    closed, half, wide = (each.opening for each in leaks.references(scene, FaceModel.builtin()))
    openings = mouth_opening(scene.landmarks[scene.valid][..., :2])
    assert (closed, wide) == (pytest.approx(float(openings.min())), pytest.approx(float(openings.max())))
    assert half == pytest.approx((closed + wide) / 2, abs=0.2 * (wide - closed))


def test_who_ignores_the_picture_leaks_nothing_and_who_copies_it_everything(scene: Scene) -> None:
    pictures = leaks.references(scene, FaceModel.builtin())
    found = leaks.leaks(scene, pictures, {"obedient": obedient, "copied": repeated}, 12, 2, look)
    obeyed, copied = found["obedient"], found["copied"]
    assert (obeyed.closed_half, obeyed.half_wide, obeyed.closed_wide, obeyed.wider) == (0, 0, 0, 0)
    assert obeyed.error == pytest.approx(0, abs=0.02)
    assert copied.closed_wide == copied.wider == pytest.approx(1, abs=0.02)
    assert copied.closed_half + copied.half_wide == pytest.approx(1, abs=0.02)
    assert copied.error > 0.2
    assert found[REAL].error == pytest.approx(0, abs=0.02)
    assert math.isnan(found[REAL].closed_wide)
    assert found[leaks.ASKED].closed_wide < 0.5  # the same person re-enacted, whatever mouth the picture has


@given(
    openings=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    n=st.integers(1, 40),
    data=st.data(),
)
def test_the_liveliest_part_is_valid_before_it_is_lively(openings: list[float], n: int, data: st.DataObject) -> None:
    T = len(openings)
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=T, max_size=T)))
    part = leaks.liveliest(np.array(openings), valid, n)
    length = min(n, T)
    every = [slice(k, k + length) for k in range(T - length + 1)]
    assert part in every
    best = max((valid[each].sum(), np.ptp(openings[each])) for each in every)
    assert (valid[part].sum(), np.ptp(openings[part])) == best
