"""A corpus of synthesised speech as the model hears it, a phone to every 20 ms: `python -m a2m.phonetics.corpus`.

Voices, tempi, throats and pitches come from the synthesisers; rooms, equalisers, noise, babble, clipping and codecs are
laid over the samples. A part is a folder of four files: mel.npy float16 [4 T, 64] (columns of 10 ms in units of 10 dB,
relative to the voice's mean), phones.npy int8 [2 T] (of 20 ms, the phone at the centre), sound.npy bool [T]
(`a2m.speech.analyse`) and index.json. In the part `held_out` speakers (espeak-ng's variants, a voice of flite) and
words are ones that the part `train` has not.
"""

import json
import logging
import multiprocessing
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from a2m.phonetics.disturbance import Disturbance
from a2m.phonetics.synthesis import (
    FLITE_LANGUAGE,
    Speaker,
    Unspoken,
    Utterance,
    espeak_languages,
    espeak_variants,
    synthesise,
)
from a2m.phonetics.texts import SENTENCES, sentence
from a2m.regression import MEL_RANGE
from a2m.speech import analyse, mel_columns
from common import entry
from common.audio import N_MELS, SAMPLE_RATE_HZ, STATE_SAMPLES, n_frames
from common.errors import InputError
from common.files import check_folder, check_input

log = logging.getLogger(__name__)

PARTS = ("train", "held_out")
HELD_OUT_SHARE = 0.04  # of the hours
_FLITE_SHARE = 0.2  # of the utterances: its voices are nearest to people's
_MAIN_SHARE = 0.4  # of espeak-ng's utterances: the benchmark's languages; the rest has all the others
_FLITE = {"train": ("kal", "kal16", "rms", "slt"), "held_out": ("awb",)}
_HELD_OUT_VARIANTS = 8  # one in so many
_LENGTH_S = (3.0, 10.0)
_MOST_DRAWS = 20  # in a row: something is wrong with the synthesisers


@dataclass(frozen=True)
class Entry:
    """An utterance in its part: first state and number of states (both even), who says what."""

    first: int
    n: int
    speaker: str
    language: str
    text: str


@dataclass(frozen=True)
class Heard:
    """An utterance as the model hears it: mel float16 [4 T, 64], phones int8 [2 T], sound bool [T]."""

    mel: np.ndarray
    phones: np.ndarray
    sound: np.ndarray
    speaker: Speaker
    text: str


@dataclass(frozen=True)
class Part:
    """A part of a corpus: mel, phones and sound as arrays on disk, and its utterances."""

    mel: np.ndarray
    phones: np.ndarray
    sound: np.ndarray
    utterances: list[Entry]


def read_part(folder: Path, part: str) -> Part:
    """One of PARTS of a corpus that `make` has written; the arrays stay on disk. InputError where it is not whole."""
    path = folder / part
    check_input(path / "index.json", "corpus of synthesised speech")
    utterances = [Entry(**row) for row in json.loads((path / "index.json").read_text(encoding="utf-8"))["utterances"]]
    mel, phones, sound = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("mel", "phones", "sound"))
    if not 2 * len(phones) == len(mel) == 4 * len(sound) == 2 * sum(entry.n for entry in utterances):
        raise InputError(f"{path} is not whole (lengths differ): make the corpus again.")
    return Part(mel, phones, sound, utterances)


def make(folder: Path, hours: float, seed: int = 0, n_workers: int = 1) -> None:
    """Write a corpus of so many hours of training and HELD_OUT_SHARE of them held out, all or nothing."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for part in PARTS:
            seconds = 3600 * hours * (HELD_OUT_SHARE if part == "held_out" else 1)
            with ExitStack() as stack:
                writer = stack.enter_context(_Writer(temporary / part))
                began = time.monotonic()
                for heard in _utterances(part, seed, n_workers, stack):
                    writer.add(heard)
                    if len(writer.utterances) % 500 == 0:
                        log.info("%s: %.2f h in %.0f s", part, writer.seconds / 3600, time.monotonic() - began)
                    if writer.seconds >= seconds:
                        break
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _utterances(part: str, seed: int, n_workers: int, stack: ExitStack) -> Iterator[Heard]:
    """Utterances without end, drawn alike for any number of processes (espeak-ng's tremor apart, which goes on)."""
    numbers = iter(range(2**31))
    make_one = partial(utterance, part, seed)
    if n_workers == 1:
        yield from map(make_one, numbers)
        return
    pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(n_workers, torch.set_num_threads, (1,)))
    while True:
        yield from pool.map(make_one, [next(numbers) for _ in range(16 * n_workers)], chunksize=4)


def utterance(part: str, seed: int, number: int) -> Heard:
    """The utterance of that number, drawn: speaker, words, and what happens to the sound."""
    generator = np.random.default_rng((seed, PARTS.index(part), number))
    speaker, text, said = _drawn(part, generator)
    lead, tail = (round(generator.uniform(0.0, 0.5) * SAMPLE_RATE_HZ) for _ in range(2))
    audio = np.pad(said.audio, (lead, tail))
    babble = _babble(part, generator) if generator.random() < 0.3 else None
    disturbed = Disturbance()(audio, babble, generator)
    return heard(disturbed, said, lead / SAMPLE_RATE_HZ, speaker, text)


def heard(audio: np.ndarray, said: Utterance, lead_s: float, speaker: Speaker, text: str) -> Heard:
    """What the model hears of audio float32 [n] in which `said` begins after lead_s."""
    samples = torch.from_numpy(audio)
    T = n_frames(len(samples))
    voice = analyse(samples)
    mel = (mel_columns(samples, 0, T, voice.gain) - voice.mel_mean).clamp(*MEL_RANGE)  # [T, 4, 64]
    centres_s = (np.arange(2 * T) + 0.5) * (STATE_SAMPLES / SAMPLE_RATE_HZ)
    phones = said.at(centres_s - lead_s).astype(np.int8)
    return Heard(mel.flatten(0, 1).numpy().astype(np.float16), phones, voice.sound.numpy(), speaker, text)


