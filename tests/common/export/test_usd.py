"""USD as usd-core itself reads it: UsdSkel moves the points, UsdValidation finds nothing to say."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.spatial import Delaunay
from scipy.spatial.transform import Rotation

from common.export import usd
from common.export.arkit import solve
from common.export.keys import kept
from common.export.morphs import EXACT_M, MorphMesh, landmark_mesh
from common.export.points import POINT_NAMES
from common.export.take import Take
from tests.common.export.takes import RATES, smooth_take, takes

pytest.importorskip("pxr")
from pxr import Sdf, Usd, UsdGeom, UsdSkel, UsdValidation

FLOAT32_M = 1e-6  # what single precision leaves of sums of centimetres, far below the 0.1 mm that is asked for


def mesh_of(take: Take, name: str = "landmarks") -> MorphMesh:
    """Each key a target of its own, exact for any take."""
    return MorphMesh(
        name,
        points=take.neutral,
        triangles=Delaunay(take.neutral[:, :2]).simplices.astype(np.int64),
        target_names=tuple(f"key_{key}" for key in range(take.n_keys)),
        targets=take.points - take.neutral,
        weights=np.eye(take.n_keys),
        point_names=POINT_NAMES,
    )


def open_stage(path: Path) -> Usd.Stage:
    return Usd.Stage.Open(Sdf.Layer.OpenAsAnonymous(str(path)))  # anonymous: never the one of an earlier test


def evaluated(stage: Usd.Stage, name: str = "landmarks") -> np.ndarray:
    """[T, V, 3]: points at every key in world space, as UsdSkel's own skinning puts them."""
    root = UsdSkel.Root(stage.GetDefaultPrim())
    assert UsdSkel.BakeSkinning(root)
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath(f"{usd.ROOT}/{name}"))
    found = []
    for key in range(int(stage.GetEndTimeCode()) + 1):
        to_world = np.array(mesh.ComputeLocalToWorldTransform(key))
        found.append(np.array(mesh.GetPointsAttr().Get(key)) @ to_world[:3, :3] + to_world[3, :3])
    return np.array(found)


@settings(max_examples=25, deadline=None)
@given(takes())
def test_points_at_every_key_are_the_takes(take: Take) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "take.usdc"
        usd.write(path, take, [mesh_of(take)])
        np.testing.assert_allclose(evaluated(open_stage(path)), take.posed, atol=FLOAT32_M)


def test_landmark_mesh_moves_as_the_take(tmp_path: Path) -> None:
    take = smooth_take(60)
    usd.write(tmp_path / "take.usda", take, [landmark_mesh(take, solve(take))])
    found = evaluated(open_stage(tmp_path / "take.usda"), "face")
    assert np.linalg.norm(found - take.posed, axis=-1).max() <= EXACT_M + FLOAT32_M


@pytest.mark.parametrize("suffix", [".usda", ".usdc"])
@pytest.mark.parametrize("n_keys", [1, 2, 30])
def test_validators_find_nothing(tmp_path: Path, suffix: str, n_keys: int) -> None:
    take = smooth_take(n_keys)
    path = tmp_path / f"take{suffix}"
    usd.write(path, take, [mesh_of(take), landmark_mesh(take, solve(take))])
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 20
    found = UsdValidation.ValidationContext(validators).Validate(open_stage(path))
    assert [f"{error.GetName()}: {error.GetMessage()}" for error in found] == []


@pytest.mark.parametrize("fps", RATES)
def test_units_axes_and_rate_are_stated(tmp_path: Path, fps: float) -> None:
    take = smooth_take(7, fps)
    usd.write(tmp_path / "take.usda", take, [mesh_of(take)])
    stage = open_stage(tmp_path / "take.usda")
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.y
    assert stage.GetTimeCodesPerSecond() == stage.GetFramesPerSecond() == fps
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, 6)
    assert stage.GetDefaultPrim().IsA(UsdSkel.Root)


@pytest.mark.parametrize(
    ("axis", "point", "moves_along", "towards"),
    [
        ((1, 0, 0), "nose_30", 1, -1),  # about x: the nose goes down
        ((0, 1, 0), "nose_30", 0, 1),  # about y: to the person's left, which is +x
        ((0, 0, 1), "jaw_08", 0, 1),  # about z: the chin to the person's left
    ],
)
def test_head_turns_the_right_way(
    tmp_path: Path, axis: tuple[int, int, int], point: str, moves_along: int, towards: int
) -> None:
    still = smooth_take(2)
    turned = Rotation.from_rotvec([[0.0, 0.0, 0.0], np.radians(20) * np.array(axis)]).as_matrix()
    take = replace(still, points=still.points[[0, 0]], rotation=turned, position=np.zeros((2, 3)))
    usd.write(tmp_path / "take.usda", take, [mesh_of(take)])
    stage = open_stage(tmp_path / "take.usda")
    names = stage.GetPrimAtPath(f"{usd.ROOT}/landmarks").GetCustomDataByKey("pointNames")
    before, after = evaluated(stage)[:, list(names).index(point)]
    assert (after - before)[moves_along] * towards > 0.005


def test_ten_thousand_keys(tmp_path: Path) -> None:
    take = smooth_take(10_000, fps=60.0)
    usd.write(tmp_path / "take.usdc", take, [landmark_mesh(take, solve(take))])
    stage = open_stage(tmp_path / "take.usdc")
    animation = UsdSkel.Animation.Get(stage, f"{usd.ROOT}/Animation")
    for attribute in (animation.GetRotationsAttr(), animation.GetBlendShapeWeightsAttr()):
        assert attribute.GetTimeSamples() == list(range(10_000))
    moved = {key: np.array(animation.GetTranslationsAttr().Get(key))[0] for key in (0, 4321, 9999)}
    for key, position in moved.items():
        np.testing.assert_allclose(position, take.position[key], atol=FLOAT32_M)


