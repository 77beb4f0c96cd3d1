"""What happens to columns on their way to the encoder: bounded, repeatable, and what it says it is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from a2m.phonetics.augmentation import add_power, disturb, echo, mask, other_throat
from common.audio import N_MELS, mel_filters


def speech(n: int = 60, seed: int = 0) -> Tensor:
    return torch.randn(3, n, N_MELS, generator=Generator().manual_seed(seed))


def factor(value: float) -> Tensor:
    return torch.full((3, 1, 1), value)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 50), level=st.floats(-6, 4))
def test_disturbed_columns_are_finite_and_follow_from_the_generator(seed: int, n: int, level: float) -> None:
    x = torch.full((2, n, N_MELS), level)
    first, again = (mask(disturb(x, g), g) for g in (Generator().manual_seed(seed), Generator().manual_seed(seed)))
    assert first.shape == x.shape and first.isfinite().all()
    assert torch.equal(first, again)


def test_a_throat_of_the_same_length_changes_nothing() -> None:
    torch.testing.assert_close(other_throat(speech(), factor(1.0)), speech(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("ratio", [0.8, 1.25])
def test_a_formant_moves_by_the_factor(ratio: float) -> None:
    centre_hz = mel_filters().argmax(dim=1) * 16_000 / 512  # to a bin of 31 Hz
    for band in (12, 25, 40):
        x = torch.zeros(3, 1, N_MELS)
        x[:, :, band - 1 : band + 2] = torch.tensor([1.0, 2.0, 1.0])
        moved = int(other_throat(x, factor(ratio))[0, 0].argmax())
        assert float(centre_hz[moved]) == pytest.approx(ratio * float(centre_hz[band]), rel=0.06)


def test_an_echo_is_the_sum_of_decaying_copies() -> None:
    x = speech(30)
    slow = torch.stack([x[:, t].mul(math.log(10)).exp() for t in range(30)], dim=1)
    power = slow.clone()
    for t in range(30):
        for lag in range(1, t + 1):
            power[:, t] += 10 ** (-0.8 - 6 * lag / (100 * 0.3)) * slow[:, t - lag]
    expected = power.log10()
    torch.testing.assert_close(echo(x, factor(0.3), factor(0.8)), expected, atol=1e-4, rtol=1e-4)


def test_two_equal_sounds_are_three_decibels_louder() -> None:
    torch.testing.assert_close(add_power(speech(), speech()), speech() + math.log10(2), atol=1e-5, rtol=0)


def test_a_mask_hides_a_part_and_leaves_the_rest_as_it_was() -> None:
    x = 5 + speech(400)
    masked = mask(x, Generator().manual_seed(1))
    hidden = masked == 0
    assert torch.equal(masked[~hidden], x[~hidden])
    assert hidden.any() and hidden.float().mean() < 0.75  # 2 of 12 bands, those above the cut, 32 of 400 columns
