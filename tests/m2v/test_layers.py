"""Layers that see as much of the picture as there is, and three planes from a clip of any size."""

import pytest
import torch
from torch import Tensor

from common.triplane import TriPlane
from m2v.layers import PixelNorm, PlanePool, PlaneSpread, Residual, Up, residuals
from tests.m2v.tiny import perturbed

SIZES = [(1, 4, 4), (3, 5, 9), (16, 2, 3)]  # S, h, w


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_pixel_norm_ignores_all_other_pixels() -> None:
    norm, x = perturbed(PixelNorm(6), 0.3), noise(2, 6, 8, 10)
    assert torch.allclose(norm(x)[:, :, 2:5, 3:9], norm(x[:, :, 2:5, 3:9]), atol=1e-6)
    plain = PixelNorm(6)(x * 40 + 3)
    assert torch.allclose(plain.mean(dim=1), torch.zeros(2, 8, 10), atol=1e-5)
    assert torch.allclose(plain.var(dim=1, unbiased=False), torch.ones(2, 8, 10), atol=1e-3)


def test_a_crop_of_the_features_is_the_features_of_the_crop_away_from_the_border() -> None:
    body, x = perturbed(residuals(8, 2), 0.1), noise(1, 8, 20, 24)
    assert torch.allclose(body(x)[:, :, 4:12, 4:16], body(x[:, :, :16, :20])[:, :, 4:12, 4:16], atol=1e-5)
    assert not torch.allclose(body(x)[:, :, :16, 18:20], body(x[:, :, :16, :20])[:, :, :, 18:20], atol=1e-3)


def test_a_residual_block_starts_near_the_identity() -> None:
    block, x = Residual(32), noise(2, 32, 8, 8)
    assert 0 < (block(x) - x).std() < 0.5


def test_up_doubles_rows_and_columns() -> None:
    up, x = Up(6, 4), noise(2, 6, 5, 7)
    assert up(x).shape == (2, 4, 10, 14)
    moved = torch.roll(x, 1, dims=3)
    assert torch.allclose(up(moved)[..., 4:-2], torch.roll(up(x), 2, dims=3)[..., 4:-2], atol=1e-5)


@pytest.mark.parametrize("n_frames, height, width", SIZES)
def test_planes_of_any_clip_keep_the_axes_of_their_names(n_frames: int, height: int, width: int) -> None:
    planes = PlanePool(8, 6, 3)(noise(2, n_frames, 8, height, width))
    assert planes.xy.shape == (2, 3, height, width)
    assert planes.xt.shape == (2, 3, n_frames, width)
    assert planes.yt.shape == (2, 3, n_frames, height)
    assert PlaneSpread(3, 5)(planes).shape == (2, n_frames, 5, height, width)


@pytest.mark.parametrize("n_frames", [5, 7])
def test_the_xy_plane_of_a_still_clip_is_that_of_its_frame(n_frames: int) -> None:
    pool, frame = perturbed(PlanePool(8, 6, 3), 0.3), noise(2, 1, 8, 5, 6)
    once, often = pool(frame), pool(frame.expand(-1, n_frames, -1, -1, -1))
    assert torch.allclose(often.xy, once.xy, atol=1e-5)
    middle = often.xt[:, :, 2:-2]  # away from the padding of the heads' two convolutions
    assert torch.allclose(middle, middle[:, :, :1].expand_as(middle), atol=1e-5)


def test_pooling_does_not_ask_in_which_order_the_lacking_axis_runs() -> None:
    pool, clip = perturbed(PlanePool(8, 6, 3), 0.3), noise(1, 4, 8, 5, 6)
    planes = pool(clip)
    assert torch.allclose(pool(clip.flip(1)).xy, planes.xy, atol=1e-5)
    assert torch.allclose(pool(clip.flip(3)).xt, planes.xt, atol=1e-5)
    assert torch.allclose(pool(clip.flip(4)).yt, planes.yt, atol=1e-5)
    assert not torch.allclose(pool(clip.flip(4)).xy, planes.xy, atol=1e-2)


def test_each_plane_reaches_the_places_that_it_speaks_of() -> None:
    """A change in one frame's rows of xt and yt changes that frame; one place of xy changes it in all frames."""
    spread = perturbed(PlaneSpread(3, 5), 0.1)
    planes = TriPlane(noise(1, 3, 12, 14), noise(1, 3, 16, 14), noise(1, 3, 16, 12))
    before = spread(planes)

    def changed(name: str, row: int) -> Tensor:
        parts = {key: plane.clone() for key, plane in zip(("xy", "xt", "yt"), planes, strict=True)}
        parts[name][:, :, row] += 1
        return (spread(TriPlane(**parts)) - before).abs().amax(dim=(0, 2))  # [S, h, w]

    for name in ("xt", "yt"):
        per_frame = changed(name, 8).amax(dim=(1, 2))
        assert per_frame[8] > 1e-2 and per_frame[:5].max() < 1e-5 and per_frame[12:].max() < 1e-5
    per_row = changed("xy", 6).amax(dim=2)
    assert per_row[:, 6].min() > 1e-2 and per_row[:, :3].max() < 1e-5 and per_row[:, 10:].max() < 1e-5
