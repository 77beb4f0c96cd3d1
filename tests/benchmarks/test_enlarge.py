"""The benchmark of enlarged frames: the picture's sharpness where nothing changed, less where it is just scaled up."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.enlarge import METHODS, measure, table
from benchmarks.geometry.paste import Shot
from common.face.framing import Crop
from tests.m2v.test_paste import SIDE, face


def test_a_face_that_stays_is_as_sharp_as_the_picture_and_does_not_flicker() -> None:
    grain = gaussian_filter(np.random.default_rng(0).normal(0, 120, (620, 640, 3)), (1.0, 1.0, 0))
    picture = (grain + 120).clip(0, 255).astype(np.uint8)
    crop = Crop(40, 30, 512, SIDE)
    frame = torch.from_numpy(crop.cut(picture).copy()).movedim(-1, 0).float()
    figures = measure(Shot(picture, crop, face(), face().expand(2, -1, -1), [frame, frame]))
    assert figures.face["ours"] == pytest.approx(1, abs=0.02) and figures.around["ours"] == pytest.approx(1, abs=0.02)
    assert figures.face["plain"] < 0.5 and figures.around["plain"] < 0.5
    assert figures.flicker == dict.fromkeys(METHODS, 0.0)
    assert all(f"\n| {name} | " in table([figures]) for name in METHODS)
