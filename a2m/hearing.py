"""What AToM-Net hears: log-mel columns of its own, or the states of a HuBERT that somebody names.

Both are functions (first, last) -> the features of these video frames, [frames, n_audio_states, audio_dim]. HuBERT's
states of training clips are computed once, kept on disk (half precision, a file for each clip) and mapped into memory.
Models carry the fingerprint of the HuBERT that they were trained with, and refuse another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2m.data import Clip, read_sound
from a2m.model import AToMConfig
from a2m.regression import MEL_RANGE
from a2m.speech import Voice, analyse, mel_columns
from common.audio import FRAME_SAMPLES, HubertFeatures, n_frames
from common.errors import InputError
from common.files import atomic_path

log = logging.getLogger(__name__)

Features = Callable[[int, int], Tensor]


def mel_features(mel: Tensor, mel_mean: Tensor) -> Tensor:
    """Log-mel [T, 4, 64] in 10 dB -> what the small model hears: [T, 1, 256], relative to the voice's mean."""
    return (mel - mel_mean).clamp(*MEL_RANGE).flatten(1)[:, None]


def recording_features(audio: Tensor, voice: Voice, hubert: HubertFeatures | None) -> Features:
    """What is heard in a recording [n] at 16 kHz; hubert: None for log-mel."""
    if hubert is None:
        return lambda first, last: mel_features(mel_columns(audio, first, last, voice.gain), voice.mel_mean)
    states = hubert(voice.gain * audio)  # all at once: its windows are not the sampler's
    return lambda first, last: states[first:last]


def live_features(audio_chunks: Iterable[Tensor], voice: Voice) -> Iterator[Tensor]:
    """What a log-mel model hears of audio [n] at 16 kHz as it comes: [frames, 1, 256], a frame late.

    The same as `recording_features` of the whole, with the same voice: its level and mean spectrum can't be known when
    the speaker has only begun, so they come from earlier speech, by `a2m.speech.analyse`.
    """
    audio = torch.empty(0)
    n_before = 0  # frames of `audio` that have been heard and reach into the next
    for chunk in audio_chunks:
        audio = torch.cat([audio, chunk])
        last = len(audio) // FRAME_SAMPLES - 1  # the frame after it reaches into it
        if last > n_before:
            yield mel_features(mel_columns(audio, n_before, last, voice.gain), voice.mel_mean)
            audio, n_before = audio[(last - 1) * FRAME_SAMPLES :], 1
    last = n_frames(len(audio))
    if last > n_before:
        yield mel_features(mel_columns(audio, n_before, last, voice.gain), voice.mel_mean)


def clip_features(clip: Clip) -> Features:
    """What is heard in a clip: its HuBERT states where it has them (`with_states`), else log-mel."""
    if clip.states is None:
        return lambda first, last: mel_features(clip.mel[first:last], clip.mel_mean)
    states = clip.states
    return lambda first, last: states[first:last].float()


# ---- HuBERT


def load_hubert(config: AToMConfig, name: str, device: torch.device | str = "cpu") -> HubertFeatures | None:
    """The HuBERT of that name (folder or hub id) for a model of that config; None where the model hears log-mel.

    Raises InputError where one is missing or not wanted, or is another than the model was trained with.
    """
    if config.features == "log-mel":
        if name:
            raise InputError(f"This model hears log-mel, not {name}: leave `hubert` away, or choose model=paper.")
        return None
    if config.features != "hubert":
        raise InputError(f"model.features is '{config.features}': choose log-mel or hubert.")
    if not name:
        raise InputError(
            "This model hears the states of a HuBERT: name its folder or hub id, as in "
            "hubert=facebook/hubert-large-ls960-ft (a2m.hubert=... for generate.py)."
        )
    hubert = HubertFeatures.from_pretrained(name, device)
    if (config.audio_dim, config.n_audio_states) != (hubert.dim, 2):
        heard = f"{config.n_audio_states} of {config.audio_dim}"
        raise InputError(f"{name} gives 2 states of {hubert.dim} numbers, the model hears {heard}: give another.")
    if config.hubert not in ("", fingerprint(hubert)):
        raise InputError(f"{name} is not the HuBERT that the model was trained with: give that one.")
    return hubert


def fingerprint(hubert: HubertFeatures) -> str:
    """16 characters that tell HuBERTs apart: of some of each tensor's numbers, whatever the tensors are called."""
    tensors = hubert.model.state_dict().values()
    parts = sorted(tensor.flatten()[:64].float().cpu().numpy().tobytes() for tensor in tensors)
    return sha256(b"".join([f"{hubert.is_normalised} {hubert.layer}".encode(), *parts])).hexdigest()[:16]


def with_states(clips: Iterable[Clip], data_dir: Path, hubert: HubertFeatures, states_dir: Path) -> list[Clip]:
    """The clips with their HuBERT states, which are read from states_dir or computed and left there."""
    folder, made, result = states_dir / fingerprint(hubert), 0, []
    for clip in clips:
        path = folder / f"{clip.name}.npy"
        if not path.exists():
            audio = read_sound(data_dir, clip.name, len(clip.mel))
            states = hubert(analyse(audio).gain * audio).numpy().astype(np.float16)
            with atomic_path(path, overwrite=True) as temporary, temporary.open("wb") as file:
                np.save(file, states)
            made += 1
        result.append(replace(clip, states=torch.from_numpy(map_states(path, len(clip.mel), hubert.dim))))
    log.info("%s: HuBERT's states of %d clips, %d of them computed now", folder, len(result), made)
    return result


def map_states(path: Path, n_frames: int, dim: int) -> np.ndarray:
    """A file of states, float16 [n_frames, 2, dim], mapped into memory; raises InputError where it is another's."""
    try:
        states = np.load(path, mmap_mode="c")  # copy on write: torch wants what it could write to
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} holds no states ({type(error).__name__}): delete it, and it is made anew.") from error
    if states.shape != (n_frames, 2, dim) or states.dtype != np.float16:
        raise InputError(f"{path} holds {states.shape}, not {(n_frames, 2, dim)}: delete it, and it is made anew.")
    return np.asarray(states)
