"""Training the regression (what `python -m a2m.regression train` runs), and the figures it is judged by."""

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from a2m.data import Clip, crops, person_shares
from a2m.phonetics.encoder import PhoneticEncoder
from a2m.regression import Member, Regression, RegressionConfig
from a2m.space import LOWER_MIDDLE, UPPER_MIDDLE, lip_gap, metric_weights
from common.face.model import LIP_STREAM

log = logging.getLogger(__name__)

MEASURED_ONLY = ("lrs3a_", "lrs3b_", "av2av_")  # corpora whose licence allows no derivatives: nothing is fitted to them
_MAX_GAIN, _LEAST_CORRELATION = 3.0, 0.25


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 300  # per network; more gains little on held-out people
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    words_share: float = 0.4  # of the batches: the single words
    most_minutes: float = 6.0  # of one person
    velocity: float = 1.0  # weights of the terms of the loss, beside 1 for the position
    correlation: float = 0.5
    level: float = 0.1
    ema: float = 0.99
    seed: int = 0


def train(
    train_clips: list[Clip],
    val_clips: list[Clip],
    config: RegressionConfig,
    options: TrainConfig,
    encoder: PhoneticEncoder | None = None,
) -> tuple[Regression, dict[str, float]]:
    """Fit the basis, the networks and the gains; returns the model and figures on the val split."""
    model = train_networks(train_clips, config, options, encoder)
    fit_gain(model, [clip for clip in val_clips if not clip.name.startswith(MEASURED_ONLY)])
    figures: dict[str, float] = {}
    for name, part in (("running", False), ("words", True)):
        chosen = [clip for clip in val_clips if clip.is_word is part]
        scores = torch.tensor([clip_correlation(predict_opening(model, clip), clip.opening) for clip in chosen])
        figures |= {f"correlation_{name}": round(scores.median().item(), 3), f"n_clips_{name}": len(scores)}
    log.info("val: %s", figures)
    return model, figures


def train_networks(
    clips: list[Clip], config: RegressionConfig, options: TrainConfig, encoder: PhoneticEncoder | None = None
) -> Regression:
    """Basis and networks, fitted to the clips; gains stay 1. encoder: the one to listen through."""
    model = Regression(config if encoder is None else replace(config, phonetics=encoder.config))
    if model.phonetics is not None and encoder is not None:
        model.phonetics.load_state_dict(encoder.state_dict())
    model.eval()
    shares = person_shares(clips, options.words_share, options.most_minutes)
    targets = fit_basis(model, clips, shares)
    for k in range(config.n_members):
        model.members[k].load_state_dict(train_member(model, clips, targets, shares, options, k).state_dict())
    return model.eval()


def fit_basis(model: Regression, clips: list[Clip], shares: Tensor) -> list[Tensor]:
    """Principal directions of lip motion, and every clip's coefficients in them: [T, K + 1] each."""
    metric = metric_weights()
    covariance = torch.zeros(metric.numel(), metric.numel(), dtype=torch.float64)
    direction = torch.zeros(len(LIP_STREAM), 3)
    for clip, share in zip(clips, shares.tolist(), strict=True):
        moved = (clip.lip_motion - clip.lip_motion.mean(dim=0)) * metric
        rows = moved.flatten(1).double()
        covariance += share / len(rows) * rows.mT @ rows
    k = model.config.n_components
    vectors = torch.linalg.svd(covariance)[0][:, :k].float()  # [111, K]; eigh may fail where little moves
    model.basis.copy_(vectors.mT.unflatten(1, (len(LIP_STREAM), 3)) / metric)
    targets = [torch.cat([encode(model, clip.lip_motion), clip.lids[:, None] - 1], dim=1) for clip in clips]
    means = torch.stack([y.mean(dim=0) for y in targets])
    model.mean.copy_(shares @ means)
    variances = torch.stack([y.var(dim=0) for y in targets])
    model.std.copy_((shares @ variances).sqrt().clamp(min=1e-3))
    for clip, share in zip(clips, shares.tolist(), strict=True):
        gap = lip_gap(clip.lip_motion)
        centred = gap - gap.mean()
        slope = torch.einsum("t,tpc->pc", centred, clip.lip_motion) / (centred.square().sum() + 1e-4)
        direction += share * slope
    model.opening_direction.copy_(direction / (direction[UPPER_MIDDLE, 1] - direction[LOWER_MIDDLE, 1]))
    return targets


