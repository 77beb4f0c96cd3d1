"""The exports in Blender itself: its module from PyPI, in an environment that uv makes for it (see `in_blender.py`)."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from common.export import formats, gltf, usd
from common.export.morphs import landmark_mesh
from common.export.points import POINT_NAMES
from common.export.take import Take
from common.media import read_picture
from tests.common.export.takes import RATES, smooth_take
from tests.common.export.test_gltf import dense_mesh

pytestmark = pytest.mark.tools

HERE = Path(__file__).parent
PYTHON = ["uv", "run", "--no-project", "--isolated", "--python", "3.11", "--with", "bpy==5.0.1", "python"]
CLOSE_M = 2e-5  # 0.02 mm; of them 0.01 are the morph targets'
SUFFIXES = [".glb", ".usda"]


def with_blender(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Compiling all of Blender's own add-ons would take longer than the tests do.
    environment = {name: value for name, value in os.environ.items() if name != "UV_COMPILE_BYTECODE"}
    return subprocess.run([*PYTHON, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def blender() -> None:
    """Skips where Blender itself can't be had or started: without network, or without a screen's libraries."""
    done = with_blender("-c", "import bpy")
    if done.returncode != 0:
        pytest.skip(f"no Blender here: {done.stderr.strip().splitlines()[-1]}")


def run(script: str, *arguments: str) -> None:
    done = with_blender(str(HERE / script), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def in_blender(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """What `in_blender.py` finds in each file; positions_m [F, V, 3] are Blender's own, Z up."""
    jobs_path = Path(jobs[0]["file"]).with_name("jobs.json")
    jobs_path.write_text(json.dumps(jobs))
    run("in_blender.py", str(jobs_path))
    found = []
    for each in jobs:
        with np.load(each["out"]) as arrays:
            found.append(dict(arrays))
        found[-1]["keyed_frames"] = json.loads(str(found[-1]["keyed_frames"]))
    return found


def job(path: Path, frames: Sequence[float], fps: float, fps_base: float = 1.0, **more: Any) -> dict[str, Any]:
    """`in_blender.Job`, whose module only Blender can import."""
    out = path.with_name(f"{path.name}.npz")
    return {"file": str(path), "out": str(out), "frames": list(frames), "fps": int(fps), "fps_base": fps_base, **more}


def exported(path: Path, take: Take, key_error_mm: float = 0.0) -> Path:
    """As users do it, through a Motion."""
    formats.write(take.motion(), formats.Request((path,), key_error_mm=key_error_mm))
    return path


def blenders(points: np.ndarray) -> np.ndarray:
    """Where a place [..., 3] of ours is in Blender: Z is up there, and a face looks along -Y."""
    return points[..., [0, 2, 1]] * [1, -1, 1]


