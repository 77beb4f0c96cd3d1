"""The phones that a mouth can be told by, their articulation, and the way there from IPA and from ARPAbet.

Some 50 classes serve all languages: what differs by length, tone, nasality, aspiration or secondary articulation only
is one class, for the lips hardly change by it. Diphthongs and affricates are two phones each (`phones_of_ipa`).
"""

import unicodedata
from functools import cache

import torch
from torch import Tensor

from common.errors import InputError

SILENCE = "sil"
# Each phone's articulation; what a phone doesn't name it doesn't have.
_ARTICULATION = {
    SILENCE: "silence",
    "p": "bilabial stop",
    "b": "bilabial stop voiced",
    "m": "bilabial nasal voiced",
    "β": "narrow fricative voiced",
    "f": "labiodental fricative",
    "v": "labiodental fricative voiced",
    "w": "rounded narrow approximant voiced",
    "θ": "dental fricative",
    "ð": "dental fricative voiced",
    "t": "alveolar stop",
    "d": "alveolar stop voiced",
    "n": "alveolar nasal voiced",
    "s": "alveolar fricative sibilant",
    "z": "alveolar fricative sibilant voiced",
    "l": "alveolar lateral approximant voiced",
    "r": "alveolar rhotic voiced",
    "ɹ": "alveolar rhotic approximant voiced",
    "ʃ": "palatal fricative sibilant",
    "ʒ": "palatal fricative sibilant voiced",
    "j": "palatal approximant voiced",
    "ɲ": "palatal nasal voiced",
    "k": "back stop",
    "ɡ": "back stop voiced",
    "ŋ": "back nasal voiced",
    "x": "back fricative",
    "ɣ": "back fricative voiced",
    "h": "glottal fricative",
    "ʔ": "glottal stop",
    "i": "vowel close front spread voiced",
    "ɪ": "vowel close front spread voiced",
    "e": "vowel mid front spread voiced",
    "ɛ": "vowel mid front spread voiced",
    "æ": "vowel open front spread voiced",
    "a": "vowel open voiced",
    "ɑ": "vowel open voiced",
    "ɒ": "vowel open rounded voiced",
    "ɐ": "vowel open voiced",
    "ə": "vowel mid voiced",
    "ɜ": "vowel mid rhotic voiced",
    "ɔ": "vowel mid rounded voiced",
    "o": "vowel mid rounded voiced",
    "ʊ": "vowel close rounded voiced",
    "u": "vowel close rounded voiced",
    "y": "vowel close front rounded voiced",
    "ø": "vowel mid front rounded voiced",
    "œ": "vowel mid front rounded voiced",
    "ɨ": "vowel close voiced",
}
PHONES: tuple[str, ...] = tuple(_ARTICULATION)
FEATURES: tuple[str, ...] = (
    "silence",
    "bilabial",  # the lips meet
    "labiodental",
    "rounded",
    "spread",
    "narrow",  # the lips come near each other
    "open",
    "mid",
    "close",
    "vowel",
    "voiced",
    "nasal",
    "fricative",
    "stop",
    "sibilant",
    "approximant",
    "lateral",
    "rhotic",
    "front",
    "dental",
    "alveolar",
    "palatal",
    "back",
    "glottal",
)

