"""The eyelids in face space: how far they are open, and the same eyes opened more or less.

All points are M̄ + LM3D: x to the image's right, y up. The *aperture* of an eye is the mean height of its opening by the
distance of its corners: 0.2 to 0.35 in open eyes, and trackers see closed ones at about CLOSED.
"""

import torch
from torch import Tensor

from common.face.model import LID_PAIRS

CLOSED = 0.03  # of closed lids: blinks of the tracks go down to 0 to 0.08
_CORNERS = ((36, 39), (42, 45))
_UPPER_SHARE = 0.85  # of the way that lids go


def aperture(points: Tensor) -> Tensor:
    """Of the image's left and right eye: [..., 68, 3] -> [..., 2]; below 0 where lids cross."""
    upper, lower = (list(side) for side in zip(*LID_PAIRS, strict=True))
    heights = (points[..., upper, 1] - points[..., lower, 1]).unflatten(-1, (2, 2)).mean(dim=-1)
    widths = [(points[..., a, :] - points[..., b, :]).norm(dim=-1) for a, b in _CORNERS]
    return heights / torch.stack(widths, dim=-1).clamp(min=torch.finfo(points.dtype).tiny ** 0.5)


def open_lids(points: Tensor, share: Tensor) -> Tensor:
    """Eyes [..., 68, 3] opened to `share` [..., 2] times what they are; 1 changes nothing, 0 lets the lids meet.

    The upper lid does most of the way, as lids do.
    """
    moved = points.clone()
    for k, (upper, lower) in enumerate(LID_PAIRS):
        gap = (points[..., upper, :] - points[..., lower, :]) * (1 - share[..., k // 2])[..., None]  # [..., 3]
        moved[..., upper, :] -= _UPPER_SHARE * gap
        moved[..., lower, :] += (1 - _UPPER_SHARE) * gap
    return moved
