"""What a renderer makes of one frame, in layers that a picture of any size can take up (`m2v.paste`)."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Rendered:
    """frame = share · warped + (1 − share) · still + correction, in pixels of the source's square crop.

    frame: float32 [3, H, W], about 0..255; share: float32 [1, H, W] in 0..1, of the source warped along its landmarks;
    the rest is the source as it stands still. The correction is what a network added: all that is new.
    """

    frame: Tensor
    share: Tensor

    def as_picture(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return self.frame.round().clamp(0, 255).byte().movedim(0, -1).numpy()
