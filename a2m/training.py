"""What `train_a2m.py` trains: AToM-Net on talking clips, as a `common.trainer.Task`.

Loss (dual-diffusion paper's published code): 7.5 reconstruction + 1.5 velocity of x_0, both masked; here summed over
the streams, with the mouth's opening as one more term of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from a2m.data import Clip, disturb, person_shares, read_clips
from a2m.hearing import fingerprint, load_hubert, with_states
from a2m.model import FORMAT, PREFIX, AToMConfig, AToMNet
from a2m.pose import PREFIX as HEAD_PREFIX
from a2m.pose import HeadPrior, fit_head_prior
from a2m.regression import MEL_RANGE
from a2m.sampling import predict_openings
from a2m.space import MotionSpace, mirror_rest, mirror_slow, rest_motion, slow_motion
from common import weights
from common.diffusion import cosine_alpha_bar, draw, q_sample
from common.errors import InputError
from common.face.model import LIP_STREAM, FaceModel, mirror
from common.metrics.motion import amplitude_ratio, centred, correlation, energy_score, roughness_ratio
from common.trainer import Task

log = logging.getLogger(__name__)

Sample = dict[str, Tensor]


@dataclass
class DataConfig:
    """How clips become samples, and what the loss weighs."""

    words_share: float = 0.4  # of the samples: the single words
    most_minutes: float = 6.0  # of one person
    stretch: float = 0.12  # speech and motion are played faster or slower by up to this share
    rest_share: float = 0.5  # of the samples: the reference is the clip's face with its mouth closed
    identity_noise: float = 0.5  # deviations of the face model's identities that are added to the reference
    audio_dropout: float = 0.25  # samples that hear nothing
    reconstruction: float = 7.5
    velocity: float = 1.5
    lip_weight: float = 1.0  # of the streams in both terms
    rest_weight: float = 0.3
    slow_weight: float = 0.3
    opening_weight: float = 1.0
    low_noise: float = 1.0  # how much more a sample without noise weighs than one that is all noise


class Speech:
    """Endless samples of talking clips; number i follows from (seed, i).

    A sample: x_0 [window, K], audio [window n_audio_states, audio_dim], reference [68, 3], is_frame [window] bool,
    has_audio [] bool.
    """

    def __init__(self, clips: list[Clip], model: AToMNet, face_model: FaceModel, options: DataConfig, seed: int):
        self.clips, self.window, self.options, self.seed = clips, model.config.window, options, seed
        self.n_audio_states = model.config.n_audio_states
        self.face_model, self.space = face_model, model.space
        self.shares = person_shares(clips, options.words_share, options.most_minutes)
        self.cumulative = self.shares.double().cumsum(dim=0)
        self.values: list[tuple[Tensor, Tensor]] = []  # of each clip and its mirror image

    def prepare(self) -> None:
        """Encode all clips; call when the model's space is fitted."""
        self.values = [clip_values(clip, self.space, self.face_model) for clip in self.clips]

    def __getitem__(self, number: int) -> Sample:
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = Generator().manual_seed(seed)
        u = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
        k = min(int(torch.searchsorted(self.cumulative, u[0])), len(self.clips) - 1)
        is_mirrored = u[1] < 0.5
        clip, values = self.clips[k], self.values[k][is_mirrored]
        return self._cut(clip, values, is_mirrored, u[2:], generator)

    def _cut(self, clip: Clip, values: Tensor, is_mirrored: bool, u: list[float], generator: Generator) -> Sample:
        T, options, window = len(values), self.options, self.window
        speed = 1 + options.stretch * (2 * u[0] - 1)
        n = max(1, min(window, int(T / speed)))
        start = u[1] * max(0.0, T - n * speed)
        at = start + (torch.arange(n) + 0.5) * speed - 0.5
        audio = hear(clip, start, n, speed, generator)

        frame = int(u[2] * T)  # the reference
        reference, origin = clip.lm3d[frame], values[frame].clone()
        n_slow = self.space.n_slow
        if u[3] < options.rest_share:  # the pipeline's case: the picture's mouth is closed first
            reference = reference.clone()
            reference[list(LIP_STREAM)] -= clip.lip_motion[frame]
            origin[: self.space.n_lip] = 0
        if n_slow:
            origin[-1] = 0  # lids are relative to open eyes, not to a picture taken in a blink
        reference = mirror(reference) if is_mirrored else reference
        identity = torch.randn(len(self.face_model.identity_std), generator=generator) * self.face_model.identity_std
        other = torch.einsum("k,kpc->pc", options.identity_noise * identity, self.face_model.identity)
        n_missing = window - n
        return {
            "x_0": torch.nn.functional.pad(interpolate(values, at) - origin, (0, 0, 0, n_missing)),
            "audio": torch.nn.functional.pad(audio, (0, 0, 0, n_missing * self.n_audio_states)),
            "reference": reference + other,
            "is_frame": torch.arange(window) < n,
            "has_audio": torch.tensor(u[4] >= options.audio_dropout),
        }


