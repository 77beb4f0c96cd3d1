import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.face import warp
from common.face.framing import Crop
from common.face.model import FaceModel
from m2v import compose
from m2v.masks import face_mask, head_mask
from m2v.paste import Paster

SIDE = 256


def face(centre: tuple[float, float] = (128.0, 135.0), height_px: float = 105.0) -> Tensor:
    """Landmarks [68, 2] of the mean face in pixels of a crop, as large as framing makes it."""
    points = FaceModel.builtin().mean[:, :2] * torch.tensor([1.0, -1.0])
    points = points - (points.amax(0) + points.amin(0)) / 2
    return points * (height_px / (points[:, 1].max() - points[:, 1].min())) + torch.tensor(centre)


def speaking(source: Tensor, shift: tuple[float, float] = (6.0, -3.0), opening_px: float = 8.0) -> Tensor:
    """The head shifted, the lower lip and the chin lower."""
    target = source + torch.tensor(shift)
    target[[*range(6, 11), *range(55, 60), *range(65, 68)], 1] += opening_px
    return target


def noise_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_picture(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = [120 + 60 * np.sin(x / 37 + y / 61), 110 + 50 * np.cos(x / 53), 100 + 40 * np.sin(y / 43)]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


def still(picture: np.ndarray, crop: Crop) -> Tensor:
    """The renderer's frame of somebody who does not move."""
    return rendered(crop.cut(picture).astype(np.float32))


def rendered(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frame.astype(np.float32).transpose(2, 0, 1)))


crops = st.builds(
    lambda side, left, right, up, down: (Crop(left, up, side, SIDE), side + left + right, side + up + down),
    st.integers(60, 420),
    *[st.sampled_from([0, 1, 37])] * 4,
)


@settings(max_examples=15, deadline=None)
@given(crops, st.floats(-25, 25), st.floats(-25, 25), st.integers(0, 100))
def test_outside_the_mask_no_bit_changes(where: tuple[Crop, int, int], dx: float, dy: float, seed: int) -> None:
    crop, width, height = where
    picture = noise_picture(width, height, seed)
    frame = rendered(np.random.default_rng(seed + 1).uniform(0, 255, (SIDE, SIDE, 3)))
    source = face()
    target = speaking(source, (dx, dy))
    paster = Paster(crop, width, height)
    result = paster.paste(picture, source, target, frame)
    mask = paster.mask(source, target)
    assert mask.shape == (height, width)
    assert (mask > 0).any() and (result != picture).any()
    assert np.array_equal(result[mask == 0], picture[mask == 0])


@settings(max_examples=15, deadline=None)
@given(crops, st.floats(-60, 60), st.floats(-60, 60))
def test_mask_is_zero_on_every_border_of_the_crop_behind_which_the_picture_goes_on(
    where: tuple[Crop, int, int], dx: float, dy: float
) -> None:
    crop, width, height = where
    source = face()
    mask = Paster(crop, width, height).mask(source, source + torch.tensor([dx, dy]))
    x1, y1 = crop.x0 + crop.side, crop.y0 + crop.side
    inside = np.zeros_like(mask, dtype=bool)
    inside[crop.y0 : y1, crop.x0 : x1] = True
    assert mask[~inside].sum() == 0
    edges = [(mask[:, crop.x0], crop.x0 > 0), (mask[:, x1 - 1], x1 < width)]
    edges += [(mask[crop.y0], crop.y0 > 0), (mask[y1 - 1], y1 < height)]
    assert all(edge.max() == 0 for edge, goes_on in edges if goes_on)


@settings(max_examples=15, deadline=None)
@given(crops, st.integers(0, 100))
def test_nothing_new_leaves_the_picture_as_it_is(where: tuple[Crop, int, int], seed: int) -> None:
    crop, width, height = where
    picture = noise_picture(width, height, seed)
    source = face((100.0, 160.0))
    assert np.array_equal(Paster(crop, width, height).paste(picture, source, source, still(picture, crop)), picture)


def test_open_mouth_that_stays_as_it_is_keeps_its_detail() -> None:
    picture, crop = noise_picture(600, 600), Crop(20, 40, 500, SIDE)
    source = speaking(face())  # open in the picture
    moved = Paster(crop, 600, 600).paste(picture, source, source, still(picture, crop))
    assert np.array_equal(moved, picture)


def test_mask_follows_the_head_and_holds_its_old_and_new_place() -> None:
    source = face()
    target = source + torch.tensor([20.0, 0.0])
    mask = head_mask(source, target, SIDE)
    for points in (source, target):
        columns, rows = points.round().long().T
        assert float(mask[rows, columns].min()) == 1
    columns = torch.arange(SIDE)
    before, after = (
        float((head_mask(at, at, SIDE).sum(0) * columns).sum() / head_mask(at, at, SIDE).sum())
        for at in (source, target)
    )
    assert after - before == pytest.approx(20, abs=1)
    # Steps between neighbours are those of a feather, not of an edge.
    assert float(mask.diff(dim=0).abs().max()) < 0.1 and float(mask.diff(dim=1).abs().max()) < 0.1
    assert bool((face_mask(target, SIDE) <= mask + 1e-6).all())


