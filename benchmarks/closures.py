"""Do the lips meet where they must? Speech whose phone times are known, synthesised: no track is needed.

Voices and sentences that the phonetic encoder has not heard, in six languages. A curve is the opening of the mouth from
0, where it is least in the utterance, to 1, where it is most. Chance is the same curve turned by half the utterance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch

from a2m.phonetics.corpus import held_out_variant
from a2m.phonetics.inventory import FEATURES, PHONES, feature_table
from a2m.phonetics.synthesis import Speaker, Utterance, espeak_variants, synthesise
from a2m.phonetics.texts import SENTENCES
from a2m.pipeline import AudioToMotion
from benchmarks import bars
from benchmarks.bars import Bar
from benchmarks.report import markdown
from benchmarks.shown import speaking
from common.audio import FPS

CLOSED, OPEN = 0.2, 0.4  # of the range
_CLOSE_FRAMES, _PEAK_FRAMES = 2, 1
_ASKED = 0.8
_LIPS = tuple(PHONES.index(phone) for phone in "pbm")
_OPEN = tuple(PHONES.index(phone) for phone in "aɑæ")
_VOWELS = frozenset(np.flatnonzero(feature_table()[:, FEATURES.index("vowel")].numpy()).tolist())
Curve = Callable[[Utterance, int], np.ndarray]  # of an utterance, from a seed: openings [T]


@dataclass(frozen=True)
class Hits:
    """Of one utterance: how many /p b m/ there are and at how many the lips meet; the same of /a/ and open mouths, and

    of the /a/ between consonants and peaks near their middles.
    """

    n_lips: int
    closed: int
    n_open: int
    opened: int
    n_alone: int
    peaked: int


def hits(said: Utterance, opening: np.ndarray) -> Hits:
    """opening: [T], frame k at (k + 1/2) / 25 s."""
    curve = (opening - opening.min()) / max(float(np.ptp(opening)), 1e-6)
    middles = ((said.starts_s + said.ends_s) / 2 * FPS).astype(int).clip(0, len(curve) - 1)

    def around(k: int, reach: int) -> np.ndarray:
        return curve[max(0, middles[k] - reach) : middles[k] + reach + 1]

    lips, opens = (np.flatnonzero(np.isin(said.phones, phones)).tolist() for phones in (_LIPS, _OPEN))
    neighbours = [{int(said.phones[j]) for j in (k - 1, k + 1) if 0 <= j < len(said.phones)} for k in opens]
    alone = [k for k, near in zip(opens, neighbours, strict=True) if not near & _VOWELS]
    tops = peaks(curve)
    return Hits(
        n_lips=len(lips),
        closed=sum(bool(around(k, _CLOSE_FRAMES).min() <= CLOSED) for k in lips),
        n_open=len(opens),
        opened=sum(bool(around(k, _PEAK_FRAMES).max() >= OPEN) for k in opens),
        n_alone=len(alone),
        peaked=sum(bool(np.any(np.abs(tops - middles[k]) <= _PEAK_FRAMES)) for k in alone),
    )


def peaks(curve: np.ndarray) -> np.ndarray:
    """Frames above `CLOSED` that are lower than neither neighbour and higher than one: curve [T] in 0..1."""
    padded = np.pad(curve, 1, mode="edge")
    rise, fall = padded[1:-1] - padded[:-2], padded[1:-1] - padded[2:]
    return np.flatnonzero((rise >= 0) & (fall >= 0) & (rise + fall > 0) & (curve > CLOSED))


def closures(pipeline: AudioToMotion, n_voices: int, n_seeds: int) -> None:
    def curve(said: Utterance, seed: int) -> np.ndarray:
        return speaking(pipeline, torch.from_numpy(said.audio), seed=seed).numpy()

    report(list(utterances(n_voices)), curve, n_seeds)


def utterances(n_voices: int) -> Iterator[tuple[str, str, Utterance]]:
    """Language, voice and utterance: each of the six languages' sentences said by voices that training has not."""
    variants = [variant for variant in espeak_variants() if held_out_variant(variant)]
    chosen = [variants[k * len(variants) // n_voices] for k in range(min(n_voices, len(variants)))]
    for language, sentences in SENTENCES.items():
        speakers = [Speaker(language=language, variant=variant) for variant in chosen]
        speakers += [Speaker("flite", language, "awb")] if language == "en-us" else []
        for speaker in speakers:
            for text in sentences:
                yield language, speaker.name, synthesise(text, speaker)


def report(said: Sequence[tuple[str, str, Utterance]], curve: Curve, n_seeds: int) -> None:
    """Print a row for each language, and the bars over all."""
    voices = [voice for _, voice, _ in said for _ in range(n_seeds)]
    of = np.array([language for language, _, _ in said for _ in range(n_seeds)])
    found, chance = [], []
    for _, _, utterance in said:
        for seed in range(n_seeds):
            opening = curve(utterance, seed)
            found.append(astuple(hits(utterance, opening)))
            chance.append(astuple(hits(utterance, np.roll(opening, len(opening) // 2))))
    ours, rolled = np.array(found), np.array(chance)  # [utterances, 6]
    n = sum(len(utterance.phones) for _, _, utterance in said)
    title = f"{len(said)} utterances, {len(set(voices))} voices, {n} phones, {n_seeds} samples each"
    print(f"{title}; in brackets by chance\n")
    titles = ("lips meet at /p b m/", "open at /a/", "peaks at /a/")
    rows: list[list[object]] = []
    for language in ["all", *dict.fromkeys(of.tolist())]:
        part = np.ones(len(of), bool) if language == "all" else of == language
        sums, lucky = ours[part].sum(axis=0), rolled[part].sum(axis=0)
        cells = [
            f"{100 * sums[k + 1] / max(1, sums[k]):.0f} % ({100 * lucky[k + 1] / max(1, lucky[k]):.0f} %), n {sums[k]}"
            for k in (0, 2, 4)
        ]
        rows.append([language, *cells])
    print(markdown(["", *titles], rows) + "\n")
    for k, text in zip((0, 2, 4), _TEXTS, strict=True):
        print(Bar(text, bars.ratio(ours[:, k + 1].tolist(), ours[:, k].tolist(), voices), least=_ASKED))


_TEXTS = (
    f"/p b m/ with an opening of at most {CLOSED:.0%} of the range within ± {_CLOSE_FRAMES} frames",
    f"/a/ with at least {OPEN:.0%} of it within ± {_PEAK_FRAMES} frame",
    f"/a/ between consonants with a peak within ± {_PEAK_FRAMES} frame of its middle",
)
