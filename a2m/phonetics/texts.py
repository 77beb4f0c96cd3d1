"""What the synthesisers are made to say: words by their frequency, strung together; and sentences for the benchmark.

Grammar does not matter to a phone, the mixture of sounds does. A tenth of all words is held out (`is_held_out`): what
is said in validation has no word that training has heard. Languages without a list borrow a related one's.
"""

import zlib
from functools import cache

import numpy as np

from common.errors import InputError

_HELD_OUT_SHARE = 10  # one word in so many
_MOST_WORDS = 6000
_NUMBER_SHARE = 0.04
_COMMA_SHARE = 0.12
# espeak-ng's codes (without accent) to word lists, where they differ
_RELATED = {
    "af": "nl", "an": "es", "as": "bn", "az": "tr", "ba": "ru", "be": "uk", "bpy": "bn", "bs": "sh", "cmn": "zh",
    "cv": "ru", "eo": "it", "et": "fi", "eu": "es", "gn": "es", "grc": "el", "hr": "sh", "ht": "fr", "ia": "it",
    "io": "it", "kk": "ru", "kl": "fi", "kok": "hi", "ku": "tr", "ky": "ru", "la": "it", "lb": "de", "lfn": "es",
    "ltg": "lv", "mr": "hi", "mt": "it", "nci": "es", "ne": "hi", "nog": "ru", "no": "nb", "pap": "es", "qdb": "en",
    "qu": "es", "quc": "es", "qya": "fi", "sd": "ur", "smj": "fi", "sq": "it", "sr": "sh", "tk": "tr", "tt": "ru",
    "ug": "fa", "uz": "tr", "yue": "zh",
}  # fmt: skip
# Scripts whose Unicode block is laid out as Devanagari's: languages that can read Hindi's words so.
_INDIC_BLOCKS = {"gu": 0x0A80, "kn": 0x0C80, "ml": 0x0D00, "or": 0x0B00, "pa": 0x0A00, "te": 0x0C00}
_DEVANAGARI = 0x0900
_NUMBERS_ONLY = ("am", "chr", "hy", "hyw", "ka", "my", "shn", "si", "th")  # scripts of their own
_LAST_RESORT = "id"  # plain syllables in plain letters
_SYLLABIC = 0x2E80  # from here on a character is a syllable or more (Chinese, Japanese, Korean)

# Not for training: the benchmark's sentences, six languages, with many p, b, m and open vowels.
SENTENCES: dict[str, tuple[str, ...]] = {
    "en-us": (
        "My baby brother built a big boat from paper and bamboo.",
        "Perhaps Emma may bring apples, plums and marmalade back home.",
        "A map above the bar marks every port and mountain by the bay.",
        "People may stop at the pub before the last bus departs.",
        "Bob and Pam jumped up to grab the lamp by the old piano.",
    ),
    "de": (
        "Mama packt am Abend bunte Papierblumen in meinen Beutel.",
        "Am Bahnhof bat Paula um einen Platz beim Fenster.",
        "Der Bäcker im Dorf backt prima Apfelkuchen mit Pflaumen.",
        "Bitte bleib noch ein paar Minuten bei mir im Park.",
        "Im Sommer baden Papa und Emil am liebsten im Bach.",
    ),
    "fr-fr": (
        "Papa ramène un beau bateau en papier pour ma petite maman.",
        "Pardon madame, le pain blanc part toujours avant midi.",
        "Ma belle-mère prépare des pommes et un bon jambon.",
        "Le boulanger passe par la place avec sa lampe à la main.",
        "Il tombe beaucoup de pluie, mais la barque est bien à l'abri.",
    ),
    "es": (
        "Mi mamá prepara pan blanco y papas para la abuela.",
        "El barco pasó muy cerca de la bahía por la mañana.",
        "Pablo camina siempre por la playa a buscar a su primo.",
        "También compramos un mapa bonito para el viaje a la montaña.",
        "Abre la ventana para ver pasar la banda por la plaza.",
    ),
    "it": (
        "La mamma prepara la pappa e il babbo apre la bottiglia.",
        "Il bambino ha rubato una bella palla rossa al parco.",
        "Prima di partire abbiamo comprato pane, burro e marmellata.",
        "La barca bianca passa piano davanti al porto.",
        "Domani mattina Paolo porta una lampada nuova a sua madre.",
    ),
    "ar": (
        "ذهب أبي إلى المكتبة مع أمي صباح اليوم.",
        "باب البيت مفتوح والماء بارد مثل الثلج.",
        "كتب المعلم بعض الكلمات المهمة على اللوح.",
        "أحب أن أشرب الماء قبل النوم كل مساء.",
        "مر البائع بباب المدرسة ومعه تمر ولبن.",
    ),
}