def held_out_variant(variant: str) -> bool:
    """Whether a variant of espeak-ng's voice is kept from training."""
    return zlib.crc32(variant.encode()) % _HELD_OUT_VARIANTS == 0


def draw_speaker(part: str, generator: np.random.Generator) -> Speaker:
    """A speaker of a part: in a fifth flite's, else any language and variant of espeak-ng."""
    if generator.random() < _FLITE_SHARE:
        return Speaker(
            engine="flite",
            language=FLITE_LANGUAGE,
            variant=str(generator.choice(_FLITE[part])),
            pitch=float(generator.uniform(0.8, 1.3)),
            rate=float(generator.uniform(130, 230)),
            throat=float(np.exp(generator.normal(0, 0.09)).clip(0.8, 1.25)),
        )
    languages = tuple(SENTENCES) if generator.random() < _MAIN_SHARE else espeak_languages()
    variants = [variant for variant in espeak_variants() if held_out_variant(variant) == (part == "held_out")]
    return Speaker(
        engine="espeak",
        language=str(generator.choice(languages)),
        variant=str(generator.choice(variants)),
        pitch=float(np.exp(generator.normal(0, 0.2)).clip(0.6, 1.6)),
        rate=float(generator.uniform(120, 260)),
        throat=float(np.exp(generator.normal(0, 0.08)).clip(0.8, 1.25)),
    )


def _drawn(part: str, generator: np.random.Generator) -> tuple[Speaker, str, Utterance]:
    """A speaker and something said, of 3 to 10 s; what voices can't say (few can't say a word) is drawn again."""
    for _ in range(_MOST_DRAWS):
        speaker = draw_speaker(part, generator)
        text = sentence(speaker.language, generator, int(generator.uniform(40, 110)), part == "held_out")
        try:
            said = synthesise(text, speaker)
        except Unspoken as error:
            log.warning("%s", error)
            continue
        if said.ends_s[-1] >= _LENGTH_S[0]:
            return speaker, text, said.until(_LENGTH_S[1])
    raise InputError(f"The synthesisers said nothing of {_LENGTH_S[0]:g} s in {_MOST_DRAWS} tries: are they whole?")


def _babble(part: str, generator: np.random.Generator) -> np.ndarray:
    """Two to four others talking at once, [n]."""
    voices = [_drawn(part, generator)[2].audio for _ in range(int(generator.integers(2, 5)))]
    n = min(map(len, voices))
    return np.sum([voice[:n] / (np.abs(voice).max() + 1e-9) for voice in voices], axis=0)


class _Writer:
    """Appends utterances to the files of a part; what is there becomes a part when the block ends well."""

    def __init__(self, folder: Path):
        self.folder, self.utterances = folder, list[Entry]()
        self.seconds = 0.0
        folder.mkdir(parents=True)
        self._files = {name: (folder / f"{name}.npy").open("wb") for name in ("mel", "phones", "sound")}
        self._write_headers(0)

    def __enter__(self) -> Self:
        return self

    def add(self, heard: Heard) -> None:
        first = self.utterances[-1].first + self.utterances[-1].n if self.utterances else 0
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(getattr(heard, name)).tobytes())
        speaker = heard.speaker
        self.utterances.append(Entry(first, len(heard.phones), speaker.name, speaker.language, heard.text))
        self.seconds += len(heard.phones) * STATE_SAMPLES / SAMPLE_RATE_HZ

    def _write_headers(self, n_states: int) -> None:
        """Lengths stand at the beginning of the files; numpy leaves room for the digits they may grow by."""
        layouts = {
            "mel": ("<f2", (2 * n_states, N_MELS)),
            "phones": ("|i1", (n_states,)),
            "sound": ("|b1", (n_states // 2,)),
        }
        for name, (descr, shape) in layouts.items():
            self._files[name].seek(0)
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._files[name], header)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._write_headers(sum(entry.n for entry in self.utterances))
        for file in self._files.values():
            file.close()
        if kind is None:
            index = {"columns_hz": 100, "utterances": [asdict(entry) for entry in self.utterances]}
            (self.folder / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=0), encoding="utf-8")


def run(argv: list[str]) -> None:
    parser = entry.Parser(prog="python -m a2m.phonetics.corpus", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    add("--hours", type=float, default=4.0, help="of speech for training (default 4; an hour takes 50 MB)")
    add("--seed", type=int, default=0, help="another seed draws another corpus")
    add("--workers", type=int, default=1, metavar="N", help="processes (default 1); all draw alike")
    add("--overwrite", action="store_true", help="replace a folder that holds files already")
    args = parser.parse_args(argv)
    if not (0 < args.hours <= 10_000 and 1 <= args.workers <= 256 and 0 <= args.seed < 2**31):
        raise InputError("Let --hours be above 0 (10000 at most), --workers 1 to 256 and --seed a whole number from 0.")
    check_folder(args.out, (), args.overwrite)
    torch.set_num_threads(1)
    make(args.out, args.hours, args.seed, args.workers)
    for part in PARTS:
        made = read_part(args.out, part)
        n_speakers = len({utterance.speaker for utterance in made.utterances})
        hours = len(made.sound) / 25 / 3600
        print(f"{args.out / part}: {hours:.2f} h, {len(made.utterances)} utterances of {n_speakers} speakers")


if __name__ == "__main__":
    entry.run(run, level=logging.INFO, form="%(message)s")
