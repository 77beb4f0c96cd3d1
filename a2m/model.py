"""AToM-Net (dual-diffusion paper): speech and a reference face to the motion of the face, by diffusion.

The network predicts x_0 (eq. 4), the residual to the reference frame, from x_t. Streams of tokens, one token a frame:
**lips** hear the speech; the **rest** of the face does not; a third, **slow** one (ours, beyond the paper) carries head
pose and lids. In every layer each stream attends to itself (shared weights), the hearing ones then to speech, timestep
and reference; their sum attends to timestep and reference, passes a feed-forward part, and is handed back to all
streams. After every sub-block FiLM scales and shifts by a vector of timestep, reference and, in hearing streams only,
the speech's mean. (The published code adds the speech's mean to a tensor that both streams share; here each has one.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from a2m import streaming
from a2m.phonetics.encoder import PhoneticConfig, PhoneticEncoder
from a2m.space import N_LIP_VALUES, N_REST_VALUES, N_SLOW, SPACES, MotionSpace
from common import weights
from common.audio import N_MELS
from common.diffusion import cosine_alpha_bar
from common.errors import InputError
from common.face.model import N_POINTS

FORMAT = "duet-a2m-atom-1"  # of the weights' config.json
PREFIX = "net."  # of this module's tensors in the file that it shares with the head's prior
LM3D_SCALE = 10.0  # as published: brings residual landmarks to about unit size


@dataclass
class AToMConfig:
    """What the network looks like and how it is sampled; part of the weights' config.json. Defaults: small."""

    features: str = "log-mel"  # or "hubert"; the front end whose states are heard
    audio_dim: int = 256  # of one state
    n_audio_states: int = 1  # per frame; HuBERT's: 2
    hubert: str = ""  # fingerprint of the HuBERT that was heard (a2m/hearing.py); training fills it in
    audio_kernel: int = 5  # states that the first layer on the speech sees; 1 is the published linear layer
    phonetics: PhoneticConfig | None = None  # the encoder, part of the model, through which it also hears its log-mel
    space: str = "coefficients"  # or "points": what is diffused (a2m/space.py)
    n_lip: int = 6  # coefficients; 98 % of the variance of lips and jaw
    n_rest: int = 8
    width: int = 128
    n_layers: int = 3
    n_heads: int = 4
    ff_width: int = 384
    n_encoder_layers: int = 1  # of the speech and of the reference
    dropout: float = 0.2
    window: int = 64  # frames
    overlap: int = 16  # frames that windows share in long speech
    n_timesteps: int = 1000
    has_reference: bool = True  # off, and the next one: the paper's ablation
    has_streams: bool = True  # lips and rest apart; off: one stream that hears
    has_slow: bool = True  # head pose and lids; not in the paper
    sees_known: bool = True  # frames may be given as they are, and the others are made to fit; not in the paper
    n_steps: int = 8  # defaults of sampling
    guidance_scale: float = 1.5
    eta: float = 0.0  # noise added at every step; with few steps 1 (as published) loses liveliness

    def __post_init__(self) -> None:
        if self.phonetics is not None and self.features != "log-mel":
            raise ValueError(f"a phonetic encoder hears log-mel, not {self.features}")
        if self.space not in SPACES:
            raise ValueError(f"space must be one of {SPACES}, got {self.space!r}")
        if self.width % (2 * self.n_heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the {self.n_heads} heads")
        if not 0 < self.overlap <= self.window // 2:
            raise ValueError(f"overlap must lie in 1..{self.window // 2}, got {self.overlap}")

    @property
    def value_counts(self) -> tuple[int, int, int]:
        """Values per frame of lips, rest and slow."""
        lip, rest = (N_LIP_VALUES, N_REST_VALUES) if self.space == "points" else (self.n_lip, self.n_rest)
        return lip, rest, N_SLOW if self.has_slow else 0


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told beside x_t, encoded once for all steps.

    audio: [B, N, D], N states; audio_mean: [B, D]; reference: [B, 1, D]; is_frame: [B, T] bool, is_state: [B, N] bool,
    False where a clip is shorter than its window.
    """

    audio: Tensor
    audio_mean: Tensor
    reference: Tensor
    is_frame: Tensor
    is_state: Tensor

    def rows(self, rows: Tensor) -> Condition:
        return Condition(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class AToMNet(nn.Module):
    """forward(x_t [B, T, K], timesteps [B], ...) -> x_0 [B, T, K]; K as in `a2m.space`."""

    alpha_bar: Tensor

    def __init__(self, config: AToMConfig):
        super().__init__()
        self.config, d = config, config.width
        self.space = MotionSpace(*config.value_counts)
        lip, rest, slow = config.value_counts
        self.stream_sizes = [lip, rest] if config.has_streams else [lip + rest]
        self.stream_sizes += [slow] if slow else []
        self.time_mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.SiLU())
        self.time_vector = nn.Linear(4 * d, d)
        self.time_tokens = nn.Linear(4 * d, 2 * d)
        # Trained before (a2m.phonetics) and left as it is.
        self.phonetics = None if config.phonetics is None else PhoneticEncoder(config.phonetics).requires_grad_(False)
        heard = config.audio_dim + (0 if config.phonetics is None else 2 * config.phonetics.bottleneck)
        self.audio_in = nn.Conv1d(heard, d, config.audio_kernel, padding=config.audio_kernel // 2)
        self.audio_encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.audio_norm = nn.LayerNorm(d)
        self.no_audio = nn.Parameter(torch.randn(d))  # in place of every state where the speech is dropped
        self.audio_vector = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        self.reference_in = nn.Linear(3 * N_POINTS, d)
        self.reference_encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.reference_norm = nn.LayerNorm(d)
        self.streams_in = nn.ModuleList(nn.Linear(size, d) for size in self.stream_sizes)
        self.known = nn.Parameter(torch.zeros(d)) if config.sees_known else None  # added where a frame is given
        self.layers = nn.ModuleList(Layer(config, len(self.stream_sizes)) for _ in range(config.n_layers))
        self.norms_out = nn.ModuleList(nn.LayerNorm(d) for _ in self.stream_sizes)
        self.streams_out = nn.ModuleList(nn.Linear(d, size) for size in self.stream_sizes)
        self.register_buffer("alpha_bar", cosine_alpha_bar(config.n_timesteps), persistent=False)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], config: dict[str, Any], source: str | Path) -> AToMNet:
        """The part of a file's tensors that is the network's, in float32; config: the file's."""
        try:
            settings = dict(config["model"])
            if settings.get("phonetics") is not None:
                settings["phonetics"] = PhoneticConfig(**settings["phonetics"])
            model = cls(AToMConfig(**settings))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source} holds no AToM-Net of this version ({error}): choose others.") from error
        part = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
        return weights.load_into(model, part, source).eval()

    def condition(self, audio: Tensor, reference: Tensor, is_frame: Tensor, has_audio: Tensor) -> Condition:
        """Encode speech and reference.

        audio: [B, T n_audio_states, audio_dim]; reference: LM3D [B, 68, 3]; is_frame: [B, T] bool; has_audio: [B] bool,
        False where the speech is dropped (training) or left out (the unconditional half of guidance).
        """
        n_states = self.config.n_audio_states
        is_state = is_frame.repeat_interleave(n_states, dim=1)  # [B, N]
        kept = is_state[..., None]
        if self.phonetics is not None:  # log-mel [B, T, 4 64] and states of 50 Hz, two a frame
            with torch.no_grad():
                audio = torch.cat([audio, self.phonetics.per_frame(audio.unflatten(-1, (-1, N_MELS)))], dim=-1)
        states = torch.nn.functional.gelu(self.audio_in((audio * kept).mT).mT)  # [B, N, D]
        position = (torch.arange(states.shape[1], device=audio.device) + 0.5) / n_states - 0.5  # in frames
        for layer in self.audio_encoder:
            states = layer(states, position, is_state)
        states = torch.where(has_audio[:, None, None], self.audio_norm(states), self.no_audio)
        mean = (states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        # The published code repeats the reference over the window; equal tokens add log T to one's weight, no more.
        face = self.reference_in(LM3D_SCALE * reference.flatten(1))[:, None]  # [B, 1, D]
        for layer in self.reference_encoder:
            face = layer(face, position.new_zeros(1), is_frame.new_ones(len(face), 1))
        face = self.reference_norm(face) * self.config.has_reference
        return Condition(states, self.audio_vector(mean), face, is_frame, is_state)

    def train(self, mode: bool = True) -> AToMNet:
        super().train(mode)
        if self.phonetics is not None:
            self.phonetics.eval()
        return self

    def denoise(self, x_t: Tensor, timesteps: Tensor, condition: Condition, is_known: Tensor | None = None) -> Tensor:
        """x_t [B, T, K] -> x_0_pred [B, T, K]; is_known: [B, T] bool, frames at which x_t is x_0 itself."""
        time = self.time_mlp(sinusoids(timesteps, self.config.width))
        tokens = self.time_tokens(time).unflatten(-1, (2, -1))
        tokens = torch.cat([tokens, condition.reference], dim=1)[:, : 2 + self.config.has_reference]  # [B, 2 or 3, D]
        vectors = self.film_vectors(time, condition)
        parts = x_t.split(self.stream_sizes, dim=-1)
        streams = torch.stack([into(part) for into, part in zip(self.streams_in, parts, strict=True)])  # [S, B, T, D]
        if self.known is not None and is_known is not None:
            streams = streams + is_known[..., None] * self.known
        for layer in self.layers:
            streams = layer(streams, vectors, tokens, condition)
        each = zip(self.streams_out, self.norms_out, streams, strict=True)
        return torch.cat([out(norm(stream)) for out, norm, stream in each], dim=-1)

    stream = streaming.stream  # (chunks of features, ...) -> motion, block after block, while it is still being spoken

    def film_vectors(self, time: Tensor, condition: Condition) -> Tensor:
        """One vector for each stream [S, B, D]: timestep and reference, and the speech's mean for the first only."""
        shared = self.time_vector(time) + condition.reference[:, 0]
        return torch.stack([shared + condition.audio_mean, *[shared] * (len(self.stream_sizes) - 1)])

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        audio: Tensor,
        reference: Tensor,
        is_frame: Tensor,
        has_audio: Tensor,
        is_known: Tensor | None = None,
    ) -> Tensor:
        """x_0_pred [B, T, K]; arguments as for `denoise` and `condition`."""
        return self.denoise(x_t, timesteps, self.condition(audio, reference, is_frame, has_audio), is_known)


