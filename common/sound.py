"""Sound files as streams of blocks: libsndfile for its own formats, FFmpeg for all others and for the sound of videos.

Whatever is wrong with a recording becomes one `InputError` that names the file and the remedy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from common.errors import InputError
from common.ffmpeg import decoded, is_cover, open_container, origin_s
from common.files import check_input, check_whole

SAMPLE_RATE_HZ = (1000, 1_000_000)
BLOCK_SAMPLES = 65536
UNREADABLE = (soundfile.LibsndfileError, av.FFmpegError, ValueError)  # PyAV raises ValueError for odd layouts and tags
GAP_S = (0.1, 60.0)  # time stamps jitter below this, and are broken above: in between, sound is kept in step


@dataclass
class Sound:
    """A recording opened for one pass: `blocks` yields float32 [n, n_channels], finite, within [-1, 1]."""

    sample_rate_hz: int
    n_channels: int
    blocks: Iterator[np.ndarray]


def open_sound(path: Path) -> Sound:
    """Open any sound file, or the sound of a video: libsndfile for its own formats, FFmpeg for all others."""
    check_input(path, "sound file")
    check_whole(path)
    with path.open("rb") as file:
        magic = file.read(4)
    # libsndfile reads MP3 as well, but prints to stderr and fills what a truncated file lacks with silence.
    back_ends = [_ffmpeg_blocks]
    if magic in (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC", b"OggS", b".snd", b"caff"):
        back_ends.insert(0, _sndfile_blocks)
    first_error: Exception | None = None
    for back_end in back_ends:
        try:
            blocks = back_end(path)
            sample_rate_hz, first = next(blocks)
        except StopIteration:
            raise InputError(f"{path} holds no sound: give another recording.") from None
        except InputError:
            raise
        except UNREADABLE as error:
            first_error = first_error or error
            continue
        if not SAMPLE_RATE_HZ[0] <= sample_rate_hz <= SAMPLE_RATE_HZ[1]:
            raise InputError(f"{path} says it has {sample_rate_hz} samples a second: convert it to 16000 or 48000.")
        return Sound(sample_rate_hz, first.shape[1], _checked(path, sample_rate_hz, first, blocks))
    raise InputError(
        f"{path} can't be read as sound: give a WAV, FLAC, MP3, Ogg or M4A file, or a video with sound."
    ) from first_error


def _checked(
    path: Path, sample_rate_hz: int, first: np.ndarray, blocks: Iterator[tuple[int, np.ndarray]]
) -> Iterator[np.ndarray]:
    """The blocks, clipped to [-1, 1]; InputError at samples that are not numbers and where decoding fails."""
    n, block = 0, first
    while True:
        if not np.isfinite(block).all():
            at_s = (n + int(np.isfinite(block).all(axis=1).argmin())) / sample_rate_hz
            raise InputError(
                f"{path} has samples that are not numbers, at {at_s:.2f} s: export it again as 16-bit PCM."
            )
        yield block.clip(-1, 1)
        n += len(block)
        try:
            _, block = next(blocks)
        except StopIteration:
            return
        except UNREADABLE as error:
            raise InputError(f"{path} is damaged after {n / sample_rate_hz:.1f} s: copy or export it again.") from error


def _sndfile_blocks(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    with soundfile.SoundFile(path) as file:
        gain = 1.0
        if file.subtype in ("FLOAT", "DOUBLE"):  # may go beyond full scale, some by the factor 32768: bring it back
            peak = max((float(np.abs(block).max(initial=0)) for block in file.blocks(BLOCK_SAMPLES)), default=0.0)
            gain = 1 / peak if 1 < peak < np.inf else 1.0
            file.seek(0)
        n = 0
        for block in file.blocks(BLOCK_SAMPLES, dtype="float32", always_2d=True):
            n += len(block)
            yield file.samplerate, block * np.float32(gain)
        if file.format == "FLAC" and n < file.frames < 2**40:
            raise _cut_short(path, n / file.samplerate)


def _ffmpeg_blocks(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    with open_container(path) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise InputError(f"{path} has no sound track: give a recording, or a video with sound.")
        time_base = Fraction(stream.time_base or 1)
        has_picture = any(not is_cover(video) for video in container.streams.video)
        start_s = origin_s(container) if has_picture else None
        n, rate, held = 0, 0, None
        for rate, block in _in_step(decoded(path, container, stream), start_s):
            if held is not None:
                yield rate, held
            held, n = block, n + len(block)
        if held is None:
            return
        stated_s = stream.duration * time_base if stream.duration else None
        if stated_s is not None and "mp4" in container.format.name:
            # AAC comes in whole frames; the edit list says where in the last one the sound ends.
            late_s = 0 if start_s is None else max(stream.start_time or 0, 0) * time_base - start_s
            surplus = n - round((late_s + stated_s) * rate)
            held = held[: len(held) - surplus] if 0 < surplus < len(held) else held
        yield rate, held
        if stated_s is not None and container.format.name == "flac" and n + 1 < stated_s * rate:
            raise _cut_short(path, n / rate)


def _in_step(frames: Iterator[av.AudioFrame], start_s: Fraction | None) -> Iterator[tuple[int, np.ndarray]]:
    """(rate, float32 [n, channels]) in the first frame's rate and channel layout, which broadcasts change half-way.

    Gaps in the time stamps become silence, and so does the time from `start_s` (where the pictures of the file start;
    None in a file of sound alone) to the first sample: the sound keeps its place beside the pictures.
    """
    n, first, resampler, form = 0, None, None, None
    for frame in frames:
        first = first or frame
        rate = first.sample_rate
        if frame.pts is not None and frame.time_base is not None:
            if start_s is None:
                start_s = frame.pts * Fraction(frame.time_base)
            gap_s = frame.pts * Fraction(frame.time_base) - start_s - Fraction(n, rate)
            if (GAP_S[0] if n else 0) < gap_s < GAP_S[1]:
                silence = np.zeros((round(gap_s * rate), first.layout.nb_channels), np.float32)
                n += len(silence)
                yield rate, silence
        if form != (frame.sample_rate, frame.layout.name, frame.format.name):
            form = (frame.sample_rate, frame.layout.name, frame.format.name)
            resampler = av.AudioResampler(format="fltp", layout=first.layout, rate=rate)
        assert resampler is not None
        for part in resampler.resample(frame):
            n += part.samples
            yield rate, np.ascontiguousarray(part.to_ndarray().T)


def _cut_short(path: Path, seconds: float) -> InputError:
    return InputError(f"{path} is cut short, {seconds:.1f} s of it can be decoded: copy or download it again.")


def resampled(sound: Sound, sample_rate_hz: int, n_channels: int) -> Sound:
    """The same sound at another rate, with its own number of channels or mixed (their mean) to one; clipped again.

    Linear-phase and without delay: sample n of the result is at n / sample_rate_hz seconds.
    """
    if n_channels not in (1, sound.n_channels):
        raise ValueError(f"{sound.n_channels} channels can be kept or mixed to 1, not made {n_channels}")

    def mixed() -> Iterator[np.ndarray]:
        for block in sound.blocks:
            yield block if n_channels == sound.n_channels else block.mean(axis=1, keepdims=True)

    def converted() -> Iterator[np.ndarray]:
        stream = soxr.ResampleStream(sound.sample_rate_hz, sample_rate_hz, n_channels)
        for block in mixed():
            yield stream.resample_chunk(block).clip(-1, 1)
        yield stream.resample_chunk(np.zeros((0, n_channels), np.float32), last=True).clip(-1, 1)

    blocks = mixed() if sample_rate_hz == sound.sample_rate_hz else converted()
    return Sound(sample_rate_hz, n_channels, (block for block in blocks if len(block)))


def copy_wav(path: Path, wav_path: Path) -> float:
    """Any recording, or the sound of a video, as 16-bit WAV with its own rate and channels; its length in seconds.

    Sample 0 is at time 0.
    """
    sound = open_sound(path)
    with soundfile.SoundFile(wav_path, "w", sound.sample_rate_hz, sound.n_channels, "PCM_16", format="WAV") as file:
        for block in sound.blocks:
            file.write(block)
        return file.frames / sound.sample_rate_hz
