"""Predicted motion against the real one: sequences [T], of the mouth's opening for example, and samples of them [n, T].

Functions take tensors of one dtype and return floats. Those that say "about the mean" look at the course only: how far
open a person's mouth is on average is seen in the picture, not heard in the voice.
"""

import math

import torch
from scipy.signal import savgol_filter
from torch import Tensor

TINY = 1e-9
# Frames, at 25 fps, and degree. Above 8 Hz the spectrum of tracked openings is flat: the tracker's noise, two thirds of
# their jerk. What this filter leaves is 0.85 of what the spectrum has above that floor; one of 7 frames, 0.54.
TRACK_WINDOW, TRACK_DEGREE = 5, 2


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of [T] and [T]; 0 where one of them stands still."""
    a, b = centred(a), centred(b)
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=TINY))


def amplitude_ratio(predicted: Tensor, real: Tensor) -> float:
    """Standard deviation of [T] by that of the real [T]: 1 is as lively as real, 0 is still."""
    return float(centred(predicted).norm() / centred(real).norm().clamp(min=TINY))


def error_by_still(predicted: Tensor, real: Tensor) -> float:
    """Mean absolute error of [T] about the mean, by that of one that stands still: 0 is exact, 1 says nothing."""
    error = (centred(predicted) - centred(real)).abs().mean()
    return float(error / centred(real).abs().mean().clamp(min=TINY))


def roughness_ratio(predicted: Tensor, real: Tensor) -> float:
    """Root mean square of the second difference of [T] by that of the real [T]: above 1 the motion trembles."""
    return float(predicted.diff(n=2).norm() / real.diff(n=2).norm().clamp(min=TINY))


def jerk_ratio(predicted: Tensor, real: Tensor) -> float:
    """Root mean square of the third difference of [T] by that of the smoothed real [T]; NaN below a filter's length.

    Only the real one is smoothed: what trembles in a track is the tracker's, what trembles in a prediction is its own.
    """
    if len(real) < TRACK_WINDOW:
        return math.nan
    smooth = torch.from_numpy(savgol_filter(real.numpy(), TRACK_WINDOW, TRACK_DEGREE))
    return float(predicted.diff(n=3).norm() / smooth.diff(n=3).norm().clamp(min=TINY))


def best_lag(predicted: Tensor, real: Tensor, most: int = 5) -> int:
    """The shift of [T] against the real [T], of at most so many frames, at which they correlate best.

    Above 0 the prediction comes late. Shifts that leave fewer than three frames are not tried; the smallest wins a tie.
    """
    T = len(real)

    def at(lag: int) -> float:
        return correlation(predicted[max(0, lag) : T + min(0, lag)], real[max(0, -lag) : T - max(0, lag)])

    most = max(0, min(most, T - 3))
    return max(range(-most, most + 1), key=lambda lag: (round(at(lag), 6), -abs(lag)))


def landmark_distance(predicted: Tensor, real: Tensor) -> float:
    """Mean distance of points [T, P, 2 or 3] (LMD, Chen et al. 2018) in their own units."""
    return float((predicted - real).norm(dim=-1).mean())


def energy_score(samples: Tensor, real: Tensor) -> float:
    """How well samples [n, T] describe the distribution of which real [T] is a draw; lower is better.

    (E|X - y| - E|X - X'| / 2) / √T with Euclidean norms (Gneiting & Raftery 2007, eq. 22), X' an independent copy of X:
    strictly proper, so its mean is least for the true distribution, and neither a mumbled mean nor added liveliness
    that does not fit wins. E|X - X'| is over pairs of different samples: unbiased, whatever n is. For one sample, a
    point forecast, it is the root mean square error.
    """
    if samples.ndim != 2 or samples.shape[1:] != real.shape or len(samples) == 0:
        raise ValueError(f"samples must be [n, T] and real [T], got {list(samples.shape)} and {list(real.shape)}")
    n, root = len(samples), math.sqrt(len(real))
    to_real = (samples - real).norm(dim=1).mean()
    if n == 1:
        return float(to_real) / root
    # Not through torch.cdist's matrix product, whose rounding gives equal samples a distance.
    apart = (samples[:, None] - samples[None]).norm(dim=2).sum() / (n * (n - 1))
    return float(to_real - apart / 2) / root


def centred(x: Tensor) -> Tensor:
    """Sequences [..., T] about their own means."""
    return x - x.mean(dim=-1, keepdim=True)


def rescaled(predicted: Tensor, real: Tensor) -> Tensor:
    """A sequence [T] stretched about its mean to the amplitude of the real one; unchanged where it stands still."""
    predicted_norm = centred(predicted).norm()
    if predicted_norm < TINY:
        return predicted
    return predicted.mean() + centred(predicted) * (centred(real).norm() / predicted_norm)
