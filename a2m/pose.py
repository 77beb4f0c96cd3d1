"""How a head moves and eyes blink while their owner speaks: a prior fitted from tracks, sampled with a generator.

The head: a stationary linear-Gaussian autoregression of second order at 5 Hz (faster motion in the tracks is noise) of
pitch, yaw, roll, two translations and the logarithm of the scale, relative to the picture's own pose. It starts at
rest, so the first frame is the picture's and motion builds up by itself; a cubic B-spline leads to 25 Hz. The blinks: a
renewal process with Erlang intervals and the mean curve of lid aperture in the tracks.

`python -m a2m.pose --data DIR weights/small/a2m weights/small/a2m_regression` fits the prior that weights hold anew
(training fits it, too).
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Generator, Tensor, nn

from a2m.data import Clip, raw_aperture, read_clips, smooth
from common import weights
from common.errors import InputError
from common.face.lids import open_lids
from common.face.model import FaceModel
from common.face.pos import Pose
from common.face.rotations import euler_rad, from_euler_rad

log = logging.getLogger(__name__)

BUILT_IN = "small/a2m_regression"  # weights that hold a prior, fitted to this project's train split
PREFIX = "head."  # of this module's tensors in the weights that it shares with the regression
FPS = 25
STEP_FRAMES = 5  # 5 Hz
N_DIMENSIONS = 6  # pitch, yaw, roll in radians; x, y in face model units; log scale
LIMITS = (math.radians(4), math.radians(6), math.radians(4), 0.08, 0.06, 0.04)  # twice these are learnt at most
REACH = tuple(1.4 * limit for limit in LIMITS)  # of heads that are made: any picture bears that; tanh keeps them inside
STRESS = 0.5  # what soft syllables take from a head's motion; then loudness and speed correlate much as in tracks
_LATER_FRAMES = 7  # step k moves frames around 5 (k - 1.5), and is pushed by what is heard there
BLINK_BEFORE, BLINK_AFTER = 3, 12  # frames of the curve around its minimum
_SMOOTHING_FRAMES = 2.0
_LEAST_FRAMES = 75
_LEAST_IN_ALL, _LEAST_BLINKS = 1500, 10
_LEAST_FRAMES_OF_SPEED = 12
_FAR_FROM_LIMITS = 1e-3  # a scale at which they are not felt
_CALIBRATIONS, _LEAST_IN_PAUSES = 6, 0.05
_MOST_FRAMES_OF_A_PERSON = 1500
_BLINK_DEPTH, _BLINK_END = 0.6, 0.75  # of the aperture around
_LONGEST_BLINK = 10  # frames; longer ones are looks down
_BLINK_STRETCH = (0.7, 1.5)  # of the curve: frames below half the aperture as many as in tracks
_REFRACTORY_S = 0.6


class HeadPrior(nn.Module):
    """transition: [2, 6, 6] for one and two steps back; noise: [6, 6], Cholesky factor; pause_noise: how much of a step

    the head goes where nothing is said; blink_curve: [16] relative aperture; blink_interval_s: mean; blink_shape: of
    the Erlang distribution.
    """

    transition: Tensor
    noise: Tensor
    pause_noise: Tensor
    blink_curve: Tensor
    blink_interval_s: Tensor
    blink_shape: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("transition", torch.zeros(2, N_DIMENSIONS, N_DIMENSIONS))
        self.register_buffer("noise", torch.zeros(N_DIMENSIONS, N_DIMENSIONS))
        self.register_buffer("pause_noise", torch.ones(()))
        self.register_buffer("blink_curve", torch.ones(BLINK_BEFORE + 1 + BLINK_AFTER))
        self.register_buffer("blink_interval_s", torch.tensor(4.0))
        self.register_buffer("blink_shape", torch.tensor(2.0))

    @staticmethod
    def from_state(state: dict[str, Tensor], source: Any) -> HeadPrior:
        part = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
        return weights.load_into(HeadPrior(), part, source)

    def sample_pose(self, sound: Tensor, generator: Generator, scale: float = 1.0) -> Tensor:
        """Deviations from the picture's pose, [T, 6], zero in the first frame; sound: [T] bool, or 0..1 (`activity`).

        scale: how far the head goes, 0 leaves it where it is; the limits hold for any.
        """
        T = len(sound)
        n_steps = T // STEP_FRAMES + 4
        eps = torch.randn(n_steps, N_DIMENSIONS, generator=generator)
        heard = torch.nn.functional.pad(sound.float(), (_LATER_FRAMES, n_steps * STEP_FRAMES - T - _LATER_FRAMES))
        heard = heard.unflatten(0, (n_steps, STEP_FRAMES)).mean(dim=1)
        strength = self.pause_noise + (1 - self.pause_noise) * heard
        pushes, strength = (eps @ self.noise.mT).double().numpy(), strength.double().numpy()
        first, second = self.transition.double().numpy()
        x = np.zeros((n_steps, N_DIMENSIONS))
        for k in range(3, n_steps):  # three steps at rest: neither velocity nor acceleration at the start
            step = first @ x[k - 1] + second @ x[k - 2] + pushes[k] - x[k - 1]
            x[k] = x[k - 1] + strength[k] * step
        knots = (np.arange(n_steps + 4) - 3) * STEP_FRAMES  # frame 0 depends on x[0..2]
        return within_limits(scale * torch.from_numpy(BSpline(knots, x, 3)(np.arange(T))).float())

    def sample_lids(self, T: int, generator: Generator, every_s: float | None = None) -> Tensor:
        """Aperture of the lids relative to the picture's, [T], with blinks; 1 in the first frame.

        every_s: a blink about every so many seconds, give or take a quarter; None: as people blink.
        """
        aperture = torch.ones(T)
        shape = int(self.blink_shape)
        scale = (float(self.blink_interval_s) - _REFRACTORY_S) / shape
        time_s = 0.0
        while time_s < T / FPS:
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(min=1e-12)
            if every_s is None:
                time_s += _REFRACTORY_S - scale * float(uniform.log().sum())
            else:
                time_s += every_s * (0.75 + float(uniform[0]) / 2)
            low, high = _BLINK_STRETCH
            stretch = low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
            deepest = round(time_s * FPS) + BLINK_BEFORE
            near = slice(max(0, deepest - 2 * BLINK_BEFORE), min(T, deepest + 2 * BLINK_AFTER))
            at = BLINK_BEFORE + (np.arange(T)[near] - deepest) / stretch
            curve = np.interp(at, np.arange(len(self.blink_curve)), self.blink_curve.numpy())
            aperture[near] = torch.minimum(aperture[near], torch.from_numpy(curve).float())
        return aperture


def activity(level_db: Tensor, sound: Tensor) -> Tensor:
    """How much a head has to say, 0..1: 0 in pauses, more in loud syllables than in soft ones; [T], bool [T] -> [T]."""
    if not sound.any():
        return sound.float()
    spoken = level_db[sound]
    stress = torch.tanh((level_db - spoken.mean()) / spoken.std(correction=0).clamp(min=1.0))
    return sound * (1 - STRESS * (1 - stress) / 2)


def apply_pose(reference: Pose, deviation: Tensor) -> Pose:
    """The picture's pose (no leading shape) moved by deviations [T, 6] -> Pose [T]."""
    rotation = from_euler_rad(deviation[:, :3]) @ reference.rotation  # the identity, exactly, for zeros
    translation = reference.translation + deviation[:, 3:5] * reference.scale
    return Pose(reference.scale * deviation[:, 5].exp(), rotation, translation)


