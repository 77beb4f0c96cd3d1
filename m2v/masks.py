"""Where a whole picture may be changed: masks that follow the head, and fade to nothing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from common.face.framing import FOREHEAD, HAIR, Crop

NECK, HAIR_GROW, FACE_GROW = 0.3, 0.06, -0.1  # how far the masks reach below the chin and beyond the outlines, and
HEAD_FEATHER, FACE_FEATHER = 0.3, 0.14  # how soon they fade; all in heights of the landmarks (brows to chin)
MARGIN = 0.07  # of the crop's side: the masks fade to zero before a border of the crop behind which the picture goes on


def head_mask(source: Tensor, target: Tensor, size_px: int) -> Tensor:
    """A head's old and new place, from landmarks [68, 2] of both: float32 [h, h], 1 within, 0 from a feather away."""
    each = [points.double().cpu().numpy() for points in (source, target)]
    unit = max(_upwards(points)[1] for points in each)
    corners = np.concatenate([_head_outline(points) for points in each])
    return _feathered(corners, HAIR_GROW * unit, HEAD_FEATHER * unit, size_px).to(source.device)


def face_mask(target: Tensor, size_px: int) -> Tensor:
    """As `head_mask`, of the face alone, where it is in the frame."""
    points = target.double().cpu().numpy()
    unit = _upwards(points)[1]
    return _feathered(points, FACE_GROW * unit, FACE_FEATHER * unit, size_px).to(target.device)


def _upwards(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The face's upward direction [2] and the height of its landmarks along it."""
    up = points[17:27].mean(axis=0) - points[8]
    up = up / max(float(np.linalg.norm(up)), 1e-6)
    along = points @ up
    return up, max(float(along.max() - along.min()), 1.0)


def _head_outline(points: np.ndarray) -> np.ndarray:
    """Landmarks with points around hair and neck added, [N, 2]."""
    up, height = _upwards(points)
    top = (points @ up).max() + (FOREHEAD + HAIR * (1 + FOREHEAD)) * height
    # Round: lowest above the ears, highest above the middle of the brows.
    rise = {0: 0.45, 16: 0.45, 17: 0.85, 26: 0.85, 19: 0.97, 24: 0.97, 21: 1.0, 22: 1.0}
    hair = [points[k] + part * (top - points[k] @ up) * up for k, part in rise.items()]
    return np.concatenate([points, hair, points[4:13] - NECK * height * up])


def _feathered(points: np.ndarray, grow: float, feather: float, size_px: int) -> Tensor:
    """1 in the points' convex hull grown by `grow` pixels, 0 from `feather` pixels away: float32 [h, h]."""
    try:
        sides = ConvexHull(points).equations.astype(np.float32)  # [K, 3]: outward normals, and offsets
    except QhullError as error:
        raise ValueError("landmarks that lie in one line are no face: detect them again") from error
    n = max(size_px // 4, 2)  # the distance is smooth
    at = np.linspace(0, size_px - 1, n, dtype=np.float32)
    by_column, by_row = sides[:, :1] * at, sides[:, 1:2] * at + sides[:, 2:]
    away = torch.from_numpy((by_row[:, :, None] + by_column[:, None]).max(axis=0))  # of the farthest side, [n, n]
    away = F.interpolate(away[None, None], (size_px, size_px), mode="bilinear", align_corners=True)[0, 0]
    return smooth_step(1 - (away - grow) / max(feather, 1.0))


def edge_fade(crop: Crop, width: int, height: int) -> Tensor:
    """1 inside the crop, falling to 0 before those of its sides behind which the picture goes on: [h, h]."""
    at = torch.arange(crop.size_px, dtype=torch.float32)
    ends = crop.size_px - 1 - at
    fades = []
    for low, high, side in ((crop.y0, crop.y0 + crop.side, height), (crop.x0, crop.x0 + crop.side, width)):
        inward = torch.full_like(at, torch.inf)
        inward = torch.minimum(inward, at) if low > 0 else inward
        inward = torch.minimum(inward, ends) if high < side else inward
        # The last pixels are not touched at all: what is scaled up reaches two pixels further.
        fades.append(smooth_step((inward - 3) / (MARGIN * crop.size_px)))
    return fades[0][:, None] * fades[1]


def smooth_step(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, without a corner."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
