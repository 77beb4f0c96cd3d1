"""Forecasts of the mouth from the voice, and how good they are: what the tables of stage one share.

A forecast is n samples of a clip's course: of the mouth's opening, in units of the eyes' distance, and of lips and jaw
where there is more than an opening; one that makes no samples has n = 1. Of the opening only the course about its mean
is judged: how far open a mouth is on average is seen in the picture. Landmarks are judged both ways.
"""

from __future__ import annotations

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
from a2m.regression_train import model_input
from a2m.sampling import gated_openings, predict_lips
from a2m.speech import mouth_gate
from benchmarks.report import Column
from common.face.model import LIP_STREAM, LIPS, FaceModel
from common.face.mouth import closed, keep_lips_apart, lip_gap, opening_direction
from common.metrics.motion import (
    amplitude_ratio,
    best_lag,
    centred,
    correlation,
    energy_score,
    error_by_still,
    jerk_ratio,
    landmark_distance,
    rescaled,
    roughness_ratio,
)
from common.weights import from_pretrained

ATOM = "small/a2m"

STILL, RETRIEVED = "mouth held still", "nearest training speech"
REGRESSION, RESTORED, FULL = "regression", "regression, variance restored", "regression, told the amplitude"
DEAF, WITH_ERRORS = "other people's mouths", "regression + its errors on others"
_NEAR = 1  # frames between two peaks that count as one


@dataclass(frozen=True)
class Course:
    """opening: [n, T]; lips: [n, T, 37, 3], motion of lips and jaw from the closed mouth as it is shown, if known."""

    opening: Tensor
    lips: Tensor | None = None

    def mean(self) -> Course:
        """Of all samples: what a regression would try to say."""
        lips = None if self.lips is None else self.lips.mean(dim=0, keepdim=True)
        return Course(self.opening.mean(dim=0, keepdim=True), lips)


Forecast = Callable[[Clip], Course]


@dataclass(frozen=True)
class Score:
    """One forecast of one clip; see common.metrics.motion. Of samples, all but the energy score are means over them."""

    correlation: float
    peak: float  # share of the samples that follow best when shifted by at most a frame
    amplitude: float
    roughness: float
    jerk: float
    error: float
    lmd: float  # mean distance of the lips' landmarks, frontal; percent of the eyes' distance
    lmd_course: float  # the same about their means
    energy: float  # thousandths of the eyes' distance


COLUMNS = (
    Column("correlation", "correlation"),
    Column("amplitude", "amplitude"),
    Column("roughness", "roughness"),
    Column("error / still", "error"),
    Column("energy score", "energy"),
)
MORE_COLUMNS = (
    Column("peak within ±1", "peak"),
    Column("jerk", "jerk"),
    Column("lips %", "lmd"),
    Column("lips % about the mean", "lmd_course"),
)


def score(course: Course, clip: Clip) -> Score:
    real = clip.opening
    lmd, lmd_course = _lip_distances(course.lips, clip)

    def of(measure: Callable[[Tensor, Tensor], float]) -> float:
        return sum(measure(x, real) for x in course.opening) / len(course.opening)

    return Score(
        correlation=of(correlation),
        peak=of(_is_near),
        amplitude=of(amplitude_ratio),
        roughness=of(roughness_ratio),
        jerk=of(jerk_ratio),
        error=of(error_by_still),
        lmd=lmd,
        lmd_course=lmd_course,
        energy=1000 * energy_score(centred(course.opening), centred(real)),
    )


def _is_near(predicted: Tensor, real: Tensor) -> float:
    return float(abs(best_lag(predicted, real)) <= _NEAR) if predicted.std() > 0 else float("nan")


def _lip_distances(lips: Tensor | None, clip: Clip) -> tuple[float, float]:
    """Of the samples' means: with the picture's mouth as their rest, and about the mean; percent, NaN without lips.

    The picture: the clip's frame with the mouth most nearly closed, closed, the same for every forecast.
    """
    if lips is None:
        return float("nan"), float("nan")
    model = FaceModel.builtin()
    real = (clip.lm3d + model.mean)[:, LIPS, :2]
    rest = closed((clip.lm3d + model.mean)[int(clip.opening.argmin())], opening_direction(model))
    shown = rest.repeat(*lips.shape[:2], 1, 1)
    shown[..., LIP_STREAM, :] += lips
    shown = keep_lips_apart(shown, lip_gap(rest).clamp(max=0))[..., LIPS, :2]
    pairs = ((shown, real), (shown - shown.mean(dim=1, keepdim=True), real - real.mean(dim=0)))
    found = [sum(landmark_distance(x, b) for x in a) / len(a) for a, b in pairs]
    return 100 * found[0] / clip.eye_distance, 100 * found[1] / clip.eye_distance


