"""Times of phones are those of the sound: what the synthesisers announce, made true. Where there is none, skipped."""

import importlib.util
import shutil
from ctypes.util import find_library

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2m.phonetics.inventory import FEATURES, PHONES, feature_table
from a2m.phonetics.synthesis import (
    Marks,
    Speaker,
    Utterance,
    _flite_marks,
    _one_each,
    _with_closures,
    espeak_languages,
    espeak_variants,
    synthesise,
)
from common.errors import InputError

RATE_HZ = 16_000
IS_VOWEL = feature_table()[:, FEATURES.index("vowel")].bool().numpy()
HAS_ESPEAK = find_library("espeak-ng") is not None or importlib.util.find_spec("espeakng_loader") is not None
needs_espeak = pytest.mark.skipif(not HAS_ESPEAK, reason="espeak-ng is not installed")
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
ENGINES = [
    pytest.param(Speaker("espeak", "en-us"), marks=needs_espeak),
    pytest.param(Speaker("espeak", "de", "f3", pitch=1.2, throat=1.15), marks=needs_espeak),
    pytest.param(Speaker("espeak", "it", "klatt4", rate=130), marks=needs_espeak),
    pytest.param(Speaker("flite", "en-us", "slt", throat=0.9), marks=needs_flite),
    pytest.param(Speaker("flite", "en-us", "kal16"), marks=needs_flite),
]


def phone(symbol: str) -> int:
    return PHONES.index(symbol)


def tone(*levels: tuple[float, float]) -> np.ndarray:
    """200 Hz at (seconds, level) one after the other."""
    level = np.concatenate([np.full(round(seconds * RATE_HZ), value) for seconds, value in levels])
    return (level * np.sin(2 * np.pi * 200 * np.arange(len(level)) / RATE_HZ)).astype(np.float32)


def test_a_stop_begins_where_the_sound_stops_not_at_its_burst() -> None:
    audio = tone((0.2, 1.0), (0.07, 0.0), (0.23, 1.0))
    marks: Marks = [(0.0, (phone("a"),)), (0.275, (phone("p"),)), (0.3, (phone("a"),))]  # 5 ms late
    phones, starts_s = _one_each(_with_closures(marks, audio, RATE_HZ), 0.5)
    assert phones.tolist() == [phone("a"), phone("p"), phone("a")]
    assert starts_s == pytest.approx([0.0, 0.2, 0.3], abs=0.0051)  # blocks of 5 ms


def test_an_echo_does_not_hide_the_closure() -> None:
    audio = tone((0.2, 1.0), (0.07, 0.05), (0.23, 1.0))
    marks: Marks = [(0.0, (phone("a"),)), (0.27, (phone("t"),)), (0.3, (phone("a"),))]
    _, starts_s = _one_each(_with_closures(marks, audio, RATE_HZ), 0.5)
    assert starts_s == pytest.approx([0.0, 0.2, 0.3], abs=0.0051)


def test_after_a_pause_the_closure_is_short_and_a_long_quiet_is_a_pause() -> None:
    audio = tone((0.2, 1.0), (0.4, 0.0), (0.2, 1.0))
    marks: Marks = [(0.0, (phone("a"),)), (0.6, (phone("b"),)), (0.62, (phone("a"),))]
    phones, starts_s = _one_each(_with_closures(marks, audio, RATE_HZ), 0.8)
    assert phones.tolist() == [phone("a"), phone("sil"), phone("b"), phone("a")]
    assert starts_s == pytest.approx([0.0, 0.2, 0.54, 0.62], abs=0.0051)


def test_an_affricate_is_its_closure_and_its_friction() -> None:
    audio = tone((0.2, 1.0), (0.05, 0.0), (0.25, 1.0))
    marks: Marks = [(0.0, (phone("a"),)), (0.25, (phone("t"), phone("ʃ"))), (0.35, (phone("a"),))]
    phones, starts_s = _one_each(_with_closures(marks, audio, RATE_HZ), 0.5)
    assert phones.tolist() == [phone("a"), phone("t"), phone("ʃ"), phone("a")]
    assert starts_s == pytest.approx([0.0, 0.2, 0.25, 0.35], abs=0.0051)


def test_flites_sentences_go_on_where_the_last_one_ended() -> None:
    marks = _flite_marks([("pau", 0.2), ("m", 0.3), ("pau", 0.5), ("pau", 0.1), ("aa", 0.4)])
    assert [start_s for start_s, _ in marks] == pytest.approx([0.0, 0.2, 0.3, 0.5, 0.6])


@given(st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 47), min_size=1, max_size=3)), min_size=1))
def test_phones_follow_each_other_without_gaps(drawn: list[tuple[int, list[int]]]) -> None:
    ends = np.cumsum([length for length, _ in drawn]) / 100
    marks = [(end - n / 100, tuple(symbol)) for end, (n, symbol) in zip(ends, drawn, strict=True)]
    phones, starts_s = _one_each(marks, ends[-1])
    assert len(phones) == len(starts_s) and starts_s[0] == pytest.approx(0.0) and (np.diff(starts_s) > 0).all()
    assert not ((phones[1:] == 0) & (phones[:-1] == 0)).any()  # silences join
    assert {p for _, symbol in marks for p in symbol} == set(phones.tolist())


