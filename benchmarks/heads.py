"""Do heads and lids move as in the tracks while their owners speak? Running speech, every clip's own recording.

Blinks are found alike in tracks and results (`a2m.pose.find_blinks`), and last as long as the lids are more than half
as far closed as at their deepest. Heads are measured after their first second, for results start at rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2m.data import Clip, raw_aperture, read_clips, read_sound, smooth
from a2m.pipeline import AudioToMotion, PoseMode
from a2m.pose import find_blinks, head_motion, relative_aperture
from benchmarks import bars
from benchmarks.bars import Bar, Figure
from benchmarks.report import count, markdown
from benchmarks.shown import POSE, SIZE_PX
from common.audio import FPS
from common.errors import InputError
from common.face.model import FaceModel
from common.metrics.motion import correlation
from common.motion import Motion

LEAST_FRAMES = 50
FACTOR = 1.5
_SETTLED = 25  # frames


@dataclass(frozen=True)
class Movement:
    """Of one clip. blink_s: their lengths; speeds: of the head's rotation, degrees a second [T]; sound: [T], 0 to 1;

    turn_deg: standard deviation of the head's angles; coupling: correlation of the speed with the loudness.
    """

    n_frames: int
    blink_s: list[float]
    speeds: Tensor
    sound: Tensor
    turn_deg: float
    coupling: float


def movement(clip: Clip) -> Movement:
    relative = relative_aperture(clip.lm3d + FaceModel.builtin().mean)
    angles = head_motion(clip)[:, :3].rad2deg()
    speeds = torch.nn.functional.pad(angles.diff(dim=0).norm(dim=1) * FPS, (0, 1))[_SETTLED:-1]
    loudness = smooth(clip.mel.mean(dim=(1, 2)), 3.0)[_SETTLED:-1]
    return Movement(
        n_frames=len(clip.mel),
        blink_s=[blink_length_s(relative, k) for k in find_blinks(relative)],
        speeds=speeds,
        sound=smooth(clip.sound.float(), 2.5)[_SETTLED:-1],
        turn_deg=float(angles[_SETTLED:].std(dim=0).norm()),
        coupling=correlation(smooth(speeds, 3.0), loudness),
    )


def blink_length_s(relative: Tensor, deepest: int) -> float:
    """Relative aperture [T] -> how long it stays below the middle between 1 and its least, crossings interpolated."""
    level = (1 + float(relative[deepest])) / 2
    ends = []
    for step in (-1, 1):
        k = deepest
        while 0 <= k + step < len(relative) and relative[k + step] < level:
            k += step
        if 0 <= k + step < len(relative):
            inside, outside = float(relative[k]), float(relative[k + step])
            ends.append(abs(k - deepest) + (level - inside) / (outside - inside))
        else:
            ends.append(float(abs(k - deepest)))
    return sum(ends) / FPS


def heads(data_dir: Path, split: str, pipeline: AudioToMotion, n_seeds: int) -> None:
    clips = [clip for clip in read_clips(data_dir, split, FaceModel.builtin()) if not clip.is_word]
    clips = [clip for clip in clips if len(clip.mel) >= LEAST_FRAMES]
    if not clips:
        raise InputError(f"the split {split} has no clip of running speech above 2 s: choose other data")
    persons = [clip.person for clip in clips]
    tracks = [[movement(clip)] for clip in clips]
    ours, still = [], []
    for k, clip in enumerate(clips):
        seeds = range(n_seeds * k, n_seeds * (k + 1))  # a seed's blinks come at the same times whatever is said
        audio = read_sound(data_dir, clip.name, len(clip.mel))

        def move(pose: PoseMode, seed: int, clip: Clip = clip, audio: Tensor = audio) -> Motion:
            aperture = raw_aperture(clip.lm3d)
            picture = clip.lm3d[int((aperture - aperture.median()).abs().argmin())]  # neither blinking nor staring
            return pipeline(audio, picture, POSE, SIZE_PX, pose=pose, seed=seed)

        ours.append([_movement(clip, move("natural", seed)) for seed in seeds])
        still.append(_movement(clip, move("still", seeds[0])))
    print(f"Head and lids in running speech: {count(persons)}, {n_seeds} samples each\n")
    names = list(MEASURES)
    rows = [[title, *(str(_figure(name, each, persons)) for name in names)] for title, each in _both(tracks, ours)]
    ratios = {name: _ratio(name, ours, tracks, persons) for name in names}
    rows.append(["ours by the tracks'", *("" if name in _SIGNED else str(ratios[name]) for name in names)])
    print(markdown(["", *names], rows) + "\n")
    within = {"least": 1 / FACTOR, "most": FACTOR}
    print(Bar("blinks per minute by the tracks'", ratios[BLINKS], **within))
    print(Bar("their length by the tracks'", ratios[LENGTH], **within))
    moved = [float(bool(each.blink_s) or each.turn_deg > 1e-3) for each in still]
    print(Bar("clips that move head or lids with the pose `still`", bars.mean(moved, persons), most=0))


def _movement(clip: Clip, motion: Motion) -> Movement:
    return movement(replace(clip, lm3d=motion.landmarks, pose=motion.pose))


def _both(tracks: list[list[Movement]], ours: list[list[Movement]]) -> list[tuple[str, list[list[Movement]]]]:
    return [("tracks", tracks), ("ours", ours)]


# ---- figures over many clips -----------------------------------------------------------------------------------------


def blinks_per_minute(each: Sequence[Movement]) -> float:
    return 60 * FPS * sum(len(m.blink_s) for m in each) / sum(m.n_frames for m in each)


def blink_length(each: Sequence[Movement]) -> float:
    lengths = [length for m in each for length in m.blink_s]
    return float(np.mean(lengths)) if lengths else math.nan


def speed(each: Sequence[Movement]) -> float:
    """Of the median clip: a few people who toss their heads would outweigh all others."""
    return float(np.median([_rms(m.speeds) for m in each]))


def in_pauses(each: Sequence[Movement]) -> float:
    """Speed where nothing is said by that in speech; NaN where nobody pauses."""
    speeds, sound = (torch.cat([getattr(m, name) for m in each]) for name in ("speeds", "sound"))
    return _rms(speeds[sound < 0.1]) / _rms(speeds[sound > 0.9])


def turn(each: Sequence[Movement]) -> float:
    return float(np.median([m.turn_deg for m in each]))


def coupling(each: Sequence[Movement]) -> float:
    return float(np.mean([m.coupling for m in each]))


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if len(x) else math.nan


BLINKS, LENGTH, COUPLING = "blinks a minute", "their length, s", "speed with loudness, correlation"
MEASURES = {
    BLINKS: blinks_per_minute,
    LENGTH: blink_length,
    "head, °/s": speed,
    "turn, °": turn,
    "speed in pauses by that in speech": in_pauses,
    COUPLING: coupling,
}
_SIGNED = (COUPLING,)


def _figure(name: str, values: Sequence[Sequence[Movement]], persons: Sequence[str]) -> Figure:
    return bars.figure(lambda numbers: MEASURES[name]([m for k in numbers for m in values[k]]), persons, n_draws=300)


def _ratio(
    name: str, one: Sequence[Sequence[Movement]], other: Sequence[Sequence[Movement]], persons: Sequence[str]
) -> Figure:
    measure = MEASURES[name]

    def statistic(numbers: np.ndarray) -> float:
        a, b = (measure([m for k in numbers for m in values[k]]) for values in (one, other))
        return a / b if b else math.nan

    return bars.figure(statistic, persons, n_draws=300)
