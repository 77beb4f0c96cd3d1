"""Landmarks that users bring."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.face.conventions import CONVENTIONS, IBUG68
from common.face.landmark_file import (
    LandmarkFile,
    as_model_has_them,
    check_landmarks,
    read_landmarks,
)
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
    assert np.allclose(read_landmarks(path).points, points, rtol=1e-6)


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
    model = FaceModel.builtin()
    points = as_model_has_them(LandmarkFile(flat), model.convention, 600, model)
    assert np.array_equal(points[:, :2], flat)
    wanted = -scale * (mean[:, 2] - mean[:, 2].mean())  # negative towards the camera
    assert np.corrcoef(points[:, 2], wanted)[0, 1] > 0.99
    assert np.array_equal(as_model_has_them(LandmarkFile(points), model.convention, 600, model), points)


def test_a_column_that_counts_the_points_is_left_out(tmp_path: Path) -> None:
    for first in (0, 1):
        np.savetxt(tmp_path / "numbered.csv", np.c_[np.arange(first, first + 68), POINTS[:, :2]], delimiter=",")
        assert np.allclose(read_landmarks(tmp_path / "numbered.csv").points, POINTS[:, :2], rtol=1e-6)


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


FACE = np.asarray([[200 + 60 * x, 300 - 60 * y] for x, y, _ in FaceModel.builtin().mean.tolist()], np.float32)


def test_a_file_may_say_what_its_points_mean(tmp_path: Path) -> None:
    for convention in CONVENTIONS:
        path = tmp_path / f"{convention}.json"
        path.write_text(json.dumps({"landmarks": FACE.tolist(), "convention": convention}))
        assert read_landmarks(path).convention == convention
    rows = "\n".join(" ".join(map(str, point)) for point in FACE.tolist())
    (tmp_path / "face.pts").write_text(f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n")
    (tmp_path / "face.txt").write_text(rows)
    (tmp_path / "list.json").write_text(json.dumps(FACE.tolist()))
    assert read_landmarks(tmp_path / "face.pts").convention == IBUG68
    assert read_landmarks(tmp_path / "face.txt").convention is None
    assert read_landmarks(tmp_path / "list.json").convention is None


@pytest.mark.parametrize("convention", ["wflw", "", 68, ["ibug68"], {"a": 1}, True])
def test_a_convention_that_nobody_knows_is_one_sentence(tmp_path: Path, convention: object) -> None:
    path = tmp_path / "face.json"
    path.write_text(json.dumps({"landmarks": FACE.tolist(), "convention": convention}))
    with pytest.raises(InputError, match=r"face\.json.*\"convention\".*ibug68") as error:
        read_landmarks(path)
    assert "\n" not in str(error.value)


def test_what_the_user_says_wins_over_the_file_and_the_file_over_the_default() -> None:
    model = FaceModel.builtin()
    silent, ibug = LandmarkFile(FACE), LandmarkFile(FACE, IBUG68)
    mapped = as_model_has_them(silent, None, 600, model)  # nearly all files are iBUG's
    same = as_model_has_them(LandmarkFile(FACE, model.convention), None, 600, model)
    assert same.shape == mapped.shape == (68, 3)
    assert np.array_equal(same[:, :2], FACE) and np.abs(mapped[:17, :2] - FACE[:17]).mean() > 1
    assert np.array_equal(mapped, as_model_has_them(ibug, None, 600, model))
    assert np.array_equal(same, as_model_has_them(ibug, model.convention, 600, model))


def test_depth_that_a_file_has_is_kept_and_falls_towards_the_camera() -> None:
    """Whichever way round the file has it: FaceMesh's falls, face-alignment's grows."""
    model = FaceModel.builtin()
    deep = np.concatenate([FACE, -60 * model.mean[:, 2:].numpy()], axis=1)
    for brought in (deep, deep * np.array([1, 1, -1], np.float32)):
        assert np.array_equal(as_model_has_them(LandmarkFile(brought), model.convention, 600, model), deep)
        assert np.array_equal(as_model_has_them(LandmarkFile(brought, IBUG68), None, 600, model)[:, 2], deep[:, 2])