class Layer(nn.Module):
    """streams [S, B, T, D] -> the same; the first stream hears."""

    def __init__(self, config: AToMConfig, n_streams: int):
        super().__init__()
        d = config.width
        self.self_attention, self.hearing = Attention(config), Attention(config)
        self.merged_attention, self.feed_forward = Attention(config), FeedForward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(4))
        self.films = nn.ModuleList(FiLM(d) for _ in range(4))
        self.dropout = ChannelDropout(config.dropout)
        self.back = nn.Linear(d, n_streams * d)

    def forward(self, streams: Tensor, vectors: Tensor, tokens: Tensor, condition: Condition) -> Tensor:
        S, _, T, _ = streams.shape
        frame = torch.arange(T, device=streams.device, dtype=torch.float32)
        state = torch.arange(condition.audio.shape[1], device=streams.device)
        state = (state + 0.5) * T / condition.audio.shape[1] - 0.5
        x = rearrange(streams, "s b t d -> (s b) t d")
        normed = self.norms[0](x)
        seen = Timed(normed, frame, condition.is_frame.repeat(S, 1))
        x = x + self._after(0, self.self_attention(normed, frame, seen, None), vectors.flatten(0, 1))
        streams = rearrange(x, "(s b) t d -> s b t d", s=S)
        heard = Timed(condition.audio, state, condition.is_state)
        lips = self.hearing(self.norms[1](streams[0]), frame, heard, tokens)
        lips = streams[0] + self._after(1, lips, vectors[0])
        streams = torch.cat([lips[None], streams[1:]])
        merged = streams.sum(dim=0)
        vector = vectors[-1] if S > 1 else vectors[0]  # without the speech, wherever a stream doesn't hear
        merged = merged + self._after(2, self.merged_attention(self.norms[2](merged), frame, None, tokens), vector)
        merged = merged + self._after(3, self.feed_forward(self.norms[3](merged)), vector)
        return streams + rearrange(self.back(merged), "b t (s d) -> s b t d", s=S)

    def _after(self, k: int, x: Tensor, vector: Tensor) -> Tensor:
        return self.films[k](self.dropout(x), vector)


