"""The mouth in face space: how far it is open, the same face with it closed, lips that don't pass through each other.

All points are M̄ + LM3D: x to the image's right, y up. The *opening* is the distance of the middle of the inner lips
(62, 66) by the distance of the eye centres: `common.face.model.mouth_opening`.
"""

import torch
from torch import Tensor

from common.face.model import LIP_STREAM, FaceModel, eye_distance

UPPER, LOWER = (61, 62, 63), (67, 66, 65)  # inner lip, facing each other; 60 and 64 are the corners
CLOSED_OPENING = 0.02  # trackers see lips that touch as open by 0.00 to 0.02
TOUCHING_OPENING = 0.005  # their median


def lip_gap(points: Tensor) -> Tensor:
    """Height of the upper above the lower inner lip at its three pairs of points: [..., 68, 3] -> [..., 3], signed."""
    return points[..., UPPER, 1] - points[..., LOWER, 1]


def set_lip_gap(points: Tensor, gap: Tensor) -> Tensor:
    """Move each pair of inner-lip points apart or together, evenly, to the given gaps [..., 3]."""
    half = (gap - lip_gap(points)) / 2
    moved = points.clone()
    moved[..., UPPER, 1] += half
    moved[..., LOWER, 1] -= half
    return moved


def keep_lips_apart(points: Tensor, least_gap: Tensor) -> Tensor:
    """Where an upper inner lip lies lower than `least_gap` [3] above its lower one, both meet halfway."""
    return set_lip_gap(points, torch.maximum(lip_gap(points), least_gap))


def closed(points: Tensor, opening_direction: Tensor) -> Tensor:
    """The same face [68, 3] with its mouth closed; exactly the same where it is.

    opening_direction: [37, 3], how lips and jaw move per unit that the middle of the inner lips opens. A mouth that is
    plainly open is closed until its lips touch; their inner points, which lie apart in it to the side as well, meet.
    """
    most, least = CLOSED_OPENING * eye_distance(points), TOUCHING_OPENING * eye_distance(points)
    opening = points[62, 1] - points[66, 1]
    if opening <= most:
        return points.clone()
    wanted = (2 * most - opening).clamp(min=least)  # so that a little more than closed is no other face
    shut = points.clone()
    shut[LIP_STREAM, :] -= (opening - wanted) * opening_direction
    shut = set_lip_gap(shut, lip_gap(shut).clamp(max=wanted))
    apart = (shut[UPPER, :] - shut[LOWER, :]) * ((most - wanted) / (most - least)) / 2
    apart[:, 1] = 0  # the height is right
    shut[UPPER, :] -= apart
    shut[LOWER, :] += apart
    return shut


def opening_direction(model: FaceModel) -> Tensor:
    """How lips and jaw most likely move per unit that the middle of the inner lips opens: [37, 3].

    Under the model's Gaussian of expressions, the mean of a displacement given that gap: C h / (hᵀ C h).
    """
    basis = model.at_landmarks().expression * model.expression_std[:, None, None]  # [E, 68, 3]
    gap = basis[:, 62, 1] - basis[:, 66, 1]  # [E]
    return torch.einsum("e,epc->pc", gap, basis)[LIP_STREAM, :] / gap.square().sum()
