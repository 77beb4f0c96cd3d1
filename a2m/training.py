"""What `train_a2m.py` trains: AToM-Net on talking clips, as a `common.trainer.Task`.

Loss (dual-diffusion paper's published code): 7.5 reconstruction + 1.5 velocity of x_0, both masked; here summed over
the streams, with the mouth's opening as one more term of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from a2m.data import Clip, read_clips, read_lags, read_silent_clips, realigned
from a2m.hearing import fingerprint, load_hubert, with_states
from a2m.model import FORMAT, PREFIX, AToMConfig, AToMNet
from a2m.phonetics.encoder import PhoneticEncoder
from a2m.pose import N_DIMENSIONS, HeadPrior, fit_head_prior
from a2m.pose import PREFIX as HEAD_PREFIX
from a2m.samples import DataConfig, Sample, Speech
from a2m.sampling import predict_openings
from a2m.space import MotionSpace
from common import weights
from common.diffusion import cosine_alpha_bar, draw, q_sample
from common.errors import InputError
from common.face.model import FaceModel
from common.metrics.motion import amplitude_ratio, centred, correlation, energy_score, roughness_ratio
from common.trainer import Task

log = logging.getLogger(__name__)


# ---- the loss


def make_loss(options: DataConfig, space: MotionSpace, n_timesteps: int) -> Callable[..., dict[str, Tensor]]:
    opening = space.opening_weights()
    alpha_bar = cosine_alpha_bar(n_timesteps)

    def loss(model: nn.Module, batch: Sample, generator: Generator) -> dict[str, Tensor]:
        x_0, is_frame = batch["x_0"], batch["is_frame"]
        is_known = batch["is_known"]
        timesteps, eps = draw(x_0, n_timesteps, generator)
        x_t = torch.where(is_known[..., None], x_0, q_sample(x_0, timesteps, eps, alpha_bar))
        x_0_pred = model(
            x_t, timesteps, batch["audio"], batch["reference"], is_frame, batch["has_audio"], is_known
        ).float()
        x_0_pred = torch.where(is_known[..., None], x_0, x_0_pred)  # as in sampling
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
    parts = [(lips, options.lip_weight), (gap, options.opening_weight), (rest, options.rest_weight)]
    parts += [(slow[..., :N_DIMENSIONS], options.slow_weight), (slow[..., N_DIMENSIONS:], options.lid_weight)]

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
    lags_path: Path | None = None,
    phonetics: str = "",
) -> Task:
    """The task of training this model on a data folder's train split.

    init: empty, or the name or folder of weights to start from (`small`: the built-in ones). hubert_name: folder or hub
    id, for models that hear one's states; states_dir: where those of the clips are kept. lags_path: the file of
    `python -m a2m.lag`. phonetics: weights of the phonetic encoder that models hear log-mel through; empty: none.
    """
    lags = read_lags(lags_path) if lags_path else {}
    hears_mel = model.features == "log-mel"
    encoder = PhoneticEncoder.from_pretrained(phonetics) if phonetics and hears_mel else None
    hubert = load_hubert(model, hubert_name, "cuda" if torch.cuda.is_available() else "cpu")
    if hubert is not None and options.muted_share > 0:
        raise InputError("HuBERT's states can't be muted where they are kept: set options.muted_share=0.")
    face_model = FaceModel.builtin()
    clips, val_clips = (read_clips(data_dir, split, face_model) for split in ("train", "val"))
    for split, found in (("train", clips), ("val", val_clips)):
        if not found:
            raise InputError(f"{data_dir} has no talking clip in its split '{split}': see docs/data.md.")
    if hubert is not None:
        clips, val_clips = (with_states(part, data_dir, hubert, states_dir) for part in (clips, val_clips))
        model = replace(model, hubert=fingerprint(hubert))
    silent_clips = read_silent_clips(data_dir, "train", face_model) if options.silent_share > 0 else []
    if hubert is not None:  # nobody hears them
        nothing = torch.zeros(2, hubert.dim, dtype=torch.float16)
        silent_clips = [replace(clip, states=nothing.expand(len(clip.mel), -1, -1)) for clip in silent_clips]
    clips, val_clips = realigned(clips, lags), realigned(val_clips, lags)
    return make_task(clips, val_clips, model, options, init, seed, silent_clips, encoder)


def make_task(
    clips: list[Clip],
    val_clips: list[Clip],
    config: AToMConfig,
    options: DataConfig,
    init: str,
    seed: int,
    silent_clips: Sequence[Clip] = (),
    encoder: PhoneticEncoder | None = None,
) -> Task:
    face_model = FaceModel.builtin()
    if encoder is not None:
        config = replace(config, phonetics=encoder.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights
        net = AToMNet(config)
    if encoder is not None and net.phonetics is not None:
        net.phonetics.load_state_dict(encoder.state_dict())
    dataset = Speech(clips, net, face_model, options, seed, silent_clips)
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
