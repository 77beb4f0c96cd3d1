"""What `train_m2v.py` trains: the autoencoder, then the denoiser on its planes.

Autoencoder: reconstruction of clips, with planes as they are, noised, or zeroed. Validation prints, side by side, what
the warp, the planes of zeros (a regression) and the true planes (the ceiling of any diffusion) reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from common import weights
from common.media import write_picture
from common.trainer import Task
from common.triplane import packed_length
from m2v.autoencoder import FACTOR, Autoencoder, AutoencoderConfig
from m2v.condition import Conditions
from m2v.data import Clip, ClipSamples, DataConfig, Sample, conditions_of, read_clips
from m2v.losses import charbonnier, laplacian, mouth_weight, perceptual

KEEP_PLANES, KEEP_SKIPS = 0.7, 0.9  # how often each reaches the decoder in training
PERCEPTUAL_WEIGHT = 0.1
N_VALIDATION = 16  # clips, of as many people as there are


def setup_autoencoder(
    data_dir: Path, config: AutoencoderConfig, data: DataConfig, init: str = "", seed: int = 0, features: str = "auto"
) -> Task:
    """The autoencoder's training; init: weights to start from (a name or a folder), nothing for fresh ones."""
    cache_dir = Path(data.cache_dir)
    model = load_autoencoder(init, config) if init else Autoencoder(config)
    samples = ClipSamples(read_clips(data_dir, "train", data.n_frames, cache_dir, ("talking", "silent")), data, seed)
    held_out = validation_samples(read_clips(data_dir, "val", 16, cache_dir, ("talking",)))

    def validate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, Autoencoder)
        return validation_figures(ema, held_out)

    def sample(ema: nn.Module, path: Path) -> None:
        assert isinstance(ema, Autoencoder)
        write_picture(path, strip([reconstructions(ema, each) for each in held_out[:3]]), overwrite=True)

    return Task(model, autoencoder_loss(perceptual(features)), samples, save_autoencoder, validate, sample)


def autoencoder_loss(features: nn.Module | None) -> Callable[[nn.Module, Sample, Generator], dict[str, Tensor]]:
    """Charbonnier + Laplacian pyramid + features, weighted towards the mouth."""

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
        terms = {
            "charbonnier": charbonnier(pred, clip, weight),
            "laplacian": laplacian(pred, clip, weight),
        }
        if features is not None:
            terms["features"] = PERCEPTUAL_WEIGHT * features.to(device)(pred, clip, weight)
        with torch.no_grad():
            terms["plane_rms"] = planes.xy.float().square().mean().sqrt()
        return terms

    return loss


def config_of(model: nn.Module) -> AutoencoderConfig:
    """The configuration of the module itself or of what several processes wrap around it."""
    module = getattr(model, "module", model)
    assert isinstance(module.config, AutoencoderConfig)
    return module.config


def save_autoencoder(model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Autoencoder)
    weights.save(folder, model, {"format": "duet-m2v-autoencoder-1", "autoencoder": asdict(model.config)})


def load_autoencoder(name: str | Path, config: AutoencoderConfig | None = None) -> Autoencoder:
    """From weights; with `config`, only if they were made for it."""
    state, stored = weights.from_pretrained(name)
    if config is None:
        config = AutoencoderConfig(**stored["autoencoder"])
    model = Autoencoder(config)
    weights.load_into(model, state, name)
    return model.eval()


# ---- looking at held-out people --------------------------------------------------------------------------------------


def validation_samples(clips: list[Clip], n: int = N_VALIDATION, n_frames: int = 16) -> list[Sample]:
    """The same whole clips of 16 frames at every call: spread over people; reference: the first valid frame."""
    people = sorted({clip.person for clip in clips})
    chosen = []
    for k in range(n):
        own = [clip for clip in clips if clip.person == people[k % len(people)] and len(clip.frames) >= n_frames + 8]
        if own:
            chosen.append(own[(k // len(people)) % len(own)])
    config = DataConfig(crop_px=256, n_frames=n_frames, mouth_share=0.0)
    samples = ClipSamples(clips, config, seed=0, is_disturbed=False)
    rng = np.random.default_rng(0)
    made = []
    for clip in chosen:
        starts = clip.starts[clip.starts >= 8]
        if len(starts):
            first = int(np.flatnonzero(clip.valid)[0])
            made.append(samples.sample(clip, int(starts[len(starts) // 2]), first, rng))
    return made


def batch_of_one(sample: Sample, device: torch.device) -> tuple[Tensor, Conditions]:
    return sample["clip"][None].to(device), conditions_of(sample).to(device).batched()


@torch.no_grad()
def reconstructions(model: Autoencoder, sample: Sample) -> dict[str, Tensor]:
    """Clips [3, S, H, W] in [-1, 1] by name: real, warp, zero planes, true planes."""
    clip, conditions = batch_of_one(sample, next(model.parameters()).device)
    features = model.look(conditions)
    planes = model.encode(clip, conditions, features)
    zero = model.decode(model.zeros(conditions), conditions, features)
    true = model.decode(planes, conditions, features)
    warped = rearrange(conditions.warped, "1 s c h w -> c s h w")
    return {"real": clip[0], "warp": warped, "zero": zero[0].clamp(-1, 1), "true": true[0].clamp(-1, 1)}


def validation_figures(model: Autoencoder, samples: list[Sample]) -> dict[str, float]:
    """Means over clips: PSNR, PSNR and high-band energy (by the real one's) of a box around the mouth."""
    table: dict[str, list[float]] = {}
    for sample in samples:
        shown = reconstructions(model, sample)
        real = shown.pop("real").float()
        for name, clip in shown.items():
            for figure, value in figures_of(clip.float(), real, sample["mouth"]).items():
                table.setdefault(f"{name}_{figure}", []).append(value)
    return {name: float(np.mean(values)) for name, values in table.items()}


def figures_of(clip: Tensor, real: Tensor, mouth: Tensor) -> dict[str, float]:
    """Clips [3, S, H, W] in [-1, 1]; mouth: [S, 4] as in Sample."""
    error, band, real_band = [], [], []
    for k, (x, y, half_width, half_height) in enumerate(mouth.tolist()):
        rows = slice(max(0, int(y - half_height - 6)), int(y + half_height + 7))
        columns = slice(max(0, int(x - half_width - 6)), int(x + half_width + 7))
        ours, theirs = clip[:, k, rows, columns], real[:, k, rows, columns]
        error.append((ours - theirs).square().mean())
        band.append(high_band(ours))
        real_band.append(high_band(theirs))
    mouth_mse = torch.stack(error).mean()
    return {
        "psnr": float(-10 * ((clip - real).square().mean() / 4).log10()),
        "mouth_psnr": float(-10 * (mouth_mse / 4).log10()),
        "mouth_energy": float(torch.stack(band).mean() / torch.stack(real_band).mean()),
    }


def high_band(picture: Tensor) -> Tensor:
    """Energy of the discrete Laplacian of a picture's grey values: [3, h, w] -> scalar."""
    grey = picture.mean(dim=0)
    centre = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return (4 * centre - around).square().mean()


def strip(rows: list[dict[str, Tensor]], n_columns: int = 6) -> np.ndarray:
    """Some frames of each clip of each row, one below the other: uint8 [H, W, 3]."""
    lines = []
    for row in rows:
        for clip in row.values():
            chosen = torch.linspace(0, clip.shape[1] - 1, n_columns).long()
            lines.append(rearrange(clip[:, chosen].float(), "c n h w -> h (n w) c"))
    picture = (torch.cat(lines) + 1) * 127.5
    return picture.round().clamp(0, 255).byte().cpu().numpy()
