"""What `train_m2v.py` trains: the autoencoder, then the denoiser on its planes, then the decoder on what that samples.

Autoencoder: reconstruction of clips, with planes as they are, noised, or zeroed. Validation prints, side by side, what
the warp, the planes of zeros (a regression) and the true planes (the ceiling of any diffusion) reach.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from common import diffusion
from common.media import write_picture
from common.trainer import Task
from common.triplane import packed_length, unpack
from m2v.autoencoder import Autoencoder, AutoencoderConfig, load_autoencoder, save_autoencoder
from m2v.condition import FACTOR
from m2v.data import ClipSamples, DataConfig, Sample, conditions_of, read_clips
from m2v.denoiser import Denoiser, DenoiserConfig, load_denoiser, save_denoiser
from m2v.finishing import Finishing, MouthSamples, cut_mouths, finishing_loss
from m2v.losses import charbonnier, laplacian, mouth_weight, perceptual, texture
from m2v.planes import PlaneBatch, PlaneSamples, encode, statistics
from m2v.portraits import training_samples
from m2v.validation import reconstructions, strip, validation_figures, validation_samples

KEEP_PLANES, KEEP_SKIPS = 0.6, 0.9  # how often each reaches the decoder in training
PERCEPTUAL_WEIGHT = 0.1
TEXTURE_WEIGHT = 2.0
UNHEARD_WEIGHT = 0.05  # of every place of the planes, beside how far it is heard (1 at the mouth, 0 far from it)
PLANE_PENALTY = 0.004  # on their mean square: what needn't be said isn't
AUTOENCODER, DENOISER = "small/m2v_autoencoder", "small/m2v_denoiser"


def setup_autoencoder(
    data_dir: Path,
    config: AutoencoderConfig,
    data: DataConfig,
    init: str = "",
    seed: int = 0,
    features: str = "auto",
    decoder_only: bool = False,
) -> Task:
    """The autoencoder's training; init: weights to start from (a name or a folder), nothing for fresh ones.

    features: the perceptual loss, see `losses.perceptual`. decoder_only: what makes planes stays as it is, so that a
    denoiser trained on them (meanwhile, even) still fits.
    """
    cache_dir = Path(data.cache_dir)
    model = load_autoencoder(AUTOENCODER if init == "small" else init, config) if init else Autoencoder(config)
    if decoder_only:
        model.requires_grad_(False)
        for part in model.decoder_parts():
            part.requires_grad_(True)
    samples = training_samples(data_dir, data, seed)
    held_out = validation_samples(read_clips(data_dir, "val", 16, cache_dir, ("talking",)))

    def validate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, Autoencoder)
        return validation_figures(ema, held_out)

    def sample(ema: nn.Module, path: Path) -> None:
        assert isinstance(ema, Autoencoder)
        write_picture(path, strip([reconstructions(ema, each) for each in held_out[:3]]), overwrite=True)

    return Task(model, autoencoder_loss(perceptual(features)), samples, save_autoencoder, validate, sample)


def autoencoder_loss(features: nn.Module | None) -> Callable[[nn.Module, Sample, Generator], dict[str, Tensor]]:
    """Charbonnier + Laplacian pyramid + texture + features, weighted towards the mouth."""

    def loss(model: nn.Module, batch: Sample, generator: Generator) -> dict[str, Tensor]:
        clip, conditions = batch["clip"], conditions_of(batch)
        n_clips, _, n_frames, height, width = clip.shape
        length = packed_length(n_frames, height // FACTOR, width // FACTOR)
        device = clip.device
        n_channels = config_of(model).plane_channels
        noise = torch.randn(n_clips, n_channels, length, generator=generator, device=device)
        keep = torch.rand(n_clips, 2, generator=generator, device=device)
        keep = (keep < keep.new_tensor([KEEP_PLANES, KEEP_SKIPS])).float()
        pred, planes = model(clip, conditions, noise, keep)
        weight = mouth_weight(batch["mouth"], height, width)
        # Half precision where the model runs in it: these are passes over memory, and two digits of a gradient do.
        error, narrow = (pred - clip).to(planes.xy.dtype), weight.to(planes.xy.dtype)
        terms = {"charbonnier": charbonnier(error, narrow), "laplacian": laplacian(error, narrow)}
        # Only where the planes are seen: without them the best guess is a smooth one.
        rough = texture(pred.to(narrow.dtype), clip.to(narrow.dtype), narrow)
        terms["texture"] = TEXTURE_WEIGHT * (rough * keep[:, 0]).mean()
        if features is not None:  # every second frame
            some = (part[:, :, ::2] for part in (pred, clip, weight))
            terms["features"] = PERCEPTUAL_WEIGHT * features.to(device)(*some)
        size = planes.pack().float().square().mean()
        return {**terms, "planes": PLANE_PENALTY * size, "plane_rms": size.detach().sqrt()}

    return loss


def config_of(model: nn.Module) -> AutoencoderConfig:
    """The configuration of the module itself or of what several processes wrap around it."""
    module = getattr(model, "module", model)
    assert isinstance(module.config, AutoencoderConfig)
    return module.config


def setup_diffusion(
    data_dir: Path,
    config: DenoiserConfig,
    data: DataConfig,
    run_dir: Path,
    init: str = "",
    autoencoder: str = AUTOENCODER,
    n_samples: int = 2000,
    seed: int = 0,
) -> Task:
    """The denoiser's training on the planes of `n_samples` clips, which are encoded once, into run_dir/planes."""
    cache_dir = Path(data.cache_dir)
    frozen = load_autoencoder(autoencoder).requires_grad_(False)
    encoded = encode(frozen, whole_clips(data_dir, data, seed), n_samples, run_dir / "planes")
    model = load_denoiser(DENOISER if init == "small" else init, config) if init else Denoiser(config)
    mean, std = statistics(encoded)
    model.plane_mean.copy_(mean)
    model.plane_std.copy_(std)
    held_out = validation_samples(read_clips(data_dir, "val", 16, cache_dir, ("talking",)))

    def validate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, Denoiser)
        return validation_figures(frozen.to(next(ema.parameters()).device), held_out, ema)

    def sample(ema: nn.Module, path: Path) -> None:
        assert isinstance(ema, Denoiser)
        decoder = frozen.to(next(ema.parameters()).device)
        write_picture(path, strip([reconstructions(decoder, each, ema) for each in held_out[:3]]), overwrite=True)

    return Task(model, denoiser_loss, PlaneSamples(encoded, seed), save_denoiser, validate, sample)