class FiLM(nn.Module):
    """x [B, T, D] scaled and shifted by a vector [B, D]; the identity at first."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.linear(torch.nn.functional.silu(vector))[:, None].chunk(2, dim=-1)
        return (1 + scale) * x + shift


class ChannelDropout(nn.Module):
    """Drops whole channels of x [B, T, D], the same at all frames (Gal & Ghahramani 2016).

    Motion and speech are smooth in time: what is dropped at one frame only can be read from the next. And the masks,
    drawn number by number on a CPU, cost next to nothing.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * torch.nn.functional.dropout(x.new_ones(len(x), 1, x.shape[-1]), self.p)


class FeedForward(nn.Sequential):
    def __init__(self, config: AToMConfig):
        wide = nn.Linear(config.width, config.ff_width)
        super().__init__(wide, nn.GELU(), nn.Linear(config.ff_width, config.width))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer over states [B, N, D] at given positions."""

    def __init__(self, config: AToMConfig):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(2))
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.dropout = ChannelDropout(config.dropout)

    def forward(self, x: Tensor, position: Tensor, is_valid: Tensor) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.dropout(self.attention(normed, position, Timed(normed, position, is_valid), None))
        return x + self.dropout(self.feed_forward(self.norms[1](x)))


@dataclass(frozen=True)
class Timed:
    """Tokens that have a place in time: values [B, N, D], position [N] in frames, is_valid [B, N]."""

    values: Tensor
    position: Tensor
    is_valid: Tensor


class Attention(nn.Module):
    """Attention of frames to tokens with a place in time (rotary positions: only the distance counts) and without."""

    def __init__(self, config: AToMConfig):
        super().__init__()
        self.n_heads = config.n_heads
        self.to_q = nn.Linear(config.width, config.width, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, position: Tensor, timed: Timed | None, timeless: Tensor | None) -> Tensor:
        """x: [B, T, D] at `position` [T]; timeless: [B, M, D]. Returns [B, T, D]."""
        q = self._heads(self.to_q(x))  # [B, H, T, E]
        k, v, mask = None, None, None
        width = q.shape[-1]
        scale = width**-0.5
        if timed is not None:
            k, v = (self._heads(part) for part in self.to_kv(timed.values).chunk(2, dim=-1))
            k, mask = rotate(k, timed.position), timed.is_valid
        if timed is None or timeless is None:
            q = q if timed is None else rotate(q, position)
        if timeless is not None:
            still_k, still_v = (self._heads(part) for part in self.to_kv(timeless).chunk(2, dim=-1))
            if k is None or v is None or mask is None:
                k, v = still_k, still_v
            else:  # turned keys meet the turned query, the others the query as it is
                q = torch.cat([rotate(q, position), q], dim=-1)
                pad = torch.nn.functional.pad
                k = torch.cat([pad(k, (0, width)), pad(still_k, (width, 0))], dim=2)
                v = torch.cat([v, still_v], dim=2)
                mask = pad(mask, (0, timeless.shape[1]), value=True)
        assert k is not None and v is not None
        # Written out: with so few tokens torch's fused kernels and their masks take longer on a CPU (a step 1.4 times).
        scores = (q @ k.mT).float() * scale
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(torch.float32).min)
        y = scores.softmax(dim=-1).to(v.dtype) @ v
        return self.out(rearrange(y, "b h t e -> b t (h e)"))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h e) -> b h n e", h=self.n_heads)


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): x [..., N, E] turned by angles that grow with position [N]."""
    half = x.shape[-1] // 2
    frequency = 1000.0 ** -(torch.arange(half, device=x.device) / half)
    angle = position.float()[:, None] * frequency  # [N, E / 2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def sinusoids(timesteps: Tensor, width: int) -> Tensor:
    """Timesteps [B] -> [B, width] (Vaswani et al. 2017)."""
    half = width // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, device=timesteps.device) / half)
    angle = timesteps.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
