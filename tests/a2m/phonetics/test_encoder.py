"""The phonetic encoder: what a state hears, what it doesn't, and how weights come and go."""

import json
from pathlib import Path

import pytest
import torch
from torch import Generator

from a2m.phonetics.encoder import PhoneticConfig, PhoneticEncoder
from a2m.phonetics.inventory import FEATURES, PHONES
from common.errors import InputError

TINY = PhoneticConfig(width=16, dilations=(1, 2, 1), bottleneck=8)


def encoder(config: PhoneticConfig = TINY, seed: int = 0) -> PhoneticEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PhoneticEncoder(config).eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


def test_two_columns_make_a_state() -> None:
    said = encoder()(noise(2, 24, 64))
    assert said.bottleneck.shape == (2, 12, 8)
    assert said.phone_logits.shape == (2, 12, len(PHONES)) and said.feature_logits.shape == (2, 12, len(FEATURES))


def test_the_bottleneck_has_the_same_scale_whatever_is_heard() -> None:
    for loudness in (0.1, 1.0, 6.0):
        bottleneck = encoder()(loudness * noise(1, 40, 64)).bottleneck
        torch.testing.assert_close(bottleneck.mean(dim=-1), torch.zeros(1, 20), atol=1e-5, rtol=0)
        torch.testing.assert_close(bottleneck.var(dim=-1, correction=0), torch.ones(1, 20), atol=1e-2, rtol=0)


def test_a_state_hears_as_far_as_its_reach_and_no_further() -> None:
    net, mel = encoder(), noise(1, 80, 64)
    for column in (0, 31, 40, 79):
        other = mel.clone()
        other[0, column] += 5
        changed = (net(other).bottleneck - net(mel).bottleneck).abs().amax(dim=-1)[0] > 1e-6
        first, last = changed.nonzero().min().item(), changed.nonzero().max().item()
        assert column // 2 - net.config.reach <= first <= column // 2 <= last <= column // 2 + net.config.reach


def test_a_state_lies_midway_between_its_two_columns() -> None:
    """Columns played backwards give states played backwards, if the kernels are turned round."""
    net, mel = encoder(), noise(1, 40, 64)
    backwards = encoder()
    for name, parameter in backwards.named_parameters():
        if name.endswith("weight") and parameter.ndim == 3:
            parameter.data = parameter.data.flip(2)
    torch.testing.assert_close(backwards(mel.flip(1)).bottleneck.flip(1), net(mel).bottleneck, atol=1e-4, rtol=1e-4)


def test_the_default_is_small_and_hears_under_half_a_second_each_way() -> None:
    with torch.device("meta"):
        net = PhoneticEncoder(PhoneticConfig())
    assert sum(parameter.numel() for parameter in net.parameters()) <= 1.2e6
    assert 0.3 <= 0.02 * net.config.reach <= 0.5


def test_saved_weights_come_back_as_they_were_but_for_their_rounding(tmp_path: Path) -> None:
    net = encoder()
    net.save(tmp_path)
    again = PhoneticEncoder.from_pretrained(tmp_path)
    assert again.config == net.config and not again.training
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.bfloat16().float())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"phonetics": None}, "no phonetic encoder"),
        ({"phonetics": {"width": 16, "dilations": [1, 2, 1], "depth": 3}}, "depth"),
        ({"phonetics": {"width": 8, "dilations": [1, 2, 1], "bottleneck": 8}}, "has the shape"),
        ({"phones": ["sil", "click"]}, "other phones"),
    ],
)
def test_weights_of_another_kind_are_refused_in_a_sentence(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    encoder().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=words):
        PhoneticEncoder.from_pretrained(tmp_path)