def setup_finishing(
    data_dir: Path,
    data: DataConfig,
    run_dir: Path,
    planes_dir: Path,
    autoencoder: str = AUTOENCODER,
    denoiser: str = DENOISER,
    n_samples: int = 1000,
    seed: int = 0,
    features: str = "auto",
    has_discriminator: bool = True,
) -> Task:
    """The decoder's last training, see `m2v.finishing`; what is saved is the autoencoder.

    planes_dir: where the denoiser's training, with the same data, options and seed, left the planes of its clips.
    """
    model, sampler = load_autoencoder(autoencoder), load_denoiser(denoiser).requires_grad_(False)
    clips = whole_clips(data_dir, data, seed)
    mouths = cut_mouths(sampler, clips, encode(model, clips, n_samples, planes_dir), run_dir / "mouths")
    cache_dir = Path(data.cache_dir)
    held_out = validation_samples(read_clips(data_dir, "val", 16, cache_dir, ("talking",)))

    def validate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, Finishing)
        return validation_figures(ema.autoencoder, held_out, sampler.to(next(ema.parameters()).device))

    def sample(ema: nn.Module, path: Path) -> None:
        assert isinstance(ema, Finishing)
        denoiser = sampler.to(next(ema.parameters()).device)
        rows = [reconstructions(ema.autoencoder, each, denoiser) for each in held_out[:4]]
        write_picture(path, strip(rows), overwrite=True)

    def save(ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, Finishing)
        save_autoencoder(ema.autoencoder, folder)

    task_model = Finishing(model, perceptual(features), has_discriminator)
    return Task(task_model, finishing_loss, MouthSamples(mouths, seed), save, validate, sample)


def whole_clips(data_dir: Path, data: DataConfig, seed: int) -> ClipSamples:
    """Training clips of 16 whole frames."""
    whole = DataConfig(crop_px=256, n_frames=16, most_minutes=data.most_minutes, cache_dir=data.cache_dir)
    clips = read_clips(data_dir, "train", whole.n_frames, Path(data.cache_dir), ("talking", "silent"))
    return ClipSamples(clips, whole, seed)


def denoiser_loss(model: nn.Module, batch: PlaneBatch, generator: Generator) -> dict[str, Tensor]:
    """Mean squared error in the space of the prediction, of planes standardised by the model's own figures; what the

    decoder hears counts.
    """
    module = getattr(model, "module", model)
    assert isinstance(module, Denoiser)
    settings, side = module.config.diffusion, batch["drawn"].shape[-1] // 2
    planes = unpack(batch["planes"].float(), batch["drawn"].shape[1], side, side)
    x_0 = module.standardised(planes).pack()
    alpha_bar = settings.alpha_bar().to(x_0.device)
    timesteps, eps = diffusion.draw(x_0, settings.n_timesteps, generator)
    keep = torch.rand(len(x_0), generator=generator, device=x_0.device) >= module.config.condition_dropout
    seen = (batch["drawn"], batch["warped"], batch["reference"])
    pred = model(diffusion.q_sample(x_0, timesteps, eps, alpha_bar), timesteps, seen, keep.float())
    a = diffusion.expand(alpha_bar[timesteps], x_0)
    expected = diffusion.target(x_0, eps, a, settings.prediction)
    # What is never heard needn't be guessed, but sampling shouldn't go astray there.
    return {"mse": diffusion.weighted_mse(pred, expected, mask=UNHEARD_WEIGHT + batch["heard"])}
