"""Does the rendered face do what its landmarks asked for? They are found again in the result and compared.

The detector errs on real frames too: its error there, against the same landmarks, is what a perfect renderer would get.
"""

from collections.abc import Sequence

import numpy as np

from common.face import detect
from common.face.model import N_POINTS

OUTER_EYES = (36, 45)


def outer_eye_distance(landmarks: np.ndarray) -> float:
    """Distance of the outer corners of the eyes in the picture: landmarks [68, 2 or 3] in pixels."""
    return float(np.linalg.norm(landmarks[OUTER_EYES[0], :2] - landmarks[OUTER_EYES[1], :2]))


def landmark_error(found: np.ndarray, asked: np.ndarray, points: Sequence[int] = range(N_POINTS)) -> float:
    """Mean distance of some of the points in the picture, by the outer-eye distance of those asked for.

    found, asked: [68, 2 or 3] in pixels; depth does not count.
    """
    chosen = list(points)
    return float(np.linalg.norm((found - asked)[chosen, :2], axis=1).mean()) / outer_eye_distance(asked)


def find_again(frame: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The built-in detector's landmarks float32 [68, 3] in a frame uint8 [H, W, 3], in which a face is asked for there.

    It starts from the box of the landmarks asked for, not from the landmarks; results without a face have landmarks
    too, far off: none is left out of the mean for being bad.
    """
    low, high = asked[:, :2].min(0), asked[:, :2].max(0)
    return detect.landmarks_at(frame, (float(low[0]), float(low[1]), float(high[0]), float(high[1]))).landmarks
