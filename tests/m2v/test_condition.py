"""What both networks are told of a clip: nothing of the mouth's inside, and the same of a part as of the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2v.condition import build, dark_of
from m2v.data import DataConfig, flipped
from tests.m2v.tiny import conditions, face, picture, talking

SIZES = (("reference", 1), ("warped", 1), ("inner", 1), ("visible", 2), ("maps", 2), ("flow", 4), ("region", 8))
BIG_PX = 128  # where an opened mouth has an inside that is some pixels wide


@pytest.mark.parametrize("opened", [0.0, 0.25])
def test_landmarks_as_in_the_picture_give_the_picture_but_the_mouths_inside(opened: float) -> None:
    points, shown = face(BIG_PX, opened), picture(BIG_PX)
    given = build(shown, points, points.expand(2, -1, -1))
    assert torch.allclose(given.warped, shown + given.inner * (dark_of(shown, points) - shown), atol=5e-3)
    assert torch.equal(given.warped[0], given.warped[1]) and torch.equal(given.reference, shown)
    assert given.visible.min() > 0.99


def test_what_the_reference_shows_within_its_lips_reaches_no_frame() -> None:
    wide = face(BIG_PX, 0.3)
    column, row = wide[[62, 66]].mean(dim=0).round().int().tolist()
    plain = picture(BIG_PX)
    spotted = plain.clone()
    spotted[:, row - 1 : row + 2, column - 1 : column + 2] = 1.0  # in the middle of the open mouth
    for targets in (wide[None], wide[None] + 3):
        one, other = build(plain, wide, targets), build(spotted, wide, targets)
        assert one.inner.max() > 0.999
        assert torch.allclose(one.warped, other.warped, atol=0.02)
    lips = plain[:, row - 40 : row + 40, column - 20 : column + 20].amax(dim=(1, 2))
    assert (one.warped[0, :, row + 3, column + 3] < lips).all()
    shut = build(plain, wide, face(BIG_PX)[None])
    assert shut.inner.mean() < 0.1 * one.inner.mean()


@settings(max_examples=10, deadline=None)
@given(top=st.integers(0, 8), left=st.integers(0, 8), side=st.integers(1, 8))
def test_a_window_has_what_the_whole_picture_has_there(top: int, left: int, side: int) -> None:
    top, left, side = 8 * top, 8 * left, 8 * side
    shown, targets = picture(BIG_PX), talking(3, BIG_PX)
    whole, part = build(shown, face(BIG_PX), targets), build(shown, face(BIG_PX), targets, (top, left, side))
    for name, zoom in SIZES:
        rows, columns = (slice(low // zoom, (low + side) // zoom) for low in (top, left))
        cut = getattr(whole, name)[..., rows, columns]
        assert getattr(part, name).shape == cut.shape
        error = (getattr(part, name) - cut).abs()
        assert error.max() < (0.3 if name == "maps" else 1e-5), name  # lines are cut to a quarter of a pixel
        assert error.mean() < (0.01 if name == "maps" else 1e-6), name


def test_masks_and_maps_of_half_the_size_when_half_the_size_will_do() -> None:
    given = build(picture()[:, :48], face(), talking(5))
    shapes = {name: tuple(value.shape) for name, value in vars(given).items()}
    assert shapes == {
        "reference": (3, 48, 64),
        "warped": (5, 3, 48, 64),
        "inner": (5, 1, 48, 64),
        "visible": (5, 1, 24, 32),
        "maps": (5, 3, 24, 32),
        "flow": (5, 2, 12, 16),
        "region": (5, 1, 6, 8),
    }
    for name in ("inner", "visible", "maps", "region"):
        assert getattr(given, name).min() >= 0 and getattr(given, name).max() <= 1


def test_the_drawing_lies_where_the_landmarks_lie() -> None:
    targets = talking(2, BIG_PX)
    maps = build(picture(BIG_PX), face(BIG_PX), targets).maps
    for k, points in enumerate(targets):
        rows, columns = torch.nonzero(maps[k, 2] > 0.3, as_tuple=True)  # the lips
        low, high = points[48:68].amin(dim=0), points[48:68].amax(dim=0)
        drawn = torch.stack([columns, rows], dim=1) * 2 + 0.5  # centres of pairs of pixels
        assert torch.allclose(drawn.amin(dim=0), low, atol=2.1) and torch.allclose(drawn.amax(dim=0), high, atol=2.1)


def test_a_mirrored_clip_has_mirrored_conditions() -> None:
    shown, targets, config = picture(BIG_PX), talking(3, BIG_PX), DataConfig(size_px=BIG_PX)
    straight = build(shown, face(BIG_PX), targets)
    mirrored = build(shown.flip(-1), flipped(face(BIG_PX), config), flipped(targets, config))
    assert torch.equal(mirrored.reference.flip(-1), straight.reference)
    assert torch.allclose(mirrored.inner.flip(-1), straight.inner, atol=1e-3)
    assert torch.allclose(mirrored.warped.flip(-1), straight.warped, atol=2e-3)
    assert torch.allclose(mirrored.flow.flip(-1), straight.flow * torch.tensor([-1.0, 1.0]).view(2, 1, 1), atol=1e-3)
    assert torch.allclose(mirrored.region.flip(-1), straight.region, atol=1e-4)
    assert (mirrored.visible.flip(-1) - straight.visible).abs().mean() < 0.01
    assert (mirrored.maps.flip(-1) - straight.maps).abs().mean() < 0.35 * straight.maps.mean()  # a quarter of a pixel


def test_batches_can_be_taken_apart() -> None:
    three = conditions(n_clips=3, n_frames=2)
    for name, value in vars(three[1:2]).items():
        assert torch.equal(value, getattr(three, name)[1:2])
    assert three.to(torch.device("cpu"), torch.bfloat16).maps.dtype == torch.bfloat16
    one = build(picture(), face(), talking(2))
    assert all(value.shape == (1, *getattr(one, name).shape) for name, value in vars(one.batched()).items())
