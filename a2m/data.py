"""Talking clips for audio -> motion: sound, frontalised landmark tracks, and batches disturbed for training.

Layout of the data folder: `index.csv`, `clips/*.mp4`, `tracks/*.npz`. Clips of the corpus of single words (`lrwar_`)
are told apart from running speech: a second of one word is another thing to measure.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from a2m.speech import analyse, mel_columns
from common.audio import FRAME_SAMPLES, n_frames
from common.clip_index import is_word, read_index
from common.errors import InputError
from common.face.fit import frontalise
from common.face.model import LID_PAIRS, LIP_STREAM, FaceModel, eye_distance, mirror, mouth_opening
from common.face.mouth import TOUCHING_OPENING
from common.face.pos import Pose
from common.files import check_input
from common.media import read_audio

log = logging.getLogger(__name__)

CLIP_SIZE_PX = 256
_SMOOTHING_FRAMES = 0.8  # standard deviation: less than tracking noise blurs, more would swallow a syllable
_BLINK = 0.75  # of the median aperture


@dataclass(frozen=True)
class Clip:
    """mel: [T, 4, 64], units of 10 dB; mel_mean: [64] over its frames with sound, `sound` bool [T];

    lm3d: [T, 68, 3] as tracked; pose: Pose [T]; lip_motion: [T, 37, 3] from the closed mouth, mirror-symmetric; lids:
    [T], aperture by its median, 1 in blinks; opening: [T] as tracked. All lengths in units of the face model.
    """

    name: str
    person: str
    mel: Tensor
    mel_mean: Tensor
    sound: Tensor
    lm3d: Tensor
    pose: Pose
    lip_motion: Tensor
    lids: Tensor
    opening: Tensor
    eye_distance: float
    states: Tensor | None = None  # float16 [T, 2, D], where a HuBERT listened: see a2m.hearing

    @property
    def is_word(self) -> bool:
        return is_word(self.name)

    def realigned(self, lag: int) -> "Clip":
        """The frames that remain when the sound, `lag` frames later than the face, is moved back (`a2m.lag`)."""
        T = len(self.mel)
        if abs(lag) >= T:
            raise ValueError(f"{self.name} has {T} frames: its sound can't be {lag} later")
        heard, seen = slice(max(0, lag), T + min(0, lag)), slice(max(0, -lag), T - max(0, lag))
        return replace(
            self,
            mel=self.mel[heard],
            sound=self.sound[heard],
            lm3d=self.lm3d[seen],
            pose=Pose(self.pose.scale[seen], self.pose.rotation[seen], self.pose.translation[seen]),
            lip_motion=self.lip_motion[seen],
            lids=self.lids[seen],
            opening=self.opening[seen],
            states=None if self.states is None else self.states[heard],
        )


def read_clips(data_dir: Path, split: str, model: FaceModel) -> list[Clip]:
    """All talking clips of a split."""
    rows = [row for row in read_index(data_dir, "kind") if row["split"] == split and row["kind"] == "talking"]
    clips = [read_clip(data_dir, row["clip_id"], row["person"], model) for row in rows]
    log.info("%s: %d clips, %.1f min", split, len(clips), sum(len(c.mel) for c in clips) / 1500)
    return clips


def read_silent_clips(data_dir: Path, split: str, model: FaceModel, least_frames: int = 25) -> list[Clip]:
    """The split's clips without speech, or with somebody else's; what they sound like is all zeros."""
    rows = [row for row in read_index(data_dir, "kind") if row["split"] == split and row["kind"] == "silent"]
    clips = [read_clip(data_dir, row["clip_id"], row["person"], model, has_sound=False) for row in rows]
    return [clip for clip in clips if len(clip.mel) >= least_frames]


def realigned(clips: Sequence[Clip], lags: Mapping[str, int]) -> list[Clip]:
    """Clips, those that have a lag realigned."""
    return [clip.realigned(lags.get(clip.name, 0)) for clip in clips]


def read_lags(path: Path) -> dict[str, int]:
    """Lags by clip, as `python -m a2m.lag` writes them."""
    check_input(path, "file of lags")
    try:
        lags = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(lags, dict) or not all(type(lag) is int for lag in lags.values()):
            raise ValueError("not a JSON object of integers")
    except ValueError as error:  # what json raises is one, too
        raise InputError(f"{path} holds no lags ({error}): make it with python -m a2m.lag.") from error
    return lags


def read_clip(data_dir: Path, name: str, person: str, model: FaceModel, has_sound: bool = True) -> Clip:
    check_input(data_dir / "tracks" / f"{name}.npz", "track")
    with np.load(data_dir / "tracks" / f"{name}.npz") as track:
        points = torch.from_numpy(track["landmarks"].astype(np.float32))
    audio = read_sound(data_dir, name, len(points)) if has_sound else torch.zeros(FRAME_SAMPLES * len(points))
    voice = analyse(audio)
    mel = mel_columns(audio, 0, len(points), voice.gain)
    lm3d, pose = frontalise(points, CLIP_SIZE_PX, model)
    shape = lm3d + model.mean
    return Clip(
        name=name,
        person=person,
        mel=mel,
        mel_mean=voice.mel_mean,
        sound=voice.sound,
        lm3d=lm3d,
        pose=pose,
        lip_motion=lip_motion(shape),
        lids=lid_aperture(shape),
        opening=mouth_opening(shape),
        eye_distance=float(eye_distance(shape).mean()),
    )


def read_sound(data_dir: Path, name: str, n_pictures: int) -> Tensor:
    """A clip's sound [n] at 16 kHz, as long as its pictures."""
    audio = torch.from_numpy(read_audio(data_dir / "clips" / f"{name}.mp4"))[: FRAME_SAMPLES * n_pictures]
    if n_frames(len(audio)) < n_pictures:  # the sound stream may end before the last picture
        audio = torch.nn.functional.pad(audio, (0, FRAME_SAMPLES * n_pictures - len(audio)))
    return audio


