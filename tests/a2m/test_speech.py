"""Where a recording speaks: no sound, no mouth; and chunks don't show."""

import math

import pytest
import torch
from torch import Tensor

from a2m.speech import analyse, has_sound, levels_db, mel_columns, mouth_gate
from common.audio import frame_level_db, log_mel


def voice(seconds: float, seed: int = 0) -> Tensor:
    """Something like a voice: harmonics of 120 Hz whose loudness comes and goes four times a second."""
    time_s = torch.arange(int(16000 * seconds)) / 16000
    tone = sum(torch.sin(2 * math.pi * 120 * k * time_s + k) / k for k in range(1, 30))
    syllables = 0.55 + 0.45 * torch.sin(2 * math.pi * 4 * time_s)
    noise = 1e-3 * torch.randn(len(time_s), generator=torch.Generator().manual_seed(seed))
    return 0.1 * syllables * torch.as_tensor(tone) + noise


def test_gate_is_shut_a_fifth_of_a_second_after_the_sound_ends_and_open_when_it_starts() -> None:
    sound = torch.zeros(60, dtype=torch.bool)
    sound[20:40] = True
    gate = mouth_gate(sound)
    assert (gate[19:38] > 0.99).all() and gate[39] > 0.8
    assert (gate[44:] == 0).all()  # 44 = 0.16 s after
    assert (gate[:14] == 0).all()
    assert gate.diff().abs().max() < 0.5  # no jump


def test_a_stop_or_a_short_pause_does_not_close_the_gate() -> None:
    sound = torch.ones(80, dtype=torch.bool)
    sound[20:22] = sound[40:49] = False
    assert mouth_gate(sound).min() > 0.99


@pytest.mark.parametrize("noise_db", [-90.0, -60.0, -45.0, -30.0])
def test_white_noise_alone_is_no_speech_however_loud(noise_db: float) -> None:
    noise = 10 ** (noise_db / 20) * torch.randn(16000 * 4, generator=torch.Generator().manual_seed(1))
    assert not analyse(noise).sound.any()


@pytest.mark.parametrize("gain_db", [0.0, -20.0, -35.0])
def test_a_voice_is_found_between_pauses_at_any_usual_level_over_a_noise_floor(gain_db: float) -> None:
    audio = torch.cat([torch.zeros(16000), voice(2.0), torch.zeros(16000)])
    audio = 10 ** (gain_db / 20) * audio + 1e-4 * torch.randn(len(audio), generator=torch.Generator().manual_seed(2))
    sound = has_sound(levels_db(audio))
    assert not sound[:24].any() and not sound[76:].any()
    assert sound[26:74].float().mean() > 0.9


def test_a_short_sound_and_a_long_even_vowel_count() -> None:
    short = voice(0.2)
    assert analyse(short).sound.any()
    time_s = torch.arange(16000 * 3) / 16000
    vowel = 0.1 * torch.as_tensor(sum(torch.sin(2 * math.pi * 150 * k * time_s) / k for k in range(1, 20)))
    assert analyse(vowel).sound.float().mean() > 0.9


def test_the_voice_spectrum_does_not_depend_on_how_long_the_pauses_are() -> None:
    speech = voice(2.0)
    alone = analyse(speech)
    padded = torch.cat([torch.zeros(64000), speech, torch.zeros(128000)])
    among_pauses = analyse(padded)
    level_db = 20 * math.log10(among_pauses.gain / alone.gain)
    difference = alone.mel_mean - among_pauses.mel_mean + level_db / 10
    assert difference.abs().max() < 0.3  # 3 dB, from frames at the seams and near the thresholds


def test_columns_and_levels_of_parts_equal_those_of_the_whole() -> None:
    audio = voice(3.03)
    whole = mel_columns(audio, 0, 76)
    parts = torch.cat([mel_columns(audio, first, min(first + 13, 76)) for first in range(0, 76, 13)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    # The same numbers as the front end's, in units of 10 dB and one row per 10 ms.
    torch.testing.assert_close(whole[5].reshape(2, 128), 5 * log_mel(audio)[5], rtol=0, atol=1e-4)
    torch.testing.assert_close(levels_db(audio), frame_level_db(audio))


@pytest.mark.parametrize("room", [0.0, 0.002])
def test_rare_speech_is_heard_and_the_waiting_is_not(room: float) -> None:
    """Four seconds of a voice after three minutes of nothing, or of a room."""
    waiting = room * torch.randn(180 * 16000, generator=torch.Generator().manual_seed(0))
    sound = analyse(torch.cat([waiting, voice(4.0)])).sound
    assert not sound[: 180 * 25 - 2].any()
    assert sound[180 * 25 + 2 :].float().mean() > 0.9