def pose_deviation(reference: Pose, pose: Pose) -> Tensor:
    """The inverse of `apply_pose`: Pose [T] -> deviations [T, 6]."""
    angles = euler_rad(pose.rotation @ reference.rotation.mT)
    shift = (pose.translation - reference.translation) / reference.scale
    return torch.cat([angles, shift, (pose.scale / reference.scale).log()[:, None]], dim=1)


def within_limits(deviation: Tensor) -> Tensor:
    """Deviations [..., 6] held back to REACH, softly."""
    limits = deviation.new_tensor(REACH)
    return limits * torch.tanh(deviation / limits)


def apply_lids(points: Tensor, aperture: Tensor) -> Tensor:
    """Lids [T, 68, 3] opened to `aperture` [T] times what they are; 1 changes nothing, 0 closes them."""
    return open_lids(points, aperture[:, None].expand(-1, 2))


# ---- fitting --------------------------------------------------------------------------------------------------------


def fit_head_prior(clips: list[Clip], model: FaceModel) -> HeadPrior:
    """Fit both parts to the clips of running speech; what these can't tell stays as in the built-in prior."""
    clips = [clip for clip in clips if not clip.is_word and len(clip.mel) >= _LEAST_FRAMES]
    prior = HeadPrior.from_state(weights.from_pretrained(BUILT_IN)[0], BUILT_IN)
    if sum(len(clip.mel) for clip in clips) < _LEAST_IN_ALL:
        log.warning("under a minute of running speech in clips of 3 s and more: the built-in head prior is used")
        return prior
    _fit_motion(prior, clips)
    _calibrate(prior, clips)
    _fit_blinks(prior, clips, model)
    return prior


