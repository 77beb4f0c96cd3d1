"""Rates as people and files write them."""

import pytest

from common.export import rates
from tests.common.export.takes import RATES


@pytest.mark.parametrize("rate", RATES)
def test_a_rate_written_with_two_decimals_or_more_is_the_exact_one(rate: float) -> None:
    for written in (round(rate, 2), round(rate, 3), rate):
        assert rates.exact(written) == rate


@pytest.mark.parametrize("fps", [1.0, 12.5, 23.9, 25.1, 29.9, 240.0, 1000.0])
def test_any_other_rate_stays(fps: float) -> None:
    assert rates.exact(fps) == fps