@pytest.mark.parametrize("suffix", [".glb", ".usda", ".usdc"])
def test_named_points_are_where_the_take_has_them(tmp_path: Path, suffix: str) -> None:
    take, frames = smooth_take(60, seed=1), [0, 1, 17, 42, 59]
    (found,) = in_blender(job(exported(tmp_path / f"take{suffix}", take), frames, take.fps))
    assert found["positions_m"].shape == (len(frames), len(POINT_NAMES), 3)
    if suffix == ".glb":  # USD's custom data stays outside of Blender, its points come in the same order
        assert found["point_names"].tolist() == list(POINT_NAMES)
    np.testing.assert_allclose(found["positions_m"], blenders(take.posed[frames]), atol=CLOSE_M)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_dense_mesh_moves_beside_the_points(tmp_path: Path, suffix: str) -> None:
    take, sheet, path, frames = smooth_take(30), dense_mesh(30), tmp_path / f"take{suffix}", [0, 7, 29]
    landmarks = landmark_mesh(take, formats.curves_of(take))
    (gltf if suffix == ".glb" else usd).write(path, take, [landmarks, sheet])
    (found,) = in_blender(job(path, frames, take.fps))
    frontal = sheet.points + np.einsum("tk,kvc->tvc", sheet.weights, sheet.targets)
    posed = frontal @ take.rotation.swapaxes(-1, -2) + take.position[:, None]
    np.testing.assert_allclose(found["dense_m"][0], blenders(posed[frames]), atol=CLOSE_M)
    np.testing.assert_allclose(found["positions_m"], blenders(take.posed[frames]), atol=CLOSE_M)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_key_lies_on_a_frame_of_its_own_at_the_takes_rate(tmp_path: Path, suffix: str) -> None:
    n_keys, jobs, takes = 130, [], []
    for fps in RATES:
        takes.append(smooth_take(n_keys, fps))
        path, whole = exported(tmp_path / f"at_{fps:.3f}{suffix}", takes[-1]), round(fps)
        # A scene runs at fps / base, its glTF add-on believes at fps * base: docs/animation/blender.md says what to do.
        base = fps / whole if suffix == ".glb" else whole / fps
        jobs.append(job(path, [0, n_keys - 1], whole, base))
    for take, found in zip(takes, in_blender(*jobs), strict=True):
        assert found["keyed_frames"]
        for frames in found["keyed_frames"].values():
            np.testing.assert_allclose(frames, np.arange(n_keys), atol=1e-3)
        np.testing.assert_allclose(found["positions_m"], blenders(take.posed[[0, -1]]), atol=CLOSE_M)


def test_gltf_keeps_seconds_and_usd_keeps_frames_where_the_scene_has_another_rate(tmp_path: Path) -> None:
    take = smooth_take(20, fps=25)
    glb, usd = (exported(tmp_path / name, take) for name in ("take.glb", "take.usda"))
    of_gltf, of_usd = in_blender(job(glb, [38], 50), job(usd, [19], 50))
    for found in (of_gltf, of_usd):
        np.testing.assert_allclose(found["positions_m"][0], blenders(take.posed[19]), atol=CLOSE_M)
        assert found["rate_hz"] == 50  # neither changes the scene's rate
    assert of_usd["range"].tolist() == [0, 19]


