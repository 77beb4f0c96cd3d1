"""Where a recording speaks, and how loud its bands are where it does.

Neither a mute stretch nor a constant hiss may move a mouth. A frame counts as sound when it is above an absolute floor,
not too far below the recording's own loud frames, and above its background. A recording that is nothing but background
has none. Music and other voices count: to tell them apart from the speaker takes a model.
"""

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

from common.audio import FRAME_SAMPLES, N_MELS, frame_level_db, log_mel, n_frames

QUIET_DB = -60.0  # below full scale: nobody speaks as softly into a recording
BELOW_SPEECH_DB = 32.0
ABOVE_BACKGROUND_DB = 5.0
LEAST_SNR_DB = 12.0  # the background threshold never comes closer to the loud frames than this
STEADY_DB = 3.0  # loud frames this little above the background in a second or more: perhaps only background
DECIBELS_PER_UNIT = 50.0  # of common.audio.log_mel
_OPENS_EARLY = 3  # frames: lips part before the voice
_CLOSES_LATE = 1
_CHUNK_FRAMES = 2000


def levels_db(audio: Tensor) -> Tensor:
    """`frame_level_db` [T] of audio [n], in chunks of bounded memory."""
    step = _CHUNK_FRAMES * FRAME_SAMPLES
    return torch.cat([frame_level_db(audio[start : start + step]) for start in range(0, len(audio), step)])


def mel_columns(audio: Tensor, first: int, last: int) -> Tensor:
    """Log-mel of frames first..last-1 in units of 10 dB: [last - first, 4, 64], the same as of the whole recording."""
    before, after = min(first, 1), min(n_frames(len(audio)) - last, 1)
    features = log_mel(audio[(first - before) * FRAME_SAMPLES : (last + after) * FRAME_SAMPLES])
    features = features[before : before + last - first] * (DECIBELS_PER_UNIT / 10)
    return rearrange(features, "frame state (column mel) -> frame (state column) mel", column=2)


def has_sound(level_db: Tensor, is_steady_noise: bool = False) -> Tensor:
    """Frames with sound above floor and background: level_db [T] -> bool [T].

    is_steady_noise: the recording's spectrum is not a voice's; then, with hardly any dynamics, nothing counts.
    """
    audible = level_db[level_db > QUIET_DB]
    if len(audible) == 0:
        return torch.zeros_like(level_db, dtype=torch.bool)
    ranked = audible.sort().values
    loud, background = float(ranked[-1 - len(ranked) // 20]), float(ranked[len(ranked) // 20])
    if is_steady_noise and loud - background < STEADY_DB:
        return torch.zeros_like(level_db, dtype=torch.bool)
    threshold = max(QUIET_DB, loud - BELOW_SPEECH_DB, min(background + ABOVE_BACKGROUND_DB, loud - LEAST_SNR_DB))
    return level_db > threshold


def mouth_gate(sound: Tensor) -> Tensor:
    """How far the mouth may follow the model: bool [T] -> float32 [T] in 0..1, 0 from 0.12 s after the sound ends.

    Pauses too short to close in (stops last up to 0.1 s) stay open: opening early and closing late fills them.
    """
    T = len(sound)
    reach = (_CLOSES_LATE + 2, _OPENS_EARLY + 2)
    padded = torch.nn.functional.pad(sound.float()[None, None], reach, mode="replicate")
    n_wide = _CLOSES_LATE + _OPENS_EARLY + 1
    wide = torch.nn.functional.max_pool1d(padded, n_wide, stride=1)  # [1, 1, T + 4]
    kernel = wide.new_tensor([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
    return torch.nn.functional.conv1d(wide, kernel[None, None])[0, 0, :T].clamp(0, 1)


def voice_statistics(audio: Tensor, level_db: Tensor) -> tuple[Tensor, Tensor]:
    """The mean log-mel spectrum [64] (units of 10 dB) of the frames with sound, and which they are [T].

    The mean of all frames would depend on how long the pauses are. Without sound, the mean of a quiet recording.
    """
    sound = has_sound(level_db)
    total, count = torch.zeros(N_MELS, dtype=torch.float64), 0
    for first, last in chunks(len(level_db)):
        chosen = sound[first:last]
        if chosen.any():
            columns = mel_columns(audio, first, last)[chosen]  # [frames, 4, 64]
            total += columns.double().sum(dim=(0, 1))
            count += columns.shape[0] * columns.shape[1]
    if count == 0:
        return torch.full((N_MELS,), QUIET_DB / 10), sound
    mean = (total / count).float()
    if len(level_db) >= 25 and not _is_voice(mean):
        sound = has_sound(level_db, is_steady_noise=True)
    return mean, sound


def chunks(n: int, size: int = _CHUNK_FRAMES) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) frame of each chunk."""
    return ((first, min(first + size, n)) for first in range(0, n, size))


def _is_voice(mean: Tensor) -> bool:
    """Whether the band below 1 kHz holds a good share of a mean spectrum's power, as in voices; white noise has 1/8."""
    power = 10**mean
    return bool(power[: N_MELS // 3].sum() > 0.4 * power.sum())