def hear(clip: Clip, start: float, n: int, speed: float, generator: Generator) -> Tensor:
    """What n frames from frame `start` on sound like, played so many times faster: [n n_audio_states, audio_dim].

    A HuBERT's states are as they were computed; log-mel is disturbed.
    """
    if clip.states is not None:
        return interpolate(clip.states.flatten(0, 1), 2 * start + (torch.arange(2 * n) + 0.5) * speed - 0.5)
    column_at = 4 * start + (torch.arange(4 * n) + 0.5) * speed - 0.5
    mel = interpolate(clip.mel.flatten(0, 1) - clip.mel_mean, column_at).unflatten(0, (n, 4))
    at = start + (torch.arange(n) + 0.5) * speed - 0.5
    sound = clip.sound[at.round().long().clamp(0, len(clip.sound) - 1)].float()
    mel = disturb(mel[None], sound[None], generator)[0].clamp(*MEL_RANGE)
    return mask_bands(mel, generator).flatten(1)


def clip_values(clip: Clip, space: MotionSpace, model: FaceModel) -> tuple[Tensor, Tensor]:
    """A clip's motion [T, K], lips from the closed mouth, and that of its mirror image."""
    rest, slow = rest_motion(clip, model), slow_motion(clip, model)
    plain = space.encode(clip.lip_motion, rest, slow)
    return plain, space.encode(clip.lip_motion, mirror_rest(rest), mirror_slow(slow))


def interpolate(x: Tensor, at: Tensor) -> Tensor:
    """Rows of x [T, ...] at fractional places [n], linearly; the ends repeat."""
    at = at.clamp(0, len(x) - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=len(x) - 1)
    fraction = (at - low).view(-1, *[1] * (x.ndim - 1))
    return x[low] * (1 - fraction) + x[high] * fraction


def mask_bands(mel: Tensor, generator: Generator) -> Tensor:
    """SpecAugment (Park et al. 2019): up to two bands of at most 12 of 64 mels at the voice's mean; mel [n, 4, 64]."""
    width, first = torch.rand(2, 2, generator=generator)
    for w, f in zip((12 * width).int().tolist(), first.tolist(), strict=True):
        low = int(f * (mel.shape[-1] - w))
        mel[..., low : low + w] = 0
    return mel


# ---- the loss


def make_loss(options: DataConfig, space: MotionSpace, n_timesteps: int) -> Callable[..., dict[str, Tensor]]:
    opening = space.opening_weights()
    alpha_bar = cosine_alpha_bar(n_timesteps)

    def loss(model: nn.Module, batch: Sample, generator: Generator) -> dict[str, Tensor]:
        x_0, is_frame = batch["x_0"], batch["is_frame"]
        timesteps, eps = draw(x_0, n_timesteps, generator)
        x_t = q_sample(x_0, timesteps, eps, alpha_bar)
        x_0_pred = model(x_t, timesteps, batch["audio"], batch["reference"], is_frame, batch["has_audio"]).float()
        weight = 1 / (1 - alpha_bar[timesteps.cpu()] * (1 - 1 / options.low_noise))
        return loss_terms(x_0_pred, x_0, is_frame, space, opening.to(x_0), options, weight.to(x_0))

    return loss


def loss_terms(
    x_0_pred: Tensor,
    x_0: Tensor,
    is_frame: Tensor,
    space: MotionSpace,
    opening: Tensor,
    options: DataConfig,
    weight: Tensor,
) -> dict[str, Tensor]:
    """Weighted reconstruction and velocity; x_0_pred, x_0 [B, T, K], is_frame [B, T], opening [K], weight [B]."""
    error = x_0_pred - x_0
    gap = (error @ opening)[..., None] / opening.norm()
    lips, rest, slow = space.split(error)
    parts = [(lips, options.lip_weight), (rest, options.rest_weight), (slow, options.slow_weight)]
    parts.append((gap, options.opening_weight))

    def mean_square(e: Tensor, mask: Tensor) -> Tensor:
        return (e.square().mean(dim=-1) * mask * weight[:, None]).sum() / mask.sum().clamp(min=1)

    both = is_frame[:, 1:] & is_frame[:, :-1]
    used = [(e, w) for e, w in parts if e.shape[-1]]
    reconstruction = torch.stack([w * mean_square(e, is_frame) for e, w in used]).sum()
    velocity = torch.stack([w * mean_square(e.diff(dim=1), both) for e, w in used]).sum()
    return {"reconstruction": options.reconstruction * reconstruction, "velocity": options.velocity * velocity}


# ---- the task


def setup(
    data_dir: Path,
    model: AToMConfig,
    options: DataConfig,
    init: str,
    seed: int,
    hubert_name: str = "",
    states_dir: Path = Path("states"),
) -> Task:
    """The task of training this model on a data folder's train split.

    init: empty, or the name or folder of weights to start from (`small`: the built-in ones). hubert_name: folder or hub
    id, for models that hear one's states; states_dir: where those of the clips are kept.
    """
    hubert = load_hubert(model, hubert_name)
    face_model = FaceModel.builtin()
    clips, val_clips = (read_clips(data_dir, split, face_model) for split in ("train", "val"))
    for split, found in (("train", clips), ("val", val_clips)):
        if not found:
            raise InputError(f"{data_dir} has no talking clip in its split '{split}': see docs/data.md.")
    if hubert is not None:
        clips, val_clips = (with_states(part, data_dir, hubert, states_dir) for part in (clips, val_clips))
        model = replace(model, hubert=fingerprint(hubert))
    return make_task(clips, val_clips, model, options, init, seed)


