"""Measures of pictures: known values on made-up frames, and what must not change them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.face.model import FaceModel
from common.metrics import image

SIZE = 96
BOX = (slice(20, 60), slice(10, 70))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def face(x: float = SIZE / 2, y: float = SIZE / 2, size_px: float = 40.0) -> np.ndarray:
    """The mean face, so many pixels high, about a place."""
    points = FaceModel.builtin().mean[:, :2].numpy() * [1, -1]
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * size_px / (high - low).max() + [x, y]


def everywhere(n_frames: int) -> np.ndarray:
    return np.ones((n_frames, SIZE, SIZE), bool)


# Likeness


def test_identical_pictures_are_perfect() -> None:
    assert image.psnr(picture(), picture()) == math.inf
    assert image.ssim(picture(), picture()) == pytest.approx(1)


def test_psnr_of_a_known_error() -> None:
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    # 20 log10(255 / 5); and an error in a quarter of the pixels is a quarter of the energy.
    assert image.psnr(grey + np.uint8(5), grey) == pytest.approx(20 * math.log10(51), abs=1e-4)
    part = grey.copy()
    part[: SIZE // 2, : SIZE // 2] += np.uint8(5)
    assert image.psnr(part, grey) == pytest.approx(20 * math.log10(51) + 10 * math.log10(4), abs=1e-4)
    assert image.psnr(grey - np.uint8(5), grey) == pytest.approx(image.psnr(grey + np.uint8(5), grey))


def test_more_noise_is_less_alike() -> None:
    rng = np.random.default_rng(0)
    smooth = np.broadcast_to(np.linspace(50, 200, SIZE)[:, None, None], (SIZE, SIZE, 3))
    noisy = [(smooth + rng.normal(0, sigma, smooth.shape)).clip(0, 255).astype(np.uint8) for sigma in (2, 8, 32)]
    for measure in (image.psnr, image.ssim):
        values = [measure(each, smooth.astype(np.uint8)) for each in noisy]
        assert values == sorted(values, reverse=True)


# Places


@settings(max_examples=100, deadline=None)
@given(
    x=st.floats(-50, 306),
    y=st.floats(-50, 306),
    width=st.floats(0, 200),
    height=st.floats(0, 120),
    size_px=st.sampled_from([16, 64, 255, 256]),
)
def test_mouth_box_stays_inside_and_is_large_enough(
    x: float, y: float, width: float, height: float, size_px: int
) -> None:
    """SSIM's window is 7 pixels: a box of 16 always has room for it, wherever the mouth lies."""
    points = np.zeros((68, 3), np.float32)
    points[48:68, 0] = x + width * np.linspace(-0.5, 0.5, 20)
    points[48:68, 1] = y + height * np.linspace(-0.5, 0.5, 20) ** 3 * 4
    rows, columns = image.mouth_box(points, size_px)
    assert np.zeros((size_px, size_px))[rows, columns].shape == (rows.stop - rows.start, columns.stop - columns.start)
    for part in (rows, columns):
        assert 0 <= part.start <= part.stop - 16
        assert part.stop <= size_px


def test_mouth_box_holds_the_lips_and_a_margin() -> None:
    points = np.zeros((68, 2), np.float32)
    points[48:68] = (128, 180)
    points[48], points[54], points[51], points[57] = (98, 180), (158, 180), (128, 170), (128, 200)
    rows, columns = image.mouth_box(points, 256)
    # 0.35 of the width of 60 px, 21 px, on every side.
    assert (columns.start, columns.stop, rows.start, rows.stop) == (77, 179, 149, 221)


