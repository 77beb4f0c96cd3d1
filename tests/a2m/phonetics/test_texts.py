"""Sentences to be synthesised: words that training hears and words that it doesn't."""

import re

import numpy as np
import pytest

from a2m.phonetics.texts import SENTENCES, is_held_out, sentence


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text))


@pytest.mark.parametrize("language", ["en-us", "ar", "hr", "th"])
def test_held_out_sentences_share_no_word_with_training(language: str) -> None:
    pytest.importorskip("wordfreq")
    generator = np.random.default_rng(0)
    said = [sentence(language, generator, 200) for _ in range(10)]
    unseen = [sentence(language, generator, 200, held_out=True) for _ in range(10)]
    assert not words(" ".join(said)) & words(" ".join(unseen))
    assert all(len(text) >= 60 for text in said + unseen)


def test_the_same_generator_says_the_same() -> None:
    pytest.importorskip("wordfreq")
    first, again, other = (sentence("de", np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_scripts_that_go_by_devanagari_are_their_own() -> None:
    pytest.importorskip("wordfreq")
    text = sentence("kn", np.random.default_rng(0), 200)
    letters = [c for c in text if ord(c) > 0x300]
    assert letters and all(0x0C80 <= ord(c) < 0x0D00 for c in letters)


def test_a_tenth_of_words_is_held_out() -> None:
    share = np.mean([is_held_out(f"word{k}") for k in range(2000)])
    assert share == pytest.approx(0.1, abs=0.03)


def test_the_benchmark_has_six_languages_and_bilabials_in_each_sentence() -> None:
    assert len(SENTENCES) == 6 and len({text for texts in SENTENCES.values() for text in texts}) == 30
    for language, texts in SENTENCES.items():
        for text in texts:
            assert len(re.findall("[مب]" if language == "ar" else "[pbm]", text.lower())) >= 4, text
