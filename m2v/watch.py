"""What a renderer shows of its work to who asks for it: `m2v.debug`. Nobody else pays for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from common.triplane import TriPlane
from m2v.autoencoder import Blend
from m2v.condition import Conditions


@dataclass(frozen=True)
class Made:
    """A clip (of the warp: a batch) before it is joined to its neighbours.

    first: number of its first frame; conditions: what was told, [1, S, ...]; frames: [1, 3, S, H, W] in about [-1, 1].
    Of MC-VDM alone: planes, those of the clip; steps: what the denoiser took them for at each step, none where it did
    not sample; decode: any planes to frames under these conditions.
    """

    first: int
    conditions: Conditions
    frames: Tensor
    planes: TriPlane | None = None
    steps: Sequence[TriPlane] = ()
    decode: Callable[[TriPlane], Blend] | None = None


class Watch(Protocol):
    """Is asked about every clip, and shown those it wants."""

    def wants(self, first: int, last: int) -> bool:
        """Of frames first to last - 1."""
        ...

    def see(self, made: Made) -> None: ...
