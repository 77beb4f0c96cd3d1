"""Speech with known phoneme times, from two synthesisers that are free and small: espeak-ng and flite.

espeak-ng (formants; some 130 languages, 100 variants of voice) is called in its library, for only that tells when each
phoneme begins; flite (English; voices made of recordings) as a program. An utterance's times are those of its sound:
espeak-ng announces a stop at its burst, here it begins where the sound stops, for that is when lips close.
"""

import ctypes
import ctypes.util
import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from a2m.phonetics.inventory import FEATURES, PHONES, SILENCE, feature_table, phones_of_arpabet, phones_of_ipa
from common.audio import SAMPLE_RATE_HZ
from common.errors import InputError

Marks = list[tuple[float, tuple[int, ...]]]  # start in seconds, phones of one symbol of the synthesiser

FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt")
FLITE_LANGUAGE = "en-us"
_NEUTRAL_WORDS_PER_MINUTE = 170
_FLITE_HZ = {
    "kal": 100.0,
    "kal16": 100.0,
    "awb": 130.0,
    "rms": 105.0,
    "slt": 175.0,
}  # the voices' own mean pitch, about
_CLOSURE_S = 0.12  # no stop is held longer; what is longer is a pause before it
_INITIAL_CLOSURE_S = 0.06  # after a pause
_SHORT_PAUSE_S = 0.03
_MARGIN_S = 0.1  # around an utterance, so that its first stop has a closure
_ECHO_DB = 20.0
_QUIET_DB = -50.0  # below the loudest 5 ms
_BLOCK_S = 0.005
_SILENCE = PHONES.index(SILENCE)
_STOPS = frozenset(np.flatnonzero(feature_table()[:, FEATURES.index("stop")].numpy()).tolist())


class Unspoken(InputError):
    """A text that a voice makes no sound of: give it another."""


@dataclass(frozen=True)
class Speaker:
    """Who speaks. engine: "espeak" or "flite"; language: espeak-ng's code ("de", "fr-fr"); variant: espeak-ng's variant

    ("f3", "" for none) or flite's voice; pitch: factor on the voice's own, 0.5 to 2; rate: words per minute, 80 to 400;
    throat: factor on formants and pitch together, by resampling (1.1 is a shorter throat), 0.7 to 1.4.
    """

    engine: str = "espeak"
    language: str = "en-us"
    variant: str = ""
    pitch: float = 1.0
    rate: float = 170.0
    throat: float = 1.0

    def __post_init__(self) -> None:
        if self.engine not in ("espeak", "flite"):
            raise InputError(f"There is no synthesiser {self.engine!r}: use espeak or flite.")
        if self.engine == "flite" and self.variant not in FLITE_VOICES:
            raise InputError(f"flite has no voice {self.variant!r}: use one of {', '.join(FLITE_VOICES)}.")
        if not (0.5 <= self.pitch <= 2 and 80 <= self.rate <= 400 and 0.7 <= self.throat <= 1.4):
            raise InputError(f"{self}: let pitch be 0.5 to 2, rate 80 to 400 words a minute and throat 0.7 to 1.4.")

    @property
    def name(self) -> str:
        return f"{self.engine} {self.language}+{self.variant}"


@dataclass(frozen=True)
class Utterance:
    """audio: float32 [n] at 16 kHz; phones: int64 [N], indices in PHONES; starts_s, ends_s: float64 [N], each phone's

    end the next one's start, from 0 to the end of the audio.
    """

    audio: np.ndarray
    phones: np.ndarray
    starts_s: np.ndarray
    ends_s: np.ndarray

    def at(self, times_s: np.ndarray) -> np.ndarray:
        """The phone (index in PHONES) at each of the times; silence outside."""
        index = np.searchsorted(self.starts_s, times_s, side="right") - 1
        inside = (times_s >= 0) & (times_s < self.ends_s[-1])
        return np.where(inside, self.phones[index.clip(0)], _SILENCE)

    def until(self, time_s: float) -> "Utterance":
        """What comes before a time."""
        kept = self.starts_s < time_s
        audio = self.audio[: round(time_s * SAMPLE_RATE_HZ)]
        return Utterance(audio, self.phones[kept], self.starts_s[kept], self.ends_s[kept].clip(max=time_s))


