"""Sampling AToM-Net: windows of a long recording denoised together, and a clip's mouth openings for measuring.

A recording of any length is one x_t [T, K]. At every step all windows predict their part of x_0, the predictions are
blended over the frames that windows share, and the sampler takes its step on the whole: no seams, one schedule of
windows, the same noise whatever the window. A recording that fits into one window is sampled as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from a2m.data import Clip
from a2m.model import AToMNet, Condition
from a2m.regression import MEL_RANGE
from a2m.speech import mouth_gate
from common.diffusion import Denoiser, ddim, guided, noise_from, pvdm_timesteps
from common.face.model import LIP_STREAM, FaceModel, mouth_opening
from common.face.mouth import closed, keep_lips_apart, lip_gap

Features = Callable[[int, int], Tensor]
_WINDOWS_AT_ONCE = 32


@dataclass(frozen=True)
class Windows:
    """Which frames each window sees: spans (first, last exclusive), and weights [n, window], 1 in all on each frame."""

    spans: list[tuple[int, int]]
    weights: Tensor

    @staticmethod
    def over(T: int, window: int, overlap: int) -> Windows:
        """Windows of `window` frames every window - overlap; the last one ends with the recording.

        A weight rises over the shared frames but for the outer quarter, which the neighbour alone decides: frames at a
        window's edge see one side only.
        """
        if not 0 < overlap < window:
            raise ValueError(f"windows of {window} frames can't share {overlap}")
        firsts = list(range(0, max(1, T - overlap), window - overlap))
        firsts[-1] = max(0, min(firsts[-1], T - window))
        spans = [(first, min(first + window, T)) for first in firsts]
        raw = torch.zeros(len(spans), window)
        total = torch.zeros(T)
        for k, (first, last) in enumerate(spans):
            frame = torch.arange(first, last) + 0.5
            to_edge = torch.minimum(
                frame - first if first > 0 else torch.full_like(frame, window),
                last - frame if last < T else torch.full_like(frame, window),
            )
            raw[k, : last - first] = ((to_edge - overlap / 4) / (overlap / 2)).clamp(0, 1)
            total[first:last] += raw[k, : last - first]
        for k, (first, last) in enumerate(spans):
            raw[k, : last - first] /= total[first:last]
        return Windows(spans, raw)

    def cut(self, x: Tensor) -> Tensor:
        """x [T, ...] -> [n, window, ...], zeros after the end."""
        window = self.weights.shape[1]
        parts = [x[first:last] for first, last in self.spans]
        return torch.stack([torch.cat([part, part.new_zeros(window - len(part), *x.shape[1:])]) for part in parts])

    def join(self, parts: Tensor) -> Tensor:
        """parts [n, window, ...] -> their blend [T, ...]."""
        whole = parts.new_zeros(self.spans[-1][1], *parts.shape[2:])
        weights = self.weights.to(parts).view(*self.weights.shape, *[1] * (parts.ndim - 2))
        for (first, last), part, weight in zip(self.spans, parts, weights, strict=True):
            whole[first:last] += (weight * part)[: last - first]
        return whole


@torch.no_grad()
def sample(
    model: AToMNet,
    features: Features,
    n_frames: int,
    reference: Tensor,
    generators: Sequence[Generator],
    n_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Tensor:
    """Values [len(generators), T, K] of one recording of T = n_frames, one sample for each generator (CPU generators).

    features: (first, last) -> what is heard in these frames, [frames, n_audio_states, audio_dim]; reference: LM3D
    [68, 3], the frame that the values are relative to. n_steps, guidance_scale: None takes the model's own. Beside the
    result, memory grows by two vectors of the model's width for each frame, no more.
    """
    config, device = model.config, model.alpha_bar.device
    n_steps = config.n_steps if n_steps is None else n_steps
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    windows = Windows.over(n_frames, config.window, config.overlap)

    def given(condition: Condition) -> Denoiser:
        def denoiser(x_t: Tensor, timesteps: Tensor) -> Tensor:
            parts = torch.cat([windows.cut(x) for x in x_t])  # [samples n, window, K]
            predicted = _denoise(model, parts, timesteps[:1], condition)
            return torch.stack([windows.join(part) for part in predicted.chunk(len(x_t))])

        return denoiser

    cond = given(encode(model, features, windows, reference.to(device), has_audio=True))
    uncond = cond if scale == 1 else given(encode(model, features, windows, reference.to(device), has_audio=False))
    denoiser = guided(cond, uncond, scale)
    noise = noise_from(generators)
    x_T = noise(torch.zeros(len(generators), n_frames, model.space.n_values, device=device))
    steps = pvdm_timesteps(n_steps, config.n_timesteps)
    return ddim(denoiser, x_T, steps, model.alpha_bar, "x_0", eta=config.eta, noise=noise)


def mel_features(mel: Tensor, mel_mean: Tensor) -> Tensor:
    """Log-mel [T, 4, 64] in 10 dB -> what the small model hears: [T, 1, 256], relative to the voice's mean."""
    return (mel - mel_mean).clamp(*MEL_RANGE).flatten(1)[:, None]