def sentence(language: str, generator: np.random.Generator, n_letters: int = 60, held_out: bool = False) -> str:
    """A sentence of drawn words for one of espeak-ng's languages, at least n_letters long.

    held_out: of words that training never hears (numbers apart), or else of the others. InputError without wordfreq.
    """
    words, share = _words(language.split("-")[0], held_out)
    parts: list[str] = []
    length = 0
    while length < n_letters:
        if not words or generator.random() < _NUMBER_SHARE:
            word = str(int(10 ** generator.uniform(0, 6)))
        else:
            word = words[int(generator.choice(len(words), p=share))]
        length += 3 * len(word) if ord(word[0]) >= _SYLLABIC or word.isdigit() else len(word) + 1
        parts.append(word + ("," if generator.random() < _COMMA_SHARE else ""))
    return " ".join(parts).rstrip(",") + (".", "?", "!")[int(generator.choice(3, p=(0.8, 0.12, 0.08)))]


def is_held_out(word: str) -> bool:
    """Whether a word belongs to validation alone."""
    return zlib.crc32(word.encode()) % _HELD_OUT_SHARE == 0


@cache
def _words(language: str, held_out: bool) -> tuple[tuple[str, ...], np.ndarray]:
    """Words and how often each is drawn: as the root of its frequency, for rare words have the rare sounds."""
    if language in _NUMBERS_ONLY:
        return (), np.zeros(0)
    frequencies = _list(_list_name(language))
    words = tuple(word for word in frequencies if is_held_out(word) == held_out)
    share = np.array([frequencies[word] for word in words]) ** 0.5
    if block := _INDIC_BLOCKS.get(language):
        words = tuple("".join(_moved(c, block - _DEVANAGARI) for c in word) for word in words)
    return words, share / share.sum()


def _list_name(language: str) -> str:
    if language in _INDIC_BLOCKS:
        return "hi"
    name = _RELATED.get(language, language)
    return name if name in _wordfreq().available_languages("small") else _LAST_RESORT


@cache
def _list(name: str) -> dict[str, float]:
    """Words and frequencies of one of wordfreq's lists: what can be spoken, not the numbers and single letters."""
    wordfreq = _wordfreq()
    words = wordfreq.top_n_list(name, _MOST_WORDS, wordlist="small")
    spoken = [w for w in words if not any(c.isdigit() for c in w) and (len(w) > 1 or ord(w[0]) >= _SYLLABIC)]
    if name == "zh":  # `word_frequency` would want a segmenter for what is a word already
        return {word: 1 / (10 + rank) for rank, word in enumerate(spoken)}
    frequencies = wordfreq.get_frequency_dict(name, wordlist="small")
    return {word: frequencies[word] for word in spoken}


def _moved(character: str, offset: int) -> str:
    is_devanagari = _DEVANAGARI <= ord(character) < _DEVANAGARI + 0x80
    return chr(ord(character) + offset) if is_devanagari else character


@cache
def _wordfreq():  # type: ignore[no-untyped-def]  # a module
    try:
        import wordfreq
    except ImportError as error:
        raise InputError("The package wordfreq is missing: install the extra `phonetics`.") from error
    return wordfreq
