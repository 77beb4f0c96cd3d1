"""Stage two in small: 64-pixel clips of a face that talks before waves of colour, networks of few weights."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from m2v.autoencoder import Autoencoder, AutoencoderConfig
from m2v.condition import Conditions, build
from m2v.data import Clip, read_clips
from m2v.denoiser import Denoiser, DenoiserConfig
from tests.tiny_data import write_data

SIDE_PX = 64
AUTOENCODER = AutoencoderConfig(widths=(32, 32), plane_channels=4, plane_width=16, n_blocks=(1, 1))
DENOISER = DenoiserConfig(
    plane_channels=4,
    condition_channels=4,
    condition_width=16,
    model_channels=32,
    channel_mult=(1, 1),
    plane_attention_resolutions=(2,),
    dropout=0.0,
    n_steps=2,
)
LOWERED = (*range(6, 11), *range(55, 60), 65, 66, 67)  # chin and lower lip
Module = TypeVar("Module", bound=nn.Module)


def face(size_px: int = SIDE_PX, opened: float = 0.0) -> Tensor:
    """Landmarks [68, 2] in the middle of a picture; the mouth opened by a part of the face's height."""
    points = ReferencePicture.mean(FaceModel.builtin(), size_px).landmarks[:, :2].clone()
    points[list(LOWERED), 1] += opened * (points[8, 1] - points[27, 1])
    return points


def talking(n_frames: int, size_px: int = SIDE_PX) -> Tensor:
    """Landmarks [S, 68, 2]: the mouth opens and closes, the head moves sideways; frame 0 has it closed."""
    frames = [face(size_px, 0.15 * (k % 4)) + torch.tensor([size_px / 64 * (k % 3), 0.0]) for k in range(n_frames)]
    return torch.stack(frames)


def picture(size_px: int = SIDE_PX, seed: int = 0) -> Tensor:
    """[3, H, W] in [-1, 1]; without any symmetry."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 9, 9, generator=generator) * 2 - 1
    return nn.functional.interpolate(small, (size_px, size_px), mode="bicubic")[0].clamp(-1, 1)


def conditions(n_clips: int = 2, n_frames: int = 4, size_px: int = SIDE_PX) -> Conditions:
    """Of as many different clips."""
    parts = []
    for k in range(n_clips):
        targets = talking(n_frames + k, size_px)[k:]
        parts.append(vars(build(picture(size_px, k), face(size_px), targets)))
    return Conditions(**{name: torch.stack([part[name] for part in parts]) for name in parts[0]})


def clips(n_clips: int = 2, n_frames: int = 4, size_px: int = SIDE_PX) -> Tensor:
    """[B, 3, S, H, W] in [-1, 1]; noise."""
    return torch.rand(n_clips, 3, n_frames, size_px, size_px, generator=torch.Generator().manual_seed(5)) * 2 - 1


def autoencoder(config: AutoencoderConfig = AUTOENCODER, by: float = 0.0) -> Autoencoder:
    """The same at every call. by: noise added to all weights, as none are zero once there was training."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return perturbed(Autoencoder(config), by).eval()


def denoiser(by: float = 0.0) -> Denoiser:
    """As `autoencoder`."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return perturbed(Denoiser(DENOISER), by).eval()


def perturbed(module: Module, by: float) -> Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module


def training_clips(folder: Path, n_frames: int = 4) -> list[Clip]:
    """A data folder's clips of the split `train`: one person with two, another with one; one `val` clip besides."""
    if not (folder / "data").is_dir():
        write_data(
            folder / "data",
            [
                ("ann-1", "ann", "train", "talking", 20),
                ("ann-2", "ann", "train", "silent", 12),
                ("bob-1", "bob", "train", "talking", 16),
                ("cleo-1", "cleo", "val", "talking", 30),
            ],
        )
    return read_clips(folder / "data", "train", n_frames, folder / "cache", ("talking", "silent"))
