"""What the phonetic encoder hears: `python -m benchmarks.phonetics --corpus DIR --data DIR --weights NAME`.

On synthesised speech of voices and words that training has not heard: the share of 20 ms states whose phone is right,
and for /p b m/ (/ɓ/ among them) the share of their states heard as one of them, and of states so heard that are.
On real speech, where nobody knows the phones: how often the same phone is heard with and without disturbance
(`a2m.phonetics.augmentation`); and the phones of recordings whose words are known, against espeak-ng's reading of
them: edits (insertions, deletions, other phones) per phone, of all phones and of their classes at the lips.
"""

import argparse
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2m.phonetics.corpus import read_part
from a2m.phonetics.encoder import WEIGHTS, PhoneticEncoder
from a2m.phonetics.inventory import FEATURES, PHONES, SILENCE, feature_table
from a2m.phonetics.synthesis import Speaker, synthesise
from a2m.phonetics.texts import SENTENCES
from a2m.phonetics.training import agreement_real, as_tensor, clip_paths, columns_of, phones_heard, read_real, shares
from a2m.phonetics.training import utterances as utterances_of
from benchmarks.report import markdown, run_main
from common.media import read_audio

SILENT = PHONES.index(SILENCE)
AT_THE_LIPS = ("silence", "bilabial", "labiodental", "rounded", "narrow", "open", "mid", "close")
LEAST_STATES = 2  # of a phone that counts as heard
DIGITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# GRID's file names spell its sentences: command, colour, preposition, letter, digit, adverb.
GRID = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter.upper() for letter in "abcdefghijklmnopqrstuvwxyz"},
    {"z": "zero", **{str(k): word for k, word in enumerate(DIGITS, 1)}},
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)
GRID_CLIPS = {
    "train": (
        "lipnet_bbaf2n_00",
        "lipnet_brbk7n_00",
        "lipnet_id2_vcd_swwp2s_00",
        "lipnet_lbbc2a_00",
        "lipnet_pwij3p_00",
    ),
    "val": ("lipnet_lbax4n_00", "lipnet_sbwe5n_00"),
    "test": ("lipnet_lrwp9a_00", "lipnet_sbia1a_00"),
}
RECORDINGS = {
    "whisper_jfk": "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for "
    "your country.",
    "text2video_Shehadyour_7558": "She had your dark suit in greasy wash water all year.",
}


def words_of(name: str) -> str:
    """The sentence that the last word of a GRID clip's name spells, as "bbaf2n" in "lipnet_bbaf2n_00"."""
    code = name.split("_")[-2]
    return " ".join(words[letter] for words, letter in zip(GRID, code, strict=True))


def spoken(states: Sequence[int], least: int = LEAST_STATES) -> list[int]:
    """The phones of a course of states, without silences and phones shorter than `least` states."""
    phones = [phone for phone, group in groupby(states) if len(list(group)) >= least and phone != SILENT]
    return [phone for phone, _ in groupby(phones)]


def n_edits(heard: Sequence[object], true: Sequence[object]) -> int:
    """The least number of insertions, deletions and replacements that make one sequence the other (Levenshtein)."""
    row = list(range(len(true) + 1))
    for k, one in enumerate(heard, 1):
        above, row = row, [k]
        for n, other in enumerate(true, 1):
            row.append(min(row[-1] + 1, above[n] + 1, above[n - 1] + (one != other)))
    return row[-1]


def lip_classes(phones: Sequence[int]) -> list[tuple[float, ...]]:
    columns = [FEATURES.index(name) for name in AT_THE_LIPS]
    return [tuple(feature_table()[phone, columns].tolist()) for phone in phones]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phonetics", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="made by `python -m a2m.phonetics.corpus`")
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and speech/")
    parser.add_argument("--weights", default=WEIGHTS, help="built-in name, folder or hub id")
    parser.add_argument("--split", default="val", choices=tuple(GRID_CLIPS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder = PhoneticEncoder.from_pretrained(arguments.weights)
    with torch.no_grad():
        synthesised(encoder, arguments.corpus)
        real(encoder, arguments.data, arguments.split)


def synthesised(encoder: PhoneticEncoder, corpus: Path) -> None:
    """Print the table of the corpus's held-out part."""
    part = read_part(corpus, "held_out")
    each = list(utterances_of(part))
    heard = [phones_heard(encoder, as_tensor(utterance)) for utterance in each]
    true = [torch.from_numpy(utterance.phones.astype(np.int64)) for utterance in each]
    groups = {"all": list(range(len(each)))}
    for engine in ("flite", "espeak"):
        groups[engine] = [k for k, entry in enumerate(part.utterances) if entry.speaker.startswith(engine)]
    for name in SENTENCES:
        groups[f"espeak, {name}"] = [k for k in groups["espeak"] if part.utterances[k].language == name]
    rows = []
    for name, chosen in groups.items():
        if chosen:
            figures = shares(torch.cat([heard[k] for k in chosen]), torch.cat([true[k] for k in chosen]))
            minutes = sum(len(true[k]) for k in chosen) / 3000
            rows.append([name, f"{minutes:.1f}", *(f"{100 * value:.0f} %" for value in figures.values())])
    print(markdown(["held out", "min", "right", "right in speech", "/p b m/ heard", "right where heard"], rows))


def real(encoder: PhoneticEncoder, data_dir: Path, split: str) -> None:
    """Print what can be said of real speech."""
    agreed = agreement_real(encoder, read_real(clip_paths(data_dir, split)))
    print(f"\nReal speech, split {split}: the same phone in {100 * agreed:.0f} % of states when disturbed.\n")
    known = {data_dir / "clips" / f"{name}.mp4": words_of(name) for name in GRID_CLIPS[split]}
    if split != "test":
        known |= {data_dir / "speech" / f"{name}.ogg": words for name, words in RECORDINGS.items()}
    n_all = n_wrong = n_wrong_lips = 0
    for path, words in known.items():
        mel: Tensor = columns_of(torch.from_numpy(read_audio(path)))
        said = spoken(phones_heard(encoder, mel[None]).tolist())
        read = spoken(synthesise(words, Speaker()).phones.tolist(), least=1)
        n_all, n_wrong = n_all + len(read), n_wrong + n_edits(said, read)
        n_wrong_lips += n_edits(lip_classes(said), lip_classes(read))
        print(f"{words}\n  read  {''.join(PHONES[k] for k in read)}\n  heard {''.join(PHONES[k] for k in said)}")
    print(f"\n{n_all} phones: {n_wrong / n_all:.2f} edits per phone, {n_wrong_lips / n_all:.2f} by their lips.")


if __name__ == "__main__":
    run_main(main)
