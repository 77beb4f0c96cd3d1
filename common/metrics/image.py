"""Frames against the real ones: likeness, detail inside the mouth, and what trembles.

Frames are uint8 [T, H, W, 3] and pictures uint8 [H, W, 3], RGB; landmarks are [..., 68, 2 or 3] in pixels, y down.
"""

import math

import numpy as np
import scipy.ndimage
import skimage.draw
from scipy.spatial import ConvexHull, QhullError
from skimage.metrics import structural_similarity

from common.face.model import INNER_LIP, LIPS

Box = tuple[slice, slice]  # rows, columns
MOUTH_MARGIN = 0.35  # of the mouth's width, on every side of the lips' box
BACKGROUND_GROW = 1.8  # of the face's hull, about its middle: beyond hair, ears and neck
CODEC_NOISE = 0.25  # grey levels: what a still picture changes by from frame to frame when it is decoded
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255² / MSE); infinite for identical pictures."""
    mse = float(np.square(picture.astype(np.float32) - truth.astype(np.float32)).mean())
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def ssim(picture: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), windows of 7 x 7 pixels, mean over colours; 1 for the same."""
    return float(structural_similarity(truth, picture, channel_axis=2, data_range=255))


# ---- places ---------------------------------------------------------------------------------------------------------


def mouth_box(landmarks: np.ndarray, size_px: int) -> Box:
    """Rows and columns around the lips of landmarks [68, 2 or 3] in a square picture; at least 16 pixels each."""
    lips = landmarks[list(LIPS), :2]
    low, high = lips.min(0), lips.max(0)
    middle = (low + high) / 2
    half = np.maximum((high - low) / 2 + MOUTH_MARGIN * (high[0] - low[0]), 8)
    x0, y0 = np.clip(middle - half, 0, size_px - 16).astype(int)
    x1, y1 = np.clip(middle + half, 16, size_px).astype(int)
    return slice(y0, max(y1, y0 + 16)), slice(x0, max(x1, x0 + 16))


def polygon_mask(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels inside an outline [P, 2] (x, y), bool [H, W]; what lies outside the picture is cut off."""
    mask = np.zeros((height, width), bool)
    rows, columns = skimage.draw.polygon(outline[:, 1], outline[:, 0], (height, width))
    mask[rows, columns] = True
    return mask


def lips_mask(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """What is seen between the lips of landmarks [68, 2 or 3], bool [H, W]; empty where the mouth is shut."""
    return polygon_mask(landmarks[list(INNER_LIP), :2], height, width)


def face_mask(landmarks: np.ndarray, height: int, width: int, grow: float = 1.0) -> np.ndarray:
    """The convex hull of landmarks [68, 2 or 3], `grow` times as large about the middle of its corners, bool [H, W]."""
    points = landmarks[:, :2].astype(np.float64)
    try:
        corners = points[ConvexHull(points).vertices]
    except QhullError:  # all on one line
        return np.zeros((height, width), bool)
    middle = corners.mean(0)
    return polygon_mask(middle + grow * (corners - middle), height, width)


def face_masks(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Inside of the face, frame by frame: landmarks [T, 68, 2 or 3] -> bool [T, H, W]."""
    return np.stack([face_mask(points, height, width) for points in landmarks])


def background_masks(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """What is far from the face, frame by frame: landmarks [T, 68, 2 or 3] -> bool [T, H, W]."""
    return np.stack([~face_mask(points, height, width, BACKGROUND_GROW) for points in landmarks])


# ---- detail ---------------------------------------------------------------------------------------------------------


def laplacian_energy(picture: np.ndarray, box: Box, mask: np.ndarray | None = None) -> float:
    """Mean square of the luminance's Laplacian (five points) in a box of the picture: the energy of its finest detail.

    mask: bool [H, W], only these pixels of the box count; 0 where there are none. Noise is detail to this measure: a
    ratio to the real frame's near 1 says that there is as much, not that it is the same.
    """
    rows, columns = box
    top, left = max(0, rows.start - 1), max(0, columns.start - 1)  # one more pixel, so that the box has no edge
    part = picture[top : rows.stop + 1, left : columns.stop + 1].astype(np.float32) @ LUMINANCE
    squared = np.square(scipy.ndimage.laplace(part, mode="nearest"))
    inside = squared[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    if mask is None:
        return float(inside.mean())
    chosen = inside[mask[box]]
    return float(chosen.mean()) if len(chosen) else 0.0


# ---- change over time -----------------------------------------------------------------------------------------------


def change(frames: np.ndarray, masks: np.ndarray, order: int = 1) -> float:
    """Mean absolute difference of successive frames where all of them are inside their masks, in grey levels.

    frames: uint8 [T, H, W, 3]; masks: bool [T, H, W]. order 1: x_k - x_{k-1}, which motion and tremble make; order 2:
    x_{k+1} - 2 x_k + x_{k-1}, in which steady motion all but cancels and tremble doubles. NaN where nothing is left.
    """
    if len(frames) != len(masks):
        raise ValueError(f"every frame needs its mask, got {len(frames)} frames and {len(masks)} masks")
    total, count = 0.0, 0
    for k in range(len(frames) - order):
        inside = masks[k : k + order + 1].all(0)
        values = frames[k : k + order + 1, inside].astype(np.int16)  # [order + 1, pixels, 3]
        total += float(np.abs(np.diff(values, order, axis=0)).sum())
        count += values[0].size
    return total / count if count else math.nan


def change_error(frames: np.ndarray, truth: np.ndarray, masks: np.ndarray) -> float:
    """F-MSE: mean square of (x_k - x_{k-1}) - (y_k - y_{k-1}) inside the masks, grey levels squared.

    A constant error of the picture does not count, a wrong or trembling motion does. frames, truth: uint8
    [T, H, W, 3]; masks: bool [T, H, W]. NaN where nothing is left.
    """
    total, count = 0.0, 0
    for k in range(len(frames) - 1):
        inside = masks[k] & masks[k + 1]
        made, real = (np.diff(each[k : k + 2, inside].astype(np.int16), axis=0) for each in (frames, truth))
        total += float(np.square((made - real).astype(np.float32)).sum())
        count += made.size
    return total / count if count else math.nan


def change_ratio(frames: np.ndarray, truth: np.ndarray, masks: np.ndarray, order: int = 1) -> float:
    """`change` of frames by that of the real ones, 1 is as real; a real one below the codec's noise counts as that."""
    return change(frames, masks, order) / max(change(truth, masks, order), CODEC_NOISE)
