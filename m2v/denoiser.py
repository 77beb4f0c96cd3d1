"""MC-VDM's denoiser: the UNet core on three planes, told about the landmarks (z_l), the reference (z_r) and the warp.

All are concatenated to the noised planes (dual-diffusion paper, section 3.3): z_l three planes, z_r its xy plane with
zeros on the others. Beyond the paper: the planes are the autoencoder's *residual* ones, standardised; the warped
reference is a third condition; conditions are read by small networks of their own at a quarter of the side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from common import diffusion, weights
from common.diffusion import DiffusionConfig
from common.errors import InputError
from common.triplane import TriPlane, packed_length, unpack
from common.unet import UNet, UNetConfig
from m2v.autoencoder import compute_dtype
from m2v.condition import FACTOR, Conditions
from m2v.layers import PixelNorm, PlanePool, Residual

FORMAT = "duet-m2v-denoiser-1"
Glance = tuple[Tensor, Tensor, Tensor]
N_DRAWN, N_WARPED, N_REFERENCE = 16, 4, 12  # channels of a Glance


@dataclass(frozen=True)
class DenoiserConfig:
    """`small`. Channels of the UNet's input: planes, z_l, warp, z_r."""

    plane_channels: int = 8  # of the autoencoder's planes
    condition_channels: int = 8  # of each of z_l, z_r and the warp's planes
    condition_width: int = 80  # of the networks that read the conditions, at an eighth of the side
    model_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 3)
    num_res_blocks: int = 1
    plane_attention_resolutions: tuple[int, ...] = (2, 4)
    num_head_channels: int = 32
    dropout: float = 0.05
    condition_dropout: float = 0.1  # how often training hides all conditions: what guidance needs
    n_steps: int = 4  # of sampling, unless told otherwise
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        for name in ("channel_mult", "plane_attention_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and OmegaConf bring lists
        if isinstance(self.diffusion, dict):
            object.__setattr__(self, "diffusion", DiffusionConfig(**self.diffusion))

    def unet(self) -> UNetConfig:
        return UNetConfig(
            in_channels=self.plane_channels + 3 * self.condition_channels,
            model_channels=self.model_channels,
            out_channels=self.plane_channels,
            num_res_blocks=self.num_res_blocks,
            attention_resolutions=(),
            channel_mult=self.channel_mult,
            num_head_channels=self.num_head_channels,
            use_scale_shift_norm=True,
            dropout=self.dropout,
            plane_attention_resolutions=self.plane_attention_resolutions,
        )


class PlaneEncoder(nn.Module):
    """Pictures of a clip at a quarter of the side [B, S, C, H/4, W/4] -> planes of an eighth.

    Thin: it runs on every frame, the UNet once a clip, and a wide one took most of a training step.
    """

    def __init__(self, in_channels: int, width: int, plane_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4 * in_channels, width, 3, padding=1), Residual(width), PixelNorm(width))
        self.pool = PlanePool(width, 2 * plane_channels, plane_channels)

    def forward(self, x: Tensor) -> TriPlane:
        flat = F.pixel_unshuffle(rearrange(x, "b s c h w -> (b s) c h w").to(compute_dtype(x)), 2)
        features = self.body(flat.contiguous(memory_format=torch.channels_last))
        return self.pool(rearrange(features, "(b s) c h w -> b s c h w", b=len(x)))


