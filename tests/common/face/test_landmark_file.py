"""Landmarks that users bring."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.face.landmark_file import check_landmarks, read_landmarks, with_depth
from common.face.model import RIGID, FaceModel

POINTS = np.random.default_rng(0).uniform(-5, 4000, (68, 3)).round(3)


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("form", ["txt", "csv", "pts", "json", "npy", "object.json"])
def test_every_form_gives_the_points(tmp_path: Path, form: str, width: int) -> None:
    points, path = POINTS[:, :width], tmp_path / f"face.{form}"
    if form == "npy":
        np.save(path, points)
    elif form == "json":
        path.write_text(json.dumps(points.tolist()))
    elif form == "object.json":
        path.write_text(json.dumps({"landmarks": points.tolist()}))
    elif form == "pts":
        rows = "\n".join(" ".join(map(str, point)) for point in points)
        path.write_text(f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n")
    else:
        path.write_text("\n".join(("," if form == "csv" else " ").join(map(str, point)) for point in points))
    assert np.allclose(read_landmarks(path), points, rtol=1e-6)


@given(content=st.binary(min_size=1, max_size=300), suffix=st.sampled_from([".txt", ".json", ".npy", ".lms"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_anything_else_is_one_sentence(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="bad"):
        read_landmarks(path)


def test_nan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nan.npy"
    np.save(path, np.full((68, 2), np.nan))
    with pytest.raises(InputError, match=r"nan\.npy"):
        read_landmarks(path)


def test_flat_landmarks_get_depth_and_keep_their_place() -> None:
    mean = FaceModel.builtin().mean.numpy()
    scale = 120 / np.ptp(mean[:, 1])
    flat = np.stack([200 + scale * mean[:, 0], 300 - scale * mean[:, 1]], axis=1).astype(np.float32)
    points = with_depth(flat, 600, FaceModel.builtin())
    assert np.array_equal(points[:, :2], flat)
    wanted = -scale * (mean[:, 2] - mean[:, 2].mean())  # negative towards the camera
    assert np.corrcoef(points[:, 2], wanted)[0, 1] > 0.99
    assert with_depth(points, 600, FaceModel.builtin()) is points


def test_a_column_that_counts_the_points_is_left_out(tmp_path: Path) -> None:
    for first in (0, 1):
        np.savetxt(tmp_path / "numbered.csv", np.c_[np.arange(first, first + 68), POINTS[:, :2]], delimiter=",")
        assert np.allclose(read_landmarks(tmp_path / "numbered.csv"), POINTS[:, :2], rtol=1e-6)


def test_points_upside_down_mirrored_or_on_a_line_are_no_face() -> None:
    mean = FaceModel.builtin().mean.numpy()
    face = np.stack([200 + 60 * mean[:, 0], 300 - 60 * mean[:, 1]], axis=1)
    check_landmarks(face, Path("face.txt"), 400, 600)
    for wrong in (face * [1, -1] + [0, 600], face * [-1, 1] + [400, 0], face * [1, 0] + [0, 300]):
        with pytest.raises(InputError, match=r"face\.txt"):
            check_landmarks(wrong, Path("face.txt"), 400, 600)


def test_a_skull_on_one_line_is_no_face() -> None:
    mean = FaceModel.builtin().mean.numpy()
    face = np.stack([200 + 60 * mean[:, 0], 300 - 60 * mean[:, 1]], axis=1)
    face[list(RIGID), 1] = 280  # eyes, nose and ears at one height: above the mouth, but seen from anywhere
    with pytest.raises(InputError, match=r"face\.txt .* one line"):
        check_landmarks(face, Path("face.txt"), 400, 600)
