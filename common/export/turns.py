"""The head's turns as animators write them: pitch, yaw and roll in degrees, about the world's x, y and z axes."""

import numpy as np
import torch

from common.face.rotations import euler_rad, from_euler_rad

TURNS = (
    "R = Rz(roll) Ry(yaw) Rx(pitch), posed = R frontal + position; positive: down, to the picture's right, "
    "and tipping to its left"
)


def euler_deg(rotation: np.ndarray) -> np.ndarray:
    """[T, 3, 3] -> pitch, yaw, roll [T, 3] of `common.face.rotations.HEAD_ORDER`, without leaps of whole turns."""
    angles_rad = euler_rad(torch.from_numpy(np.ascontiguousarray(rotation, np.float64))).numpy()
    return np.degrees(np.unwrap(angles_rad, axis=0))


def from_euler_deg(angles_deg: np.ndarray) -> np.ndarray:
    """[T, 3] -> [T, 3, 3], the inverse of `euler_deg`."""
    return from_euler_rad(torch.from_numpy(np.radians(np.asarray(angles_deg, np.float64)))).numpy()