def synthesise(text: str, speaker: Speaker) -> Utterance:
    """Speak a text, with a tenth of a second of silence around it.

    InputError where the synthesiser or its voice is missing, Unspoken where the text gives no sound.
    """
    audio, rate_hz, marks = (_Espeak.get().say if speaker.engine == "espeak" else _flite)(text, speaker)
    if len(marks) == 0 or len(audio) < 0.1 * rate_hz or not np.any(audio):
        raise Unspoken(f"{speaker.name} says nothing to {text[:60]!r}: give a text in {speaker.language}.")
    audio = np.pad(audio, round(_MARGIN_S * rate_hz))
    end_s = len(audio) / rate_hz
    marks = [(start_s + _MARGIN_S, phones) for start_s, phones in marks]
    marks = [(0.0, (_SILENCE,)), *marks, (end_s - _MARGIN_S, (_SILENCE,))]
    phones, starts_s = _one_each(_with_closures(marks, audio, rate_hz) if speaker.engine == "espeak" else marks, end_s)
    audio = soxr.resample(audio, rate_hz * speaker.throat, SAMPLE_RATE_HZ).astype(np.float32)
    starts_s, end_s = starts_s / speaker.throat, len(audio) / SAMPLE_RATE_HZ
    return Utterance(audio, phones, starts_s, np.append(starts_s[1:], end_s))


def _with_closures(marks: Marks, audio: np.ndarray, rate_hz: int) -> Marks:
    """espeak-ng's marks, where a stop begins with its burst, to ones where it begins with the quiet before it.

    Other quiet at the end of a phone is silence.
    """
    level_db = _block_levels(audio, rate_hz)
    result: Marks = []
    before_s = 0.0
    before: tuple[int, ...] = (_SILENCE,)
    for start_s, phones in marks:
        is_stop, after_pause = phones[0] in _STOPS, before == (_SILENCE,)
        quiet_s = _quiet_before(level_db, start_s, before_s, is_stop and not after_pause)
        if not after_pause and quiet_s > (_CLOSURE_S if is_stop else _SHORT_PAUSE_S):
            result.append((start_s - quiet_s, (_SILENCE,)))
            after_pause = True
        if is_stop and quiet_s > 0:
            result.append((start_s - min(quiet_s, _INITIAL_CLOSURE_S if after_pause else _CLOSURE_S), phones[:1]))
            result += [(start_s, phones[1:])] if len(phones) > 1 else []  # of an affricate, what follows the burst
        else:
            result.append((start_s, phones))
        before_s, before = start_s, phones[-1:]
    return result