def head_motion(clip: Clip) -> Tensor:
    """A clip's pose relative to its mean, smoothed: [T, 6]."""
    pose = clip.pose
    angles = torch.from_numpy(np.unwrap(euler_rad(pose.rotation).numpy(), axis=0))
    motion = torch.cat([angles, pose.translation / pose.scale.mean(), pose.scale.log()[:, None]], dim=1)
    return smooth(motion - motion.mean(dim=0), _SMOOTHING_FRAMES)


def _fit_motion(prior: HeadPrior, clips: list[Clip]) -> None:
    """Weighted least squares of x_k on x_(k-1), x_(k-2); all five phases of the 25 Hz tracks serve."""
    frames = {clip.person: 0 for clip in clips}
    for clip in clips:
        frames[clip.person] += len(clip.mel)
    past, now, weight, sound = [], [], [], []
    for clip in clips:
        x = head_motion(clip).double()
        share = min(1.0, _MOST_FRAMES_OF_A_PERSON / frames[clip.person])
        past.append(torch.cat([x[STEP_FRAMES:-STEP_FRAMES], x[: -2 * STEP_FRAMES]], dim=1))
        now.append(x[2 * STEP_FRAMES :])
        weight.append(torch.full((len(now[-1]),), share, dtype=torch.float64))
        sound.append(smooth(clip.sound.double(), STEP_FRAMES / 2)[2 * STEP_FRAMES :])
    # Mirrored, every clip counts a second time: nobody is left-handed on average.
    flip = torch.tensor([1.0, -1, -1, -1, 1, 1], dtype=torch.float64)
    p, n, w, s = torch.cat(past), torch.cat(now), torch.cat(weight), torch.cat(sound)
    p, n = torch.cat([p, p * flip.repeat(2)]), torch.cat([n, n * flip])
    w, s = torch.cat([w, w]), torch.cat([s, s])
    gram = (p * w[:, None]).mT @ p
    ridge = 1e-3 * gram.diagonal().diag()
    a = torch.linalg.solve(gram + ridge, (p * w[:, None]).mT @ n).mT  # [6, 12]
    error = n - p @ a.mT
    covariance = (error * w[:, None]).mT @ error / w.sum()
    # Innovations in pauses and in speech, whitened, by their root mean square.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), error.mT, upper=False).mT
    energy = whitened.square().mean(dim=1)
    level = {name: ((energy * w * m).sum() / (w * m).sum()).sqrt() for name, m in (("on", s > 0.9), ("off", s < 0.1))}
    prior.pause_noise.copy_((level["off"] / level["on"]).nan_to_num(1.0).clamp(0.5, 1.0))  # NaN: nobody paused
    prior.noise.copy_((torch.linalg.cholesky(covariance) * level["on"]).float())
    while spectral_radius(a) > 0.98:  # stationary, with a memory of at most ten seconds
        a = 0.99 * a
    a = a.bfloat16().float()  # as weights are stored; a memory that long feels it, so what follows should, too
    prior.transition.copy_(torch.stack([a[:, :N_DIMENSIONS], a[:, N_DIMENSIONS:]]))


def _calibrate(prior: HeadPrior, clips: list[Clip]) -> None:
    """Scale what pushes the head until it moves as fast as the median person's, in speech and in pauses.

    The least squares don't see to that: noise in the tracks and the spline take some of the motion. The limits do as
    well, and are left out: who makes up for them gets a head that leans against them.
    """
    real = [_speeds(head_motion(clip), clip.sound) for clip in clips]
    heard = [activity(mel_level_db(clip.mel), clip.sound) for clip in clips]
    for _ in range(_CALIBRATIONS):
        each: dict[str, list[Tensor]] = {}
        for k, (clip, wanted) in enumerate(zip(clips, real, strict=True)):
            made = prior.sample_pose(heard[k], Generator().manual_seed(k), _FAR_FROM_LIMITS) / _FAR_FROM_LIMITS
            each.setdefault(clip.person, []).append((wanted / _speeds(made, clip.sound)).log())
        factor = torch.stack([torch.stack(rows).nanmean(dim=0) for rows in each.values()]).nanmedian(dim=0).values.exp()
        prior.noise *= factor[0, :, None].nan_to_num(1.0)
        prior.pause_noise.mul_((factor[1] / factor[0]).mean().nan_to_num(1.0)).clamp_(_LEAST_IN_PAUSES, 1.0)


def mel_level_db(mel: Tensor) -> Tensor:
    """Level of frames [T, 4, 64] of log-mel in units of 10 dB, but for a constant: [T] in dB."""
    return 10 * (mel * math.log(10)).logsumexp(dim=(1, 2)) / math.log(10)


