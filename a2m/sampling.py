"""Sampling AToM-Net for whole recordings, and a clip's mouth openings for measuring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from a2m.data import Clip
from a2m.hearing import Features, clip_features
from a2m.model import AToMNet
from a2m.phonetics.closure import lip_closure, lips_together
from a2m.speech import chunks, mouth_gate
from a2m.streaming import Known, stream
from common.face.model import LIP_STREAM, FaceModel, mouth_opening
from common.face.mouth import closed, keep_lips_apart, lip_gap


def sample(
    model: AToMNet,
    features: Features,
    n_frames: int,
    reference: Tensor,
    generators: Sequence[Generator],
    n_steps: int | None = None,
    guidance_scale: float | None = None,
    temperature: float = 1.0,
    known: Known | None = None,
    block: int | None = None,
) -> Tensor:
    """Values [S, T, K] of one recording of T = n_frames: what `a2m.streaming.stream` yields, in one piece.

    features: (first, last) -> what is heard in these frames, [frames, n_audio_states, audio_dim]; the others are
    explained there. Beside the result, memory does not grow with the length.
    """
    heard = (features(first, last) for first, last in chunks(n_frames))
    options = (n_steps, guidance_scale, temperature, known, block)
    return torch.cat(list(stream(model, heard, reference, generators, *options)), dim=1)


def lip_motion(model: AToMNet, values: Tensor, features: Features) -> Tensor:
    """Lips and jaw of values [S, T, K], together where the phonetic encoder hears that: [S, T, 37, 3], CPU."""
    lips = model.space.decode_lips(values).cpu()
    if model.phonetics is None:
        return lips
    closure = lip_closure(model.phonetics, features, values.shape[1])
    return lips_together(lips, closure, model.space.opening_direction.cpu())


# ---- for measuring


def clip_reference(model: AToMNet, clip: Clip) -> Tensor:
    """A clip's frame with the mouth most nearly closed, closed as the pipeline does with a picture's: LM3D [68, 3]."""
    mean = FaceModel.builtin().mean
    points = clip.lm3d[int(clip.opening.argmin())] + mean
    return closed(points, model.space.opening_direction.cpu()) - mean


def predict_lips(
    model: AToMNet,
    clip: Clip,
    seeds: Sequence[int],
    n_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Tensor:
    """Motion of lips and jaw [n_seeds, T, 37, 3] of a clip's speech, before the gate closes the mouth in pauses."""
    heard, generators = clip_features(clip), [Generator().manual_seed(seed) for seed in seeds]
    reference = clip_reference(model, clip)
    values = sample(model, heard, len(clip.mel), reference, generators, n_steps, guidance_scale)
    return lip_motion(model, values, heard)


def gated_openings(lips: Tensor, clip: Clip) -> Tensor:
    """Mouth openings [n, T] of motion [n, T, 37, 3] as `a2m.pipeline` shows it on the mean face."""
    mean = FaceModel.builtin().mean
    points = mean.repeat(*lips.shape[:2], 1, 1)
    points[..., LIP_STREAM, :] += mouth_gate(clip.sound)[:, None, None] * lips
    return mouth_opening(keep_lips_apart(points, lip_gap(mean).clamp(max=0)))


def predict_openings(model: AToMNet, clip: Clip, seeds: Sequence[int], n_steps: int | None = None) -> Tensor:
    """Mouth openings [n_seeds, T] of a clip's speech, as they are shown."""
    return gated_openings(predict_lips(model, clip, seeds, n_steps), clip)
