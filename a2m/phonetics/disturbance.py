"""What happens to a voice on its way: clipping, room, equaliser, noise, codec. Waveforms in, waveforms out, in step.

Nothing here moves the sound in time: rooms begin with the direct sound, and what a codec delays is found by correlation
and taken out.
"""

import io
from dataclasses import dataclass
from typing import cast

import av
import numpy as np
import soxr
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import fftconvolve

from common.audio import SAMPLE_RATE_HZ

# Name, container, sample rates and bit rates of encoders that FFmpeg's usual builds have.
_CODECS = (
    ("libopus", "ogg", (16_000, 48_000), (8_000, 32_000)),
    ("libmp3lame", "mp3", (16_000, 44_100), (24_000, 64_000)),
    ("aac", "adts", (16_000, 44_100), (24_000, 64_000)),
    ("pcm_mulaw", "wav", (8_000,), (64_000, 64_000)),
    ("adpcm_ima_wav", "wav", (16_000,), (64_000, 64_000)),
)
_MOST_DELAY = 4000  # samples


@dataclass(frozen=True)
class Disturbance:
    """How often each thing happens; the rest is drawn."""

    clipping: float = 0.08
    room: float = 0.5
    equaliser: float = 0.6
    noise: float = 0.65
    codec: float = 0.25

    def __call__(self, audio: np.ndarray, babble: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
        """audio: float32 [n] at 16 kHz -> the same, disturbed; babble: other voices [any], where there are any."""
        audio = audio / (np.abs(audio).max() + 1e-9)
        if generator.random() < self.clipping:
            audio = np.tanh(audio * generator.uniform(2, 5))
        if generator.random() < self.room:
            audio = in_room(audio, generator)
        if generator.random() < self.equaliser:
            audio = equalised(audio, generator)
        if generator.random() < self.noise:
            audio = audio + background(len(audio), babble, generator) * _level(audio) * 10 ** (
                -generator.uniform(5, 40) / 20
            )
        audio = 0.9 * audio / (np.abs(audio).max() + 1e-9)
        if generator.random() < self.codec:
            audio = coded(audio.astype(np.float32), generator)
        return audio.astype(np.float32)


def in_room(audio: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """In a room: the direct sound, a few early echoes and a tail that falls by 60 dB in 0.15 to 0.8 s."""
    decay_s, direct_db = generator.uniform(0.15, 0.8), generator.uniform(0, 18)  # over the tail
    times_s = np.arange(int(decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = generator.standard_normal(len(times_s)) * 10 ** (-3 * times_s / decay_s)
    tail[: int(generator.uniform(0.001, 0.015) * SAMPLE_RATE_HZ)] = 0
    for _ in range(int(generator.integers(0, 6))):
        tail[int(generator.uniform(0.002, 0.03) * SAMPLE_RATE_HZ)] += generator.choice((-1, 1)) * generator.uniform(
            1, 6
        )
    tail *= 10 ** (-direct_db / 20) / np.sqrt(np.square(tail).sum())
    tail[0] += 1.0
    return fftconvolve(audio, tail)[: len(audio)]


def equalised(audio: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Through a smooth curve of up to 12 dB; in a third of cases through a telephone's band or a small speaker's."""
    n = next_fast_len(len(audio), real=True)
    frequencies = np.fft.rfftfreq(n, 1 / SAMPLE_RATE_HZ)
    knots_hz = (0, 150, 400, 1000, 2500, 5000, 8000)
    gain_db = np.interp(frequencies, knots_hz, generator.normal(0, 4, len(knots_hz)).clip(-12, 12))
    if generator.random() < 0.33:
        low_hz, high_hz = generator.uniform(80, 350), generator.uniform(3000, 7000)
        gain_db -= 24 * (
            np.log2(low_hz / frequencies.clip(10)).clip(0) + np.log2(frequencies.clip(10) / high_hz).clip(0)
        )
    return irfft(rfft(audio, n) * 10 ** (gain_db / 20), n)[: len(audio)]  # of zero phase


def background(n: int, babble: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """n samples of noise of level 1: white, pink, brown or humming; in a third of cases babble, where there is any."""
    if babble is not None and generator.random() < 0.33:
        noise = np.resize(babble, n).astype(np.float64)
    else:
        n_fast = next_fast_len(n, real=True)
        spectrum = rfft(generator.standard_normal(n_fast))
        frequencies = np.fft.rfftfreq(n_fast, 1 / SAMPLE_RATE_HZ).clip(20)
        noise = irfft(spectrum * frequencies ** -generator.choice((0.0, 0.5, 1.0)), n_fast)[:n]
        if generator.random() < 0.2:
            hum_hz = generator.choice((50, 60)) * np.arange(1, 8)
            times_s = np.arange(n)[:, None] / SAMPLE_RATE_HZ
            noise += 2 * _level(noise) * (np.sin(2 * np.pi * hum_hz * times_s) / np.arange(1, 8)).sum(axis=1)
        slow = np.interp(np.arange(n), np.linspace(0, n, 6), generator.uniform(0.4, 1.6, 6))  # traffic comes and goes
        noise *= slow
    return noise / _level(noise)


def coded(audio: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Encoded, decoded, and in step again."""
    name, container, rates_hz, bit_rates = _CODECS[int(generator.integers(len(_CODECS)))]
    rate_hz = int(generator.choice(rates_hz))
    decoded = round_trip(audio, name, container, rate_hz, int(generator.uniform(*bit_rates)))
    return _in_step(decoded, audio)


def round_trip(audio: np.ndarray, name: str, container: str, rate_hz: int, bit_rate: int) -> np.ndarray:
    """audio float32 [n] at 16 kHz through an encoder and back, in memory; with whatever delay and length come of it."""
    samples = soxr.resample(audio, SAMPLE_RATE_HZ, rate_hz)
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as out:
        stream = cast(av.AudioStream, out.add_stream(name, rate=rate_hz))
        stream.bit_rate = bit_rate
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((samples * 32767).clip(-32768, 32767).astype(np.int16)[None], layout="mono")
        frame.sample_rate = rate_hz
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    memory.seek(0)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
    blocks: list[np.ndarray] = []
    with av.open(memory, "r") as back:
        for decoded in back.decode(audio=0):
            decoded.pts = None
            blocks += [block.to_ndarray()[0] for block in resampler.resample(decoded)]
    blocks += [block.to_ndarray()[0] for block in resampler.resample(None)]
    return np.concatenate(blocks)


def _in_step(decoded: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Shifted to where it correlates best with what it was, as long as that."""
    n = len(audio)
    correlation = fftconvolve(decoded, audio[::-1])  # lag k at n - 1 + k
    first = n - 1 - min(_MOST_DELAY, n - 1)
    delay = first - (n - 1) + int(np.argmax(correlation[first : n + _MOST_DELAY]))
    shifted = decoded[delay:] if delay >= 0 else np.pad(decoded, (-delay, 0))
    return np.pad(shifted, (0, max(0, n - len(shifted))))[:n]


def _level(audio: np.ndarray) -> float:
    return float(np.sqrt(np.square(audio).mean()) + 1e-9)
