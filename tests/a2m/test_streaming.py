"""Motion block after block: how the speech arrives changes nothing, and known frames stay."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from a2m.hearing import live_features, recording_features
from a2m.model import AToMConfig, AToMNet, Condition
from a2m.speech import Voice
from a2m.streaming import FADE_FRAMES, Known, Noise, Schedule, fitted
from common.audio import n_frames
from common.diffusion import ddim, guided, pvdm_timesteps

TINY = AToMConfig(
    audio_dim=8, width=16, n_layers=1, n_heads=2, ff_width=16, window=16, overlap=6, n_steps=3, sees_known=True
)
SCHEDULE = Schedule(3, 10, 3)
REFERENCE = torch.zeros(68, 3)


@cache
def tiny(**changes: object) -> AToMNet:
    torch.manual_seed(0)
    net = AToMNet(replace(TINY, **changes)).eval()  # type: ignore[arg-type]
    if net.known is not None:
        torch.nn.init.normal_(net.known)
    return net


@pytest.fixture(scope="module", params=[True, False], ids=["sees known frames", "does not"])
def net(request: pytest.FixtureRequest) -> AToMNet:
    return tiny(sees_known=request.param)


def heard(n_frames: int) -> Tensor:
    return torch.randn(n_frames, 1, 8, generator=Generator().manual_seed(9))


def seeds(*numbers: int) -> list[Generator]:
    return [Generator().manual_seed(number) for number in numbers]


def blocks(net: AToMNet, chunks: list[Tensor], *numbers: int, **options: object) -> list[Tensor]:
    return list(net.stream(chunks, REFERENCE, seeds(*numbers), **options))  # type: ignore[arg-type]


def draw(net: AToMNet, audio: Tensor, *numbers: int, **options: object) -> Tensor:
    return torch.cat(blocks(net, [audio], *numbers, **options), dim=1)


def some_known(T: int, frames: list[int], seed: int = 2) -> Known:
    is_known = torch.zeros(T, dtype=torch.bool)
    is_known[frames] = True
    return Known(2 * torch.randn(T, 21, generator=Generator().manual_seed(seed)), is_known)


# ---- the schedule


def test_a_models_schedule_keeps_to_its_window_whatever_the_block() -> None:
    assert Schedule.of(TINY) == SCHEDULE
    for block in (1, 5, 10):
        schedule = Schedule.of(TINY, block)
        assert schedule.known + schedule.block + schedule.lookahead <= TINY.window
        assert schedule.known <= TINY.overlap
        assert (schedule.lookahead, schedule.delay) == (3, block + 3)
    for block in (0, 11):
        with pytest.raises(ValueError, match="1 to 10 frames"):
            Schedule.of(TINY, block)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.sampled_from([None, 4]), st.booleans())
def test_chunks_of_any_lengths_give_the_same_to_the_bit(sizes: list[int], block: int | None, sees_known: bool) -> None:
    net, audio = tiny(sees_known=sees_known), heard(sum(sizes))
    made = blocks(net, list(audio.split(sizes)), 1, block=block, n_steps=1)
    if not sum(sizes):
        assert made == []
        return
    assert torch.equal(torch.cat(made, dim=1), draw(net, audio, 1, block=block, n_steps=1))
    assert sum(part.shape[1] for part in made) == len(audio)


def test_a_block_comes_as_soon_as_the_stated_delay_is_heard(net: AToMNet) -> None:
    n_heard, delays = 0, []

    def speaking() -> Iterator[Tensor]:
        nonlocal n_heard
        for frame in heard(60):
            n_heard += 1
            yield frame[None]

    start = 0
    for part in net.stream(speaking(), REFERENCE, seeds(1), n_steps=1):
        delays.append((n_heard - start, part.shape[1]))
        start += part.shape[1]
    delay = SCHEDULE.delay
    assert delays[:-1] == [(delay, SCHEDULE.block)] * ((60 - delay) // SCHEDULE.block + 1)
    assert delays[-1][0] <= delay  # the speech has ended


def test_longer_speech_begins_as_the_shorter(net: AToMNet) -> None:
    audio = heard(77)
    whole = draw(net, audio, 1)
    for T in (13, 14, 30, 43):
        n_settled = (T - SCHEDULE.lookahead) // SCHEDULE.block * SCHEDULE.block  # made with the same lookahead
        assert torch.equal(draw(net, audio[:T], 1)[:, :n_settled], whole[:, :n_settled])


def test_what_is_said_beyond_the_lookahead_moves_nothing(net: AToMNet) -> None:
    audio = heard(40)
    changed = audio.clone()
    changed[SCHEDULE.delay :] += 5
    moved = (draw(net, audio, 1) - draw(net, changed, 1))[0].abs().amax(dim=1)
    assert moved[: SCHEDULE.block].max() == 0 < moved[SCHEDULE.block :].max()


def test_a_short_recording_is_one_window_of_ddim_with_guidance(net: AToMNet) -> None:
    audio = heard(12)
    with torch.no_grad():

        def denoiser(has_audio: bool):  # type: ignore[no-untyped-def]
            is_frame = torch.ones(1, 12, dtype=torch.bool)
            condition = net.condition(audio.flatten(0, 1)[None], REFERENCE[None], is_frame, torch.tensor([has_audio]))
            return lambda x_t, timesteps: net.denoise(x_t, timesteps, condition)

        x_T = Noise.of(seeds(3), 21, 1.0)(0, 0, 12)
        both = guided(denoiser(True), denoiser(False), 2.0)
        direct = ddim(both, x_T, pvdm_timesteps(3, TINY.n_timesteps), net.alpha_bar, "x_0")
    torch.testing.assert_close(draw(net, audio, 3, guidance_scale=2.0), direct)


class Watched(AToMNet):
    """Remembers what it was given."""

    def denoise(self, x_t: Tensor, timesteps: Tensor, condition: Condition, is_known: Tensor | None = None) -> Tensor:
        assert is_known is not None
        self.seen = [*getattr(self, "seen", []), (x_t[:1].clone(), is_known[0].clone())]
        return super().denoise(x_t, timesteps, condition, is_known)


def test_a_block_is_made_with_clean_frames_of_the_one_before_it() -> None:
    net = Watched(TINY).eval()
    made = draw(net, heard(40), 1)
    n_before = SCHEDULE.known
    for k, (x_t, is_known) in enumerate(net.seen):
        j = k // TINY.n_steps
        assert is_known.tolist() == [j > 0 and frame < n_before for frame in range(len(is_known))]
        if j:
            at = j * SCHEDULE.block
            assert torch.equal(x_t[:, :n_before], made[:, at - n_before : at])


# ---- hearing


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=8))
def test_sound_in_chunks_of_any_lengths_is_heard_as_the_whole(sizes: list[int]) -> None:
    audio = 0.1 * torch.randn(max(1, sum(sizes)), generator=Generator().manual_seed(1))
    sizes = sizes if sum(sizes) else [1]
    voice = Voice(torch.ones(3, dtype=torch.bool), 2.0, torch.linspace(-3, -5, 64))
    whole = recording_features(audio, voice, None)(0, n_frames(len(audio)))
    torch.testing.assert_close(torch.cat(list(live_features(audio.split(sizes), voice))), whole, atol=1e-4, rtol=0)


def test_a_frame_is_heard_when_the_next_one_is_complete() -> None:
    voice = Voice(torch.ones(3, dtype=torch.bool), 1.0, torch.zeros(64))
    n_samples, at = 0, []

    def speaking() -> Iterator[Tensor]:
        nonlocal n_samples
        for _ in range(100):
            n_samples += 64
            yield torch.ones(64)

    for part in live_features(speaking(), voice):
        at.append((n_samples, len(part)))
    assert at == [*((640 * (k + 2), 1) for k in range(9)), (6400, 1)]


# ---- noise


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 150), st.integers(0, 9))
def test_noise_belongs_to_the_frame(first: int, n: int, step: int) -> None:
    noise = Noise([5, 2**61], 4, 1.0)
    whole = noise(step, 0, 500)
    assert torch.equal(noise(step, first, first + n), whole[:, first : first + n])


def test_noise_is_standard_normal_and_new_for_every_seed_step_and_frame() -> None:
    noise = Noise([5, 6], 21, 1.0)
    draws = torch.stack([noise(step, 0, 640) for step in range(3)]).flatten(0, 1)  # [6, 640, 21]
    n = draws[0].numel()
    assert draws.mean().abs() < 5 / (6 * n) ** 0.5 and (draws.std() - 1).abs() < 0.02
    rows = draws.flatten(0, 1)
    assert len(rows.unique(dim=0)) == len(rows)
    assert torch.equal(Noise([5, 6], 21, 0.5)(0, 0, 640), draws[:2] / 2)


def test_a_sample_follows_from_its_seed_whatever_is_drawn_with_it(net: AToMNet) -> None:
    audio = heard(40)
    alone, together = draw(net, audio, 5), draw(net, audio, 4, 5)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_cooler_the_more_alike_and_at_zero_the_seed_is_nothing(net: AToMNet) -> None:
    audio = heard(30)
    spread = [float(draw(net, audio, *range(6), temperature=t).std(dim=0).mean()) for t in (0.0, 0.5, 1.0)]
    assert spread[0] < 1e-5 < spread[1] < spread[2]
    with pytest.raises(ValueError, match="temperature"):
        draw(net, audio, 1, temperature=-1.0)


def test_noise_at_every_step_follows_from_the_seed_too() -> None:
    net, audio = tiny(eta=1.0), heard(40)
    assert torch.equal(draw(net, audio, 1), torch.cat(blocks(net, list(audio.split(7)), 1), dim=1))
    assert not torch.allclose(draw(net, audio, 1), draw(tiny(eta=0.0), audio, 1), atol=1e-3)


# ---- known frames


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(1, 45), st.booleans())
def test_known_frames_are_kept_to_the_bit(data: st.DataObject, T: int, sees_known: bool) -> None:
    frames = data.draw(st.lists(st.integers(0, T - 1), unique=True))
    known = some_known(T, frames)
    made = draw(tiny(sees_known=sees_known), heard(T), 1, 2, known=known, n_steps=2)
    assert made.isfinite().all()
    assert torch.equal(made[:, known.is_known], known.values[known.is_known].expand(2, -1, -1))


def test_known_frames_of_each_sample_its_own(net: AToMNet) -> None:
    each = torch.randn(2, 30, 21)
    is_known = torch.arange(30) % 7 == 0
    made = draw(net, heard(30), 1, 2, known=Known(each, is_known))
    assert torch.equal(made[:, is_known], each[:, is_known])
    with pytest.raises(ValueError, match="is_known"):
        Known(each, is_known[:5])


def test_what_is_known_moves_the_frames_around_it_and_none_made_before(net: AToMNet) -> None:
    audio = heard(50)
    plain, held = draw(net, audio, 1), draw(net, audio, 1, known=some_known(50, [25]))
    moved = (plain - held)[0].abs().amax(dim=1)
    assert moved[: 2 * SCHEDULE.block].max() == 0  # the window before ends with frame 22
    assert moved[24] > 0 and moved[26] > 0


def test_nothing_known_and_known_frames_after_the_end_change_nothing(net: AToMNet) -> None:
    audio = heard(20)
    plain = draw(net, audio, 1)
    assert torch.equal(draw(net, audio, 1, known=some_known(20, [])), plain)
    assert torch.equal(draw(net, audio, 1, known=some_known(90, [70, 80])), plain)
    rest = Known(torch.zeros(1, 21), torch.ones(1, dtype=torch.bool))  # the first frame only
    assert draw(net, audio, 1, known=rest)[0, 0].abs().max() == 0


@settings(deadline=None)
@given(st.data(), st.integers(1, 40))
def test_a_prediction_is_bent_to_known_frames_and_to_no_others(data: st.DataObject, n: int) -> None:
    is_known = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    generator = Generator().manual_seed(n)
    x_0_pred, x_0 = torch.randn(2, 1, n, 3, generator=generator)
    bent = fitted(x_0_pred, x_0, is_known)
    torch.testing.assert_close(bent[:, is_known], x_0[:, is_known])
    frame = torch.arange(n)
    distance = torch.where(is_known, (frame[:, None] - frame).abs(), n + FADE_FRAMES).amin(dim=1)
    is_far = distance >= FADE_FRAMES
    torch.testing.assert_close(bent[:, is_far], x_0_pred[:, is_far])
    if is_known.any():  # between, no more than the largest error on either side
        assert (bent - x_0_pred).abs().max() <= (x_0 - x_0_pred)[:, is_known].abs().max() + 1e-5


def test_a_constant_error_between_near_known_frames_is_removed_whole() -> None:
    is_known = torch.tensor([True, False, False, True])
    bent = fitted(torch.zeros(1, 4, 1), torch.ones(1, 4, 1), is_known)
    torch.testing.assert_close(bent, torch.ones(1, 4, 1))