def test_mask_turns_with_a_tilted_head() -> None:
    source = face((128.0, 128.0), 60.0)
    turned = (source - 128).flip(1) * torch.tensor([-1.0, 1.0]) + 128  # (x, y) -> (-y, x)
    expected = torch.rot90(head_mask(source, source, SIDE), -1, (0, 1))
    # The rotation is about 128, that of the array about 127.5.
    assert float((head_mask(turned, turned, SIDE)[:, 1:] - expected[:, :-1]).abs().max()) < 0.1


@pytest.mark.parametrize("side", [190, 256, 701])
def test_colour_cast_of_the_frame_does_not_reach_the_picture(side: int) -> None:
    width, height = side + 51, side + 90
    picture, crop = smooth_picture(width, height), Crop(17, 33, side, SIDE)
    source, frame = face(), still(picture, crop)
    tinted = frame + torch.tensor([14.0, -9.0, 5.0])[:, None, None]
    result = Paster(crop, width, height).paste(picture, source, source, tinted)
    assert np.abs(result.astype(int) - picture).max() <= 1  # rounding


def test_cast_that_varies_across_the_frame_leaves_no_rim() -> None:
    picture, crop = smooth_picture(700, 700), Crop(50, 50, 600, SIDE)
    source, frame = face(), still(picture, crop)
    slope = torch.linspace(-20, 20, SIDE)[:, None] + torch.linspace(0, 10, SIDE)
    lit = frame + slope
    result = Paster(crop, 700, 700).paste(picture, source, source, lit).astype(np.float64)
    added = result - picture
    # The cast is up to 25 levels; what is left of it, and its steps, are those of shading.
    assert np.abs(added).max() < 8
    assert max(np.abs(np.diff(added, axis=0)).max(), np.abs(np.diff(added, axis=1)).max()) <= 2


def test_change_within_the_face_arrives() -> None:
    """A frame that is darker in one cheek makes the picture darker there, by as much, and nowhere else."""
    picture, crop = smooth_picture(900, 900), Crop(60, 60, 768, SIDE)
    source, frame = face(), still(picture, crop)
    cheek = ((source[3] + source[31]) / 2).tolist()
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    spot = 40 * torch.exp(-((x - cheek[0]) ** 2 + (y - cheek[1]) ** 2) / (2 * 14.0**2))
    result = Paster(crop, 900, 900).paste(picture, source, source, frame - spot)
    added = result.astype(np.float64).mean(-1) - picture.mean(-1)
    row, column = (60 + round(cheek[k] * 3 + 1) for k in (1, 0))
    assert -40 < added[row, column] < -28  # light and shade are taken over smoothed
    far = np.hypot(*(np.mgrid[0:900, 0:900] - np.array([row, column])[:, None, None])) > 14 * 3 * 4
    assert np.abs(added[far]).max() <= 2


def test_inside_of_a_mouth_that_opens_comes_from_the_frame() -> None:
    crop = Crop(0, 0, 1024, SIDE)
    picture = noise_picture(1024, 1024)
    source = face()
    target = speaking(source, (0.0, 0.0), 14.0)
    frame = crop.cut(picture).astype(np.float32)
    mouth = warp.inner_mouth_mask(target[None], SIDE, SIDE, softness_px=0.2)[0, 0].numpy() > 0.5
    frame[mouth] = (60, 20, 25)
    result = Paster(crop, 1024, 1024).paste(picture, source, target, rendered(frame)).astype(np.float64)
    middle = (target[60:68].mean(0) * 4 + 1.5).round().int().tolist()
    inside = result[middle[1] - 6 : middle[1] + 7, middle[0] - 24 : middle[0] + 25]
    assert inside.std(axis=(0, 1)).max() < 6  # the picture's is 74
    hue = inside.mean(axis=(0, 1))
    assert hue[0] - hue[1] == pytest.approx(40, abs=6)


