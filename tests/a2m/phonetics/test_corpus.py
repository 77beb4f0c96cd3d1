"""The corpus: columns and phones in step, parts that share nothing, all or nothing on disk."""

import importlib.util
import shutil
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest
import torch

from a2m.phonetics import corpus
from a2m.phonetics.disturbance import _CODECS, Disturbance, _in_step, coded, in_room, round_trip
from a2m.phonetics.synthesis import Speaker, Utterance, espeak_variants
from a2m.speech import analyse
from common.audio import SAMPLE_RATE_HZ
from common.errors import InputError

NEVER = Disturbance(clipping=0, room=0, equaliser=0, noise=0, codec=0)
HAS_ESPEAK = find_library("espeak-ng") is not None or importlib.util.find_spec("espeakng_loader") is not None
needs_synthesis = pytest.mark.skipif(
    not HAS_ESPEAK or shutil.which("flite") is None or importlib.util.find_spec("wordfreq") is None,
    reason="espeak-ng, flite or wordfreq is not installed",
)


def syllables(n: int = 32_000, seed: int = 0) -> np.ndarray:
    """Something like speech: noise and tone that come and go, so that its place in time can be told."""
    generator = np.random.default_rng(seed)
    time_s = np.arange(n) / SAMPLE_RATE_HZ
    loud = np.interp(time_s, np.arange(n // 1600 + 2) / 10, generator.random(n // 1600 + 2) > 0.4)
    tone = sum(np.sin(2 * np.pi * 130 * k * time_s + k) / k for k in range(1, 20))
    return (0.2 * loud * (tone + 0.1 * generator.standard_normal(n))).astype(np.float32)


@pytest.mark.parametrize(("name", "container", "rates_hz", "bit_rates"), _CODECS)
def test_codecs_leave_the_sound_in_step(
    name: str, container: str, rates_hz: tuple[int, ...], bit_rates: tuple[int, int]
) -> None:
    audio = syllables()
    decoded = _in_step(round_trip(audio, name, container, rates_hz[-1], bit_rates[1]), audio)
    assert len(decoded) == len(audio)
    inner = slice(4000, -4000)
    fit = [np.dot(np.roll(decoded, lag)[inner], audio[inner]) for lag in range(-40, 41)]
    assert abs(int(np.argmax(fit)) - 40) <= 1


def test_a_room_begins_with_the_direct_sound() -> None:
    click = np.zeros(8000)
    click[1000] = 1.0
    for seed in range(20):
        heard = in_room(click, np.random.default_rng(seed))
        assert np.abs(heard[:1000]).max() < 1e-6 and heard[1000] == pytest.approx(1.0, abs=1e-6)


def test_nothing_drawn_is_nothing_done_but_the_level() -> None:
    audio = syllables()
    heard = NEVER(audio, None, np.random.default_rng(0))
    assert heard == pytest.approx(0.9 * audio / np.abs(audio).max(), abs=1e-6) and heard.dtype == np.float32


def test_disturbed_sound_is_finite_as_long_and_the_same_for_the_same_draw() -> None:
    audio, always = syllables(16_001), Disturbance(1, 1, 1, 1, 1)
    for seed in range(6):
        heard, again = (always(audio, syllables(9000, 1), np.random.default_rng(seed)) for _ in range(2))
        assert heard.shape == audio.shape and np.isfinite(heard).all() and np.abs(heard).max() < 2
        assert np.array_equal(heard, again)
    assert len(coded(audio, np.random.default_rng(0))) == len(audio)


def test_a_phone_stands_at_the_columns_it_is_heard_in() -> None:
    audio = np.zeros(16_000, np.float32)
    audio[6400:9600] = syllables(3200, 3) + 0.3 * np.sin(np.arange(3200)).astype(np.float32)  # 0.4 to 0.6 s
    said = Utterance(audio[3200:], np.array([0, 9, 0]), np.array([0.0, 0.2, 0.4]), np.array([0.2, 0.4, 0.8]))
    heard = corpus.heard(audio, said, 0.2, Speaker(), "")
    assert heard.mel.shape == (100, 64) and heard.phones.shape == (50,) and heard.sound.shape == (25,)
    assert np.flatnonzero(heard.phones == 9).tolist() == list(range(20, 30))
    loud = heard.mel.astype(np.float32).mean(axis=1).reshape(50, 2).mean(axis=1)
    assert loud[20:30].min() > loud[np.r_[:19, 31:50]].max()
    voice = analyse(torch.from_numpy(audio))
    assert np.array_equal(heard.sound, voice.sound.numpy())


@needs_synthesis
def test_parts_share_neither_speakers_nor_words_and_reading_gives_what_was_made(tmp_path: Path) -> None:
    corpus.make(tmp_path / "corpus", hours=0.01, seed=3)
    made = {part: corpus.read_part(tmp_path / "corpus", part) for part in corpus.PARTS}
    for name, part in made.items():
        assert len(part.mel) == 2 * len(part.phones) == 4 * len(part.sound)
        assert part.mel.dtype == np.float16 and part.phones.dtype == np.int8 and part.sound.dtype == bool
        for number, entry in enumerate(part.utterances[:2]):
            again = corpus.utterance(name, 3, number)
            assert entry.text == again.text and entry.speaker == again.speaker.name and entry.n % 2 == 0
            phones = part.phones[entry.first : entry.first + entry.n]
            assert len(phones) == len(part.mel[2 * entry.first :][: 2 * entry.n]) // 2
            # Not to the bit: some of espeak-ng's voices tremble, and where they are in that goes on between utterances.
            assert len(phones) == pytest.approx(len(again.phones), rel=0.03)
    speakers = [{entry.speaker for entry in part.utterances} for part in made.values()]
    assert not speakers[0] & speakers[1]
    assert not list(tmp_path.glob(".*"))


@needs_synthesis
def test_a_speaker_belongs_to_one_part() -> None:
    variants = {
        part: {corpus.draw_speaker(part, np.random.default_rng(k)).variant for k in range(300)} for part in corpus.PARTS
    }
    assert not variants["train"] & variants["held_out"]
    assert 0.05 < np.mean([corpus.held_out_variant(variant) for variant in espeak_variants()]) < 0.25


@needs_synthesis
def test_a_corpus_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine").write_text("")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "heard", stop)
    with pytest.raises(KeyboardInterrupt):
        corpus.make(tmp_path / "corpus", hours=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"] and (tmp_path / "corpus" / "mine").exists()


def test_a_folder_that_is_no_corpus_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="corpus"):
        corpus.read_part(tmp_path, "train")


@pytest.mark.parametrize("flags", [["--hours", "0"], ["--workers", "0"], ["--seed", "-1"], ["--hours", "nan"]])
def test_impossible_flags_are_one_error(tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises(InputError):
        corpus.run(["--out", str(tmp_path / "corpus"), *flags])
