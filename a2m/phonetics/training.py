"""What `train_a2m.py stage=phonetics` trains: the phonetic encoder, as a `common.trainer.Task`.

Synthesised speech (`a2m.phonetics.corpus`) says which phone sounds when; every crop is heard as another throat, room
and microphone would have it (`a2m.phonetics.augmentation`), with stretches masked. Real speech has no labels: there the
encoder, hearing the disturbed and masked crop, is to say what it says of the undisturbed one, with each phone as often
as usual (see noisy student training, Xie et al. 2020, and FixMatch, Sohn et al. 2020).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn

from a2m.data import interpolate
from a2m.phonetics.augmentation import disturb, mask
from a2m.phonetics.corpus import PARTS, Part, read_part
from a2m.phonetics.encoder import WEIGHTS, Phonetic, PhoneticConfig, PhoneticEncoder
from a2m.phonetics.inventory import FEATURES, PHONES, SILENCE, feature_table
from a2m.regression import MEL_RANGE
from a2m.speech import analyse, mel_columns
from common.clip_index import read_index
from common.errors import InputError
from common.media import read_audio
from common.trainer import Task

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]

UNKNOWN = -1  # the phone of states that no synthesiser made
_BILABIAL = FEATURES.index("bilabial")
_LIPS = [_BILABIAL, FEATURES.index("labiodental")]
_RARE, _MOST_ALIGNED = 2e-3, 4.0
_LOOKED_AT = 30_000  # states: ten minutes of held-out speech are enough
_REAL_SUFFIXES = (".ogg", ".wav", ".flac", ".mp3", ".m4a", ".opus")


@dataclass
class PhoneticDataConfig:
    """How speech becomes samples, and what the loss weighs."""

    crop_states: int = 200  # 4 s
    stretch: float = 0.25  # speech is heard faster or slower by up to this share
    real_share: float = 0.3  # of the samples: real speech
    feature_weight: float = 2.0  # of the articulatory features against the phones
    lips_weight: float = 2.0  # of states in which the lips close or nearly do: few, and all can see them
    agreement_weight: float = 0.3  # of what real speech teaches
    agreement_from: int = 60_000  # samples until it has its full weight: a beginner teaches nonsense


class Utterance(NamedTuple):
    """Columns mel [2 N, 64] as the encoder hears them; phones [N] int8 of the states, UNKNOWN where nobody knows."""

    mel: np.ndarray
    phones: np.ndarray


class Utterances:
    """Endless crops of speech; number i follows from (seed, i). Time is stretched here, all else is disturbed later.

    A sample: mel [2 crop_states, 64], phones [crop_states] int64, teaches [] float32, how much real speech may weigh.
    """

    def __init__(self, labelled: list[Utterance], real: list[Utterance], options: PhoneticDataConfig, seed: int):
        self.options, self.seed = options, seed
        self.kinds = [(kind, np.cumsum([len(u.phones) for u in kind])) for kind in (labelled, real) if kind]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        options, random = self.options, np.random.default_rng((self.seed, number))
        utterances, ends = self.kinds[int(len(self.kinds) > 1 and random.random() < options.real_share)]
        speed = 1 + options.stretch * (2 * random.random() - 1)
        n_states = math.ceil(options.crop_states * speed) + 1
        mel, phones = cut(utterances, ends, int(random.integers(ends[-1])), n_states)
        column_at = (torch.arange(2 * options.crop_states) + 0.5) * speed - 0.5
        state_at = (torch.arange(options.crop_states) + 0.5) * speed
        return {
            "mel": interpolate(torch.from_numpy(mel).float(), column_at),
            "phones": torch.from_numpy(phones).long()[state_at.long()],
            "teaches": torch.tensor(min(1.0, number / max(options.agreement_from, 1))),
        }


def cut(utterances: list[Utterance], ends: np.ndarray, first: int, n_states: int) -> tuple[np.ndarray, np.ndarray]:
    """n_states states from `first` on, where the utterances follow each other and the first one the last.

    ends: [U] their cumulated lengths. Returns mel [2 n_states, 64] and phones [n_states].
    """
    k = int(np.searchsorted(ends, first, side="right"))
    start, parts, missing = first - int(ends[k]) + len(utterances[k].phones), [], n_states
    while missing > 0:
        mel, phones = utterances[k]
        parts.append((mel[2 * start : 2 * (start + missing)], phones[start : start + missing]))
        missing -= len(parts[-1][1])
        k, start = (k + 1) % len(utterances), 0
    mels, labels = zip(*parts, strict=True)
    return np.concatenate(mels), np.concatenate(labels)


# ---- reading


def read_corpus(folder: Path) -> tuple[list[Utterance], list[Utterance]]:
    """The training and the held-out utterances of a corpus, or of all the corpora in a folder, on disk until used."""
    folders = [folder] if (folder / PARTS[0]).is_dir() else sorted(path.parent for path in folder.glob(f"*/{PARTS[0]}"))
    if not folders:
        raise InputError(f"{folder} holds no corpus: make one with `python -m a2m.phonetics.corpus --out {folder}`.")

    train, held_out = ([each for path in folders for each in utterances(read_part(path, name))] for name in PARTS)
    return train, held_out


def utterances(part: Part) -> Iterator[Utterance]:
    for entry in part.utterances:
        first, last = entry.first, entry.first + entry.n
        yield Utterance(part.mel[2 * first : 2 * last], part.phones[first:last])


def read_real(paths: list[Path]) -> list[Utterance]:
    """Recordings without labels, as the models hear them."""
    result = []
    for path in paths:
        mel = columns_of(torch.from_numpy(read_audio(path)))
        result.append(Utterance(mel.half().numpy(), np.full(len(mel) // 2, UNKNOWN, np.int8)))
    return result


def columns_of(audio: Tensor) -> Tensor:
    """audio [n] -> [4 T, 64] relative to the voice's mean, as the encoder wants it."""
    voice = analyse(audio)
    mel = mel_columns(audio, 0, len(voice.sound), voice.gain) - voice.mel_mean
    return mel.clamp(*MEL_RANGE).flatten(0, 1)