def test_fine_detail_of_the_picture_survives_where_scaling_the_frame_up_loses_it() -> None:
    picture, crop = smooth_picture(1100, 1100), Crop(30, 20, 1024, SIDE)
    source = face()
    target = source + torch.tensor([3.3, -2.1])
    row, column = (int(v) for v in (((source[3] + source[31]) / 2) * 4 + torch.tensor([30.0, 20.0])).round().flip(0))
    y, x = np.mgrid[0:64, 0:64]
    checker = np.where((x // 2 + y // 2) % 2, 60, -60)
    picture[row - 32 : row + 32, column - 32 : column + 32] = (130 + checker)[..., None]
    blank = picture.copy()
    blank[row - 32 : row + 32, column - 32 : column + 32] = 130
    frame = still(blank, crop)  # checkers finer than its pixels are even grey to the renderer
    result = Paster(crop, 1100, 1100).paste(picture, source, target, frame)
    r, c = row - round(2.1 * 4), column + round(3.3 * 4)  # where the cheek went
    assert result[r - 16 : r + 16, c - 16 : c + 16].astype(np.float64).std() > 40  # of the checker's own 60


def test_nothing_tears_where_the_crop_touches_the_picture() -> None:
    picture = smooth_picture(500, 500)
    steps = max(int(np.abs(np.diff(picture.astype(int), axis=axis)).max()) for axis in (0, 1))
    for x0, y0 in ((0, 0), (100, 100), (0, 100)):
        crop = Crop(x0, y0, 400, SIDE)
        source = face((60.0, 70.0) if y0 == 0 else (190.0, 200.0))  # in the corner
        target = speaking(source, (14.0, 9.0), 4.0)
        small = torch.from_numpy(crop.cut(picture).copy()).movedim(-1, 0)[None].float()
        frame = warp.apply(small, warp.backward_grid(source[None], target[None], SIDE, SIDE))[0]
        result = Paster(crop, 500, 500).paste(picture, source, target, frame)
        for axis in (0, 1):
            assert np.abs(np.diff(result.astype(int), axis=axis)).max() <= 2.5 * steps + 1  # stretched, never cut


def test_black_and_white_stays_black_and_white() -> None:
    grey = np.repeat(smooth_picture(600, 600)[..., :1], 3, axis=2)
    crop = Crop(20, 30, 540, SIDE)
    source = face()
    target = speaking(source)
    frame = still(grey, crop)
    lips = torch.tensor([40.0, -10.0, -10.0])[:, None, None] * face_mask(target, SIDE)
    result = Paster(crop, 600, 600).paste(grey, source, target, frame + lips).astype(int)
    assert np.ptp(result, axis=2).max() <= 1
    coloured = Paster(crop, 600, 600).paste(smooth_picture(600, 600), source, target, frame + lips)
    assert np.ptp(coloured.astype(int), axis=2).max() > 30


def test_crop_that_follows_gives_the_same_as_a_picture_that_stays() -> None:
    """Picture and crop shifted by whole pixels: the result is shifted with them."""
    big = noise_picture(800, 760)
    frame = rendered(np.random.default_rng(5).uniform(0, 255, (SIDE, SIDE, 3)))
    source = face()
    target = speaking(source)
    one = Paster(Crop(100, 90, 480, SIDE), 700, 700).paste(big[:700, :700].copy(), source, target, frame)
    other = Paster(Crop(60, 40, 480, SIDE), 700, 700).paste(big[50:750, 40:740].copy(), source, target, frame)
    assert np.array_equal(one[90:570, 100:580], other[40:520, 60:540])


def test_what_is_kept_of_a_picture_does_not_leak_into_the_next() -> None:
    """Every frame of a video another picture and other landmarks: as if each had a Paster of its own."""
    crop = Crop(10, 20, 300, SIDE)
    paster = Paster(crop, 340, 350)
    for seed in range(3):
        picture = noise_picture(340, 350, seed)
        source = face((120.0 + 4 * seed, 130.0))
        for target in (speaking(source), speaking(source, (-4.0, 2.0))):
            frame = still(picture, crop)
            before = picture.copy()
            result = paster.paste(picture, source, target, frame)
            assert np.array_equal(result, Paster(crop, 340, 350).paste(picture, source, target, frame))
            assert np.array_equal(picture, before)


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, crop, source = noise_picture(500, 500), Crop(0, 0, 500, SIDE), face()
    target = speaking(source)
    frame = still(picture, crop)
    whole = []
    for rows in (37, 1000):
        monkeypatch.setattr(compose, "STRIP", rows)
        whole.append(Paster(crop, 500, 500).paste(picture, source, target, frame).astype(int))
    assert np.abs(whole[0] - whole[1]).max() <= 1  # the last bit of float sums in another order


def test_head_outside_the_crop_changes_nothing() -> None:
    picture, crop = noise_picture(900, 900), Crop(300, 300, 256, SIDE)
    away = face() + 2000
    result = Paster(crop, 900, 900).paste(picture, away, away + 3, still(picture, crop))
    assert np.array_equal(result, picture)


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="does not lie in a picture of 300x200"):
        Paster(Crop(0, 0, 256, SIDE), 300, 200)
    crop = Crop(10, 10, 200, SIDE)
    paster, source = Paster(crop, 300, 240), face()
    picture = noise_picture(300, 240)
    frame = still(picture, crop)
    with pytest.raises(ValueError, match=r"uint8 \[240, 300, 3\] here"):
        paster.paste(noise_picture(240, 300), source, source, frame)
    with pytest.raises(ValueError, match=r"landmarks \[68, 2\]"):
        paster.paste(picture, source[:5], source, frame)
    with pytest.raises(ValueError, match="not finite"):
        paster.paste(picture, source, torch.full((68, 2), torch.nan), frame)
    with pytest.raises(ValueError, match=r"\[3, 256, 256\], got \[3, 128, 128\]"):
        paster.paste(picture, source, source, torch.zeros(3, 128, 128))
    line = torch.linspace(0, 200, 68)[:, None].expand(-1, 2)
    with pytest.raises(ValueError, match="in one line"):
        paster.paste(picture, line, line, frame)