def test_times_outside_are_silence_and_cutting_keeps_what_was_before() -> None:
    audio = np.zeros(RATE_HZ, np.float32)
    said = Utterance(audio, np.array([5, 7]), np.array([0.0, 0.4]), np.array([0.4, 1.0]))
    times_s = np.array([-0.1, 0.0, 0.39, 0.4, 0.99, 1.0])
    assert said.at(times_s).tolist() == [0, 5, 5, 7, 7, 0]
    half = said.until(0.5)
    assert len(half.audio) == RATE_HZ // 2 and half.ends_s.tolist() == [0.4, 0.5]
    assert half.at(times_s).tolist() == [0, 5, 5, 7, 0, 0]


@pytest.mark.parametrize("speaker", ENGINES)
def test_vowels_are_where_it_is_loud_and_closures_where_it_is_not(speaker: Speaker) -> None:
    text = "Papa, people tap a happy Patty." if speaker.language == "en-us" else "Papa, tapa patata, capa papa."
    said = synthesise(text, speaker)
    block = 80  # 5 ms
    power = np.square(said.audio[: len(said.audio) // block * block].reshape(-1, block)).mean(axis=1)
    level_db = 10 * np.log10(power / power.max() + 1e-5)
    phones = said.at((np.arange(len(level_db)) + 0.5) * block / RATE_HZ)
    stops = np.isin(phones, [phone("p"), phone("t"), phone("k")])
    assert np.median(level_db[IS_VOWEL[phones]]) > np.median(level_db[stops]) + 12
    assert np.median(level_db[phones == 0]) < -35
    lags = range(-8, 9)
    fit = [np.corrcoef(np.roll(IS_VOWEL[phones], lag), level_db)[0, 1] for lag in lags]
    assert abs(lags[int(np.argmax(fit))]) <= 3  # 15 ms: a fade is no step


@pytest.mark.parametrize("speaker", ENGINES)
def test_an_utterance_is_whole_and_its_times_are_the_same_every_time(speaker: Speaker) -> None:
    said, again = (synthesise("Mama bambino mio.", speaker) for _ in range(2))
    assert said.audio.dtype == np.float32 and np.abs(said.audio).max() <= 1.01 and np.abs(said.audio).max() > 0.05
    # Not to the bit: espeak-ng's voice trembles on from one utterance to the next, and its pitch periods with it.
    assert said.phones.tolist() == again.phones.tolist()
    assert said.starts_s == pytest.approx(again.starts_s, abs=0.012)
    assert said.starts_s[0] == 0 and said.ends_s[-1] == len(said.audio) / RATE_HZ
    assert np.array_equal(said.starts_s[1:], said.ends_s[:-1]) and (said.ends_s > said.starts_s).all()
    assert phone("m") in said.phones and phone("b") in said.phones
    assert said.phones[0] == said.phones[-1] == phone("sil")


@needs_espeak
def test_a_shorter_throat_is_higher_and_shorter() -> None:
    long, short = (synthesise("Mama.", Speaker(throat=throat)) for throat in (1.0, 1.25))
    assert len(short.audio) == pytest.approx(len(long.audio) / 1.25, rel=0.02)
    assert short.starts_s == pytest.approx(long.starts_s / 1.25, abs=0.012)


@needs_espeak
def test_a_language_is_spoken_in_its_own_voice_whatever_was_spoken_before() -> None:
    for before in ("ja", "de"):
        synthesise("papa", Speaker(language=before))
        phones = set(synthesise("Un bon vin blanc, du feu, une rue.", Speaker(language="fr-fr")).phones.tolist())
        assert {phone("y"), phone("ø"), phone("ɣ")} <= phones


@needs_espeak
def test_every_language_speaks_in_known_phones() -> None:
    assert len(espeak_languages()) > 100 and "" in espeak_variants() and "f3" in espeak_variants()
    n_phones = []
    for language in espeak_languages():
        try:
            n_phones.append(len(synthesise("1 2 papa 3 mama", Speaker(language=language)).phones))
        except InputError as error:
            assert "says nothing" in str(error)  # some builds lack a language's dictionary
    assert min(n_phones) > 8 and len(n_phones) > 100


@pytest.mark.parametrize(
    "wrong",
    [{"engine": "other"}, {"engine": "flite", "variant": "f3"}, {"rate": 20.0}, {"pitch": 9.0}, {"throat": 0.1}],
)
def test_impossible_speakers_are_refused(wrong: dict[str, str | float]) -> None:
    with pytest.raises(InputError, match=r"use|let"):
        Speaker(**wrong)  # type: ignore[arg-type]


@needs_espeak
def test_what_cannot_be_spoken_is_one_error() -> None:
    with pytest.raises(InputError, match="no language"):
        synthesise("Hello", Speaker(language="no-such"))
    with pytest.raises(InputError, match="no variant"):
        synthesise("Hello", Speaker(variant="no-such"))
    with pytest.raises(InputError, match="says nothing"):
        synthesise("", Speaker())