def encode(model: AToMNet, features: Features, windows: Windows, reference: Tensor, has_audio: bool) -> Condition:
    """The condition of all n windows with one reference [68, 3], encoded some at a time."""
    parts, device = [], reference.device
    window = windows.weights.shape[1]
    for start in range(0, len(windows.spans), _WINDOWS_AT_ONCE):
        spans = windows.spans[start : start + _WINDOWS_AT_ONCE]
        audio = [features(first, last).flatten(0, 1).to(device) for first, last in spans]
        n_states = window * model.config.n_audio_states
        padded = torch.stack([torch.nn.functional.pad(a, (0, 0, 0, n_states - len(a))) for a in audio])
        lengths = torch.tensor([last - first for first, last in spans], device=device)
        is_frame = torch.arange(window, device=device) < lengths[:, None]
        has = torch.full((len(spans),), has_audio, device=device)
        parts.append(model.condition(padded, reference.expand(len(spans), -1, -1), is_frame, has))
    names = Condition.__dataclass_fields__
    return Condition(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _denoise(model: AToMNet, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    """x_0 of windows [samples n, window, K], some at a time; condition: of n windows."""
    parts, n = [], len(condition.audio)
    for start in range(0, len(x_t), _WINDOWS_AT_ONCE):
        part = x_t[start : start + _WINDOWS_AT_ONCE]
        rows = torch.arange(start, start + len(part), device=x_t.device) % n
        parts.append(model.denoise(part, timestep.expand(len(part)), condition.rows(rows)).float())
    return torch.cat(parts)


# ---- for measuring


def clip_reference(model: AToMNet, clip: Clip) -> Tensor:
    """A clip's frame with the mouth most nearly closed, closed as the pipeline does with a picture's: LM3D [68, 3]."""
    mean = FaceModel.builtin().mean
    points = clip.lm3d[int(clip.opening.argmin())] + mean
    return closed(points, model.space.opening_direction.cpu()) - mean


def predict_openings(
    model: AToMNet,
    clip: Clip,
    seeds: Sequence[int],
    n_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Tensor:
    """Mouth openings [n_seeds, T] of a clip's speech as `a2m.pipeline` shows them on the mean face."""
    face_model = FaceModel.builtin()
    generators = [Generator().manual_seed(seed) for seed in seeds]
    values = sample(
        model,
        lambda first, last: mel_features(clip.mel[first:last], clip.mel_mean),
        len(clip.mel),
        clip_reference(model, clip),
        generators,
        n_steps,
        guidance_scale,
    )
    motion = model.space.decode_lips(values).cpu()  # [n_seeds, T, 37, 3]
    points = face_model.mean.repeat(*motion.shape[:2], 1, 1)
    points[..., LIP_STREAM, :] += mouth_gate(clip.sound)[:, None, None] * motion
    return mouth_opening(keep_lips_apart(points, lip_gap(face_model.mean).clamp(max=0)))