class Denoiser(nn.Module):
    """What it predicts is config.diffusion.prediction, of planes standardised by its own plane_mean and plane_std."""

    plane_mean: Tensor
    plane_std: Tensor

    def __init__(self, config: DenoiserConfig = DenoiserConfig()) -> None:
        super().__init__()
        self.config = config
        n, width = config.condition_channels, config.condition_width
        self.landmarks = PlaneEncoder(N_DRAWN, width, n)
        self.warp = PlaneEncoder(N_WARPED, width, n)
        self.reference = PlaneEncoder(N_REFERENCE, width, n)
        self.unet = UNet(config.unet())
        self.register_buffer("plane_mean", torch.zeros(3, config.plane_channels))  # over training clips
        self.register_buffer("plane_std", torch.ones(3, config.plane_channels))
        self.to(memory_format=torch.channels_last)

    def condition(self, glance: Glance) -> TriPlane:
        """z_l, the warp and z_r of a clip, joined: [B, 3 n] on each plane."""
        drawn, warped, reference = glance
        z_l, z_w = self.landmarks(drawn), self.warp(warped)
        z_r = self.reference(reference[:, None])
        # Zeros, but made from z_r: several processes wait for a gradient of every weight.
        xt, yt = (z_r.xt * 0).expand_as(z_l.xt), (z_r.yt * 0).expand_as(z_l.yt)
        planes = (z_l.xy, z_w.xy, z_r.xy), (z_l.xt, z_w.xt, xt), (z_l.yt, z_w.yt, yt)
        return TriPlane(*(torch.cat(parts, dim=1) for parts in planes))

    def denoise(self, x_t: Tensor, timesteps: Tensor, condition: TriPlane) -> Tensor:
        """One prediction: packed planes [B, C, L] -> the same, float32."""
        planes = unpack(x_t, condition.n_frames, condition.height, condition.width)
        joined = TriPlane(*(torch.cat(pair, dim=1) for pair in zip(planes, condition, strict=True)))
        return self.unet(joined, timesteps).pack().float()

    def forward(self, x_t: Tensor, timesteps: Tensor, glance: Glance, keep: Tensor) -> Tensor:
        """One pass of training; keep: [B] of 0 or 1, whether the conditions are shown."""
        condition = self.condition(glance).map(lambda plane: plane * keep.to(plane.dtype).view(-1, 1, 1, 1))
        return self.denoise(x_t, timesteps, condition)

    @torch.no_grad()
    def sample(
        self,
        glance: Glance,
        noise: Tensor,
        n_steps: int | None = None,
        guidance_scale: float = 1.0,
        show: Callable[[TriPlane], None] | None = None,
    ) -> TriPlane:
        """Planes for the decoder; noise: x_T, packed, standard normal. One step gives the conditional mean.

        show: is given what every step takes the planes for (x_0).
        """
        condition = self.condition(glance)
        hidden = condition.map(torch.zeros_like)
        denoiser = diffusion.guided(
            lambda x_t, timesteps: self.denoise(x_t, timesteps, condition),
            lambda x_t, timesteps: self.denoise(x_t, timesteps, hidden),
            guidance_scale,
        )
        settings = self.config.diffusion
        timesteps = diffusion.pvdm_timesteps(n_steps or self.config.n_steps, settings.n_timesteps)
        alpha_bar = settings.alpha_bar()

        def planes_of(x_0: Tensor) -> TriPlane:
            return self.restored(unpack(x_0, condition.n_frames, condition.height, condition.width))

        def shown(x_t: Tensor, timesteps: Tensor) -> Tensor:
            pred = denoiser(x_t, timesteps)
            if show is not None:
                a = diffusion.expand(alpha_bar[timesteps.cpu()], x_t)
                show(planes_of(diffusion.x_0_and_eps(pred, x_t, a, settings.prediction)[0]))
            return pred

        return planes_of(diffusion.ddim(shown, noise, timesteps, alpha_bar, settings.prediction))

    def standardised(self, planes: TriPlane) -> TriPlane:
        """Planes of about zero mean and unit variance over training clips, in float32."""
        mean, std = self.plane_mean[:, None, :, None, None], self.plane_std[:, None, :, None, None]
        return TriPlane(*((plane.float() - m) / s for plane, m, s in zip(planes, mean, std, strict=True)))

    def restored(self, planes: TriPlane) -> TriPlane:
        """The inverse of `standardised`."""
        mean, std = self.plane_mean[:, None, :, None, None], self.plane_std[:, None, :, None, None]
        return TriPlane(*(plane * s + m for plane, m, s in zip(planes, mean, std, strict=True)))


def glance(conditions: Conditions) -> Glance:
    """Conditions at a quarter of the side, channels first: drawn and inner, warped and visible, the reference."""
    c = conditions
    n_clips = len(c.warped)

    def flat(x: Tensor) -> Tensor:
        return rearrange(x, "b s c h w -> (b s) c h w")

    inner = F.avg_pool2d(flat(c.inner), 2)
    drawn = F.pixel_unshuffle(torch.cat([flat(c.maps), inner], dim=1), 2)
    warped = torch.cat([F.avg_pool2d(flat(c.warped), 4), F.avg_pool2d(flat(c.visible), 2)], dim=1)
    shown = c.reference if c.reference.ndim == 4 else c.reference[:, c.reference.shape[1] // 2]  # one stands for all
    reference = F.pixel_unshuffle(F.avg_pool2d(shown, 2), 2)
    clips = [rearrange(x, "(b s) c h w -> b s c h w", b=n_clips) for x in (drawn, warped)]
    return clips[0], clips[1], reference


def clip_noise(n_frames: int, side: int, channels: int, shared: Tensor, generators: Sequence[Generator]) -> Tensor:
    """x_T of one clip [1, C, L]: xy noise shared by all clips [C, h, w], and that of each frame from its own generator.

    So clips that overlap start from the same noise in the frames that they share.
    """
    rows = torch.stack([torch.randn(2, channels, side, generator=g) for g in generators])  # [S, 2, C, side]
    xt, yt = rearrange(rows, "s kind c w -> kind 1 c s w")
    packed = TriPlane(shared[None], xt, yt).pack()
    assert packed.shape[2] == packed_length(n_frames, side, side)
    return packed


def save_denoiser(model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Denoiser)
    weights.save(folder, model, {"format": FORMAT, "denoiser": asdict(model.config), "plane": FACTOR})


def load_denoiser(name: str | Path, config: DenoiserConfig | None = None) -> Denoiser:
    """From weights; with `config`, only if they were made for it."""
    state, stored = weights.from_pretrained(name)
    if stored.get("format") != FORMAT:
        raise InputError(f"{name} does not hold a denoiser of this version ({FORMAT}): name weights that do.")
    model = Denoiser(config or DenoiserConfig(**stored["denoiser"]))
    weights.load_into(model, state, name)
    return model.eval()