def lip_motion(shape: Tensor) -> Tensor:
    """Lips and jaw of a person's frames [T, 68, 3] relative to the closed mouth: [T, 37, 3], smoothed, symmetric.

    Sound can't tell left from right, so only the mirror-symmetric half is kept. Few clips show the mouth closed; the
    rest shape is where the frames' regression on the opening crosses the opening of lips that touch.
    """
    shape = smooth((shape + mirror(shape)) / 2, _SMOOTHING_FRAMES)
    lips, gap = shape[:, LIP_STREAM], mouth_opening(shape)
    centred = gap - gap.mean()
    slope = torch.einsum("t,tpc->pc", centred, lips) / (centred.square().sum() + 1e-4)
    return lips - (lips.mean(dim=0) + slope * (TOUCHING_OPENING - gap.mean()))


def lid_aperture(shape: Tensor) -> Tensor:
    """Aperture of the lids relative to its median, [T, 68, 3] -> [T], both eyes together; blinks are 1."""
    aperture = raw_aperture(shape)
    relative = aperture / aperture.median()
    return smooth(torch.where(relative < _BLINK, 1.0, relative.clamp(max=1.4)), 1.0)


def raw_aperture(shape: Tensor) -> Tensor:
    """Mean height of the lid openings, [..., 68, 3] -> [...]."""
    upper, lower = (list(side) for side in zip(*LID_PAIRS, strict=True))
    return (shape[..., upper, 1] - shape[..., lower, 1]).mean(dim=-1)


def smooth(x: Tensor, sigma: float) -> Tensor:
    """Gaussian along the first axis; the ends repeat."""
    reach = max(1, round(4 * sigma))
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    index = (torch.arange(len(x))[:, None] + offsets).clamp(0, len(x) - 1)  # [T, 2 reach + 1]
    return torch.einsum("tk...,k->t...", x[index], (kernel / kernel.sum()).to(x))


def interpolate(x: Tensor, at: Tensor) -> Tensor:
    """Rows of x [T, ...] at fractional places [n], linearly; the ends repeat."""
    at = at.clamp(0, len(x) - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=len(x) - 1)
    fraction = (at - low).view(-1, *[1] * (x.ndim - 1))
    return x[low] * (1 - fraction) + x[high] * fraction


