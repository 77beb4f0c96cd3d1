"""The UNet core: one denoiser for pictures (a single plane) and for clips (a TriPlane).

On a single plane it is the UNet of latent diffusion (Rombach et al. 2022; Dhariwal & Nichol 2021) as DiffTalk
configures it; on a TriPlane the same modules act on every plane with shared weights and, where
`plane_attention_resolutions` says, attention over the tokens of all planes follows a block: PVDM's denoiser. Attribute
names are those of the published state dicts, so checkpoints of both load as they are.
"""

from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.triplane import TriPlane
from common.unet_layers import (
    N_GROUPS,
    AttentionBlock,
    Block,
    Downsample,
    Resample,
    ResBlock,
    SpatialTransformer,
    Upsample,
    attend_planes,
    timestep_embedding,
    zero_init,
)

Planes = tuple[Tensor, ...]  # each [B, C, rows, columns]; a single plane is a tuple of one


@dataclass(frozen=True)
class UNetConfig:
    """Field names as published. *_resolutions are downsampling factors (1, 2, 4, ...), not sizes in pixels."""

    in_channels: int  # everything concatenated: noised latents, then the conditions
    model_channels: int  # width at factor 1. At 32, without scale-shift, the time vector is lost there (see ResBlock)
    out_channels: int
    num_res_blocks: int  # per level on the way down, one more on the way up
    attention_resolutions: tuple[int, ...]  # attention within a plane follows every ResBlock; the middle always has it
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)  # width of each level, times model_channels; its length is the depth
    num_heads: int = -1  # either the number of heads everywhere ...
    num_head_channels: int = -1  # ... or the width of one, which wins
    use_spatial_transformer: bool = False  # transformer blocks, with cross-attention to the context
    transformer_depth: int = 1
    context_dim: int | None = None  # width of the context tokens
    use_scale_shift_norm: bool = False  # time scales and shifts the second norm (FiLM) instead of being added before it
    resblock_updown: bool = False  # resample inside a ResBlock instead of by a convolution
    dropout: float = 0.0  # in ResBlocks
    use_checkpoint: bool = False  # recompute blocks in the backward pass: slower, much less memory
    plane_attention_resolutions: tuple[int, ...] = ()  # ours: attention over all planes follows every block; PVDM: all

    def __post_init__(self) -> None:
        for name in ("attention_resolutions", "channel_mult", "plane_attention_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and OmegaConf bring lists
        if self.model_channels % N_GROUPS:
            raise ValueError(f"model_channels must be a multiple of {N_GROUPS} (group norm), got {self.model_channels}")
        if self.num_heads < 1 and self.num_head_channels < 1:
            raise ValueError("num_heads or num_head_channels must be given: neither is")
        if self.use_spatial_transformer != (self.context_dim is not None):
            raise ValueError("use_spatial_transformer and context_dim go together: give both or neither")

    @property
    def time_channels(self) -> int:
        """Width of the time vector."""
        return 4 * self.model_channels

    @property
    def factor(self) -> int:
        """How much the coarsest level is downsampled: rows and columns of every plane are multiples of it."""
        return int(2 ** (len(self.channel_mult) - 1))

    def n_heads(self, channels: int) -> int:
        """Attention heads at a width."""
        n_heads = self.num_heads if self.num_head_channels < 1 else max(1, channels // self.num_head_channels)
        if channels % n_heads:
            raise ValueError(f"{n_heads} heads do not divide a width of {channels} channels")
        return n_heads


class UNet(nn.Module):
    """The denoiser; config.in_channels counts the conditions that the caller concatenates to the noised latents."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.use_checkpoint = config.use_checkpoint
        width, time_channels = config.model_channels, config.time_channels
        self.time_embed = nn.Sequential(
            nn.Linear(width, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        # Attention over the planes after each block; identities have no keys, so a single-plane UNet is unchanged.
        self.input_blocks = nn.ModuleList([Block([nn.Conv2d(config.in_channels, width, 3, padding=1)])])
        self.input_attns = nn.ModuleList([nn.Identity()])
        channels, factor = width, 1
        skips = [channels]  # widths, in the order in which the way down leaves them
        for level, multiplier in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(self._level_block(channels, multiplier * width, factor))
                channels = multiplier * width
                self.input_attns.append(self._plane_attention(channels, factor))
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                factor *= 2
                self.input_blocks.append(Block([self._resampling(channels, "down")]))
                self.input_attns.append(self._plane_attention(channels, factor))
                skips.append(channels)

        self.middle_block = Block(
            [self._res(channels, channels), self._attention(channels), self._res(channels, channels)]
        )
        self.mid_attn = self._plane_attention(channels, factor)

        self.output_blocks, self.output_attns = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                block = self._level_block(channels + skips.pop(), multiplier * width, factor)
                channels = multiplier * width
                if level > 0 and i == config.num_res_blocks:
                    factor //= 2
                    block.append(self._resampling(channels, "up"))
                self.output_blocks.append(block)
                self.output_attns.append(self._plane_attention(channels, factor))
        self.out = nn.Sequential(
            nn.GroupNorm(N_GROUPS, channels),
            nn.SiLU(),
            zero_init(nn.Conv2d(channels, config.out_channels, 3, padding=1)),
        )

    def _res(self, in_channels: int, out_channels: int, resample: Resample = "none") -> ResBlock:
        config = self.config
        return ResBlock(
            in_channels, out_channels, config.time_channels, config.use_scale_shift_norm, config.dropout, resample
        )

    def _level_block(self, in_channels: int, out_channels: int, factor: int) -> Block:
        block = Block([self._res(in_channels, out_channels)])
        if factor in self.config.attention_resolutions:
            block.append(self._attention(out_channels))
        return block

    def _attention(self, channels: int) -> nn.Module:
        n_heads = self.config.n_heads(channels)
        if self.config.context_dim is None:
            return AttentionBlock(channels, n_heads)
        return SpatialTransformer(channels, self.config.context_dim, n_heads, self.config.transformer_depth)

    def _plane_attention(self, channels: int, factor: int) -> nn.Module:
        if factor in self.config.plane_attention_resolutions:
            return AttentionBlock(channels, self.config.n_heads(channels))
        return nn.Identity()

    def _resampling(self, channels: int, direction: Literal["down", "up"]) -> nn.Module:
        if self.config.resblock_updown:
            return self._res(channels, channels, direction)
        return Downsample(channels) if direction == "down" else Upsample(channels)

    @overload
    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(self, x: TriPlane, timesteps: Tensor, context: Tensor | None = None) -> TriPlane: ...
    def forward(self, x: Tensor | TriPlane, timesteps: Tensor, context: Tensor | None = None) -> Tensor | TriPlane:
        """One prediction (of the noise, of x_0 or of v: the training objective decides).

        x: [B, in_channels, H, W] or a TriPlane of in_channels; timesteps: [B]; context: [B, M, context_dim] when the
        configuration has a context_dim. Returns out_channels of the same kind and size.
        """
        planes: Planes = tuple(x) if isinstance(x, TriPlane) else (x,)
        self._check(planes, timesteps, context)
        emb = self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(planes[0].dtype))
        skips: list[Planes] = []
        for block, attn in zip(self.input_blocks, self.input_attns, strict=True):
            planes = self._run(block, attn, planes, emb, context)
            skips.append(planes)
        planes = self._run(self.middle_block, self.mid_attn, planes, emb, context)
        for block, attn in zip(self.output_blocks, self.output_attns, strict=True):
            joined = tuple(torch.cat(pair, dim=1) for pair in zip(planes, skips.pop(), strict=True))
            planes = self._run(block, attn, joined, emb, context)
        planes = tuple(self.out(plane) for plane in planes)
        return TriPlane(*planes) if isinstance(x, TriPlane) else planes[0]

    def _run(self, block: nn.Module, attn: nn.Module, planes: Planes, emb: Tensor, context: Tensor | None) -> Planes:
        """One block on each plane, then, where there is one, the attention over all of them."""
        if self.use_checkpoint and torch.is_grad_enabled():
            planes = tuple(checkpoint(block, plane, emb, context, use_reentrant=False) for plane in planes)
            if isinstance(attn, AttentionBlock):
                planes = checkpoint(attend_planes, attn, *planes, use_reentrant=False)
            return planes
        planes = tuple(block(plane, emb, context) for plane in planes)
        return attend_planes(attn, *planes) if isinstance(attn, AttentionBlock) else planes

    def _check(self, planes: Planes, timesteps: Tensor, context: Tensor | None) -> None:
        config, batch = self.config, len(planes[0])
        for plane in planes:
            if plane.ndim != 4 or plane.shape[1] != config.in_channels:
                raise ValueError(f"the UNet takes [B, {config.in_channels}, H, W], got shape {list(plane.shape)}")
            if plane.shape[2] % config.factor or plane.shape[3] % config.factor:
                size = f"{plane.shape[2]} x {plane.shape[3]}"
                raise ValueError(f"rows and columns of a plane must be multiples of {config.factor}, got {size}")
        if timesteps.shape != (batch,):
            raise ValueError(f"timesteps must be [{batch}], one for each item, got shape {list(timesteps.shape)}")
        if config.context_dim is None:
            if context is not None:
                raise ValueError("this UNet has no context_dim: it takes no context")
        elif context is None or context.ndim != 3 or (len(context), context.shape[2]) != (batch, config.context_dim):
            found = "none" if context is None else f"shape {list(context.shape)}"
            raise ValueError(f"context must be [{batch}, M, {config.context_dim}], got {found}")
