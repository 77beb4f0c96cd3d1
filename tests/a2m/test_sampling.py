"""Windows of long speech, and samples that depend on their seed alone."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from a2m.model import AToMConfig, AToMNet
from a2m.sampling import Windows, encode, sample
from common.diffusion import ddim, noise_from, pvdm_timesteps

TINY = AToMConfig(audio_dim=8, width=16, n_layers=1, n_heads=2, ff_width=16, n_encoder_layers=1, window=16, overlap=4)
N_STEPS = 4


@pytest.fixture(scope="module")
def net() -> AToMNet:
    torch.manual_seed(0)
    return AToMNet(TINY).eval()


def seeds(*numbers: int) -> list[Generator]:
    return [Generator().manual_seed(number) for number in numbers]


def heard(n_frames: int) -> Tensor:
    return torch.randn(n_frames, 1, 8, generator=Generator().manual_seed(9))


def draw(net: AToMNet, audio: Tensor, *numbers: int, guidance_scale: float = 1.0) -> Tensor:
    reference = torch.zeros(68, 3)
    return sample(net, lambda a, b: audio[a:b], len(audio), reference, seeds(*numbers), N_STEPS, guidance_scale)


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(2, 64), st.data())
def test_windows_cover_every_frame_and_their_weights_add_up_to_one(T: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, max(1, window // 2)))
    windows = Windows.over(T, window, overlap)
    torch.testing.assert_close(windows.join(torch.ones(len(windows.spans), window)), torch.ones(T))
    assert all(last - first == min(window, T) for first, last in windows.spans)
    step = window - overlap
    assert [first for first, _ in windows.spans[:-1]] == [k * step for k in range(len(windows.spans) - 1)]
    frames = torch.randn(T, 3)
    torch.testing.assert_close(windows.join(windows.cut(frames)), frames)


def test_a_recording_of_one_window_is_sampled_directly(net: AToMNet) -> None:
    audio = heard(11)
    windows = Windows.over(11, 16, 4)
    with torch.no_grad():
        condition = encode(net, lambda a, b: audio[a:b], windows, torch.zeros(68, 3), has_audio=True)
        noise = noise_from(seeds(3))
        x_T = noise(torch.zeros(1, 11, net.space.n_values))

        def denoiser(x_t: Tensor, timesteps: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(x_t, (0, 0, 0, 5))
            return net.denoise(padded, timesteps, condition)[:, :11]

        steps = pvdm_timesteps(N_STEPS, TINY.n_timesteps)
        direct = ddim(denoiser, x_T, steps, net.alpha_bar, "x_0", eta=TINY.eta, noise=noise)
    torch.testing.assert_close(draw(net, audio, 3), direct)


def test_a_sample_follows_from_its_seed_whatever_is_drawn_with_it(net: AToMNet) -> None:
    audio = heard(40)
    alone, together = draw(net, audio, 5), draw(net, audio, 4, 5)
    assert torch.equal(draw(net, audio, 5), alone)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
    assert not torch.equal(together[0], together[1])


def test_sound_outside_a_frames_windows_reaches_it_only_through_shared_frames(net: AToMNet) -> None:
    audio = heard(64)
    changed = audio.clone()
    changed[60:] += 5
    moved = (draw(net, audio, 1) - draw(net, changed, 1))[0].abs().amax(dim=1)
    assert moved[52:].max() > 1e-3
    assert moved[:12].max() == 0  # four steps carry it three windows back at most


def test_guidance_of_one_is_the_conditional_model_and_of_zero_hears_nothing(net: AToMNet) -> None:
    audio = heard(30)
    torch.testing.assert_close(draw(net, audio, 1, guidance_scale=1 + 1e-6), draw(net, audio, 1), atol=1e-4, rtol=0)
    assert torch.equal(draw(net, audio, 1, guidance_scale=0.0), draw(net, -audio, 1, guidance_scale=0.0))
    near, far = (draw(net, audio, 1, guidance_scale=g) - draw(net, audio, 1) for g in (1.5, 3.0))
    assert 0 < near.norm() < far.norm()


def test_windows_that_can_not_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        Windows.over(10, 8, 8)
    with pytest.raises(ValueError, match="overlap"):
        replace(TINY, overlap=12)
    assert math.isfinite(float(Windows.over(1, 8, 2).weights.sum()))
