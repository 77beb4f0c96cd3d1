"""Other throats, rooms, microphones and company for log-mel columns, so that synthesised speech prepares for real one.

All on batches [B, n, 64] of 100 Hz columns relative to the voice's mean, in units of 10 dB. What the corpus does to
the samples themselves (`a2m.phonetics.corpus`) is fixed when it is made; this is drawn anew each time it is heard.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from common.audio import MEL_RANGE_HZ, N_MELS

# Slaney's scale, which the bands lie on: 200/3 Hz a step up to 1 kHz, then 27 steps for every factor of 6.4.
_LINEAR_HZ, _KNEE_HZ, _KNEE, _PER_E = 200 / 3, 1000.0, 15.0, 27 / math.log(6.4)
_LOG10 = math.log(10)
_LOUD = 2.5  # columns this close to the loud ones carry the voice
_TAIL = 48  # columns of an echo that are followed


class Draw:
    """Random numbers for a batch, all from one generator, on the device where it lives."""

    def __init__(self, n: int, generator: Generator):
        self.n, self.generator, self.device = n, generator, generator.device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """[B, *shape] (at least [B, 1, 1])."""
        return low + (high - low) * torch.rand(self.n, *(shape or (1, 1)), generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n, *shape, generator=self.generator, device=self.device)

    def happens(self, probability: float) -> Tensor:
        """[B, 1, 1] bool."""
        return self.uniform(0, 1) < probability


def disturb(mel: Tensor, generator: Generator) -> Tensor:
    """Another speaker, elsewhere, with others talking, through a worse microphone: mel [B, n, 64] -> the same."""
    draw = Draw(len(mel), generator)
    x = other_throat(mel, draw.uniform(0.8, 1.25))
    x = x * draw.uniform(0.8, 1.15) * (1 + smooth_curves(draw, 0.06))  # narrower or wider dynamics, by band
    before = x
    x = torch.where(draw.happens(0.25), echo(x, draw.uniform(0.2, 0.7), draw.uniform(0.3, 1.5)), x)
    company = other_throat(mel.roll(1, dims=0), draw.uniform(0.85, 1.2)) - draw.uniform(0.7, 2.5)
    x = torch.where(draw.happens(0.25), add_power(x, company), x)
    tilt = draw.uniform(-2, 2) * torch.linspace(-0.5, 0.5, N_MELS, device=x.device) + smooth_curves(draw, 0.3)
    noise = draw.uniform(-4.5, -0.7) + tilt + 0.25 * draw.normal(*x.shape[1:])
    x = torch.where(draw.happens(0.5), add_power(x, noise), x)
    # The mean is the noisy voice's own, but for what a short or unusual recording gets wrong.
    loudness = before.mean(dim=-1, keepdim=True)
    weight = (loudness > loudness.quantile(0.95, dim=1, keepdim=True) - _LOUD).to(x)
    shift = ((x - before) * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1)
    return x - shift + smooth_curves(draw, 0.15) + 0.15 * draw.normal(1, 1)


def mask(mel: Tensor, generator: Generator) -> Tensor:
    """SpecAugment (Park et al. 2019): two bands and two stretches of time at the voice's mean, and some bandwidths cut.

    mel [B, n, 64]: bands of up to 12 mels, stretches of up to 0.16 s; in a sixth nothing above 3.5 to 6.5 kHz.
    """
    draw = Draw(len(mel), generator)
    band = torch.arange(N_MELS, device=mel.device)[None, None]
    column = torch.arange(mel.shape[1], device=mel.device)[None, :, None]
    hidden = (band > draw.uniform(44, 60)) & draw.happens(0.16)
    hidden = hidden.expand_as(mel).clone()
    for _ in range(2):
        width, first = draw.uniform(0, 12), draw.uniform(0, N_MELS - 12)
        hidden |= (band >= first) & (band < first + width)
        width, first = draw.uniform(0, 16), draw.uniform(0, mel.shape[1])
        hidden |= (column >= first) & (column < first + width)
    return mel.masked_fill(hidden, 0.0)


def other_throat(mel: Tensor, factor: Tensor) -> Tensor:
    """Formants moved up by a factor [B, 1, 1], as a vocal tract shorter by as much does: mel [B, n, 64] -> the same."""
    low, high = _to_mel(torch.tensor(MEL_RANGE_HZ))
    step = (high - low) / (N_MELS + 1)
    band = torch.arange(N_MELS, device=mel.device)
    centre_hz = _to_hz(low + step * (band + 1))
    position = ((_to_mel(centre_hz / factor[:, 0]) - low) / step - 1).clamp(0, N_MELS - 1)  # [B, 64] read from here
    triangle = (1 - (position[:, None] - band[None, :, None]).abs()).clamp(min=0)  # [B, 64 from, 64 to]
    return mel @ triangle


def echo(mel: Tensor, decay_s: Tensor, direct: Tensor) -> Tensor:
    """A room's tail of power, 60 dB down after decay_s, which starts `direct` units below the sound; both [B, 1, 1]."""
    n = mel.shape[1]
    lag = torch.arange(n, device=mel.device)[:, None] - torch.arange(n, device=mel.device)
    tail = (-_LOG10 * (direct + 0.06 * lag / decay_s)).exp()  # [B, n to, n from], 6 units in 100 decay_s columns
    kernel = torch.where((lag > 0) & (lag <= _TAIL), tail, (lag == 0).to(mel))
    return (kernel @ (_LOG10 * mel).exp()).clamp(min=1e-9).log10()


def add_power(a: Tensor, b: Tensor) -> Tensor:
    """Two independent sounds together, in units of 10 dB."""
    return torch.logaddexp(a * _LOG10, b * _LOG10) / _LOG10


def smooth_curves(draw: Draw, size: float) -> Tensor:
    """Random slow curves over the bands, [B, 1, 64]: three cosines of this deviation each."""
    phase = torch.arange(N_MELS, device=draw.device) / N_MELS * math.pi
    waves = torch.stack([torch.cos(k * phase) for k in range(1, 4)])  # [3, 64]
    return size * draw.normal(1, 3) @ waves


def _to_mel(hz: Tensor) -> Tensor:
    return torch.where(hz < _KNEE_HZ, hz / _LINEAR_HZ, _KNEE + _PER_E * (hz.clamp(min=1) / _KNEE_HZ).log())


def _to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < _KNEE, mel * _LINEAR_HZ, _KNEE_HZ * ((mel - _KNEE) / _PER_E).exp())
