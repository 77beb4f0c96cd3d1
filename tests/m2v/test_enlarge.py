import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from common.face import warp
from common.face.framing import Crop
from m2v.compose import as_levels
from m2v.enlarge import Enlarger, scaled
from m2v.masks import face_mask, head_mask
from tests.m2v.test_paste import SIDE, face, noise_picture, rendered, smooth_picture, speaking, still

LARGE = 512
CROP = Crop(20, 40, 640, SIDE)


def large(picture: np.ndarray, crop: Crop) -> np.ndarray:
    return Crop(crop.x0, crop.y0, crop.side, LARGE).cut(picture)


def moved(picture: np.ndarray, crop: Crop, source: Tensor, target: Tensor) -> Tensor:
    """The warp alone as a renderer's frame."""
    grid = warp.backward_grid(source[None], target[None], SIDE, SIDE)
    return warp.apply(as_levels(crop.cut(picture)), grid)[0]


def at_512(mask: Tensor) -> np.ndarray:
    return F.interpolate(mask[None, None], (LARGE, LARGE), mode="bilinear")[0, 0].numpy()


@settings(max_examples=10, deadline=None)
@given(st.integers(SIDE + 1, 900), st.integers(0, 40), st.integers(0, 100))
def test_a_face_that_stays_gives_the_picture_back(side: int, beside: int, seed: int) -> None:
    picture, crop = noise_picture(side + beside, side + 13, seed), Crop(beside // 2, 7, side, SIDE)
    result = Enlarger(LARGE).enlarge(picture, crop, face(), face(), still(picture, crop))
    assert result.shape == (LARGE, LARGE, 3) and result.dtype == np.uint8
    assert np.abs(result.astype(int) - large(picture, crop)).max() <= 1  # rounding


def test_what_the_frame_changes_arrives() -> None:
    picture = smooth_picture(720, 720)
    slope = torch.linspace(-20, 20, SIDE)[:, None] + torch.linspace(0, 10, SIDE)
    result = Enlarger(LARGE).enlarge(picture, CROP, face(), face(), still(picture, CROP) + slope)
    added = result.astype(float) - large(picture, CROP)
    expected = F.interpolate(slope[None, None], (LARGE, LARGE), mode="bilinear")[0, 0].numpy()
    assert np.abs(added - expected[..., None]).max() <= 1


def test_a_face_that_moved_is_as_sharp_as_the_picture_moved_at_its_own_size() -> None:
    picture = noise_picture(720, 720)
    source = face()
    target = source + torch.tensor([6.3, -3.2])
    frame = moved(picture, CROP, source, target)
    result = Enlarger(LARGE).enlarge(picture, CROP, source, target, frame).astype(np.float32)
    grid = warp.backward_grid(2 * source[None] + 0.5, 2 * target[None] + 0.5, LARGE, LARGE)
    grid = grid * (2 / (LARGE - 1)) - 1
    expected = F.grid_sample(
        as_levels(large(picture, CROP)), grid, mode="bicubic", padding_mode="border", align_corners=True
    )[0].clamp(0, 255)
    inside = at_512(face_mask(target, SIDE)) > 0.99
    off = np.abs(result - expected.movedim(0, -1).numpy())[inside]
    soft = np.abs(scaled(frame, LARGE) - expected.movedim(0, -1).numpy())[inside]
    assert off.mean() < 0.1 * soft.mean()


def test_a_background_that_stays_keeps_its_detail_though_the_landmarks_flow_bends_it() -> None:
    picture = noise_picture(720, 720)
    source = face((128.0, 140.0), 80.0)
    target = source + torch.tensor([9.0, 4.0])
    head = head_mask(source, target, SIDE)
    frame = still(picture, CROP)
    frame = frame + head * (moved(picture, CROP, source, target) - frame)
    result = Enlarger(LARGE).enlarge(picture, CROP, source, target, frame).astype(int)
    reached = F.max_pool2d(head[None, None], 41, stride=1, padding=20)[0, 0]  # as far as blurs see
    away = at_512(reached) == 0
    assert away.mean() > 0.2
    assert np.abs(result - large(picture, CROP))[away].max() <= 1


def test_no_edge_is_double_where_the_frame_blends_two() -> None:
    """Half the warp, half the picture: what is finer than the frame's pixels comes from one of them."""
    picture = noise_picture(720, 720)
    source = face()
    target = source + torch.tensor([7.0, 0.0])
    frame = 0.8 * moved(picture, CROP, source, target) + 0.2 * still(picture, CROP)
    result = Enlarger(LARGE).enlarge(picture, CROP, source, target, frame).astype(np.float32)
    sharp = Enlarger(LARGE).enlarge(picture, CROP, source, target, moved(picture, CROP, source, target))
    inside = at_512(face_mask(target, SIDE)) > 0.99
    fine, one, other = (
        (each - scaled(rendered(low), LARGE).astype(np.float32))[inside].ravel()
        for each, low in (
            (result, frame.movedim(0, -1).numpy()),
            (sharp.astype(np.float32), moved(picture, CROP, source, target).movedim(0, -1).numpy()),
            (large(picture, CROP).astype(np.float32), CROP.cut(picture)),
        )
    )
    assert np.corrcoef(fine, one)[0, 1] > 0.8
    assert abs(np.corrcoef(fine, other)[0, 1]) < 0.05


def test_inside_of_a_mouth_that_opens_comes_from_the_frame() -> None:
    picture = noise_picture(1024, 1024)
    crop, source = Crop(0, 0, 1024, SIDE), face()
    target = speaking(source, (0.0, 0.0), 14.0)
    frame = moved(picture, crop, source, target)
    mouth = warp.inner_mouth_mask(target[None], SIDE, SIDE, softness_px=0.2)[0, 0] > 0.5
    frame[:, mouth] = torch.tensor([60.0, 20.0, 25.0])[:, None]
    result = Enlarger(LARGE).enlarge(picture, crop, source, target, frame).astype(float)
    x, y = (target[60:68].mean(0) * 2 + 0.5).round().int().tolist()
    assert np.abs(result[y - 4 : y + 5, x - 12 : x + 13] - [60, 20, 25]).max() < 8


@pytest.mark.parametrize("side", [90, 200, 256])
def test_of_a_picture_with_no_more_pixels_the_frame_is_scaled_up(side: int) -> None:
    picture, source = noise_picture(side, side), face()
    crop, frame = Crop(0, 0, side, SIDE), rendered(noise_picture(SIDE, SIDE, 1))
    result = Enlarger(LARGE).enlarge(picture, crop, source, speaking(source), frame)
    assert np.array_equal(result, scaled(frame, LARGE))
    centres = scaled(torch.linspace(10, 200, SIDE).expand(3, SIDE, SIDE), LARGE)[100, :, 0].astype(float)
    expected = np.interp((np.arange(LARGE) + 0.5) / 2 - 0.5, np.arange(SIDE), np.linspace(10, 200, SIDE))
    assert np.abs(centres - expected).max() <= 0.6


def test_what_is_kept_of_a_picture_does_not_leak_into_the_next() -> None:
    """Every frame of a video another picture, another square and other landmarks: as if each had its own."""
    one = Enlarger(LARGE)
    for k in range(3):
        picture, crop = noise_picture(400, 420, k // 2), Crop(10 * k, 20, 300, SIDE)
        source = face((120.0 + 4 * k, 130.0))
        args = (picture, crop, source, speaking(source), still(picture, crop))
        assert np.array_equal(one.enlarge(*args), Enlarger(LARGE).enlarge(*args))


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    picture = noise_picture(720, 720)
    for target, frame in ((face(), torch.zeros(3, 128, 128)), (face()[:5], torch.zeros(3, SIDE, SIDE))):
        with pytest.raises(ValueError, match=r"is \[3, 256, 256\] and its landmarks are \[68, 2\], got"):
            Enlarger(LARGE).enlarge(picture, CROP, face(), target, frame)
