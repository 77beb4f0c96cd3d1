"""Talking and silent clips as AToM-Net's samples: windows of sound and motion, disturbed, muted, partly known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from a2m.data import Clip, disturb, interpolate, person_shares
from a2m.model import AToMNet
from a2m.regression import MEL_RANGE
from a2m.space import MotionSpace, mirror_rest, mirror_slow, rest_motion, slow_motion
from common.face.model import LIP_STREAM, FaceModel, mirror

Sample = dict[str, Tensor]
_LEAST_MUTED, _RAMP = 12, 4  # frames


@dataclass
class DataConfig:
    """How clips become samples, and what the loss weighs."""

    words_share: float = 0.4  # of the samples: the single words
    most_minutes: float = 6.0  # of one person
    stretch: float = 0.12  # speech and motion are played faster or slower by up to this share
    rest_share: float = 0.5  # of the samples: the reference is the clip's face with its mouth closed
    identity_noise: float = 0.5  # deviations of the face model's identities that are added to the reference
    audio_dropout: float = 0.15  # samples that hear nothing; clips without speech are among them
    silent_share: float = 0.12  # of all samples: clips without speech
    muted_share: float = 0.08  # of the others: a stretch is muted, and the mouth closed there
    prefix_share: float = 0.5  # of all: the frames before some moment are known, as in long recordings
    keyframe_share: float = 0.12  # of the others: some single frames are
    longest_prefix: int = 16  # frames
    reconstruction: float = 7.5
    velocity: float = 1.5
    lip_weight: float = 1.0  # of the streams in both terms
    rest_weight: float = 0.3
    slow_weight: float = 0.3  # of the head's pose
    lid_weight: float = 0.3
    opening_weight: float = 1.0
    low_noise: float = 4.0  # how much more a sample without noise weighs than one that is all noise


class Speech:
    """Endless samples of talking clips; number i follows from (seed, i).

    A sample: x_0 [window, K], audio [window n_audio_states, audio_dim], reference [68, 3], is_frame [window] bool,
    is_known [window] bool, has_audio [] bool.
    """

    def __init__(
        self,
        clips: list[Clip],
        model: AToMNet,
        face_model: FaceModel,
        options: DataConfig,
        seed: int,
        silent_clips: Sequence[Clip] = (),
    ):
        self.clips, self.n_speaking = [*clips, *silent_clips], len(clips)
        self.window, self.options, self.seed = model.config.window, options, seed
        self.n_audio_states = model.config.n_audio_states
        self.face_model, self.space = face_model, model.space
        self.shares = person_shares(clips, options.words_share, options.most_minutes)
        shares = self.shares
        if silent_clips and options.silent_share > 0:
            silent = person_shares(list(silent_clips), 0.0, options.most_minutes)
            shares = torch.cat([(1 - options.silent_share) * shares, options.silent_share * silent])
        self.cumulative = shares.double().cumsum(dim=0)
        self.values: list[tuple[Tensor, Tensor]] = []  # of each clip and its mirror image

    def prepare(self) -> None:
        """Encode all clips; call when the model's space is fitted."""
        self.values = [clip_values(clip, self.space, self.face_model) for clip in self.clips]

    def __getitem__(self, number: int) -> Sample:
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = Generator().manual_seed(seed)

        def uniform() -> float:
            return float(torch.rand((), generator=generator, dtype=torch.float64))

        options, window = self.options, self.window
        k = min(int(torch.searchsorted(self.cumulative, uniform())), len(self.cumulative) - 1)
        is_mirrored, speaks = uniform() < 0.5, k < self.n_speaking
        clip, values = self.clips[k], self.values[k][is_mirrored]
        T, speed = len(values), 1 + options.stretch * (2 * uniform() - 1)
        n = max(1, min(window, int(T / speed)))
        start = uniform() * max(0.0, T - n * speed)
        at = start + (torch.arange(n) + 0.5) * speed - 0.5
        muted = self._muted(n, uniform) if speaks and uniform() < options.muted_share else slice(0)
        audio = hear(clip, start, n, speed, generator, muted)
        x_0 = interpolate(values, at)
        x_0[:, : self.space.n_lip] *= 1 - shut_while(n, muted)[:, None]  # lips are relative to the closed mouth

        frame = int(uniform() * T)  # the reference
        reference, origin = clip.lm3d[frame], values[frame].clone()
        if uniform() < options.rest_share:  # the pipeline's case: the picture's mouth is closed first
            reference = reference.clone()
            reference[list(LIP_STREAM)] -= clip.lip_motion[frame]
            origin[: self.space.n_lip] = 0
        if self.space.n_slow:
            origin[-1] = 0  # lids are relative to open eyes, not to a picture taken in a blink
        reference = mirror(reference) if is_mirrored else reference
        identity = torch.randn(len(self.face_model.identity_std), generator=generator) * self.face_model.identity_std
        other = torch.einsum("k,kpc->pc", options.identity_noise * identity, self.face_model.identity)
        n_missing = window - n
        return {
            "x_0": torch.nn.functional.pad(x_0 - origin, (0, 0, 0, n_missing)),
            "audio": torch.nn.functional.pad(audio, (0, 0, 0, n_missing * self.n_audio_states)),
            "reference": reference + other,
            "is_frame": torch.arange(window) < n,
            "is_known": self._known(n, uniform),
            "has_audio": torch.tensor(speaks and uniform() >= options.audio_dropout),
        }

    def _muted(self, n: int, uniform: Callable[[], float]) -> slice:
        """A stretch of n frames, at times to the end or the whole."""
        length = min(n, int(_LEAST_MUTED + uniform() * n))
        first = int(uniform() * (n - length + 1))
        return slice(first, first + length)

    def _known(self, n: int, uniform: Callable[[], float]) -> Tensor:
        """Which of n frames are given as they are, [window] bool: the first ones, a few anywhere, or none."""
        kind, known = uniform(), torch.zeros(self.window, dtype=torch.bool)
        if kind < self.options.prefix_share:
            known[: min(n // 2, 1 + int(uniform() * self.options.longest_prefix))] = True
        elif kind < self.options.prefix_share + self.options.keyframe_share:
            for _ in range(1 + int(3 * uniform())):
                known[int(uniform() * n)] = True
        return known


def shut_while(n: int, muted: slice) -> Tensor:
    """[n]: 1 where the mouth is held closed, for it closes when the voice has ended and opens before it begins."""
    inside = torch.zeros(n, dtype=torch.bool)
    inside[muted] = True
    frame, far = torch.arange(n) + 0.5, torch.full((n,), torch.inf)
    since = frame - muted.start if muted.start else far
    until = muted.stop - frame if muted.stop < n else far
    progress = (torch.minimum(since, until) / _RAMP).clamp(0, 1)
    return inside * (0.5 - 0.5 * torch.cos(torch.pi * progress))


def hear(clip: Clip, start: float, n: int, speed: float, generator: Generator, muted: slice = slice(0)) -> Tensor:
    """What n frames from frame `start` on sound like, played so many times faster: [n n_audio_states, audio_dim].

    A HuBERT's states are as they were computed; log-mel is muted where asked, then disturbed: noise fills the gap, too.
    """
    if clip.states is not None:
        return interpolate(clip.states.flatten(0, 1), 2 * start + (torch.arange(2 * n) + 0.5) * speed - 0.5)
    column_at = 4 * start + (torch.arange(4 * n) + 0.5) * speed - 0.5
    mel = interpolate(clip.mel.flatten(0, 1) - clip.mel_mean, column_at).unflatten(0, (n, 4))
    at = start + (torch.arange(n) + 0.5) * speed - 0.5
    sound = clip.sound[at.round().long().clamp(0, len(clip.sound) - 1)].float()
    mel[muted], sound[muted] = MEL_RANGE[0], 0.0
    mel = disturb(mel[None], sound[None], generator)[0].clamp(*MEL_RANGE)
    return mask_bands(mel, generator).flatten(1)


def clip_values(clip: Clip, space: MotionSpace, model: FaceModel) -> tuple[Tensor, Tensor]:
    """A clip's motion [T, K], lips from the closed mouth, and that of its mirror image."""
    rest, slow = rest_motion(clip, model), slow_motion(clip, model)
    plain = space.encode(clip.lip_motion, rest, slow)
    return plain, space.encode(clip.lip_motion, mirror_rest(rest), mirror_slow(slow))


def mask_bands(mel: Tensor, generator: Generator) -> Tensor:
    """SpecAugment (Park et al. 2019): up to two bands of at most 12 of 64 mels at the voice's mean; mel [n, 4, 64]."""
    width, first = torch.rand(2, 2, generator=generator)
    for w, f in zip((12 * width).int().tolist(), first.tolist(), strict=True):
        low = int(f * (mel.shape[-1] - w))
        mel[..., low : low + w] = 0
    return mel
