"""Classes of phones, and the way there from IPA and ARPAbet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2m.phonetics.inventory import (
    FEATURES,
    PHONES,
    feature_table,
    from_arpabet,
    from_ipa,
    phones_of_arpabet,
    phones_of_ipa,
)
from common.errors import InputError

LENGTHS, TONES, MARKS = "ːˑ", "˥˧˩", "̪̃ʰʷˤ'ˈ"


def names(phones: tuple[int, ...]) -> list[str]:
    return [PHONES[phone] for phone in phones]


def test_every_phone_stands_for_itself_and_differs_from_no_silence() -> None:
    assert PHONES[0] == "sil" and len(set(PHONES)) == len(PHONES)
    assert [from_ipa(phone) for phone in PHONES[1:]] == list(range(1, len(PHONES)))
    assert from_ipa("") == from_arpabet("pau") == 0


def test_articulation_is_zero_or_one_and_what_the_lips_need_is_there() -> None:
    table = feature_table()
    assert table.shape == (len(PHONES), len(FEATURES)) and set(table.unique().tolist()) == {0.0, 1.0}
    of = {name: {PHONES[k] for k in table[:, i].nonzero()[:, 0].tolist()} for i, name in enumerate(FEATURES)}
    assert of["bilabial"] == {"p", "b", "m"} and of["labiodental"] == {"f", "v"} and of["silence"] == {"sil"}
    assert {"u", "o", "y", "w"} <= of["rounded"] and {"i", "e"} <= of["spread"]
    assert of["vowel"] == of["open"] | of["mid"] | of["close"]  # each vowel has a height, nothing else has
    assert not of["open"] & of["mid"] and not of["mid"] & of["close"] and not of["rounded"] & of["spread"]


@given(st.sampled_from(PHONES[1:]), st.text(alphabet=LENGTHS + TONES + MARKS, max_size=3))
def test_marks_do_not_change_the_phone(phone: str, marks: str) -> None:
    assert names(phones_of_ipa(phone + marks)) == [phone]


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("aɪ", ["a", "ɪ"]),
        ("t͡ʃ", ["t", "ʃ"]),
        ("tʃʲ", ["t", "ʃ"]),
        ("ʦ", ["t", "s"]),
        ("ç", ["x"]),
        ("ɔ̃", ["ɔ"]),
        ("aː", ["a"]),
        ("aa", ["a"]),
        ("ʔ", ["ʔ"]),
        ("?", ["ʔ"]),
        ("ʲ", ["j"]),
        ("onɡ", ["o", "ŋ"]),
        ("ː", ["sil"]),
    ],
)
def test_symbols_of_many_languages_are_read(symbol: str, expected: list[str]) -> None:
    assert names(phones_of_ipa(symbol)) == expected


def test_arpabet_says_the_same_as_ipa() -> None:
    assert names(phones_of_arpabet("ch")) == names(phones_of_ipa("tʃ"))
    assert from_arpabet("AA1") == from_ipa("ɑ") and from_arpabet("m") == from_ipa("m")


@pytest.mark.parametrize("read", [from_ipa, from_arpabet])
def test_what_is_no_phone_is_refused_with_its_name(read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="Ж"):
        read("Ж")


@given(st.text(max_size=6))
def test_any_text_is_phones_or_one_error(text: str) -> None:
    try:
        phones = phones_of_ipa(text)
    except InputError:
        return
    assert phones and all(0 <= phone < len(PHONES) for phone in phones)
