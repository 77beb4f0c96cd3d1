"""Landmarks found again: exact on made-up errors, and the detector on a real picture that was moved."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.face import detect
from common.face.model import LIPS
from common.media import read_picture
from common.metrics.landmarks import find_again, landmark_error, outer_eye_distance

MOVE = np.array([3, 4, 0])  # five pixels
PORTRAIT = Path(__file__).resolve().parents[3] / "examples" / "portrait.jpg"


def face() -> np.ndarray:
    points = np.random.default_rng(0).uniform(0, 200, (68, 3))
    points[36, :2], points[45, :2] = (50, 80), (130, 140)  # 100 pixels apart
    return points


def test_no_error_is_zero_and_depth_does_not_count() -> None:
    asked = face()
    assert outer_eye_distance(asked) == pytest.approx(100)
    assert landmark_error(asked, asked) == 0
    assert landmark_error(asked + np.array([0, 0, 50]), asked) == 0
    assert landmark_error(asked + MOVE, asked) == pytest.approx(0.05)
    assert landmark_error(2 * (asked + MOVE), 2 * asked) == pytest.approx(0.05)  # size of the picture


def test_the_points_asked_for_count_alone() -> None:
    asked = face()
    found = asked.copy()
    found[48:68, 0] += 10
    assert landmark_error(found, asked, LIPS) == pytest.approx(0.1)
    assert landmark_error(found, asked) == pytest.approx(0.1 * 20 / 68)
    assert landmark_error(found, asked, range(17)) == 0


def test_a_face_that_is_elsewhere_is_seen_there() -> None:
    """The detector starts from where the face should be and finds where it is."""
    picture = np.asarray(Image.fromarray(read_picture(PORTRAIT)).resize((256, 256)))
    there = detect.find_faces(picture)[0].landmarks
    assert landmark_error(find_again(picture, there), there) < 0.01
    shift = np.array([round(0.2 * outer_eye_distance(there)), 0, 0])
    moved = np.roll(picture, shift[0], axis=1)
    found = find_again(moved, there)
    assert landmark_error(found, there + shift) < 0.02
    assert landmark_error(found, there) == pytest.approx(0.2, abs=0.03)