# What shares a class with a phone: its neighbours of other languages, and what espeak-ng writes that is not IPA.
_ALLOPHONES = {
    "β": "ɸΦʙ",
    "v": "ʋⱱ",
    "w": "ʍɥ",
    "t": "ʈʇ",
    "d": "ɖɗᶑ",
    "b": "ɓ",
    "n": "ɳ",
    "l": "ɫɭʎɬɮʟ",
    "r": "ɾɽɺ",
    "ɹ": "ɻ",
    "ʃ": "ʂɕS",
    "ʒ": "ʐʑZ",
    "j": "ʝʲ",
    "k": "cq",
    "ɡ": "gɟɠʛɢ",
    "ŋ": "ɴN",
    "x": "χçXɧ",
    "ɣ": "ʁʀɰ",
    "h": "ɦħʜ",
    "ʔ": "?ʕʡʢ",
    "i": "I",
    "e": "E",
    "ɛ": "ε",
    "a": "Aɶ",
    "ə": "ɘ",
    "ɜ": "ɚɝɞ",
    "ɐ": "ʌɤ",
    "o": "O",
    "u": "ʉU",
    "ø": "ɵ",
    "ɨ": "ɯᵻ",
    "ʊ": "ᵿ",
}
_LIGATURES = {"ʦ": "ts", "ʣ": "dz", "ʧ": "tʃ", "ʤ": "dʒ", "ʨ": "tɕ", "ʥ": "dʑ", "nɡ": "ŋ", "ng": "ŋ"}
_ARPABET = {
    "aa": "ɑ", "ae": "æ", "ah": "ɐ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "axr": "ɜ", "ay": "aɪ", "b": "b", "ch": "tʃ",
    "d": "d", "dh": "ð", "dx": "ɾ", "eh": "ɛ", "el": "l", "em": "m", "en": "n", "er": "ɜ", "ey": "eɪ", "f": "f",
    "g": "ɡ", "hh": "h", "hv": "h", "ih": "ɪ", "ix": "ɪ", "iy": "i", "jh": "dʒ", "k": "k", "l": "l", "m": "m",
    "n": "n", "nx": "n", "ng": "ŋ", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ", "t": "t",
    "th": "θ", "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ", "pau": "",
    "sil": "", "ssil": "",
}  # fmt: skip


def feature_table() -> Tensor:
    """The articulation of every phone: float32 [P, F], 0 or 1."""
    return torch.tensor([[float(name in words.split()) for name in FEATURES] for words in _ARTICULATION.values()])


def from_ipa(symbol: str) -> int:
    """The phone (index in PHONES) that an IPA symbol begins with; silence for none. Errors as `phones_of_ipa`'s."""
    return phones_of_ipa(symbol)[0]


def from_arpabet(symbol: str) -> int:
    """The phone that an ARPAbet symbol begins with, with or without stress. InputError for anything else."""
    return phones_of_arpabet(symbol)[0]


@cache
def phones_of_ipa(symbol: str) -> tuple[int, ...]:
    """The phones of an IPA symbol in their order: two for diphthongs and affricates, one for most, silence for none.

    Length, tone, stress, nasality and secondary articulation are dropped, except where they are all there is: "ʲ" alone
    is a glide. InputError for a letter that is none of IPA's or espeak-ng's.
    """
    phones: list[int] = []
    for joined, letters in _LIGATURES.items():
        symbol = symbol.replace(joined, letters)
    for letter in _letters(symbol):
        if letter not in _index():
            raise InputError(f"There is no phone for {letter!r} (U+{ord(letter):04X}) of {symbol!r}: write it in IPA.")
        if not phones or phones[-1] != _index()[letter]:
            phones.append(_index()[letter])
    return tuple(phones) or (PHONES.index(SILENCE),)


@cache
def phones_of_arpabet(symbol: str) -> tuple[int, ...]:
    """The phones of an ARPAbet symbol, as `phones_of_ipa`."""
    name = symbol.lower().rstrip("012")
    if name not in _ARPABET:
        raise InputError(f"There is no phone {symbol!r} in ARPAbet: use one of {', '.join(sorted(_ARPABET))}.")
    return phones_of_ipa(_ARPABET[name])


def _letters(symbol: str) -> str:
    """What is left of a symbol without its marks; a lone palatalisation stays, for it is a glide."""
    known = _index()
    parts = [c if c in known else unicodedata.normalize("NFD", c) for c in symbol]  # "ç" is no "c", "ẽ" is an "e"
    bases = "".join(c for c in "".join(parts) if unicodedata.category(c) in ("Ll", "Lu", "Lo") or c == "?")
    return bases or "".join(c for c in symbol if c == "ʲ")


@cache
def _index() -> dict[str, int]:
    """Class of every letter."""
    index = {phone: k for k, phone in enumerate(PHONES)}
    index |= {letter: index[phone] for phone, letters in _ALLOPHONES.items() for letter in letters}
    return index
