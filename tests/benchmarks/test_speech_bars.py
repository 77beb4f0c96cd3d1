"""The measures of stage one's bars: what must pass them passes, what must not does not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from a2m.phonetics.inventory import PHONES
from a2m.phonetics.synthesis import Utterance
from a2m.speech import levels_db
from benchmarks import closures, heads, silences
from benchmarks.closures import Hits, hits
from benchmarks.following import SINGLE, speech_bars
from benchmarks.heads import Movement
from benchmarks.open_pictures import Difference
from benchmarks.openings import FULL, REGRESSION, RETRIEVED, STILL, Score
from benchmarks.silences import Silence

# Lip closure


def said(text: str, seconds: float = 0.12) -> Utterance:
    """Phones of one length each, "-" for silence."""
    phones = np.array([PHONES.index("sil" if phone == "-" else phone) for phone in text])
    edges = seconds * np.arange(len(phones) + 1)
    return Utterance(np.zeros(round(16000 * edges[-1]), np.float32), phones, edges[:-1], edges[1:])


def mouth_of(utterance: Utterance, late_frames: float = 0.0) -> np.ndarray:
    """Wide open in the middle of every /a/, closed in the middle of all other phones, cosines between them."""
    n_frames = math.ceil(25 * utterance.ends_s[-1])
    time_s = (np.arange(n_frames) + 0.5 - late_frames) / 25
    middles = (utterance.starts_s + utterance.ends_s) / 2
    place = np.interp(time_s, middles, np.arange(len(middles)))
    is_open = utterance.phones == PHONES.index("a")
    between = place - np.floor(place)
    low, high = is_open[np.floor(place).astype(int)], is_open[np.ceil(place).astype(int)]
    return 0.02 + 0.2 * (low + (high - 1.0 * low) * (1 - np.cos(np.pi * between)) / 2)


def test_a_mouth_that_says_it_passes_all() -> None:
    utterance = said("-papamatabaka-" * 3)
    found = hits(utterance, mouth_of(utterance))
    assert found == Hits(n_lips=12, closed=12, n_open=18, opened=18, n_alone=18, peaked=18)


def test_mouths_that_stay_open_or_closed_or_come_late_do_not() -> None:
    utterance = said("-papamatabaka-" * 3)
    right = mouth_of(utterance)
    for still in (np.zeros(len(right)), np.full(len(right), 0.3)):
        assert hits(utterance, still).opened == hits(utterance, still).peaked == 0
    ajar = 0.1 + 0.1 * right / right.max()  # never below half of what it opens
    ajar[0] = 0.0
    assert hits(utterance, ajar).closed == 0
    # Three frames late: at every consonant the mouth is as open as at the vowel before.
    late = hits(utterance, mouth_of(utterance, late_frames=3.0))
    assert late.peaked == 0
    assert late.opened < late.n_open / 2


def test_vowels_beside_vowels_need_no_peak() -> None:
    utterance = said("-paipa-")
    found = hits(utterance, mouth_of(utterance))
    assert (found.n_open, found.n_alone) == (2, 1)


@settings(max_examples=50, deadline=None)
@given(
    text=st.text("pbmatkiu-", min_size=1, max_size=30),
    seed=st.integers(0, 1000),
    scale=st.floats(0.01, 10),
    shift=st.floats(-1, 1),
)
def test_hits_do_not_exceed_what_there_is_and_ignore_level_and_size(
    text: str, seed: int, scale: float, shift: float
) -> None:
    utterance = said(text)
    curve = np.random.default_rng(seed).random(math.ceil(25 * utterance.ends_s[-1]))
    found = hits(utterance, curve)
    assert found.n_lips == sum(phone in "pbm" for phone in text)
    assert 0 <= found.closed <= found.n_lips
    assert 0 <= found.opened <= found.n_open
    assert 0 <= found.peaked <= found.n_alone <= found.n_open
    rounded = np.round(curve, 3) + 1e-5  # no opening lies on a bound
    assert hits(utterance, scale * rounded + shift) == hits(utterance, rounded)


def test_closures_are_told_by_language_with_chance_beside(capsys: pytest.CaptureFixture[str]) -> None:
    utterances = [(language, voice, said("-papamatabaka-")) for language in ("de", "ar") for voice in ("ann", "bea")]
    closures.report(utterances, lambda utterance, seed: mouth_of(utterance), n_seeds=2)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith(("| all", "| de", "| ar"))]
    assert len(rows) == 3
    assert "| all | 100 % (" in rows[0]
    assert printed.count(": reached (n 8, people 2)") == 3


# Silence


def test_silence_is_judged_between_its_edges_by_the_speech_around() -> None:
    opening = torch.zeros(100)
    opening[:40], opening[70:] = 0.1 * torch.arange(40).remainder(2), 0.1 * torch.arange(30).remainder(2)
    std = float(torch.cat([opening[:40], opening[70:]]).std())
    opening[40:45], opening[65:70] = 0.5, 0.5  # lips that close late and part early
    closed = Silence.of(opening, 40, 70)
    assert (closed.rms, closed.largest, closed.is_closed) == (0, 0, 1)
    opening[50] = 0.2 * std
    ajar = Silence.of(opening, 40, 70)
    assert ajar.largest == pytest.approx(0.2, rel=1e-4)
    assert ajar.rms == pytest.approx(0.2 / math.sqrt(20), rel=1e-4)
    assert ajar.is_closed == 0


def test_quiet_runs_are_long_and_far_below_the_speech() -> None:
    level = torch.full((100,), -20.0)
    level[10:30], level[40:50], level[60:80] = -50.0, -70.0, -40.0  # too short, too loud
    level[90:] = -60.0
    assert silences.quiet_runs(level, 13) == [(10, 30)]
    assert silences.quiet_runs(level, 10) == [(10, 30), (40, 50), (90, 100)]


@pytest.mark.parametrize("floor_db", silences.FLOORS_DB)
def test_pauses_are_cut_in_where_it_is_quiet(floor_db: float | None) -> None:
    audio = 0.1 * torch.randn(16000 * 3, generator=Generator().manual_seed(0))
    audio[640 * 30 : 640 * 31] *= 0.01
    longer, first = silences.with_pause(audio, floor_db)
    assert first == 30
    assert len(longer) == len(audio) + 640 * 30
    level = levels_db(longer)
    pause, speech = level[first : first + 30], level[:25].mean()
    if floor_db is None:
        assert (pause == -100).all()
    else:
        assert (pause - speech - floor_db).abs().max() < 4  # 640 samples of 1/f noise
    assert float(level[70:].mean()) == pytest.approx(float(speech), abs=0.5)


# Leaks


def test_a_leak_is_measured_by_the_range() -> None:
    curve = torch.linspace(0, 0.5, 50)
    same = Difference.of(curve, curve, (0.0, 0.0))
    assert (same.mean, same.most, same.rest, same.course) == (0, 0, 0, 0)
    wide = Difference.of(curve, curve + 0.1, (0.0, 0.1))
    assert (wide.mean, wide.most, wide.rest) == pytest.approx((0.2, 0.2, 0.2))
    assert wide.course == pytest.approx(0, abs=1e-6)
    narrow = Difference.of(curve, curve - 0.1, (0.0, 0.0))
    assert (narrow.mean, narrow.rest, narrow.course) == pytest.approx((0.2, 0.0, 0.2))


# Heads and lids


def lids(length_frames: float, T: int = 60, middle: int = 30) -> Tensor:
    """A triangular blink that is half closed for so long."""
    return 1 - 0.8 * (1 - (torch.arange(T) - middle).abs() / length_frames).clamp(min=0)


@pytest.mark.parametrize("length", [3.0, 5.0, 6.5])
def test_blinks_last_as_long_as_they_are_half_closed(length: float) -> None:
    assert heads.blink_length_s(lids(length), 30) == pytest.approx(length / 25)


def test_blinks_at_the_ends_have_what_is_seen_of_them() -> None:
    assert heads.blink_length_s(lids(5.0, middle=0), 0) == pytest.approx(2.5 / 25)
    assert heads.blink_length_s(torch.tensor([0.2]), 0) == 0


def moved(n_frames: int, blink_s: list[float], speed: float, paused: int = 0) -> Movement:
    sound = (torch.arange(n_frames) >= paused).float()
    return Movement(n_frames, blink_s, speed * (1 + sound), sound, 2.0, 0.1)


def test_rates_count_every_blink_and_every_minute() -> None:
    clips = [moved(750, [0.2, 0.4], 1.0), moved(1500, [0.3], 1.0, paused=500)]
    assert heads.blinks_per_minute(clips) == pytest.approx(3 / 1.5)
    assert heads.blink_length(clips) == pytest.approx(0.3)
    assert heads.in_pauses(clips) == pytest.approx(0.5)
    assert math.isnan(heads.blink_length([moved(10, [], 1.0)]))
    assert math.isnan(heads.in_pauses(clips[:1]))
    assert heads.speed([moved(10, [], 3.0)]) == pytest.approx(6.0)


# The bars of running speech


def scores(correlation: float, energy: float, lmd: float) -> list[Score]:
    score = Score(correlation, 1.0, 1.0, 1.0, 1.0, 0.8, lmd, lmd, energy)
    return [replace(score, correlation=correlation + 0.01 * k) for k in range(5)]


def test_a_perfect_voice_reaches_its_bars_and_a_deaf_one_does_not() -> None:
    rivals = {name: scores(0.4, 60.0, 5.0) for name in (STILL, RETRIEVED, REGRESSION, FULL)}
    persons = [f"p{k}" for k in range(5)]
    good = rivals | {"mean": scores(0.7, 40.0, 4.0), SINGLE: scores(0.5, 40.0, 6.0)}
    assert {bar.verdict for bar in speech_bars(good, "mean", persons)} == {"reached"}
    deaf = [replace(s, amplitude=0.2, jerk=0.1, peak=0.0) for s in scores(0.1, 80.0, 9.0)]
    bad = rivals | {"mean": deaf, SINGLE: deaf}
    assert {bar.verdict for bar in speech_bars(bad, "mean", persons)} == {"not reached"}