# ---- the loss


def make_loss(options: PhoneticDataConfig) -> Callable[[nn.Module, Batch, Generator], dict[str, Tensor]]:
    table = feature_table()

    def loss(model: nn.Module, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        mel, phones = batch["mel"], batch["phones"]
        with torch.autocast(mel.device.type, enabled=False):
            heard = mask(disturb(mel, generator), generator).clamp(*MEL_RANGE)
        said = model(heard)
        terms = supervised(said, phones, table.to(mel.device), options)
        is_real = (phones == UNKNOWN).all(dim=1)
        if is_real.any() and not is_real.all():
            with torch.no_grad():
                teacher = model(mel[is_real]).phone_logits.float()
                usual = nn.functional.one_hot(phones[~is_real], len(PHONES)).float().mean(dim=(0, 1))
                target = aligned(teacher, usual)
            student = Phonetic(*(each[is_real] for each in said))
            weight = options.agreement_weight * batch["teaches"][is_real] / len(mel)
            terms["agreement"] = agreement(student, target, table.to(mel.device), weight, options)
        return terms

    return loss


def supervised(said: Phonetic, phones: Tensor, table: Tensor, options: PhoneticDataConfig) -> dict[str, Tensor]:
    """Cross-entropy of phones [B, N] and of their features, as means over all states, unknown ones counting nothing."""
    target = phones.clamp(min=0)
    is_at_lips = table[target][..., _LIPS].any(dim=-1)
    weight = torch.where(is_at_lips, options.lips_weight, 1.0) * (phones != UNKNOWN)
    each = nn.functional.cross_entropy(said.phone_logits.float().mT, target, reduction="none")
    features = nn.functional.binary_cross_entropy_with_logits(
        said.feature_logits.float(), table[target], reduction="none"
    )
    return {
        "phones": (each * weight).mean(),
        "features": options.feature_weight * (features.mean(dim=-1) * weight).mean(),
    }


def aligned(logits: Tensor, usual: Tensor) -> Tensor:
    """A teacher's probabilities [B, N, P] that have each phone about as often as it is usual [P], silence apart.

    Else teacher and student soon agree on one vowel for all that is real (distribution alignment, Berthelot et al.
    2020, 2022).
    """
    said = logits.softmax(dim=-1)
    ratio = ((usual + _RARE) / (said.mean(dim=(0, 1)) + _RARE)).clamp(1 / _MOST_ALIGNED, _MOST_ALIGNED)
    ratio[PHONES.index(SILENCE)] = 1.0
    return nn.functional.normalize(said * ratio, p=1, dim=-1)


def agreement(student: Phonetic, target: Tensor, table: Tensor, weight: Tensor, options: PhoneticDataConfig) -> Tensor:
    """How far a student's phones and features are from a teacher's probabilities [B, N, P]; weight: [B]."""
    said = student.phone_logits.float().log_softmax(dim=-1)
    phones = nn.functional.kl_div(said, target, reduction="none").sum(dim=-1).mean(dim=-1)  # [B]
    logits = student.feature_logits.float()
    features = nn.functional.binary_cross_entropy_with_logits(logits, target @ table, reduction="none").mean(dim=(1, 2))
    return ((phones + options.feature_weight * features) * weight).sum()


# ---- the task


def setup(
    corpus: Path,
    speech_dir: Path | None,
    data_dir: Path | None,
    model: PhoneticConfig,
    options: PhoneticDataConfig,
    init: str,
    seed: int,
) -> Task:
    """The task of training this encoder on a corpus, on the recordings of a folder, and on what people say in clips.

    init: empty, or the name or folder of weights to start from (`small`: the built-in ones).
    """
    train, held_out = read_corpus(corpus)
    paths = [p for p in sorted(speech_dir.iterdir()) if p.suffix in _REAL_SUFFIXES] if speech_dir else []
    real = read_real(paths + (clip_paths(data_dir, "train") if data_dir else []))
    real_held_out = read_real(clip_paths(data_dir, "val")) if data_dir else []
    for name, found in (("synthesised", train), ("held out", held_out), ("real", real), ("real, val", real_held_out)):
        log.info("%s: %d utterances, %.1f min", name, len(found), sum(len(u.phones) for u in found) / 3000)
    return make_task(train, held_out, real, real_held_out, model, options, init, seed)


def clip_paths(data_dir: Path, split: str) -> list[Path]:
    rows = [row for row in read_index(data_dir, "kind") if row["split"] == split and row["kind"] == "talking"]
    return [data_dir / "clips" / f"{row['clip_id']}.mp4" for row in rows]


def make_task(
    train: list[Utterance],
    held_out: list[Utterance],
    real: list[Utterance],
    real_held_out: list[Utterance],
    model: PhoneticConfig,
    options: PhoneticDataConfig,
    init: str,
    seed: int,
) -> Task:
    if init:
        encoder = PhoneticEncoder.from_pretrained(WEIGHTS if init == "small" else init)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights
            encoder = PhoneticEncoder(model)

    def save(trained: nn.Module, folder: Path) -> None:
        assert isinstance(trained, PhoneticEncoder)
        trained.save(folder)

    return Task(
        model=encoder,
        loss=make_loss(options),
        dataset=Utterances(train, real, options, seed),
        save=save,
        validate=lambda trained: validate(trained, held_out, real_held_out),
        sample=lambda trained, path: draw_samples(trained, held_out[:1] + real_held_out[-2:], path),
    )


# ---- looking


@torch.no_grad()
def validate(encoder: nn.Module, held_out: list[Utterance], real: list[Utterance]) -> dict[str, float]:
    """`shares` on held-out synthesised speech, `agreement_real` on real speech, if there is any."""
    chosen = thinned(held_out)
    heard = torch.cat([phones_heard(encoder, as_tensor(utterance)) for utterance in chosen])
    result = shares(heard, torch.cat([torch.from_numpy(utterance.phones.astype(np.int64)) for utterance in chosen]))
    return result | ({"agreement_real": agreement_real(encoder, thinned(real))} if real else {})


def shares(heard: Tensor, phones: Tensor) -> dict[str, float]:
    """Of states [N]: how many are heard right, with and without those of silence, and of bilabials, how many are heard

    as such, and how many of those heard are such.
    """
    is_bilabial = feature_table()[:, _BILABIAL].bool()
    is_right, speaks = heard == phones, phones != PHONES.index(SILENCE)
    return {
        "accuracy": is_right.float().mean().item(),
        "accuracy_speaking": is_right[speaks].float().mean().item(),
        "bilabial_recall": is_bilabial[heard[is_bilabial[phones]]].float().mean().item(),
        "bilabial_precision": is_bilabial[phones[is_bilabial[heard]]].float().mean().item(),
    }


def agreement_real(encoder: nn.Module, real: list[Utterance]) -> float:
    """The share of states of real speech in which the same phone is heard with and without disturbance."""
    generator, same = Generator().manual_seed(0), []
    for utterance in real:
        mel = as_tensor(utterance)
        disturbed = disturb(mel, generator).clamp(*MEL_RANGE)
        same.append(phones_heard(encoder, mel) == phones_heard(encoder, disturbed))
    return torch.cat(same).float().mean().item()


def thinned(utterances: list[Utterance]) -> list[Utterance]:
    """Every so manieth, so that there are not many more states than are worth looking at."""
    n_states = sum(len(u.phones) for u in utterances)
    return utterances[:: max(1, round(n_states / _LOOKED_AT))]


def as_tensor(utterance: Utterance) -> Tensor:
    return torch.from_numpy(utterance.mel.astype(np.float32))[None]  # [1, 2 N, 64]


def phones_heard(encoder: nn.Module, mel: Tensor) -> Tensor:
    """The likeliest phones [N] of one utterance [1, 2 N, 64]."""
    device = next(encoder.parameters()).device
    heard: Tensor = encoder(mel.to(device)).phone_logits[0].argmax(dim=-1).cpu()
    return heard


@torch.no_grad()
def draw_samples(encoder: nn.Module, utterances: list[Utterance], path: Path, n_states: int = 250) -> None:
    """A PNG: of each utterance its columns, and below it what is heard, a row for each phone, bilabials in red.

    The true phones, where they are known, are dots.
    """
    from PIL import Image

    bilabial = feature_table()[:, _BILABIAL].bool().numpy()
    rows = []
    for utterance in utterances:
        mel = as_tensor(utterance)[:, : 2 * n_states]
        n = mel.shape[1] // 2
        chance = (
            encoder(mel.to(next(encoder.parameters()).device)).phone_logits[0].float().softmax(dim=-1).cpu().numpy()
        )
        picture = np.full((64 + 6 * len(PHONES) + 8, 2 * n_states, 3), 255, np.uint8)
        picture[:64, : 2 * n] = ((mel[0].numpy().T[::-1, :, None] + 6) * 25.5).clip(0, 255)
        grey = np.repeat(np.repeat(255 * (1 - chance.T), 6, axis=0), 2, axis=1)  # [6 P, 2 n]
        is_red = np.repeat(bilabial, 6)
        picture[64 : 64 + len(grey), : 2 * n] = grey[..., None]
        picture[64 : 64 + len(grey), : 2 * n, 0][is_red] = 255
        for k, phone in enumerate(utterance.phones[:n].tolist()):
            if phone != UNKNOWN:
                picture[64 + 6 * phone + 2 : 64 + 6 * phone + 4, 2 * k : 2 * k + 2] = (0, 90, 200)
        rows.append(picture)
    Image.fromarray(np.concatenate(rows)).resize((4 * n_states, 2 * sum(map(len, rows)))).save(path)