def make_task(
    clips: list[Clip], val_clips: list[Clip], config: AToMConfig, options: DataConfig, init: str, seed: int
) -> Task:
    face_model = FaceModel.builtin()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights
        net = AToMNet(config)
    dataset = Speech(clips, net, face_model, options, seed)
    if init:
        load(net, init)
    else:
        net.space.fit(clips, dataset.shares, face_model, is_points=config.space == "points")
    dataset.prepare()
    head = fit_head_prior(clips, face_model)
    return Task(
        model=net,
        loss=make_loss(options, net.space, config.n_timesteps),
        dataset=dataset,
        save=lambda trained, folder: save(trained, head, options, folder),
        validate=lambda trained: validate(trained, val_clips),
        sample=lambda trained, path: draw_samples(trained, val_clips, path),
    )


def save(net: nn.Module, head: HeadPrior, options: DataConfig, folder: Path) -> None:
    """Weights with the config that builds them; the head's prior with them."""
    assert isinstance(net, AToMNet)
    face_model = FaceModel.builtin()
    state = {PREFIX + key: value for key, value in net.state_dict().items()}
    state |= {HEAD_PREFIX + key: value for key, value in head.state_dict().items()}
    config = {
        "format": FORMAT,
        "model": asdict(net.config),
        "data": asdict(options),
        "features": net.config.features,
        "fps": 25,
        "face_model": face_model.name,
        "convention": face_model.convention,
    }
    weights.save(folder, state, config)


def load(net: AToMNet, name: str) -> None:
    state, _ = weights.from_pretrained("small/a2m" if name == "small" else name)
    weights.load_into(net, {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}, name)


# ---- looking


def figures(predict: Callable[[Clip], Tensor], clips: list[Clip]) -> dict[str, float]:
    """Means over clips of samples [S, T] against the real opening: see `common.metrics.motion`."""
    rows = []
    for clip in clips:
        samples, real = predict(clip), clip.opening
        each = [(correlation(one, real), amplitude_ratio(one, real), roughness_ratio(one, real)) for one in samples]
        score = energy_score(centred(samples), centred(real))
        rows.append([score, correlation(samples.mean(dim=0), real), *torch.tensor(each).mean(dim=0).tolist()])
    names = ("energy", "correlation_of_mean", "correlation", "amplitude", "roughness")
    return dict(zip(names, torch.tensor(rows).mean(dim=0).tolist(), strict=True))


def validate(net: nn.Module, clips: list[Clip], n_seeds: int = 4, n_steps: int = 8) -> dict[str, float]:
    """Figures of the mouth's opening on running speech and on every third word."""
    assert isinstance(net, AToMNet)
    running = [clip for clip in clips if not clip.is_word]
    words = [clip for clip in clips if clip.is_word][::3]
    result: dict[str, float] = {}
    for name, chosen in (("running", running), ("words", words)):
        if chosen:
            part = figures(lambda clip: predict_openings(net, clip, range(n_seeds), n_steps), chosen)
            result |= {f"{name}/{key}": value for key, value in part.items()}
    return result


def draw_samples(net: nn.Module, clips: list[Clip], path: Path) -> None:
    """A PNG of opening curves of four clips: the track (black), the samples' mean (red), three samples."""
    assert isinstance(net, AToMNet)
    clips = [*[c for c in clips if not c.is_word][:3], *[c for c in clips if c.is_word][:1]]
    rows = []
    for clip in clips:
        samples = predict_openings(net, clip, range(8))[:, :200]
        rows.append([*((s, colour) for s, colour in zip(samples, _COLOURS, strict=False)), (samples.mean(dim=0), _RED)])
        rows[-1].append((clip.opening[:200], (0, 0, 0)))
    draw_curves(rows, path)


_RED = (220, 30, 30)
_COLOURS = ((150, 190, 240), (160, 215, 160), (235, 190, 120))


def draw_curves(rows: list[list[tuple[Tensor, tuple[int, int, int]]]], path: Path, height_px: int = 160) -> None:
    """Curves [T] of 0..0.35 with their colours, a row of the picture each, 6 pixels a frame."""
    from PIL import Image, ImageDraw

    width = 6 * max(len(curve) for row in rows for curve, _ in row)
    image = Image.new("RGB", (width, height_px * len(rows)), "white")
    pen = ImageDraw.Draw(image)
    for k, row in enumerate(rows):
        base = height_px * (k + 1) - 8
        pen.line([(0, base), (width, base)], fill=(200, 200, 200))
        for curve, colour in row:
            points = [(6 * x + 3, base - float(y) * (height_px - 16) / 0.35) for x, y in enumerate(curve.tolist())]
            pen.line(points, fill=colour, width=3 if colour == (0, 0, 0) else 2)
    image.save(path)