def encode(model: Regression, lip_motion: Tensor) -> Tensor:
    """Lip motion [T, 37, 3] -> coefficients [T, K]: the projection that `decode` undoes."""
    squared = metric_weights() ** 2  # the basis was orthonormal after weighting
    return torch.einsum("tpc,kpc->tk", lip_motion * squared, model.basis)


def train_member(
    model: Regression, clips: list[Clip], targets: list[Tensor], shares: Tensor, options: TrainConfig, k: int
) -> Member:
    """One network, its weights averaged over the last steps."""
    seed = 1000 * options.seed + k
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights and dropout
        member = Member(model.config)
        averaged = Member(model.config)
        averaged.load_state_dict(member.state_dict())
        optimizer = torch.optim.AdamW(member.parameters(), options.learning_rate, weight_decay=options.weight_decay)
        gap_weights = lip_gap(model.basis)  # [K]
        for step in range(options.steps):
            rate = options.learning_rate * min(1.0, step / 50) * (0.5 + 0.5 * math.cos(math.pi * step / options.steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            length = (28, 50, 75)[int(torch.randint(3, (1,), generator=generator))]
            mel, target, mask = crops(clips, targets, shares, options.batch, length, generator)
            with torch.no_grad():
                features = model.features(mel)
            predicted = member(features) * model.std + model.mean
            value = loss(predicted, target, mask, gap_weights, model.std, options)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimizer.step()
            decay = min(options.ema, step / (step + 10))
            with torch.no_grad():
                for mean, now in zip(averaged.parameters(), member.parameters(), strict=True):
                    mean.lerp_(now, 1 - decay)
            if (step + 1) % 100 == 0:
                log.info("network %d, step %d: loss %.3f", k, step + 1, value.detach())
    return averaged.eval()


def loss(
    predicted: Tensor, target: Tensor, mask: Tensor, gap_weights: Tensor, std: Tensor, options: TrainConfig
) -> Tensor:
    """Position and velocity (L1, within a crop), level of the crop, and correlation of the mouth's opening.

    predicted, target: [B, T, K + 1]; mask: [B, T]. A person's level says little about the sound: it weighs less.
    """
    m = mask[..., None]
    n = m.sum(dim=1, keepdim=True)
    # Coefficients in their common unit, so that large motion counts most; the lids' aperture, a tenth of it, apart.
    unit = torch.cat([std[:-1].mean().expand(len(std) - 1), 3 * std[-1:]])
    error = (predicted - target) / unit * m
    level = error.sum(dim=1, keepdim=True) / n
    around = (error - level) * m
    both = m[:, 1:] * m[:, :-1]
    velocity = (error[:, 1:] - error[:, :-1]) * both
    value = around.abs().sum() / (mask.sum() * error.shape[-1]) + options.level * level.abs().mean()
    value = value + options.velocity * velocity.abs().sum() / (both.sum() * error.shape[-1])

    def gap(coefficients: Tensor) -> Tensor:
        height = (coefficients[..., :-1] @ gap_weights) * mask
        return (height - height.sum(dim=1, keepdim=True) / n[..., 0]) * mask

    a, b = gap(predicted), gap(target)
    similarity = (a * b).sum(dim=1) / ((a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt() + 1e-4)
    return value + options.correlation * (1 - similarity).mean()


@torch.no_grad()
def fit_gain(model: Regression, clips: list[Clip]) -> None:
    """The factor per coefficient that gives the predictions the standard deviation of the tracks, median over clips.

    Only where the prediction follows the tracks at all; the lids, which sound hardly moves, stay as they are.
    """
    ratios, correlations = [], []
    for clip in clips:
        predicted, real = model(model_input(clip))[0, :, :-1], encode(model, clip.lip_motion)
        ratios.append(real.std(dim=0) / predicted.std(dim=0).clamp(min=1e-6))
        correlations.append([clip_correlation(real[:, k], predicted[:, k]) for k in range(real.shape[1])])
    follows = torch.tensor(correlations).median(dim=0).values > _LEAST_CORRELATION
    ratio = torch.stack(ratios).median(dim=0).values.clamp(1.0, _MAX_GAIN)
    model.gain[:-1] = torch.where(follows, ratio, 1.0)


def model_input(clip: Clip) -> Tensor:
    return (clip.mel - clip.mel_mean)[None]


@torch.no_grad()
def predict_opening(model: Regression, clip: Clip) -> Tensor:
    """The predicted opening of the mouth by the clip's own eye distance, [T], relative to touching lips."""
    coefficients = model(model_input(clip))[0]
    motion, _ = model.decode(coefficients)
    return lip_gap(motion) / clip.eye_distance


def clip_correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation; 0 where one of them stands still."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))
