"""The full picture's benchmark finds nothing where nothing was changed, and what was put in where something was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.geometry.paste import METHODS, REDDER, Shot, border_table, measure
from common.face.framing import Crop
from tests.m2v.test_paste import SIDE, face


@pytest.fixture(scope="module")
def shot() -> Shot:
    rng = np.random.default_rng(0)
    grain = gaussian_filter(rng.normal(0, 120, (620, 640, 3)), (1.0, 1.0, 0))
    picture = (grain + 120).clip(0, 255).astype(np.uint8)
    crop = Crop(40, 30, 512, SIDE)
    frame = torch.from_numpy(crop.cut(picture).copy()).movedim(-1, 0).float()
    return Shot(picture, crop, face(), face()[None], [frame])


def test_what_does_not_change_has_no_border(shot: Shot) -> None:
    border = measure(shot)
    assert border.n_changed == 0 and border.zoom == 2
    assert border.seam["pasted"] == pytest.approx(1)
    assert border.sharpness["pasted"] == pytest.approx(1)
    assert border.colour["pasted"] == pytest.approx(0, abs=1e-6)
    assert border.sharpness["square"] == pytest.approx(border.sharpness["faded"]) and border.sharpness["square"] < 0.5


def test_a_redder_frame_shows_at_the_border_of_the_square(shot: Shot) -> None:
    border = measure(shot)
    assert border.redder["pasted"] == pytest.approx(border.colour["pasted"], abs=0.3)
    # On one of three channels, and half of what lies within 3 pixels of the border.
    assert REDDER / 3 < border.redder["square"] * np.sqrt(3) < REDDER
    redder = shot.frames[0] + torch.tensor([40.0, 40.0, 40.0])[:, None, None]
    bright = measure(replace(shot, frames=[redder]))
    assert bright.seam["square"] > 1.2 * border.seam["square"]
    assert bright.seam["pasted"] == pytest.approx(1, abs=0.01)


def test_table_has_a_row_for_every_method(shot: Shot) -> None:
    table = border_table([measure(shot)])
    assert all(f"\n| {name} | " in table for name in METHODS)
    assert "differ from the picture: 0." in table
