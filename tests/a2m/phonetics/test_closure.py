import pytest
import torch
from torch import Tensor

from a2m.phonetics.closure import BESIDE, BILABIAL, lip_closure, lips_together
from a2m.phonetics.encoder import PhoneticConfig, PhoneticEncoder
from a2m.space import lip_gap
from common.face.model import LIP_STREAM, FaceModel
from common.face.mouth import opening_direction


def loud_is_bilabial() -> PhoneticEncoder:
    """Hears /p b m/ where its log-mel is above zero, and nowhere else."""
    encoder = PhoneticEncoder(PhoneticConfig(width=8, dilations=(), bottleneck=2)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.norm.weight.fill_(1.0)
        encoder.mel_in.weight[0, :, 2:4] = 1.0  # the two columns of a state
        encoder.mel_in.weight[1, :, 2:4] = -1.0
        encoder.to_bottleneck.weight[0, 0] = encoder.to_bottleneck.weight[1, 1] = 1.0
        encoder.features.weight[BILABIAL, 0] = 10.0
    return encoder


def test_lips_meet_where_p_b_or_m_is_heard_whatever_the_length() -> None:
    mel = -torch.ones(1200, 1, 256)
    mel[[3, 498, 499, 500, 1199]] = 1.0
    closure = lip_closure(loud_is_bilabial(), lambda first, last: mel[first:last], len(mel))
    assert closure.shape == (1200,)
    assert torch.nonzero(closure > 0.99)[:, 0].tolist() == [3, 498, 499, 500, 1199]
    beside = torch.nonzero((closure - BESIDE).abs() < 0.01)[:, 0].tolist()
    assert beside == [2, 4, 497, 501, 1198]


@pytest.fixture
def direction() -> Tensor:
    return opening_direction(FaceModel.builtin())


def test_closed_lips_keep_what_is_not_opening(direction: Tensor) -> None:
    wide = torch.zeros(11, 37, 3)
    wide[:, LIP_STREAM.index(48), 0] = -0.05
    closure = torch.linspace(0, 1, 11)
    moved = lips_together(wide + 0.3 * direction, closure, direction)
    torch.testing.assert_close(lip_gap(moved), 0.3 * (1 - closure))
    torch.testing.assert_close(moved[-1], wide[-1])
    assert torch.equal(lips_together(wide, closure, direction), wide)  # closed ones stay
