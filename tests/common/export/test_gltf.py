"""glTF: what is written means the take to anyone who keeps to the specification, and comes back."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation, Slerp

from common.errors import InputError
from common.export import gltf
from common.export.gltf_file import GltfFile, Sampler, evaluate
from common.export.morphs import MorphMesh
from common.export.points import POINT_NAMES
from common.export.take import Take
from tests.common.export.gltf_parts import OFF_M, Document, appended, as_text, edited, floats, parts, written
from tests.common.export.takes import RATES, assert_close, smooth_take, takes

VALIDATOR = "gltf-validator@2.0.0-dev.3.10"


def same(take: Take, other: Take) -> None:
    assert_close(other, take, OFF_M, off_rad=1e-6)
    assert np.linalg.norm(other.points - take.points, axis=-1).max() < OFF_M
    assert np.abs(other.position - take.position).max() < 1e-6


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(takes())
def test_any_take_comes_back(tmp_path: Path, take: Take) -> None:
    same(take, gltf.read(written(tmp_path, take)))


@pytest.mark.parametrize("fps", RATES)
def test_every_rate_comes_back_even_without_a_header(tmp_path: Path, fps: float) -> None:
    take = smooth_take(40, fps)
    path = written(tmp_path, take)
    assert gltf.read(path).fps == fps
    document, binary = parts(path)
    del document["scenes"][0]["extras"]
    bare = gltf.read(as_text(tmp_path / "bare.gltf", document, binary))
    assert bare.fps == pytest.approx(fps, rel=1e-12) and bare.n_keys == 40 and not bare.is_named


@pytest.mark.parametrize("n_keys", [1, 2, 10_000])
def test_one_key_and_ten_thousand_come_back(tmp_path: Path, n_keys: int) -> None:
    take = smooth_take(n_keys, 30000 / 1001)
    same(take, gltf.read(written(tmp_path, take)))


def test_points_are_where_the_specification_puts_them(tmp_path: Path) -> None:
    """Evaluated by hand: metres and seconds, the head's node turns and moves its child's morphed vertices."""
    take = smooth_take(20, 24.0)
    document, binary = parts(written(tmp_path, take))
    head, face = document["nodes"]
    assert head["name"] == "head" and head["children"] == [1] and document["scenes"][0]["nodes"] == [0]
    assert set(face) == {"name", "mesh"}  # no transform of its own
    mesh, animation = document["meshes"][0], document["animations"][0]
    points = floats(document, binary, mesh["primitives"][0]["attributes"]["POSITION"])
    targets = [floats(document, binary, target["POSITION"]) for target in mesh["primitives"][0]["targets"]]
    played = {}
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        assert sampler["interpolation"] == "LINEAR"
        times_s = floats(document, binary, sampler["input"])[:, 0]
        assert np.allclose(times_s, np.arange(20) / 24.0, atol=1e-7)
        played[channel["target"]["path"]] = floats(document, binary, sampler["output"])
    weights = played["weights"].reshape(20, len(targets))
    for k in (0, 7, 19):
        local = points + sum(weight * target for weight, target in zip(weights[k], targets, strict=True))
        world = Rotation.from_quat(played["rotation"][k]).apply(local) + played["translation"][k]
        assert np.linalg.norm(world - take.posed[k], axis=1).max() < OFF_M


def test_the_face_is_smooth_named_and_faces_forward(tmp_path: Path) -> None:
    document, binary = parts(written(tmp_path, smooth_take(3)))
    mesh = document["meshes"][0]
    primitive = mesh["primitives"][0]
    normals = floats(document, binary, primitive["attributes"]["NORMAL"])
    assert normals.shape == (68, 3) and np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    assert (normals[:, 2] > 0).all()  # +Z is forward
    assert mesh["extras"]["point_names"].split() == list(POINT_NAMES)
    assert len(mesh["extras"]["targetNames"]) == len(primitive["targets"]) == len(mesh["weights"])
    assert document["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0


@pytest.mark.parametrize("error_mm", [0.2, 2.0])
def test_left_out_keys_move_no_point_further_than_is_stated(tmp_path: Path, error_mm: float) -> None:
    take = smooth_take(200, 240.0)
    path = written(tmp_path, take, key_error_m=error_mm / 1000)
    document, _ = parts(path)
    counts = [document["accessors"][sampler["input"]]["count"] for sampler in document["animations"][0]["samplers"]]
    assert max(counts) < 200
    found = gltf.read(path)
    assert found.header() == take.header() and found.n_keys == 200
    assert np.linalg.norm(found.posed - take.posed, axis=-1).max() < error_mm / 1000 + OFF_M


def dense_mesh(n_keys: int) -> MorphMesh:
    """A wavy sheet of 50 x 50 vertices; one target moves all, one a few, one none."""
    rng = np.random.default_rng(0)
    across = np.linspace(-0.1, 0.1, 50)
    points = np.stack([*np.meshgrid(across, across), 0.01 * rng.normal(size=(50, 50))], axis=-1).reshape(-1, 3)
    corner = (np.arange(49) + 50 * np.arange(49)[:, None]).ravel()
    triangles = np.concatenate([corner[:, None] + [0, 1, 51], corner[:, None] + [0, 51, 50]])
    targets = 0.004 * rng.normal(size=(3, 2500, 3))
    targets[1, 100:], targets[2] = 0, 0
    sway = 0.5 + 0.5 * np.sin(np.arange(n_keys)[:, None] / [5, 7, 9])
    return MorphMesh("sheet", points, triangles, ("all", "few", "none"), targets, sway)


def test_a_dense_mesh_goes_along_and_what_stays_still_costs_nothing(tmp_path: Path) -> None:
    take, sheet = smooth_take(30), dense_mesh(30)
    path = written(tmp_path, take, sheet)
    same(take, gltf.read(path))  # the 68 points are told from it
    file = GltfFile.load(path)
    primitive = file.document["meshes"][1]["primitives"][0]
    accessors = [target["POSITION"] for target in primitive["targets"]]
    assert ["sparse" in file.document["accessors"][number] for number in accessors] == [False, True, True]
    for number, target in zip(accessors, sheet.targets, strict=True):
        found, stated = file.accessor(number), file.document["accessors"][number]
        assert np.abs(found - target).max() < 1e-8
        assert stated["min"] == found.min(axis=0).tolist() and stated["max"] == found.max(axis=0).tolist()
    assert (file.accessor(primitive["indices"])[:, 0] == sheet.triangles.ravel()).all()


def test_left_out_keys_of_a_dense_mesh_keep_all_its_vertices(tmp_path: Path) -> None:
    take, sheet = smooth_take(300), dense_mesh(300)
    file = GltfFile.load(written(tmp_path, take, sheet, key_error_m=0.002))
    sampler = file.sampler(file.animated()[2, "weights"])
    assert len(sampler.times_s) < 300
    off = (evaluate(sampler, np.arange(300) / 25) - sheet.weights) @ sheet.targets.reshape(3, -1)
    assert np.linalg.norm(off.reshape(300, -1, 3), axis=-1).max() < 0.001


def test_a_take_that_float32_cannot_time_is_refused(tmp_path: Path) -> None:
    still = replace(smooth_take(1), fps=1000.0)
    many = replace(
        still,
        points=np.broadcast_to(still.points, (2**24 + 2, 68, 3)),
        position=np.broadcast_to(still.position, (2**24 + 2, 3)),
        rotation=np.broadcast_to(still.rotation, (2**24 + 2, 3, 3)),
    )
    with pytest.raises(InputError, match="can't tell the keys"):
        gltf.write(tmp_path / "take.glb", many, [])


# ---- what other tools make of it ------------------------------------------------------------------------------------


def test_vertices_in_another_order_are_found_by_name(tmp_path: Path) -> None:
    take, order = smooth_take(4), np.random.default_rng(0).permutation(68)

    def shuffle(document: Document, binary: bytes) -> bytes:
        mesh = document["meshes"][0]
        mesh["extras"]["point_names"] = " ".join(POINT_NAMES[i] for i in order)
        for shape in (mesh["primitives"][0]["attributes"], *mesh["primitives"][0]["targets"]):
            shape["POSITION"], binary = appended(
                document, binary, floats(document, binary, shape["POSITION"])[order], "VEC3"
            )
        return binary

    same(take, edited(tmp_path, take, shuffle))


def test_split_vertices_are_one_again(tmp_path: Path) -> None:
    take, split = smooth_take(4), np.sort(np.concatenate([np.arange(68), [0, 3, 3, 67]]))

    def with_more(document: Document, binary: bytes) -> bytes:
        primitive = document["meshes"][0]["primitives"][0]
        for shape in (primitive["attributes"], *primitive["targets"]):
            shape["POSITION"], binary = appended(
                document, binary, floats(document, binary, shape["POSITION"])[split], "VEC3"
            )
        del document["meshes"][0]["extras"]
        return binary

    same(take, edited(tmp_path, take, with_more))


def test_a_tool_that_counts_in_centimetres_changes_nothing(tmp_path: Path) -> None:
    """A root node that scales by 1/100, the take below it in centimetres."""
    take = smooth_take(4)

    def in_centimetres(document: Document, binary: bytes) -> bytes:
        primitive = document["meshes"][0]["primitives"][0]
        shapes = (primitive["attributes"], *primitive["targets"])
        tracks = {channel["target"]["path"]: channel["sampler"] for channel in document["animations"][0]["channels"]}
        moved = document["animations"][0]["samplers"][tracks["translation"]]
        for holder, key in (*((shape, "POSITION") for shape in shapes), (moved, "output")):
            holder[key], binary = appended(document, binary, 100 * floats(document, binary, holder[key]), "VEC3")
        document["nodes"].append({"children": [0], "matrix": [0.01, *[0] * 4, 0.01, *[0] * 4, 0.01, *[0] * 4, 1]})
        return binary

    same(take, edited(tmp_path, take, in_centimetres))


def test_a_turned_root_turns_the_head(tmp_path: Path) -> None:
    take = smooth_take(4)
    turn = Rotation.from_euler("x", 90, degrees=True)

    def turned(document: Document, binary: bytes) -> bytes:
        document["nodes"].append({"children": [0], "rotation": turn.as_quat().tolist(), "translation": [0, 0.5, 0]})
        return binary

    found = edited(tmp_path, take, turned)
    assert np.abs(found.posed - turn.apply(take.posed.reshape(-1, 3)).reshape(-1, 68, 3) - [0, 0.5, 0]).max() < OFF_M
    assert np.linalg.norm(found.points - take.points, axis=-1).max() < OFF_M


def test_keys_at_another_rate_and_a_late_start_are_played_as_they_are(tmp_path: Path) -> None:
    """A scene of 30 frames a second that begins at frame 3, as tools bake it; before that the face holds still."""
    take, later = smooth_take(9), 0.1

    def baked(document: Document, binary: bytes) -> bytes:
        times, binary = appended(document, binary, np.arange(9) / 30 + later, "SCALAR")
        for sampler in document["animations"][0]["samplers"]:
            sampler["input"] = times
        return binary

    found = edited(tmp_path, take, baked)
    assert found.fps == 30 and found.n_keys == 12
    assert np.linalg.norm(found.points[3:] - take.points, axis=-1).max() < OFF_M
    assert np.linalg.norm(found.points[:3] - take.points[0], axis=-1).max() < OFF_M


def test_keys_hours_away_are_told_although_float32_is_coarse_there() -> None:
    times_s = (np.arange(648_000) / 60).astype(np.float32).astype(float)  # three hours
    assert np.abs(times_s * 60 - np.arange(648_000)).max() > gltf._OFF_GRID
    assert gltf._rate(times_s, 60.0) == 60
    on_grid = gltf._on_grid(Sampler(times_s, np.zeros((648_000, 1)), "LINEAR"), 60.0)
    assert (on_grid.times_s == np.arange(648_000) / 60).all()


def test_a_face_without_animation_is_one_key(tmp_path: Path) -> None:
    def frozen(document: Document, binary: bytes) -> bytes:
        del document["animations"]
        return binary

    take = smooth_take(3)
    found = edited(tmp_path, take, frozen)
    assert found.n_keys == 1 and np.abs(found.rotation[0] - take.rotation[0]).max() < 1e-6


@pytest.mark.parametrize("n", [1, 2, 7])
def test_keys_are_joined_as_scipy_joins_them(n: int) -> None:
    rng = np.random.default_rng(n)
    times, at = np.cumsum(rng.uniform(0.1, 1, n)), np.linspace(-1, 8, 50)
    values, into, out_of = rng.normal(size=(3, n, 4))
    inside = at.clip(times[0], times[-1])
    linear = np.stack([np.interp(at, times, values[:, i]) for i in range(4)], axis=1)
    assert np.allclose(evaluate(Sampler(times, values, "LINEAR"), at), linear)
    cubic = evaluate(Sampler(times, np.stack([into, values, into], axis=1), "CUBICSPLINE"), at)
    unequal = evaluate(Sampler(times, np.stack([into, values, out_of], axis=1), "CUBICSPLINE"), times)
    assert np.allclose(unequal, values)
    if n > 1:
        assert np.allclose(cubic, CubicHermiteSpline(times, values, into)(inside))
        turns = Rotation.from_quat(values)
        found = Rotation.from_quat(evaluate(Sampler(times, values, "LINEAR"), at, is_rotation=True))
        assert (found * Slerp(times, turns)(inside).inv()).magnitude().max() < 1e-6
        stepped = evaluate(Sampler(times, values, "STEP"), at)
        assert (stepped == values[(np.searchsorted(times, inside, "right") - 1).clip(0)]).all()


# ---- the Khronos validator ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def validator() -> Path:
    """The folder that has it, fetched on first use and kept where caches are kept."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "duet" / VALIDATOR.replace("@", "-")
    if not (folder / "node_modules" / "gltf-validator").is_dir():
        subprocess.run(["npm", "install", "--no-save", "--prefix", folder, VALIDATOR], check=True, capture_output=True)
    return folder


@pytest.mark.tools
@pytest.mark.parametrize("key_error_m", [0.0, 0.001])
@pytest.mark.parametrize("n_keys", [1, 120])
def test_the_khronos_validator_has_nothing_to_say(
    tmp_path: Path, validator: Path, n_keys: int, key_error_m: float
) -> None:
    path = written(tmp_path, smooth_take(n_keys), dense_mesh(n_keys), key_error_m=key_error_m)
    script = Path(__file__).with_name("validate_gltf.mjs")
    run = subprocess.run(["node", script, validator, path], check=True, capture_output=True, text=True)
    report = json.loads(run.stdout)
    assert report["issues"]["messages"] == []  # no errors, no warnings, not even hints
    assert report["info"]["hasMorphTargets"] and report["info"]["animationCount"] == 1