def test_left_out_keys_stay_within_the_stated_error(tmp_path: Path) -> None:
    take, error_m = smooth_take(200, fps=240.0), 1e-3
    mesh = landmark_mesh(take, solve(take))
    usd.write(tmp_path / "take.usda", take, [mesh], kept(take, error_m, [mesh]))
    stage = open_stage(tmp_path / "take.usda")
    animation = UsdSkel.Animation.Get(stage, f"{usd.ROOT}/Animation")
    assert animation.GetRotationsAttr().GetNumTimeSamples() < 150
    assert animation.GetBlendShapeWeightsAttr().GetNumTimeSamples() < 150
    n_shapes = len(animation.GetBlendShapesAttr().Get())
    weights = np.array([animation.GetBlendShapeWeightsAttr().Get(key) for key in range(200)])  # USD interpolates
    assert weights.shape == (200, n_shapes)
    frontal = mesh.points + np.tensordot(weights, mesh.targets, 1)
    skeleton = UsdSkel.Cache().GetSkelQuery(UsdSkel.Skeleton.Get(stage, f"{usd.ROOT}/Skeleton"))
    for key in range(200):
        head = np.array(skeleton.ComputeJointSkelTransforms(key)[0])  # rows: v M
        posed = frontal[key] @ head[:3, :3] + head[3, :3]
        assert np.linalg.norm(posed - take.posed[key], axis=-1).max() <= error_m + EXACT_M


def test_meshes_keep_their_own_weights_under_one_name(tmp_path: Path) -> None:
    take = smooth_take(6)
    one, other = mesh_of(take), replace(mesh_of(take, "dense"), weights=np.eye(6)[::-1].copy())
    usd.write(tmp_path / "take.usda", take, [one, other])
    stage = open_stage(tmp_path / "take.usda")
    shown = UsdSkel.Animation.Get(stage, f"{usd.ROOT}/Animation").GetBlendShapesAttr().Get()
    assert {"key_0", "dense_key_0"} <= set(shown)
    frontal = evaluated(stage, "dense") - take.position[:, None]
    expected = take.points[::-1] @ take.rotation.swapaxes(-1, -2)
    np.testing.assert_allclose(frontal, expected, atol=FLOAT32_M)


def test_meshes_share_a_target_that_moves_both_alike(tmp_path: Path) -> None:
    take = smooth_take(6)
    usd.write(tmp_path / "take.usda", take, [mesh_of(take), mesh_of(take, "dense")])
    stage = open_stage(tmp_path / "take.usda")
    shown = UsdSkel.Animation.Get(stage, f"{usd.ROOT}/Animation").GetBlendShapesAttr().Get()
    assert list(shown) == [f"key_{key}" for key in range(6)]


def test_targets_hold_only_the_points_that_they_move(tmp_path: Path) -> None:
    take = smooth_take(2)
    points = np.stack([take.neutral, take.neutral])
    points[1, 57] -= [0, 0.01, 0]
    take = replace(take, points=points)
    usd.write(tmp_path / "take.usda", take, [mesh_of(take)])
    stage = open_stage(tmp_path / "take.usda")
    one = UsdSkel.BlendShape.Get(stage, f"{usd.ROOT}/landmarks/key_1")
    assert list(one.GetPointIndicesAttr().Get()) == [57]
    nothing = UsdSkel.BlendShape.Get(stage, f"{usd.ROOT}/landmarks/key_0")  # importers leave out an empty one
    assert len(nothing.GetPointIndicesAttr().Get()) == len(nothing.GetOffsetsAttr().Get()) == 1


def test_names_are_such_as_prims_and_tools_can_have(tmp_path: Path) -> None:
    take = smooth_take(2)
    mesh = replace(mesh_of(take), target_names=("corrective_00+", "corrective_00-"))
    usd.write(tmp_path / "take.usda", take, [mesh])
    stage = open_stage(tmp_path / "take.usda")
    binding = UsdSkel.BindingAPI.Get(stage, f"{usd.ROOT}/landmarks")
    names = list(binding.GetBlendShapesAttr().Get())
    assert names == ["corrective_00_plus", "corrective_00_minus"]
    assert [path.name for path in binding.GetBlendShapeTargetsRel().GetTargets()] == names


def test_extent_holds_every_point_of_every_key(tmp_path: Path) -> None:
    take = smooth_take(50)
    usd.write(tmp_path / "take.usda", take, [landmark_mesh(take, solve(take))])
    stage = open_stage(tmp_path / "take.usda")
    low, high = np.array(UsdSkel.Root(stage.GetDefaultPrim()).GetExtentAttr().Get())
    assert (take.posed >= low - EXACT_M).all()
    assert (take.posed <= high + EXACT_M).all()


@given(takes(most_keys=3))
@settings(max_examples=10, deadline=None)
def test_header_comes_back(take: Take) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "take.usda"
        usd.write(path, take, [mesh_of(take)])
        header = json.loads(open_stage(path).GetRootLayer().customLayerData["duet"])
        assert header == take.header()
        assert Take.of_header(header, take.points, take.rotation, take.position).fps == take.fps


def test_same_take_gives_same_bytes(tmp_path: Path) -> None:
    take = smooth_take(5)
    for suffix in (".usda", ".usdc"):
        for name in ("one", "other"):
            usd.write(tmp_path / f"{name}{suffix}", take, [mesh_of(take)])
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"other{suffix}").read_bytes()


def test_place_that_cannot_be_written_is_an_error_as_of_other_files(tmp_path: Path) -> None:
    take = smooth_take(2)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"^Unable to open .*take\.usda"):
        usd.write(tmp_path / "file" / "take.usda", take, [mesh_of(take)])
