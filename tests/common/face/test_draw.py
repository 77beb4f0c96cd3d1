"""Drawings of landmarks: the right lines in the right places."""

import numpy as np
import pytest
import torch

from common.face.draw import CHANNELS, landmark_map, overlay
from common.face.model import FaceModel


def face() -> torch.Tensor:
    mean = FaceModel.builtin().mean
    return torch.stack([128 + 80 * mean[:, 0], 110 - 80 * mean[:, 1]], dim=-1)[None]  # [1, 68, 2]


def test_every_point_lies_on_a_line_of_its_channel() -> None:
    points = face()
    drawn = landmark_map(points, 256, 256)
    assert drawn.shape == (1, 3, 256, 256) and drawn.dtype == torch.float32
    assert drawn.min() == 0 and drawn.max() <= 1
    seen = set()
    for channel, lines in enumerate(CHANNELS):
        for i in {i for line in lines for i in line}:
            x, y = points[0, i].round().int().tolist()
            assert drawn[0, channel, y - 1 : y + 2, x - 1 : x + 2].max() > 0.5
            seen.add(i)
    assert seen == set(range(68))


def test_a_line_is_where_it_was_said_to_a_quarter_of_a_pixel() -> None:
    """A vertical jaw line at x: the drawing's centre of mass is x, pixel centres having whole-number coordinates."""
    for x in (100.0, 100.25, 100.5, 100.75):
        points = torch.full((1, 68, 2), -500.0)
        points[0, :17, 0], points[0, :17, 1] = x, torch.linspace(50, 200, 17)
        row = landmark_map(points, 256, 256, line_px=2)[0, 0, 120]
        assert float((row * torch.arange(256)).sum() / row.sum()) == pytest.approx(x, abs=0.26)
        assert float(row.sum()) == pytest.approx(2, abs=0.3)


def test_moving_the_mouth_changes_the_lips_channel_only() -> None:
    opened = face()
    opened[:, 65:68, 1] += 10
    changed = (landmark_map(opened, 256, 256) != landmark_map(face(), 256, 256)).flatten(2).any(dim=2)[0]
    assert changed.tolist() == [False, False, True]


def test_a_frame_ignores_the_rest_of_its_batch_and_size_is_rows_by_columns() -> None:
    both = torch.cat([face(), face() * 0.5])
    drawn = landmark_map(both, 120, 200)
    assert drawn.shape == (2, 3, 120, 200)
    assert torch.equal(drawn[1:], landmark_map(both[1:], 120, 200))


def test_points_anywhere_are_drawn_without_a_crash() -> None:
    wild = face()
    wild[0, 3], wild[0, 50] = torch.tensor([1e30, -1e30]), torch.tensor([torch.nan, torch.inf])
    assert landmark_map(wild, 64, 64).isfinite().all()


def test_an_overlay_leaves_its_frame_alone() -> None:
    frame = np.full((256, 256, 3), 90, np.uint8)
    drawn = overlay(frame, face()[0])
    assert drawn.shape == frame.shape and drawn.dtype == np.uint8
    assert (frame == 90).all() and (drawn != frame).any()
    x, y = face()[0, 30].round().int().tolist()
    assert (drawn[y, x] == 255).all()
    assert (drawn[:40] == 90).all()