def _speeds(motion: Tensor, sound: Tensor) -> Tensor:
    """Root mean square speed [2, 6] in speech and in pauses, NaN where there is hardly any; motion: [T, 6]."""
    speech = smooth(sound.float(), STEP_FRAMES / 2)[1:]
    squares = motion.diff(dim=0).square()
    parts = [squares[mask] for mask in (speech > 0.9, speech < 0.1)]
    parts = [
        part if len(part) >= _LEAST_FRAMES_OF_SPEED else part.new_full((1, N_DIMENSIONS), math.nan) for part in parts
    ]
    return torch.stack([part.mean(dim=0).sqrt() for part in parts]).clamp(min=1e-6)


def spectral_radius(a: Tensor) -> float:
    """Of the companion matrix of [A1 A2], [6, 12]; below 1 for a stationary process."""
    companion = torch.cat([a, torch.eye(2 * N_DIMENSIONS, dtype=a.dtype)[:N_DIMENSIONS]])
    return float(torch.linalg.eigvals(companion).abs().max())


def _fit_blinks(prior: HeadPrior, clips: list[Clip], model: FaceModel) -> None:
    blinks: dict[str, int] = {}
    minutes: dict[str, float] = {}
    intervals: list[float] = []
    curves: list[Tensor] = []
    for clip in clips:
        relative = relative_aperture(clip.lm3d + model.mean)
        found = find_blinks(relative)
        blinks[clip.person] = blinks.get(clip.person, 0) + len(found)
        minutes[clip.person] = minutes.get(clip.person, 0.0) + len(relative) / (60 * FPS)
        intervals += [(b - a) / FPS for a, b in pairwise(found)]
        for k in found:
            if BLINK_BEFORE <= k < len(relative) - BLINK_AFTER:
                curves.append(relative[k - BLINK_BEFORE : k + BLINK_AFTER + 1])
    if len(curves) < _LEAST_BLINKS or len(intervals) < _LEAST_BLINKS:
        log.warning("%d blinks: those of the built-in prior are used", len(curves))
        return
    # The rate that is the smallest factor away from people's: their geometric mean, each watched one usual interval
    # and blink longer. People blink 5 to 50 times a minute, and many of them are seen for seconds.
    pooled = sum(blinks.values()) / sum(minutes.values())
    rates = torch.tensor([(blinks[person] + 1) / (minutes[person] + 1 / pooled) for person in blinks])
    prior.blink_interval_s.fill_(60 / float(rates.log().mean().exp()))
    spread = torch.tensor(intervals)  # few of them are long: clips end
    prior.blink_shape.fill_(float((spread.mean() ** 2 / spread.var()).round().clamp(1, 6)))
    curve = torch.stack(curves).median(dim=0).values
    # From 1 and back to 1: what is left of the slopes before and after is other people's other blinks.
    curve = (curve / max(float(curve[0]), float(curve[-1]))).clamp(max=1.0)
    curve[0] = curve[-1] = 1.0
    prior.blink_curve.copy_(curve)


def relative_aperture(shape: Tensor, around: int = 50) -> Tensor:
    """Lid aperture by its median over four seconds: [T, 68, 3] -> [T]."""
    aperture = raw_aperture(shape)
    padded = torch.nn.functional.pad(aperture[None], (around, around), mode="replicate")[0]
    return aperture / padded.unfold(0, 2 * around + 1, 1).median(dim=1).values


def find_blinks(relative: Tensor) -> list[int]:
    """Frames where a blink is deepest."""
    found, frame, T = [], 0, len(relative)
    while frame < T:
        if relative[frame] >= _BLINK_DEPTH:
            frame += 1
            continue
        end = frame
        while end < T and relative[end] < _BLINK_END:
            end += 1
        if end - frame <= _LONGEST_BLINK:
            found.append(frame + int(relative[frame:end].argmin()))
        frame = end + 3
    return found


def refit(folder: Path, clips: list[Clip], model: FaceModel) -> None:
    """Replace the prior in a folder of weights."""
    state, config = weights.from_pretrained(folder)
    head = fit_head_prior(clips, model).state_dict()
    dtype = state[f"{PREFIX}noise"].dtype
    weights.save(folder, state | {PREFIX + key: value for key, value in head.items()}, config, dtype=dtype)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m a2m.pose", description="Fit the head's prior in weights anew.")
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
    parser.add_argument("folders", type=Path, nargs="+", help="of weights")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    model = FaceModel.builtin()
    clips = read_clips(args.data, "train", model)
    for folder in args.folders:
        refit(folder, clips, model)
        print(f"{folder}: the head's prior of {len(clips)} clips")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
