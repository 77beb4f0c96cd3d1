"""Whole recordings at once are the stream's blocks in one piece."""

import pytest
import torch
from torch import Generator, Tensor

from a2m.model import AToMConfig, AToMNet
from a2m.sampling import sample
from a2m.streaming import Known

TINY = AToMConfig(audio_dim=8, width=16, n_layers=1, n_heads=2, ff_width=16, window=64, overlap=8, n_steps=2)


@pytest.fixture(scope="module")
def net() -> AToMNet:
    torch.manual_seed(0)
    return AToMNet(TINY).eval()


def heard(n_frames: int) -> Tensor:
    return torch.randn(n_frames, 1, 8, generator=Generator().manual_seed(9))


def draw(net: AToMNet, audio: Tensor, *numbers: int, guidance_scale: float = 1.0) -> Tensor:
    generators = [Generator().manual_seed(number) for number in numbers]
    known = Known(torch.zeros(1, net.space.n_values), torch.ones(1, dtype=torch.bool))
    options = {"guidance_scale": guidance_scale, "known": known}
    return sample(net, lambda a, b: audio[a:b], len(audio), torch.zeros(68, 3), generators, **options)  # type: ignore


@pytest.mark.parametrize("n_frames", [1, 60, 64, 503])  # features are asked for 500 frames at a time
def test_offline_equals_streamed(net: AToMNet, n_frames: int) -> None:
    audio = heard(n_frames)
    known = Known(torch.zeros(1, net.space.n_values), torch.ones(1, dtype=torch.bool))
    generators = [Generator().manual_seed(number) for number in (1, 2)]
    parts = net.stream(audio.split(9), torch.zeros(68, 3), generators, guidance_scale=1.0, known=known)
    assert torch.equal(torch.cat(list(parts), dim=1), draw(net, audio, 1, 2))


def test_guidance_of_one_is_the_conditional_model_and_of_zero_hears_nothing(net: AToMNet) -> None:
    audio = heard(30)
    torch.testing.assert_close(draw(net, audio, 1, guidance_scale=1 + 1e-6), draw(net, audio, 1), atol=1e-4, rtol=0)
    assert torch.equal(draw(net, audio, 1, guidance_scale=0.0), draw(net, -audio, 1, guidance_scale=0.0))
    near, far = (draw(net, audio, 1, guidance_scale=g) - draw(net, audio, 1) for g in (1.5, 3.0))
    assert 0 < near.norm() < far.norm()