def shown(lips: Tensor, clip: Clip) -> Course:
    """Motion of lips and jaw [n, T, 37, 3] as `a2m.pipeline` shows it on the mean face."""
    return Course(gated_openings(lips, clip), mouth_gate(clip.sound)[:, None, None] * lips)


def sampled(
    weights: str | Path, n_seeds: int, n_steps: int | None = None, guidance_scale: float | None = None
) -> Forecast:
    """AToM-Net: n_seeds samples of each clip."""
    model = load_atom(weights)
    return lambda clip: shown(predict_lips(model, clip, range(n_seeds), n_steps, guidance_scale), clip)


def load_atom(weights: str | Path) -> AToMNet:
    state, config = from_pretrained(weights)
    return AToMNet.from_state(state, config, weights).eval()


def regressed(model: Regression, is_stretched: bool) -> Forecast:
    """What `a2m=regression` shows; is_stretched: with its variance restored."""

    @torch.no_grad()
    def forecast(clip: Clip) -> Course:
        coefficients = model(model_input(clip))[0]
        motion, _ = model.decode(model.stretched(coefficients) if is_stretched else coefficients)
        return shown(motion[None], clip)

    return forecast


def baselines(
    train_clips: Sequence[Clip], others: Sequence[Clip], n_samples: int, regression: str | Path = WEIGHTS
) -> dict[str, Forecast]:
    """What a sampler must beat.

    "Variance restored" is what `a2m=regression` shows; "told the amplitude" takes the real clip's, which nobody has:
    the regression at its liveliest. A single course can't say what it does not know, and the energy score rewards
    saying it; so two rivals make samples without a generative model: mouths of other people, who say something else,
    and the regression with its errors on other people added. others: clips on which no network was trained. Retrieval
    is left out without training clips.
    """
    model = Regression.from_pretrained(regression)
    raw, restored = (regressed(model, is_stretched) for is_stretched in (False, True))
    forecasts: dict[str, Forecast] = {STILL: held_still}
    if train_clips:
        forecasts[RETRIEVED] = Retrieval(train_clips)
    forecasts[REGRESSION] = raw
    forecasts[RESTORED] = restored
    forecasts[FULL] = lambda clip: Course(rescaled(raw(clip).opening[0], clip.opening)[None])
    mouths = OtherPeople(others, [clip.opening for clip in others], n_samples)
    errors = OtherPeople(others, [centred(clip.opening) - centred(raw(clip).opening[0]) for clip in others], n_samples)
    forecasts[DEAF] = lambda clip: Course(mouths(clip))
    forecasts[WITH_ERRORS] = lambda clip: Course(raw(clip).opening + errors(clip))
    return forecasts


def held_still(clip: Clip) -> Course:
    T = len(clip.opening)
    return Course(torch.zeros(1, T), torch.zeros(1, T, len(LIP_STREAM), 3))


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
        features: list[Tensor] = []
        self.places: list[tuple[int, int]] = []  # clip and first frame of each window
        for k, clip in enumerate(clips):
            sounds = self._sounds(clip)
            for first in range(0, len(sounds) - self.window + 1, self.train_step):
                features.append(sounds[first : first + self.window].flatten())
                self.places.append((k, first))
        self.features = torch.stack(features)
        self.squares = self.features.square().sum(dim=1)
        self.mouths = [torch.cat([centred(c.opening)[:, None], c.lip_motion.flatten(1)], dim=1) for c in clips]

    def __call__(self, clip: Clip) -> Course:
        sounds, T = self._sounds(clip), len(clip.mel)
        firsts = sorted({*range(0, max(1, T - self.window), self.step), max(0, T - self.window)})
        sounds = torch.nn.functional.pad(sounds, (0, 0, 0, max(0, self.window - T)))
        queries = torch.stack([sounds[first : first + self.window].flatten() for first in firsts])
        nearest = (self.squares - 2 * queries @ self.features.T).argmin(dim=1)
        fade = torch.arange(1, self.window + 1).minimum(torch.arange(self.window, 0, -1)).float()[:, None]
        total, weight = torch.zeros(T + self.window, self.mouths[0].shape[1]), torch.zeros(T + self.window, 1)
        for first, place in zip(firsts, nearest.tolist(), strict=True):
            k, start = self.places[place]
            total[first : first + self.window] += fade * self.mouths[k][start : start + self.window]
            weight[first : first + self.window] += fade
        found = total[:T] / weight[:T]
        return Course(found[None, :, 0], found[None, :, 1:].unflatten(-1, (len(LIP_STREAM), 3)))

    @staticmethod
    def _sounds(clip: Clip) -> Tensor:
        """Features [T, 32]: two columns of 16 bands a frame, relative to the voice's mean spectrum."""
        mel = (clip.mel - clip.mel_mean).clamp(-4, 4)
        return reduce(mel, "t (column two) (band four) -> t (column band)", "mean", two=2, four=4)
