"""The eyelids' geometry."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.face.lids import aperture, open_lids
from common.face.model import LIDS, FaceModel, mirror

MEAN = FaceModel.builtin().mean


def test_apertures_are_free_of_units_and_of_position_and_swap_in_a_mirror() -> None:
    eyes = open_lids(MEAN, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(aperture(3 * eyes + 0.5), aperture(eyes))
    torch.testing.assert_close(aperture(mirror(eyes)), aperture(eyes).flip(-1))


@given(left=st.floats(0, 1.5), right=st.floats(0, 1.5))
@settings(deadline=None)
def test_lids_open_by_the_share_that_is_asked_for_and_nothing_else_moves(left: float, right: float) -> None:
    share = torch.tensor([left, right])
    moved = open_lids(MEAN.expand(2, -1, -1), share.expand(2, -1))
    torch.testing.assert_close(aperture(moved), (share * aperture(MEAN)).expand(2, -1), rtol=1e-4, atol=1e-5)
    others = [k for k in range(68) if k not in LIDS]
    assert torch.equal(moved[0, others], MEAN[others])


def test_a_share_of_one_changes_nothing() -> None:
    assert torch.equal(open_lids(MEAN, torch.ones(2)), MEAN)
