"""Where a recording speaks, and how loud its bands are where it does.

Neither a mute stretch nor a constant hiss may move a mouth. A frame counts as sound when it is not too far below the
recording's own loud frames, and above its background. A recording that is very quiet, or nothing but hiss, has none.
Music and other voices count: to tell them apart from the speaker takes a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from common.audio import FRAME_SAMPLES, N_MELS, frame_level_db, log_mel, n_frames

QUIET_DB = -60.0  # below full scale: a recording whose loud frames are below this is silent
HARDLY_AUDIBLE_DB = -75.0
BELOW_SPEECH_DB = 25.0
ABOVE_BACKGROUND_DB = 5.0
LEAST_SNR_DB = 15.0  # the background's threshold comes no closer to the loud frames: speech without pauses has no floor
RARE_SPEECH_DB = 10.0  # loud frames this much above the 95th percentile of all: speech fills less than a twentieth
STEADY_DB = 3.0  # hiss varies less than this from frame to frame
VOICE_DB = -20.0  # what the loud frames are brought to before the features
DECIBELS_PER_UNIT = 50.0  # of common.audio.log_mel
_OPENS_EARLY = 3  # frames: lips part before the voice
_CLOSES_LATE = 1
_SHORT_PAUSE = 10  # frames
_CHUNK_FRAMES = 500


@dataclass(frozen=True)
class Voice:
    """What normalises a recording: sound [T] bool, gain (a factor on the samples), mel_mean [64] in units of 10 dB over

    the frames with sound, after the gain.
    """

    sound: Tensor
    gain: float
    mel_mean: Tensor


def analyse(audio: Tensor) -> Voice:
    """Find the frames of audio [n] with sound, and their level and mean spectrum; memory does not grow but for [T].

    Not the mean over all frames: it would depend on how long the pauses are.
    """
    level_db = levels_db(audio)
    loud_db = loudness_db(level_db)
    sound = has_sound(level_db)
    if not sound.any():
        return Voice(sound, 1.0, torch.full((N_MELS,), QUIET_DB / 10))
    gain = 10 ** ((VOICE_DB - loud_db) / 20)
    total, count = torch.zeros(N_MELS, dtype=torch.float64), 0
    for first, last in chunks(len(level_db)):
        columns = mel_columns(audio, first, last, gain)[sound[first:last]]  # [frames, 4, 64]
        total += columns.double().sum(dim=(0, 1))
        count += columns.shape[0] * columns.shape[1]
    mean = (total / count).float()
    is_steady = len(level_db) >= 25 and loud_db - _ranked(level_db, 0.05) < STEADY_DB
    if is_steady and not _is_voice(mean):
        sound = torch.zeros_like(sound)
    return Voice(sound, gain, mean)


def levels_db(audio: Tensor) -> Tensor:
    """`frame_level_db` [T] of audio [n], in chunks of bounded memory."""
    step = _CHUNK_FRAMES * FRAME_SAMPLES
    return torch.cat([frame_level_db(audio[start : start + step]) for start in range(0, len(audio), step)])


def mel_columns(audio: Tensor, first: int, last: int, gain: float = 1.0) -> Tensor:
    """Log-mel of frames first..last-1 in units of 10 dB: [last - first, 4, 64], the same as of the whole recording."""
    before, after = min(first, 1), min(n_frames(len(audio)) - last, 1)
    features = log_mel(gain * audio[(first - before) * FRAME_SAMPLES : (last + after) * FRAME_SAMPLES])
    features = features[before : before + last - first] * (DECIBELS_PER_UNIT / 10)
    return rearrange(features, "frame state (column mel) -> frame (state column) mel", column=2)


def has_sound(level_db: Tensor) -> Tensor:
    """Frames with sound, by level alone: level_db [T] -> bool [T]."""
    loud, background = loudness_db(level_db), _ranked(level_db, 0.05)
    if loud <= QUIET_DB:
        return torch.zeros_like(level_db, dtype=torch.bool)
    relative = max(loud - BELOW_SPEECH_DB, min(background + ABOVE_BACKGROUND_DB, loud - LEAST_SNR_DB))
    return level_db > max(HARDLY_AUDIBLE_DB, relative)


def loudness_db(level_db: Tensor) -> float:
    """The level of a recording's loud frames: level_db [T] -> the 95th percentile.

    Where speech is rare (eight seconds after five minutes of waiting), that of the frames near the loudest ones.
    """
    loud = _ranked(level_db, 0.95)
    near_the_top = level_db[level_db > _ranked(level_db, 0.999) - BELOW_SPEECH_DB]
    loud_there = _ranked(near_the_top, 0.95)
    return loud_there if loud_there - loud > RARE_SPEECH_DB else loud


def mouth_gate(sound: Tensor) -> Tensor:
    """How far the mouth may follow the model: bool [T] -> float32 [T] in 0..1, 0 from 0.12 s after the sound ends.

    Pauses under 0.4 s (0.2 s at either end of the recording) are left to the model: people don't shut their mouths in
    every stop and between all words.
    """
    T = len(sound)
    sound = sound.clone()
    lengths = torch.unique_consecutive(sound, return_counts=True)[1].tolist()
    start = 0
    for length in lengths:
        is_edge = start == 0 or start + length == T
        if length < (_SHORT_PAUSE // 2 if is_edge else _SHORT_PAUSE) and length < T:
            sound[start : start + length] = True
        start += length
    reach = (_CLOSES_LATE + 2, _OPENS_EARLY + 2)
    padded = torch.nn.functional.pad(sound.float()[None, None], reach, mode="replicate")
    n_wide = _CLOSES_LATE + _OPENS_EARLY + 1
    wide = torch.nn.functional.max_pool1d(padded, n_wide, stride=1)  # [1, 1, T + 4]
    kernel = wide.new_tensor([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
    return torch.nn.functional.conv1d(wide, kernel[None, None])[0, 0, :T].clamp(0, 1)


def chunks(n: int, size: int = _CHUNK_FRAMES) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) frame of each chunk."""
    return ((first, min(first + size, n)) for first in range(0, n, size))


def _ranked(level_db: Tensor, share: float) -> float:
    """The level that `share` of the frames don't exceed (torch's quantile stops at 16 million values)."""
    return float(level_db.sort().values[round(share * (len(level_db) - 1))])


def _is_voice(mean: Tensor) -> bool:
    """Whether the band below 1 kHz holds a good share of a mean spectrum's power, as in voices; white noise has 1/8."""
    power = 10**mean
    return bool(power[: N_MELS // 3].sum() > 0.4 * power.sum())