def person_shares(clips: list[Clip], words_share: float, most_minutes: float) -> Tensor:
    """Probability of each clip: within a person even, between persons as the root of their minutes (up to a cap),

    the corpus of single words together words_share.
    """
    minutes: dict[str, float] = {}
    for clip in clips:
        minutes[clip.person] = minutes.get(clip.person, 0.0) + len(clip.mel) / 1500
    count = {person: sum(clip.person == person for clip in clips) for person in minutes}
    share = torch.tensor([min(minutes[c.person], most_minutes) ** 0.5 / count[c.person] for c in clips])
    is_word = torch.tensor([c.is_word for c in clips])
    for part, wanted in ((is_word, words_share), (~is_word, 1 - words_share)):
        share[part] *= wanted / share[part].sum().clamp(min=1e-9)
    return share / share.sum()


def person_folds(clips: Sequence[Clip], n: int) -> list[int]:
    """For each clip the fold, 0..n-1, of its person; the longest first into whichever fold has least so far.

    Running speech and single words are balanced apart, a minute of words counting half.
    """
    minutes: dict[str, list[float]] = {}
    for clip in clips:
        minutes.setdefault(clip.person, [0.0, 0.0])[clip.is_word] += len(clip.mel) / 1500
    loads, fold = [[0.0, 0.0] for _ in range(n)], {}
    for person in sorted(minutes, key=lambda person: (-minutes[person][0] - minutes[person][1] / 2, person)):
        fold[person] = min(range(n), key=lambda k: loads[k][0] + loads[k][1] / 2)
        for kind in (0, 1):
            loads[fold[person]][kind] += minutes[person][kind]
    return [fold[clip.person] for clip in clips]


def crops(
    clips: list[Clip], targets: list[Tensor], shares: Tensor, n: int, length: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """n random crops: disturbed features [n, length, 4, 64], targets [n, length, K], mask [n, length]."""
    mel = torch.zeros(n, length, 4, 64)
    target = torch.zeros(n, length, targets[0].shape[-1])
    mask, sound = torch.zeros(n, length), torch.zeros(n, length)
    chosen = torch.multinomial(shares, n, replacement=True, generator=generator)
    for row, k in enumerate(chosen.tolist()):
        clip = clips[k]
        size = min(length, len(clip.mel))
        start = int(torch.randint(len(clip.mel) - size + 1, (1,), generator=generator))
        part = slice(start, start + size)
        mel[row, :size] = clip.mel[part] - clip.mel_mean
        target[row, :size] = targets[k][part]
        mask[row, :size], sound[row, :size] = 1.0, clip.sound[part].float()
    return disturb(mel, sound, generator), target, mask


def disturb(mel: Tensor, sound: Tensor, generator: Generator) -> Tensor:
    """Other throats, rooms and microphones: mel [B, T, 4, 64] relative to the voice's mean, sound [B, T] -> like mel.

    The mel axis is stretched (length of the vocal tract), bands are tilted, and coloured noise 8 to 40 dB below the
    voice is added to two thirds; then the mean over the frames with sound is made zero again.
    """
    B, _, _, n_mels = mel.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    position = (torch.arange(n_mels) * uniform(0.88, 1.14, B, 1)).clamp(max=n_mels - 1)  # [B, 64]
    low = position.floor().long()
    high = (low + 1).clamp(max=n_mels - 1)
    fraction = (position - low)[:, None, None]

    def at(index: Tensor) -> Tensor:
        return mel.gather(3, index[:, None, None].expand_as(mel))

    mel = at(low) * (1 - fraction) + at(high) * fraction
    tilt = uniform(-1.0, 1.0, B, 1) * torch.linspace(-0.5, 0.5, n_mels)
    floor = uniform(-4.0, -0.8, B, 1) - 6.0 * (torch.rand(B, 1, generator=generator) > 0.66) + tilt
    noise = floor[:, None, None] + 0.25 * torch.randn(mel.shape, generator=generator)
    noisy = torch.logaddexp(mel * np.log(10), noise * np.log(10)) / np.log(10)
    weight = sound[..., None, None] / (4 * sound.sum(dim=1).clamp(min=1))[:, None, None, None]
    shift = ((noisy - mel) * weight).sum(dim=(1, 2), keepdim=True)  # [B, 1, 1, 64]
    return noisy - shift
