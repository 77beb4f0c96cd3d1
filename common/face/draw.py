"""Drawings of landmarks: maps for the networks to look at, and overlays for people."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common.face.model import BROWS, INNER_LIP, JAW, LEFT_EYE, N_POINTS, NOSE, OUTER_LIP, RIGHT_EYE

# What a map's three channels show; lists of lines, each a chain of points. Lips have a channel to themselves.
CHANNELS = (
    (JAW, BROWS[:5], BROWS[5:]),
    (NOSE[:4], NOSE[4:], (*LEFT_EYE, LEFT_EYE[0]), (*RIGHT_EYE, RIGHT_EYE[0])),
    ((*OUTER_LIP, OUTER_LIP[0]), (*INNER_LIP, INNER_LIP[0])),
)
COLOURS = ((255, 176, 0), (100, 220, 255), (255, 64, 128))  # told apart by the colour-blind too
_SUPERSAMPLING = 4


def landmark_map(points: Tensor, height: int, width: int, line_px: float = 1.5) -> Tensor:
    """Anti-aliased line drawing of landmarks [T, 68, 2 or 3] (pixels, y down) -> float32 [T, 3, H, W] in 0..1.

    Channels: jaw and brows; nose and eyes; lips. Not differentiable; on the points' device. Lines are placed to a
    quarter of a pixel.
    """
    if points.ndim != 3 or points.shape[1] != N_POINTS:
        raise ValueError(f"landmarks must be [T, 68, 2], got shape {list(points.shape)}")
    # A pixel's centre has whole-number coordinates. Far-away points are clipped: Pillow would draw for ever.
    fine = (points[..., :2].detach().cpu().double() + 0.5) * _SUPERSAMPLING - 0.5
    faces = fine.clamp(-(2**14), 2**14).nan_to_num().tolist()
    line_width = max(1, round(line_px * _SUPERSAMPLING))
    size = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    maps = np.empty((len(points), 3, height, width), np.uint8)
    for frame, face in enumerate(faces):
        for channel, lines in enumerate(CHANNELS):
            canvas = Image.new("L", size)
            pen = ImageDraw.Draw(canvas)
            for line in lines:
                pen.line([tuple(face[i]) for i in line], fill=255, width=line_width, joint="curve")
            maps[frame, channel] = np.asarray(canvas.reduce(_SUPERSAMPLING))
    return torch.from_numpy(maps).to(points.device).float() / 255


def overlay(frame: np.ndarray, points: Tensor) -> np.ndarray:
    """A frame uint8 [H, W, 3] with the lines and dots of landmarks [68, 2 or 3] (pixels, y down) drawn over a copy."""
    picture = Image.fromarray(frame)
    pen = ImageDraw.Draw(picture)
    face = [(float(x), float(y)) for x, y in points[:, :2].tolist()]
    for lines, colour in zip(CHANNELS, COLOURS, strict=True):
        for line in lines:
            for start, end in pairwise(line):
                pen.line([face[start], face[end]], fill=colour, width=1)
    for x, y in face:
        pen.ellipse([x - 1, y - 1, x + 1, y + 1], fill=(255, 255, 255))
    return np.asarray(picture)