def test_blenders_preset_for_ntsc_rates_stretches_gltf_by_a_500th(tmp_path: Path) -> None:
    take = smooth_take(101, fps=24000 / 1001)
    (found,) = in_blender(job(exported(tmp_path / "take.glb", take), [0], 24, 1.001))
    for frames in found["keyed_frames"].values():
        assert frames[-1] == pytest.approx(100 * 1.001**2, abs=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_head_turns_the_right_way_about_each_axis(tmp_path: Path, suffix: str) -> None:
    """Key 0 looks ahead; then 20 degrees about x, y and z of ours, each told in words of Blender's axes."""
    still = smooth_take(4)
    turns = Rotation.from_rotvec(np.radians([[0, 0, 0], [20, 0, 0], [0, 20, 0], [0, 0, 20]])).as_matrix()
    take = replace(still, points=still.points[[0] * 4], position=np.zeros((4, 3)), rotation=turns)
    (found,) = in_blender(job(exported(tmp_path / f"take{suffix}", take), range(4), take.fps))
    nose, chin, right_eye, left_eye = (
        found["positions_m"][:, POINT_NAMES.index(name)] for name in ("nose_30", "jaw_08", "eye_36", "eye_45")
    )
    ahead, down, left, tilted = range(4)
    far = 0.003  # 20 degrees take each of these points at least so many metres
    assert nose[ahead, 1] < right_eye[ahead, 1] - far  # faces -Y, towards Blender's front view
    assert right_eye[ahead, 2] > chin[ahead, 2] + far  # stands upright
    assert left_eye[ahead, 0] > right_eye[ahead, 0] + far  # the person's left is on +X
    assert nose[down, 2] < nose[ahead, 2] - far  # nods: the nose goes down,
    assert chin[down, 1] > chin[ahead, 1] + far  # the chin back to the chest
    assert nose[left, 0] > nose[ahead, 0] + far  # looks to its left,
    assert left_eye[left, 1] > right_eye[left, 1] + far  # the left eye goes back
    assert left_eye[tilted, 2] > right_eye[tilted, 2] + far  # leans to the right shoulder: the left eye is higher


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_points_stay_within_the_stated_error_where_keys_are_left_out(tmp_path: Path, suffix: str) -> None:
    take, error_mm = smooth_take(100, fps=60, seed=2), 0.5
    (found,) = in_blender(job(exported(tmp_path / f"take{suffix}", take, error_mm), range(100), take.fps))
    off_m = np.linalg.norm(found["positions_m"] - blenders(take.posed), axis=-1)
    assert off_m.max() <= error_mm / 1000 + CLOSE_M
    assert off_m.max() > CLOSE_M  # something was left out


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_face_of_ones_own_with_arkits_names_follows_the_takes_action(tmp_path: Path, suffix: str) -> None:
    take = smooth_take(50)
    (found,) = in_blender(job(exported(tmp_path / f"take{suffix}", take), range(50), take.fps))
    assert np.ptp(found["jaw_open"]) > 0.01
    np.testing.assert_array_equal(found["own_jaw_open"], found["jaw_open"])


def test_bvh_turns_and_moves_a_bone_as_the_head(tmp_path: Path) -> None:
    take = smooth_take(40, seed=4)
    (found,) = in_blender(job(exported(tmp_path / "take.bvh", take), range(1, 41), take.fps))  # from frame 1 on
    head, axes = found["head"], blenders(np.eye(3)).T
    np.testing.assert_allclose(head[:, :3, :3], axes @ take.rotation @ axes.T, atol=1e-5)
    np.testing.assert_allclose(head[:, :3, 3], blenders(take.position), atol=CLOSE_M)


@pytest.mark.parametrize("has_extras", [True, False])
def test_what_blender_exports_comes_back(tmp_path: Path, has_extras: bool) -> None:
    take = smooth_take(30, fps=30, seed=3)
    path, again = exported(tmp_path / "take.glb", take), tmp_path / "edited.glb"
    in_blender(job(path, [0], take.fps, reexport=str(again), reexport_extras=has_extras))
    back = gltf.read(again)
    assert back.fps == pytest.approx(take.fps)
    np.testing.assert_allclose(back.points, take.points, atol=CLOSE_M)
    np.testing.assert_allclose(back.posed, take.posed, atol=CLOSE_M)
    if has_extras:  # with Include > Custom Properties
        assert back.header() == Take.of(take.motion()).header()


def test_a_render_shows_the_face_and_its_open_mouth(tmp_path: Path) -> None:
    side_m, size_px = 0.22, 320  # of a tile, as in pictures.py
    still = smooth_take(2)
    points = still.points[[0, 0]]
    lower = [POINT_NAMES.index(f"lip_{number}") for number in (55, 56, 57, 58, 59, 65, 66, 67)]
    points[1, lower] -= [0, 0.02, 0]
    take = replace(still, points=points, rotation=np.stack([np.eye(3)] * 2), position=np.zeros((2, 3)))
    picture_path = tmp_path / "take.png"
    run("pictures.py", str(exported(tmp_path / "take.glb", take)), "25", str(picture_path), "0:front", "1:front")
    picture = read_picture(picture_path).astype(float)  # [320, 640, 3]
    paper = picture[5, 5]

    def shows_face(tile: int, place: np.ndarray) -> bool:
        """Whether there is anything before the paper at a place of the world (the median of 5 x 5 pixels)."""
        right, up, _ = (place - take.posed[0].mean(axis=0)) / side_m * size_px
        x, y = round(size_px / 2 + right) + tile * size_px, round(size_px / 2 - up)
        patch = picture[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
        return bool(np.abs(np.median(patch, axis=0) - paper).max() > 20)

    inner_lips = [POINT_NAMES.index(name) for name in ("lip_62", "lip_66")]
    mouth, cheek = points[1, inner_lips].mean(axis=0), points[1, [2, 31, 48]].mean(axis=0)
    assert shows_face(0, mouth) and not shows_face(1, mouth)
    assert shows_face(0, cheek) and shows_face(1, cheek)
