"""What the models hear: features of mono 16 kHz sound, two states of 50 Hz per video frame of 25 Hz, float32 [T, 2, D].

Two front ends give the same shape. The built-in one is a log-mel spectrogram of 100 columns a second, two columns per
state (D = 128), centred in their 10 ms so that frame k sees what happens in frame k. The other is HuBERT (Hsu et al.
2021), whose state i is centred on sample 200 + 320 i, 2.5 ms later. Video frame k covers samples 640 k to 640 k + 639
and T = ceil(n / 640). Both compute long recordings in chunks: beside their result, memory does not grow with length.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor

from common.errors import InputError

SAMPLE_RATE_HZ = 16_000
FPS = 25
FRAME_SAMPLES = SAMPLE_RATE_HZ // FPS  # 640
STATE_SAMPLES = FRAME_SAMPLES // 2  # 320: 20 ms, HuBERT's hop
COLUMN_SAMPLES = STATE_SAMPLES // 2  # 160: 10 ms
N_MELS = 64
LOG_MEL_DIM = 2 * N_MELS  # two columns per state
WINDOW_SAMPLES = 400  # 25 ms
N_FFT = 512
FLOOR_DB = -100.0
MEL_RANGE_HZ = (50.0, 8000.0)
HUBERT_FIELD_SAMPLES = 400  # what one HuBERT state sees before its transformer
HUBERT_OVERHANG_SAMPLES = HUBERT_FIELD_SAMPLES - STATE_SAMPLES  # 80: beyond the frames, so that the last state exists


def n_frames(n_samples: int) -> int:
    """The number T of video frames (25 a second) that n samples at 16 kHz last: ceil(n / 640)."""
    return -(-n_samples // FRAME_SAMPLES)


def log_mel(audio: Tensor, chunk_frames: int = 250) -> Tensor:
    """Log-mel features of audio [n] at 16 kHz in [-1, 1]: float32 [T, 2, 128].

    Fixed scale, no normalisation per clip: a full-scale sine gives about +1, silence -1, and 50 dB are one unit. Column
    j (state 2k + s holds columns 4k + 2s and 4k + 2s + 1, 64 mels each) has its window centred in samples 160 j to
    160 j + 159. `chunk_frames` bounds the memory and does not change the result.
    """
    _check_audio(audio)
    T = n_frames(len(audio))
    chunks = [_log_mel_chunk(audio, k, min(k + chunk_frames, T)) for k in range(0, T, chunk_frames)]
    return torch.cat(chunks)


def _log_mel_chunk(audio: Tensor, first: int, last: int) -> Tensor:
    """Frames first..last-1 of the features."""
    n_columns = 4 * (last - first)
    # torch.stft puts the window in the middle of its n_fft samples; that middle belongs in the middle of the column.
    start = first * FRAME_SAMPLES - (N_FFT - COLUMN_SAMPLES) // 2
    end = start + (n_columns - 1) * COLUMN_SAMPLES + N_FFT
    samples = audio[max(0, start) : end].float()
    samples = torch.nn.functional.pad(samples, (max(0, -start), end - max(0, start) - len(samples)))
    # Symmetric, not periodic: its centre lies between samples 159/2, so a click between two columns is not a tie.
    window = torch.hann_window(WINDOW_SAMPLES, periodic=False, device=audio.device)
    spectrum = torch.stft(samples, N_FFT, COLUMN_SAMPLES, WINDOW_SAMPLES, window, center=False, return_complex=True)
    power = (spectrum.abs() * (2 / window.sum())) ** 2  # [257, columns]; 1 for a sine of full scale
    mel = mel_filters().to(audio.device) @ power  # [64, columns]
    decibels = 10 * torch.log10(mel + 10 ** (FLOOR_DB / 10))
    scaled = decibels * (-2 / FLOOR_DB) + 1  # FLOOR_DB..0 to -1..1
    return rearrange(scaled, "mel (frame state column) -> frame state (column mel)", state=2, column=2)


@cache
def mel_filters() -> Tensor:
    """Triangles of unit peak, evenly spaced on Slaney's mel scale from 50 Hz to 8 kHz: [64, 257].

    Slaney's scale (linear below 1 kHz, logarithmic above; Auditory Toolbox, 1998) because HTK's is finer than the bins
    of a 32 ms transform at low frequencies: filters would be empty.
    """
    low, high = (_hz_to_mel(hz) for hz in MEL_RANGE_HZ)
    edges = torch.tensor([_mel_to_hz(low + (high - low) * i / (N_MELS + 1)) for i in range(N_MELS + 2)])
    bins = torch.arange(N_FFT // 2 + 1) * (SAMPLE_RATE_HZ / N_FFT)  # Hz
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)


def _hz_to_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _mel_to_hz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def frame_level_db(audio: Tensor) -> Tensor:
    """Root mean square of the samples of each video frame, in dB below full scale: [T], -100 for silence."""
    _check_audio(audio)
    T = n_frames(len(audio))
    squares = torch.nn.functional.pad(audio.float() ** 2, (0, T * FRAME_SAMPLES - len(audio)))
    power = rearrange(squares, "(frame sample) -> frame sample", frame=T).sum(1) / FRAME_SAMPLES
    power[-1] *= FRAME_SAMPLES / (len(audio) - (T - 1) * FRAME_SAMPLES)  # the last frame may be short
    return 10 * torch.log10(power.clamp(min=10 ** (FLOOR_DB / 10)))


def _check_audio(audio: Tensor) -> None:
    if audio.ndim != 1 or not audio.is_floating_point() or len(audio) == 0:
        raise ValueError(f"audio must be float [n] at 16 kHz with n > 0, got {audio.dtype} {list(audio.shape)}")


class HubertFeatures:
    """HuBERT's hidden states, aligned to video frames: audio [n] at 16 kHz -> float32 [T, 2, D].

    State i is centred on sample 200 + 320 i; silence after the end completes the last frame. A recording longer than
    `chunk_frames` runs in windows with `context_frames` more on both sides, of which the middle is kept. HuBERT attends
    to all it is given (and the base model normalises its first convolution over time), so windows are an approximation;
    a recording that fits into one is exact.
    """

    def __init__(
        self,
        model: Any,
        is_normalised: bool = True,
        layer: int | None = None,
        chunk_frames: int = 500,
        context_frames: int = 100,
    ):
        """model: transformers' HubertModel; is_normalised: it wants recordings of zero mean and unit variance.

        layer: which of its hidden states, 0 before the first transformer block; None for the last.
        """
        stride, field = math.prod(model.config.conv_stride), 1
        for kernel, step in zip(model.config.conv_kernel[::-1], model.config.conv_stride[::-1], strict=True):
            field = (field - 1) * step + kernel
        if (stride, field) != (STATE_SAMPLES, HUBERT_FIELD_SAMPLES):
            raise ValueError(f"HuBERT's states are 320 samples apart and see 400, this model's {stride} and {field}")
        if layer is not None and not 0 <= layer <= model.config.num_hidden_layers:
            raise ValueError(f"layer must be within 0..{model.config.num_hidden_layers}, got {layer}")
        self.model, self.is_normalised, self.layer = model.eval(), is_normalised, layer
        self.chunk_frames, self.context_frames = chunk_frames, context_frames
        self.dim: int = model.config.hidden_size

    @classmethod
    def from_pretrained(cls, folder_or_id: str, device: torch.device | str = "cpu", layer: int | None = None) -> Self:
        """Load a local folder in the hub's layout, or a hub id, which transformers downloads once and then keeps."""
        from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor  # seconds: only when asked for

        try:
            kind = HubertConfig.get_config_dict(folder_or_id)[0].get("model_type")
            if kind != "hubert":
                raise InputError(f"{folder_or_id} holds a model of type {kind}: give a HuBERT folder or hub id.")
            loaded: Any = HubertModel.from_pretrained(folder_or_id, output_loading_info=True)
            model, info = loaded
        except InputError:
            raise
        except Exception as error:  # transformers, the hub client and the file readers each raise their own kinds
            where = "is not a whole HuBERT folder" if Path(folder_or_id).is_dir() else "is no folder and no download"
            raise InputError(
                f"{folder_or_id} {where} ({_first_line(error)}): download it where there is a network, with "
                f"'hf download facebook/hubert-base-ls960 --local-dir hubert', and give that folder."
            ) from error
        missing = set(info["missing_keys"]) - {"masked_spec_embed"}  # used in pre-training only
        if missing or info["mismatched_keys"]:
            raise InputError(f"{folder_or_id} lacks weights ({sorted(missing)[:1]}): download the model again.")
        try:
            is_normalised = Wav2Vec2FeatureExtractor.from_pretrained(folder_or_id).do_normalize
        except OSError:  # no preprocessor_config.json: as its class has it
            is_normalised = True
        try:
            return cls(model.to(device).float(), is_normalised, layer)
        except ValueError as error:
            raise InputError(f"{folder_or_id} can't be used ({error}): give another HuBERT.") from error

    @torch.inference_mode()
    def __call__(self, audio: Tensor) -> Tensor:
        _check_audio(audio)
        T = n_frames(len(audio))
        # Over the whole recording, so that windows don't differ in level; the small number is the extractor's.
        mean, std = (audio.mean(), (audio.var(correction=0) + 1e-7).sqrt()) if self.is_normalised else (0.0, 1.0)
        features = torch.empty(T, 2, self.dim)
        for first in range(0, T, self.chunk_frames):
            last = min(first + self.chunk_frames, T)
            start, end = max(0, first - self.context_frames), min(T, last + self.context_frames)
            window = (audio[start * FRAME_SAMPLES : end * FRAME_SAMPLES + HUBERT_OVERHANG_SAMPLES].float() - mean) / std
            n_samples = (end - start) * FRAME_SAMPLES + HUBERT_OVERHANG_SAMPLES
            window = torch.nn.functional.pad(window, (0, n_samples - len(window)))
            states = rearrange(self._states(window), "(frame state) d -> frame state d", state=2)
            features[first:last] = states[first - start : last - start].cpu()
        return features

    def _states(self, samples: Tensor) -> Tensor:
        """The model's states [2 T, D] of 640 T + 80 normalised samples."""
        output = self.model(samples.to(self.model.device)[None], output_hidden_states=self.layer is not None)
        return (output.last_hidden_state if self.layer is None else output.hidden_states[self.layer])[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
