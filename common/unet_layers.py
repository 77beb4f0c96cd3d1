"""Layers of the UNet core: residual blocks, attention within and across planes, transformer blocks.

Attribute names and shapes are those of latent diffusion's and PVDM's published state dicts. No layer forces a memory
format: tokens are [B, N, C], so that with channels-last planes flattening is free.
"""

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

N_GROUPS = 32  # of every GroupNorm: all widths are multiples of it
Resample = Literal["none", "down", "up"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoids of the diffusion step (Ho et al. 2020): cosines first, from frequency 1 down to almost 1/10000.

    timesteps: [B], integer or real, as they are (0..999). Returns [B, dim] float32; dim is even.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(10_000) * exponents)  # [B, dim / 2]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def zero_init(module: ModuleT) -> ModuleT:
    """A residual branch that ends in this layer starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with the time vector in between and a skip around (published key names).

    The time vector is added before the second norm, or scales and shifts after it (use_scale_shift_norm). Added, a
    constant over the plane can be undone by the norm: wholly so where a group is one channel, at a width of 32.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        use_scale_shift_norm: bool = False,
        dropout: float = 0.0,
        resample: Resample = "none",
    ) -> None:
        super().__init__()
        self.resample = resample
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            nn.GroupNorm(N_GROUPS, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        n_modulations = 2 if use_scale_shift_norm else 1
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, n_modulations * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(N_GROUPS, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip_connection = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [B, C, H, W], emb: [B, time_channels] -> [B, C_out, H, W], half or twice the size when it resamples."""
        norm, silu, conv = self.in_layers
        hidden = conv(self._resampled(silu(norm(x))))
        modulation = rearrange(self.emb_layers(emb), "b c -> b c 1 1")
        if self.use_scale_shift_norm:
            norm, silu, dropout, conv = self.out_layers
            scale, shift = modulation.chunk(2, dim=1)
            hidden = conv(dropout(silu(norm(hidden) * (1 + scale) + shift)))
        else:
            hidden = self.out_layers(hidden + modulation)
        return self.skip_connection(self._resampled(x)) + hidden

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x if self.resample == "none" else F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """Half the size by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the size, nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def attend(q: Tensor, k: Tensor, v: Tensor, n_heads: int) -> Tensor:
    """Multi-head attention. q: [B, N, C], k and v: [B, M, C] -> [B, N, C]."""
    q, k, v = (rearrange(x, "b n (heads c) -> b heads n c", heads=n_heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n c -> b n (heads c)")


class AttentionBlock(nn.Module):
    """Self-attention of all positions with a skip: over one plane, or over the packed tokens of several."""

    def __init__(self, channels: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.GroupNorm(N_GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)  # a Linear in effect; the published weights are [.., .., 1]
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, ...] -> the same; every axis after the channels is made of positions."""
        tokens = rearrange(self.norm(x), "b c ... -> b (...) c")
        qkv = F.linear(tokens, self.qkv.weight.squeeze(2), self.qkv.bias)
        # Published checkpoints hold q, k and v head by head.
        q, k, v = rearrange(qkv, "b n (heads three c) -> three b n (heads c)", heads=self.n_heads, three=3)
        out = F.linear(attend(q, k, v, self.n_heads), self.proj_out.weight.squeeze(2), self.proj_out.bias)
        return x + rearrange(out, "b n c -> b c n").reshape(x.shape)


def attend_planes(attention: AttentionBlock, *planes: Tensor) -> tuple[Tensor, ...]:
    """Attention over the tokens of all planes, packed in their order: what carries information from plane to plane.

    planes: each [B, C, rows, columns]; returns the same shapes.
    """
    packed = attention(torch.cat([plane.flatten(2) for plane in planes], dim=2))  # [B, C, sum of rows x columns]
    parts = packed.split([plane.shape[2] * plane.shape[3] for plane in planes], dim=2)
    return tuple(part.reshape(plane.shape) for part, plane in zip(parts, planes, strict=True))


class CrossAttention(nn.Module):
    """Attention of tokens to a context, which may be the tokens themselves."""

    def __init__(self, channels: int, context_dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: [B, N, C], context: [B, M, context_dim] -> [B, N, C]."""
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), self.n_heads))


class GEGLU(nn.Module):
    """Half of a projection gated by the GELU of the other half (Shazeer 2020)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        # The middle one holds the place of the published dropout, which is 0 there.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each after a layer norm and with a skip."""

    def __init__(self, channels: int, context_dim: int, n_heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, n_heads)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context_dim, n_heads)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: [B, N, C], context: [B, M, context_dim] -> [B, N, C].

        With a single context token attn2's softmax is over one entry: attn2 adds one vector to every position, whatever
        norm2, to_q and to_k are.
        """
        tokens = self.norm1(x)
        x = x + self.attn1(tokens, tokens)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a plane, between two 1x1 convolutions, with a skip around."""

    def __init__(self, channels: int, context_dim: int, n_heads: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(N_GROUPS, channels, eps=1e-6)  # not the 1e-5 of the other norms
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, context_dim, n_heads) for _ in range(depth))
        self.proj_out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: [B, C, H, W], context: [B, M, context_dim] -> [B, C, H, W]."""
        hidden = self.proj_in(self.norm(x))
        tokens = rearrange(hidden, "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2]))


class Block(nn.ModuleList):
    """One entry of the published lists: convolution or ResBlock, then attention, then resampling."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x