def _one_each(marks: Marks, end_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Marks of one phone each, as phones [N] and starts_s [N]: diphthongs share their time, silences join."""
    phones: list[int] = []
    starts: list[float] = []
    for (start_s, symbol), next_s in zip(marks, [start_s for start_s, _ in marks[1:]] + [end_s], strict=True):
        for k, phone in enumerate(symbol if next_s > start_s else ()):
            if not phones or phone != _SILENCE or phones[-1] != _SILENCE:
                phones.append(phone)
                starts.append(start_s + (next_s - start_s) * k / len(symbol))
    return np.array(phones), np.array(starts)


def _block_levels(audio: np.ndarray, rate_hz: int) -> np.ndarray:
    """Level of every 5 ms, in dB below the loudest."""
    size = round(_BLOCK_S * rate_hz)
    power = np.square(audio[: len(audio) // size * size].reshape(-1, size)).mean(axis=1)
    return 10 * np.log10(power / power.max() + 1e-10)


def _quiet_before(level_db: np.ndarray, time_s: float, floor_s: float, is_relative: bool) -> float:
    """How long it has been quiet before a time, back to floor_s at most.

    is_relative: quiet is measured against what is there since floor_s, for some voices have an echo. Marks are a few ms
    late: the quiet may end up to two blocks earlier.
    """
    first, last = round(floor_s / _BLOCK_S), min(int(time_s / _BLOCK_S), len(level_db))
    if last <= first:
        return 0.0
    span = level_db[first:last]
    is_quiet = span <= (max(_QUIET_DB, span.max() - _ECHO_DB) if is_relative else _QUIET_DB)
    for end in range(len(span), max(len(span) - 3, 0), -1):
        loud = np.flatnonzero(~is_quiet[:end])
        n_heard = loud[-1] + 1 if len(loud) else 0
        if n_heard < end:
            return time_s - (first + n_heard) * _BLOCK_S
    return 0.0


# flite ----------------------------------------------------------------------------------------------------------------


def _flite(text: str, speaker: Speaker) -> tuple[np.ndarray, int, Marks]:
    """Audio [n], its rate, and the marks; through the program, for flite's library keeps its segments to itself."""
    if shutil.which("flite") is None:
        raise InputError("The program flite is missing: install it (Debian and Ubuntu: apt install flite).")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        settings = {
            "duration_stretch": _NEUTRAL_WORDS_PER_MINUTE / speaker.rate,
            "int_f0_target_mean": _FLITE_HZ[speaker.variant] * speaker.pitch,
        }
        command = ["flite", "-voice", speaker.variant, "-psdur", "-o", str(path)]
        command += [part for name, value in settings.items() for part in ("--setf", f"{name}={value:.3f}")]
        result = subprocess.run([*command, "-t", text], capture_output=True, text=True, check=False)
        if result.returncode != 0 or not path.exists():
            raise InputError(f"flite failed ({result.stderr.strip()[:80] or 'no message'}): is its voice installed?")
        audio, rate_hz = soundfile.read(path, dtype="float32")
    segments = re.findall(r"([a-z]+):([0-9.]+)", result.stdout)  # name and end, in seconds; one utterance or several
    return audio, rate_hz, _flite_marks([(name, float(end)) for name, end in segments])


def _flite_marks(segments: list[tuple[str, float]]) -> Marks:
    """From ends to starts; every sentence of a text counts from zero again."""
    marks, start_s, offset_s, end_before_s = [], 0.0, 0.0, 0.0
    for name, end_s in segments:
        if end_s < end_before_s:
            offset_s += end_before_s
        end_before_s = end_s
        marks.append((start_s, phones_of_arpabet(name)))
        start_s = offset_s + end_s
    return marks


# espeak-ng ------------------------------------------------------------------------------------------------------------


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


class _Voice(ctypes.Structure):
    """espeak_VOICE of speak_lib.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),  # a byte of priority, then the code
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_SYNCHRONOUS = 2
_PHONEME_EVENTS_IN_IPA_DONT_EXIT = 0x0001 | 0x0002 | 0x8000
_LIST_TERMINATED, _PHONEME = 0, 7
_RATE, _PITCH = 1, 3
_UTF8 = 1


class _Espeak:
    """The library, one per process: it keeps its voice and its callback in global variables."""

    def __init__(self) -> None:
        self._library, data_path = _load_espeak()
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        self.rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, _PHONEME_EVENTS_IN_IPA_DONT_EXIT)
        if self.rate_hz <= 0:
            raise InputError("espeak-ng does not find its data: install it again (package espeak-ng).")
        self._blocks: list[np.ndarray] = []
        self._symbols: list[tuple[float, str]] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library holds no reference
        self._library.espeak_SetSynthCallback(self._callback)

    @staticmethod
    @cache
    def get() -> "_Espeak":
        return _Espeak()

    def say(self, text: str, speaker: Speaker) -> tuple[np.ndarray, int, Marks]:
        """Audio [n], its rate, and the marks."""
        # By the voice's file: espeak-ng finds no "fr-fr" by its name, and goes on in the voice it had.
        identifier = self.identifiers().get(speaker.language.lower())
        if identifier is None:
            raise InputError(f"espeak-ng has no language {speaker.language!r}: see `espeak-ng --voices`.")
        if speaker.variant not in espeak_variants():  # espeak-ng would say nothing of it
            raise InputError(f"espeak-ng has no variant {speaker.variant!r}: see `espeak-ng --voices=variant`.")
        voice = identifier + (f"+{speaker.variant}" if speaker.variant else "")
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"espeak-ng does not load its voice {voice}: install it again (package espeak-ng).")
        self._library.espeak_SetParameter(_RATE, round(speaker.rate), 0)
        self._library.espeak_SetParameter(_PITCH, round(50 + 72 * np.log2(speaker.pitch)), 0)
        self._blocks, self._symbols = [], []
        content = text.encode()
        self._library.espeak_Synth(content, len(content) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate([*self._blocks, np.zeros(0, np.int16)])
        marks: Marks = []
        for start_s, symbol in self._symbols:
            phones = phones_of_ipa(symbol)
            if symbol == "" or phones != (
                _SILENCE,
            ):  # nothing is a pause; a lone mark ("ː") goes on with what was before
                marks.append((start_s, phones))
        return samples.astype(np.float32) / 32768, self.rate_hz, marks

    @cache  # noqa: B019  # there is one
    def identifiers(self) -> dict[str, str]:
        """The file of each language's first voice, by its code."""
        return dict(reversed(self._voices(None)))

    def variants(self) -> list[str]:
        return [identifier.removeprefix("!v/") for _, identifier in self._voices("variant")]

    def _voices(self, language: str | None) -> list[tuple[str, str]]:
        """Code and identifier of the voices of a language."""
        wanted = _Voice(languages=language.encode() if language else None)
        voices = self._library.espeak_ListVoices(ctypes.byref(wanted) if language else None)
        found, k = [], 0
        while voices[k]:
            voice = voices[k].contents
            found.append((voice.languages[1:].decode().lower(), voice.identifier.decode()))
            k += 1
        return found

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", n: int, events: "ctypes._Pointer[_Event]") -> int:
        if n > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (n,)).copy())
        k = 0
        while events[k].type != _LIST_TERMINATED:
            if events[k].type == _PHONEME:
                self._note(events[k])
            k += 1
        return 0  # go on

    def _note(self, event: _Event) -> None:
        # The string fills its 8 bytes without an end where it is that long.
        raw = ctypes.string_at(ctypes.addressof(event) + _Event.id.offset, 8).split(b"\0")[0]
        symbol = raw.decode("utf-8", errors="ignore")
        if not symbol.startswith("("):  # "(en)": the language changes
            self._symbols.append((event.audio_position / 1000, symbol))


@cache
def espeak_languages() -> tuple[str, ...]:
    """The codes of espeak-ng's languages and accents, sorted. InputError where it is missing."""
    return tuple(sorted(_Espeak.get().identifiers()))


@cache
def espeak_variants() -> tuple[str, ...]:
    """The names of espeak-ng's variants of voice, sorted, with "" for none."""
    return ("", *sorted(set(_Espeak.get().variants())))


def _load_espeak() -> tuple[ctypes.CDLL, bytes | None]:
    """The library and where its data lie (None: where it was built for): the system's, or the wheel's."""
    if found := ctypes.util.find_library("espeak-ng"):
        return ctypes.CDLL(found), None
    if importlib.util.find_spec("espeakng_loader") is not None:
        import espeakng_loader

        return ctypes.CDLL(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path()).encode()
    raise InputError("espeak-ng is missing: install the extra `phonetics`, or the package espeak-ng of your system.")