def test_face_and_background_do_not_meet() -> None:
    points = face()
    inside = image.face_mask(points, SIZE, SIZE)
    columns, rows = points.round().astype(int).T
    background = image.background_masks(points[None], SIZE, SIZE)[0]
    assert inside[SIZE // 2, SIZE // 2]
    assert not background[rows, columns].any()
    assert not (inside & background).any()
    grown = image.face_mask(points, SIZE, SIZE, image.BACKGROUND_GROW)
    # Areas grow with the square; the hull is 40 px high and its outline about 120 px long: half a pixel is 4 %.
    assert grown.sum() / inside.sum() == pytest.approx(image.BACKGROUND_GROW**2, rel=0.1)
    assert background.sum() + grown.sum() == SIZE**2


@pytest.mark.parametrize("points", [np.zeros((68, 2)), np.stack([np.arange(68.0)] * 2, axis=1), face() + 1000])
def test_a_face_without_area_or_outside_has_no_pixels(points: np.ndarray) -> None:
    assert not image.face_mask(points, SIZE, SIZE).any()


def test_a_shut_mouth_shows_nothing_between_its_lips() -> None:
    points = face(size_px=80.0)
    points[[61, 62, 63, 65, 66, 67], 1] = points[[60], 1]
    points[64, 1] = points[60, 1]
    shut = image.lips_mask(points, SIZE, SIZE).sum()
    points[[65, 66, 67], 1] += 8
    width_px = points[64, 0] - points[60, 0]
    opened = image.lips_mask(points, SIZE, SIZE).sum()
    assert shut <= width_px + 2  # a line at most
    assert opened > 4 * width_px


# Detail


def test_laplacian_energy_of_known_patterns() -> None:
    rows, columns = np.indices((SIZE, SIZE))
    flat, ramp = np.full((SIZE, SIZE), 90), columns
    board = 100 + 10 * (-1) ** (rows + columns)  # every neighbour differs by 20: (4 · 20)²
    for grey, expected in ((flat, 0.0), (ramp, 0.0), (board, 6400.0)):
        colours = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
        assert image.laplacian_energy(colours, BOX) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_laplacian_energy_knows_only_its_box_and_one_pixel_more() -> None:
    inside, other = picture(0), picture(1)
    rows, columns = BOX
    near = slice(rows.start - 1, rows.stop + 1), slice(columns.start - 1, columns.stop + 1)
    other[near] = inside[near]
    assert image.laplacian_energy(other, BOX) == image.laplacian_energy(inside, BOX)


def test_laplacian_energy_of_masked_parts_adds_up() -> None:
    shown = picture()
    mask = np.random.default_rng(2).random((SIZE, SIZE)) < 0.3
    n, n_all = mask[BOX].sum(), mask[BOX].size
    parts = image.laplacian_energy(shown, BOX, mask) * n + image.laplacian_energy(shown, BOX, ~mask) * (n_all - n)
    assert parts == pytest.approx(image.laplacian_energy(shown, BOX) * n_all, rel=1e-4)
    assert image.laplacian_energy(shown, BOX, np.zeros_like(mask)) == 0


# Change over time


def test_a_still_video_does_not_change() -> None:
    frames = np.repeat(picture()[None], 5, axis=0)
    assert image.change(frames, everywhere(5)) == 0
    assert image.change(frames, everywhere(5), order=2) == 0


def test_steady_change_and_tremble_are_told_apart() -> None:
    base = np.full((6, SIZE, SIZE, 3), 100, np.uint8)
    steady = base + np.arange(0, 18, 3, dtype=np.uint8)[:, None, None, None]
    tremble = base + np.array([0, 3, 0, 3, 0, 3], np.uint8)[:, None, None, None]
    assert image.change(steady, everywhere(6)) == image.change(tremble, everywhere(6)) == 3
    assert image.change(steady, everywhere(6), order=2) == 0
    assert image.change(tremble, everywhere(6), order=2) == 6


@pytest.mark.parametrize("order", [1, 2])
def test_change_of_noise_is_that_of_theory(order: int) -> None:
    """Differences of independent noise are normal: E|d| = √(2/π) σ_d, σ_d² = 2 σ² (first order), 6 σ² (second)."""
    frames = np.random.default_rng(0).normal(128, 12, (4, SIZE, SIZE, 3)).round().astype(np.uint8)
    expected = math.sqrt(2 / math.pi) * 12 * math.sqrt({1: 2, 2: 6}[order])
    assert image.change(frames, everywhere(4), order) == pytest.approx(expected, rel=0.01)


def test_only_pixels_that_stay_inside_count() -> None:
    frames = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    frames[1, :10] = 50  # flashes at the top
    masks = everywhere(3)
    assert image.change(frames, masks) == pytest.approx(50 * 10 / SIZE)
    masks[1, :10] = False
    assert image.change(frames, masks) == 0
    masks[1] = False  # nothing to compare
    assert math.isnan(image.change(frames, masks))
    with pytest.raises(ValueError, match="3 frames and 2 masks"):
        image.change(frames, masks[:2])


def test_a_trembling_background_shows_and_the_face_does_not_care() -> None:
    """Noise beside the face raises the background's ratio alone."""
    rng = np.random.default_rng(0)
    real = np.clip(picture()[None] + rng.normal(0, 2, (5, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    points = np.repeat(face()[None], 5, axis=0)
    face_masks, background = (make(points, SIZE, SIZE) for make in (image.face_masks, image.background_masks))
    made = np.where(background[..., None], np.clip(real + rng.normal(0, 8, real.shape), 0, 255), real).astype(np.uint8)
    assert image.change_ratio(made, real, face_masks) == 1
    assert image.change_ratio(made, real, background) > 2
    assert image.change_ratio(real, real, background) == 1


def test_of_a_still_video_the_codecs_noise_is_the_yardstick() -> None:
    still = np.repeat(picture()[None] // 2, 4, axis=0)
    made = still + np.array([0, 1, 0, 1], np.uint8)[:, None, None, None]
    assert image.change_ratio(made, still, everywhere(4)) == pytest.approx(1 / image.CODEC_NOISE)


def test_change_error_sees_motion_and_not_constant_errors() -> None:
    truth = np.stack([picture(k) // 2 for k in range(4)])
    assert image.change_error(truth, truth, everywhere(4)) == 0
    assert image.change_error(truth + np.uint8(100), truth, everywhere(4)) == 0
    moved = truth + np.array([0, 4, 4, 4], np.uint8)[:, None, None, None]  # one wrong step of three
    assert image.change_error(moved, truth, everywhere(4)) == pytest.approx(16 / 3)
    still = np.zeros_like(truth)
    expected = np.square(np.diff(truth.astype(float), axis=0)).mean()
    assert image.change_error(still, truth, everywhere(4)) == pytest.approx(expected, rel=1e-5)
    assert math.isnan(image.change_error(truth, truth, ~everywhere(4)))
