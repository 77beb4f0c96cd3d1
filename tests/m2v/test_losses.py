"""Errors of clips: none where there is none, most at the mouth."""

import math

import pytest
import torch
from torch import Tensor

from m2v.losses import LandmarkFeatures, charbonnier, laplacian, mouth_weight, perceptual
from tests.m2v.tiny import clips

MOUTH = torch.tensor([[[20.0, 40.0, 9.0, 4.0], [22.0, 44.0, 9.0, 0.5]]]).expand(2, -1, -1)  # [B, S, 4]
EVEN = torch.ones(2, 1, 2, 64, 64)


def noise(seed: int = 0) -> Tensor:
    return clips(n_frames=2).roll(seed, dims=-1)


def test_equal_clips_have_no_error() -> None:
    weight, zero = mouth_weight(MOUTH, 64, 64), torch.zeros(2, 3, 2, 64, 64)
    assert charbonnier(zero, weight) == pytest.approx(1e-3, rel=1e-3)  # its floor
    assert laplacian(zero, weight) == 0
    assert LandmarkFeatures()(noise(), noise(), weight) == 0


def test_weights_have_mean_1_and_are_largest_in_the_middle_of_the_mouth() -> None:
    weight = mouth_weight(MOUTH, 64, 64)
    assert weight.shape == (2, 1, 2, 64, 64) and weight.min() > 0
    assert torch.allclose(weight.mean(dim=(1, 2, 3, 4)), torch.ones(2))
    for frame in range(2):
        row, column = divmod(int(weight[0, 0, frame].argmax()), 64)
        x, y = MOUTH[0, frame, :2].tolist()
        assert abs(column - x) <= 1 and abs(row - y) <= 1
    assert weight[0, 0, 0, 40, 20] > 5 * weight[0, 0, 0, 0, 63]


@pytest.mark.parametrize("where", [(1e4, 1e4, 9.0, 4.0), (30.0, 30.0, 0.0, 0.0), (-50.0, 10.0, 500.0, 500.0)])
def test_mouths_outside_the_crop_or_without_size_leave_weights_finite(where: tuple[float, ...]) -> None:
    weight = mouth_weight(torch.tensor(where).expand(1, 2, 4), 64, 64)
    assert torch.isfinite(weight).all() and weight.mean() == pytest.approx(1, rel=1e-4)
    if where[0] == 1e4:
        assert torch.allclose(weight, torch.ones_like(weight))


def test_an_error_at_the_mouth_costs_more_than_elsewhere() -> None:
    weight, losses = mouth_weight(MOUTH, 64, 64), []
    for row, column in ((36, 16), (0, 52)):
        error = torch.zeros(2, 3, 2, 64, 64)
        error[..., row : row + 8, column : column + 8] = noise()[..., :8, :8]
        losses.append((charbonnier(error, weight) - 1e-3, laplacian(error, weight)))
    assert losses[0][0] > 3 * losses[1][0] and losses[0][1] > 2 * losses[1][1]


def test_charbonnier_is_the_mean_of_large_errors() -> None:
    assert charbonnier(torch.full((2, 3, 2, 64, 64), -0.3), EVEN) == pytest.approx(math.hypot(0.3, 1e-3), rel=1e-4)
    assert charbonnier(2 * noise(), EVEN) == pytest.approx(2 * float(noise().abs().mean()), rel=1e-2)


def test_bands_do_not_see_an_even_change_of_light() -> None:
    assert laplacian(torch.full((2, 3, 2, 64, 64), 0.4), EVEN) < 1e-6
    assert laplacian(noise() + 0.4, EVEN) == pytest.approx(float(laplacian(noise(), EVEN)), rel=1e-4)
    assert laplacian(noise(), EVEN) == pytest.approx(float(laplacian(-3 * noise(), EVEN)) / 3, rel=1e-4)


def test_each_band_sees_its_own_scale() -> None:
    """A checkerboard of single pixels is all in the first band; one of 4 x 4 is seen by later ones too."""
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32).expand(2, 3, 2, 64, 64)
    coarse = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1).repeat(8, 8)
    coarse = coarse.expand(2, 3, 2, 64, 64)
    assert laplacian(checks, EVEN, n_bands=3) == pytest.approx(float(laplacian(checks, EVEN, n_bands=1)), rel=1e-5)
    assert laplacian(coarse, EVEN, n_bands=3) > 2 * laplacian(coarse, EVEN, n_bands=1)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_gradients_are_finite_even_at_no_error(offset: float) -> None:
    real, weight = noise(), mouth_weight(MOUTH, 64, 64)
    pred = (real + offset).requires_grad_()
    loss = charbonnier(pred - real, weight) + laplacian(pred - real, weight) + LandmarkFeatures()(pred, real, weight)
    loss.backward()
    assert pred.grad is not None and torch.isfinite(pred.grad).all()
    assert bool(pred.grad.any()) == (offset > 0)


def test_features_are_frozen_and_grow_with_the_difference() -> None:
    features = LandmarkFeatures()
    assert not any(p.requires_grad for p in features.parameters())
    change = noise(seed=9) - noise()
    near, far = (features(noise() + part * change, noise(), EVEN) for part in (0.1, 1.0))
    assert 0 < near < far


def test_none_is_no_perceptual_loss_and_ours_needs_no_network() -> None:
    assert perceptual("none") is None
    assert isinstance(perceptual("landmarks"), LandmarkFeatures)
