"""Does the mouth close when nothing is said? In pauses of real speech, and in ones that are cut into it.

Judged from 0.2 s after the voice ends to 0.2 s before it begins again, for lips part before they speak. Inserted pauses
lie at a noise floor that the whole recording is given: a hiss so far below the speech's loud frames, or none. Real ones
stay 25 dB below the loud frames: breath and room are in them, and the mouths of the tracks, 0 where least open, beside.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2m.data import read_clips, read_sound
from a2m.pipeline import AudioToMotion
from a2m.speech import levels_db
from benchmarks import bars
from benchmarks.bars import Bar
from benchmarks.report import Column, estimate, markdown
from benchmarks.shown import at_rest, speaking
from common.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ
from common.face.model import FaceModel

FLOORS_DB: tuple[float | None, ...] = (None, -50.0, -30.0)
REAL, TRACKS = "real pauses", "real pauses, tracks"
LEAST_FRAMES = 13  # 0.5 s
MARGIN = 5  # frames: 0.2 s
_PAUSE_FRAMES = 30
_BELOW_SPEECH_DB = 25.0
_MOST = 0.1


@dataclass(frozen=True)
class Silence:
    """The opening above the closed mouth in one silence, by the standard deviation that it has in the speech around."""

    rms: float
    largest: float

    @property
    def is_closed(self) -> float:
        return float(self.largest < _MOST)

    @classmethod
    def of(cls, opening: Tensor, first: int, last: int) -> "Silence":
        """opening: [T], 0 where closed; first to last - 1: the silent frames."""
        speech = torch.cat([opening[:first], opening[last:]])
        quiet = opening[first + MARGIN : last - MARGIN] / speech.std().clamp(min=1e-6)
        return cls(float(quiet.square().mean().sqrt()), float(quiet.abs().max()))


COLUMNS = (Column("opening, rms", "rms"), Column("largest", "largest"), Column("closed throughout", "is_closed"))


def silences(data_dir: Path, split: str, pipeline: AudioToMotion) -> None:
    found: dict[str, list[Silence]] = {name: [] for name in (REAL, TRACKS, *map(_title, FLOORS_DB))}
    persons: dict[str, list[str]] = {name: [] for name in found}
    rest = at_rest(pipeline)
    for clip in read_clips(data_dir, split, FaceModel.builtin()):
        if clip.is_word:
            continue
        audio = read_sound(data_dir, clip.name, len(clip.mel))
        pauses = quiet_runs(levels_db(audio), LEAST_FRAMES)
        if pauses:
            curves = {REAL: speaking(pipeline, audio) - rest, TRACKS: clip.opening - clip.opening.min()}
            for name, opening in curves.items():
                found[name] += [Silence.of(opening, *pause) for pause in pauses]
                persons[name] += [clip.person] * len(pauses)
        for floor in FLOORS_DB:
            longer, first = with_pause(audio, floor)
            opening = speaking(pipeline, longer) - rest
            found[_title(floor)].append(Silence.of(opening, first, first + _PAUSE_FRAMES))
            persons[_title(floor)].append(clip.person)
    print(f"Opening in silences of 0.5 s and more, by its standard deviation in speech; {split} split\n")
    header = ["", *(column.title for column in COLUMNS), "n", "people"]
    rows = [
        [name, *_estimates(each, persons[name]), len(each), len(set(persons[name]))] for name, each in found.items()
    ]
    print(markdown(header, rows) + "\n")
    for name, each in found.items():
        if name != TRACKS:
            print(Bar(f"opening in silence, {name}", bars.mean([s.rms for s in each], persons[name]), most=_MOST))


def _estimates(silences: Sequence[Silence], persons: Sequence[str]) -> list[str]:
    return [estimate([getattr(each, column.field) for each in silences], persons) for column in COLUMNS]


def quiet_runs(level_db: Tensor, least_frames: int) -> list[tuple[int, int]]:
    """First and last (exclusive) frames of what stays 25 dB below the loud frames for so long: level_db [T]."""
    is_quiet = (level_db < level_db.quantile(0.95) - _BELOW_SPEECH_DB).int()
    edges = torch.nn.functional.pad(is_quiet, (1, 1)).diff()
    runs = zip((edges > 0).nonzero()[:, 0].tolist(), (edges < 0).nonzero()[:, 0].tolist(), strict=True)
    return [(first, last) for first, last in runs if last - first >= least_frames]


def with_pause(audio: Tensor, floor_db: float | None) -> tuple[Tensor, int]:
    """A recording [n] with a pause of 1.2 s where it is most quiet in its middle half, and the pause's first frame.

    floor_db: of a hiss over all of it, against the loud frames; None: no hiss, and digital silence in the pause.
    """
    level = levels_db(audio)
    quarter = len(level) // 4
    first = quarter + int(level[quarter : len(level) - quarter].argmin())
    at = first * FRAME_SAMPLES
    longer = torch.cat([audio[:at], torch.zeros(_PAUSE_FRAMES * FRAME_SAMPLES), audio[at:]])
    if floor_db is not None:
        loud_db = float(level.quantile(0.95))
        longer = longer + 10 ** ((loud_db + floor_db) / 20) * hiss(len(longer))
    return longer, first


def hiss(n: int, seed: int = 0) -> Tensor:
    """1/f noise [n] at 16 kHz of unit power, from 60 Hz on, as microphones hear rooms."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(n))
    hz = np.fft.rfftfreq(n, 1 / SAMPLE_RATE_HZ)
    spectrum *= np.where(hz < 60, 0, 1 / np.sqrt(hz.clip(min=60)))
    noise = np.fft.irfft(spectrum, n)
    return torch.from_numpy((noise / math.sqrt(np.mean(noise**2))).astype(np.float32))


def _title(floor_db: float | None) -> str:
    return "inserted, digital silence" if floor_db is None else f"inserted, noise {floor_db:g} dB"
