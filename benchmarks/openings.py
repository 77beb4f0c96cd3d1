"""Forecasts of the mouth's opening from the voice, and how good they are: what the tables of stage one share.

A forecast is [n, T], n samples of a clip's course, in units of the eyes' distance; one that makes no samples has n = 1.
Only the course about its mean is judged: how far open a mouth is on average is seen in the picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import reduce
from torch import Tensor

from a2m.data import Clip
from a2m.model import AToMNet
from a2m.regression import WEIGHTS, Regression
from a2m.sampling import predict_openings
from benchmarks.regression import regression
from benchmarks.report import Column
from common.face.model import FaceModel
from common.metrics.motion import (
    amplitude_ratio,
    centred,
    correlation,
    energy_score,
    error_by_still,
    rescaled,
    roughness_ratio,
)
from common.weights import from_pretrained

ATOM = "small/a2m"
Forecast = Callable[[Clip], Tensor]

STILL, RETRIEVED = "mouth held still", "nearest training speech"
REGRESSION, RESTORED, FULL = "regression", "regression, variance restored", "regression, told the amplitude"
DEAF, WITH_ERRORS = "other people's mouths", "regression + its errors on others"


@dataclass(frozen=True)
class Score:
    """One forecast of one clip; see common.metrics.motion. Of samples, all but the energy score are means over them."""

    correlation: float
    amplitude: float
    roughness: float
    error: float
    energy: float  # thousandths of the eyes' distance


COLUMNS = (
    Column("correlation", "correlation"),
    Column("amplitude", "amplitude"),
    Column("roughness", "roughness"),
    Column("error / still", "error"),
    Column("energy score", "energy"),
)


def score(forecast: Tensor, real: Tensor) -> Score:
    """forecast: [n, T]; real: [T]."""
    measures = (correlation, amplitude_ratio, roughness_ratio, error_by_still)
    each = torch.tensor([[measure(x, real) for measure in measures] for x in forecast], dtype=torch.float64)
    follows, amplitude, roughness, error = each.mean(dim=0).tolist()
    return Score(follows, amplitude, roughness, error, 1000 * energy_score(centred(forecast), centred(real)))


def sampled(weights: str | Path, n_seeds: int) -> Forecast:
    """AToM-Net: n_seeds samples of each clip."""
    model = load_atom(weights)
    return lambda clip: predict_openings(model, clip, range(n_seeds))


def load_atom(weights: str | Path) -> AToMNet:
    state, config = from_pretrained(weights)
    return AToMNet.from_state(state, config, weights).eval()


def baselines(
    train_clips: Sequence[Clip], others: Sequence[Clip], n_samples: int, face_model: FaceModel
) -> dict[str, Forecast]:
    """What a sampler must beat.

    "Variance restored" is what `a2m=regression` shows; "told the amplitude" takes the real clip's, which nobody has:
    the regression at its liveliest. A single course can't say what it does not know, and the energy score rewards
    saying it; so two rivals make samples without a generative model: mouths of other people, who say something else,
    and the regression with its errors on other people added. others: clips on which no network was trained. Retrieval
    is left out without training clips.
    """
    model = Regression.from_pretrained(WEIGHTS)
    raw, restored = (regression(model, is_stretched, face_model) for is_stretched in (False, True))
    forecasts: dict[str, Forecast] = {STILL: lambda clip: torch.zeros(1, len(clip.opening))}
    if train_clips:
        forecasts[RETRIEVED] = Retrieval(train_clips)
    forecasts[REGRESSION] = lambda clip: raw(clip)[None]
    forecasts[RESTORED] = lambda clip: restored(clip)[None]
    forecasts[FULL] = lambda clip: rescaled(raw(clip), clip.opening)[None]
    mouths = OtherPeople(others, [clip.opening for clip in others], n_samples)
    errors = OtherPeople(others, [centred(clip.opening) - centred(raw(clip)) for clip in others], n_samples)
    forecasts[DEAF] = mouths
    forecasts[WITH_ERRORS] = lambda clip: raw(clip) + errors(clip)
    return forecasts


class OtherPeople:
    """Courses [n, T] of other people's clips of the same kind, cut and joined at random to the length of a clip's."""

    def __init__(self, clips: Sequence[Clip], courses: Sequence[Tensor], n_samples: int) -> None:
        self.clips, self.courses, self.n_samples = clips, [centred(course) for course in courses], n_samples

    def __call__(self, clip: Clip) -> Tensor:
        pairs = zip(self.clips, self.courses, strict=True)
        known = [course for other, course in pairs if other.person != clip.person and other.is_word == clip.is_word]
        rng = np.random.default_rng([len(clip.opening), *clip.name.encode()])
        return torch.stack([self._course(known, len(clip.opening), rng) for _ in range(self.n_samples)])

    @staticmethod
    def _course(known: Sequence[Tensor], n_frames: int, rng: np.random.Generator) -> Tensor:
        parts: list[Tensor] = []
        while sum(map(len, parts)) < n_frames:
            course = known[int(rng.integers(len(known)))]
            missing = n_frames - sum(map(len, parts))
            start = int(rng.integers(max(0, len(course) - missing) + 1))
            parts.append(course[start : start + missing])
        return torch.cat(parts)


class Retrieval:
    """The mouth of the training speech that sounds most alike, window by window, cross-faded."""

    window, step = 20, 10  # frames
    train_step = 2

    def __init__(self, clips: Sequence[Clip]) -> None:
        features, openings = [], []
        for clip in clips:
            sounds, opening = self._sounds(clip), centred(clip.opening)
            for first in range(0, len(opening) - self.window + 1, self.train_step):
                features.append(sounds[first : first + self.window].flatten())
                openings.append(opening[first : first + self.window])
        self.features, self.openings = torch.stack(features), torch.stack(openings)
        self.squares = self.features.square().sum(dim=1)

    def __call__(self, clip: Clip) -> Tensor:
        sounds, T = self._sounds(clip), len(clip.mel)
        firsts = sorted({*range(0, max(1, T - self.window), self.step), max(0, T - self.window)})
        sounds = torch.nn.functional.pad(sounds, (0, 0, 0, max(0, self.window - T)))
        queries = torch.stack([sounds[first : first + self.window].flatten() for first in firsts])
        nearest = (self.squares - 2 * queries @ self.features.T).argmin(dim=1)
        fade = torch.arange(1, self.window + 1).minimum(torch.arange(self.window, 0, -1)).float()
        total, weight = torch.zeros(T + self.window), torch.zeros(T + self.window)
        for first, k in zip(firsts, nearest.tolist(), strict=True):
            total[first : first + self.window] += fade * self.openings[k]
            weight[first : first + self.window] += fade
        return (total[:T] / weight[:T])[None]

    @staticmethod
    def _sounds(clip: Clip) -> Tensor:
        """Features [T, 32]: two columns of 16 bands a frame, relative to the voice's mean spectrum."""
        mel = (clip.mel - clip.mel_mean).clamp(-4, 4)
        return reduce(mel, "t (column two) (band four) -> t (column band)", "mean", two=2, four=4)
