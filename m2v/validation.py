"""Looking at held-out people while training: the same clips every time, what each kind of planes makes of them."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from common.errors import InputError
from m2v.autoencoder import Autoencoder
from m2v.condition import Conditions
from m2v.data import Clip, ClipSamples, DataConfig, Sample, conditions_of
from m2v.denoiser import Denoiser, glance

N_VALIDATION = 16  # clips, of as many people as there are


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
    if not made:
        raise InputError(f"No held-out clip has {n_frames} valid frames in a row after its first 8: see docs/data.md.")
    return made


def batch_of_one(sample: Sample, device: torch.device) -> tuple[Tensor, Conditions]:
    return sample["clip"][None].to(device), conditions_of(sample).to(device).batched()


@torch.no_grad()
def reconstructions(model: Autoencoder, sample: Sample, denoiser: Denoiser | None = None) -> dict[str, Tensor]:
    """Clips [3, S, H, W] in [-1, 1] by name: real, warp, zero planes, true planes; with a denoiser, its mean and a

    sample as well."""
    clip, conditions = batch_of_one(sample, next(model.parameters()).device)
    features = model.look(conditions)
    planes = model.encode(clip, conditions, features)
    zero = model.decode(model.zeros(conditions), conditions, features)
    true = model.decode(planes, conditions, features)
    warped = rearrange(conditions.warped, "1 s c h w -> c s h w")
    shown = {"real": clip, "warp": warped[None], "zero": zero, "true": true}
    if denoiser is not None:
        noise = torch.randn(planes.pack().shape, generator=torch.Generator().manual_seed(0)).to(clip.device)
        for name, n_steps in (("mean", 1), ("sampled", None)):
            drawn = denoiser.sample(glance(conditions), noise, n_steps)
            shown[name] = model.decode(drawn, conditions, features)
    return {name: clip[0].clamp(-1, 1) for name, clip in shown.items()}


def validation_figures(model: Autoencoder, samples: list[Sample], denoiser: Denoiser | None = None) -> dict[str, float]:
    """Means over clips: PSNR, PSNR and high-band energy (by the real one's) of a box around the mouth."""
    table: dict[str, list[float]] = {}
    for sample in samples:
        shown = reconstructions(model, sample, denoiser)
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
