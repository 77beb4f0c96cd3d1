"""USD (.usda, .usdc): a face whose meshes are moved by one joint and by blend shapes, as UsdSkel has them.

    Face            SkelRoot, with the room that the whole take needs
      Skeleton      its one joint `head` rests at the world's origin, unturned
      Animation     per key the head's rotation and translation and the weights of all blend shapes
      <mesh>        the neutral face, frontal, bound to `head` as a whole
        <target>    one BlendShape each

metres, Y up, one time code per key: key k lies at time code k, and `timeCodesPerSecond` is the take's rate. Values
between keys are USD's: linear, and slerp for the head. What the format can't say (`Take.header`) is JSON in the layer's
customLayerData, the landmarks' names are in the customData of their mesh. There are no normals: UsdSkel moves them only
by offsets of their own, so viewers and tools make better ones from the moved points.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.export.keys import Kept, kept
from common.export.morphs import MorphMesh
from common.export.take import Take

if TYPE_CHECKING:
    from pxr import Sdf, Usd, UsdSkel

ROOT = "/Face"
JOINT = "head"
_BONE_LENGTH_M = 0.1  # as Blender shows the joint, which knows no length: it would be 1 m


def write(path: Path, take: Take, meshes: Sequence[MorphMesh], keys: Kept | None = None) -> None:
    """Write a stage, as text or binary by the suffix of `path`; a file that is there is written over.

    meshes: one or more; keys: those that are written (`common.export.keys.kept`), by default all of them.
    Raises OSError where the file can't be written.
    """
    from pxr import Tf, Usd, UsdGeom, UsdSkel, Vt

    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, UsdGeom.LinearUnits.meters)
    stage.SetFramesPerSecond(take.fps)
    stage.SetTimeCodesPerSecond(take.fps)
    stage.SetStartTimeCode(0)
    stage.SetEndTimeCode(take.n_keys - 1)

    root = UsdSkel.Root.Define(stage, ROOT)
    stage.SetDefaultPrim(root.GetPrim())
    names, weights = _channels(meshes)
    root.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(_room(take, meshes)))
    skeleton, animation = _skeleton(stage, names)
    for mesh, targets in zip(meshes, names, strict=True):
        _mesh(stage, mesh, targets, skeleton)

    layer = stage.GetRootLayer()
    layer.documentation = "A face's performance, written by Duet"
    layer.customLayerData = {"duet": json.dumps(take.header(), ensure_ascii=False, separators=(",", ":"))}
    _add_samples(layer, animation, take, weights, keys or kept(take, 0.0))
    try:
        is_written = layer.Export(str(path))
    except Tf.ErrorException as error:
        raise OSError(str(error).strip().rsplit(" : ", 1)[-1].strip("'")) from error
    if not is_written:
        raise OSError("usd-core doesn't say why")


def _skeleton(stage: Usd.Stage, names: Iterable[Iterable[str]]) -> tuple[UsdSkel.Skeleton, UsdSkel.Animation]:
    """One joint and what moves it; `names`: of the blend shapes of all meshes."""
    from pxr import Gf, Sdf, UsdGeom, UsdSkel, Vt

    skeleton = UsdSkel.Skeleton.Define(stage, f"{ROOT}/Skeleton")
    skeleton.CreateJointsAttr([JOINT])
    skeleton.CreateBindTransformsAttr([Gf.Matrix4d(1)])
    skeleton.CreateRestTransformsAttr([Gf.Matrix4d(1)])
    lengths = UsdGeom.PrimvarsAPI(skeleton).CreatePrimvar("blender:bone_lengths", Sdf.ValueTypeNames.FloatArray)
    lengths.Set([_BONE_LENGTH_M])

    animation = UsdSkel.Animation.Define(stage, f"{ROOT}/Animation")
    animation.CreateJointsAttr([JOINT])
    animation.CreateScalesAttr([Gf.Vec3h(1)])
    animation.CreateBlendShapesAttr(Vt.TokenArray(list(dict.fromkeys(name for own in names for name in own))))
    UsdSkel.BindingAPI.Apply(skeleton.GetPrim()).CreateAnimationSourceRel().SetTargets([animation.GetPath()])
    return skeleton, animation


def _mesh(stage: Usd.Stage, mesh: MorphMesh, names: Sequence[str], skeleton: UsdSkel.Skeleton) -> None:
    """One mesh with its blend shapes, frontal and at rest."""
    from pxr import Gf, UsdGeom, UsdSkel, Vt

    points = mesh.points.astype(np.float32)
    shape = UsdGeom.Mesh.Define(stage, f"{ROOT}/{_identifier(mesh.name)}")
    shape.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
    shape.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([points.min(axis=0), points.max(axis=0)])))
    shape.CreateFaceVertexCountsAttr(Vt.IntArray(len(mesh.triangles), 3))
    shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.triangles.astype(np.int32).ravel()))
    shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)  # smoothing would move the points
    shape.CreateDoubleSidedAttr(True)  # a face is an open surface
    if mesh.point_names:
        shape.GetPrim().SetCustomDataByKey("pointNames", Vt.StringArray(list(mesh.point_names)))

    binding = UsdSkel.BindingAPI.Apply(shape.GetPrim())
    binding.CreateSkeletonRel().SetTargets([skeleton.GetPath()])
    binding.CreateGeomBindTransformAttr(Gf.Matrix4d(1))
    binding.CreateJointIndicesPrimvar(True, 1).Set([0])
    binding.CreateJointWeightsPrimvar(True, 1).Set([1.0])
    binding.CreateBlendShapesAttr(Vt.TokenArray(list(names)))
    targets = binding.CreateBlendShapeTargetsRel()
    for name, offsets in zip(names, mesh.targets.astype(np.float32), strict=True):
        target = UsdSkel.BlendShape.Define(stage, shape.GetPath().AppendChild(name))
        # Indices always, and one at least: Maya's importer keeps the last target's where a target has none, and it and
        # Blender's leave out a target without offsets.
        moved = np.flatnonzero(offsets.any(axis=-1)) if offsets.any() else np.zeros(1, np.int64)
        target.CreateOffsetsAttr(Vt.Vec3fArray.FromNumpy(offsets[moved]))
        target.CreatePointIndicesAttr(Vt.IntArray.FromNumpy(moved.astype(np.int32)))
        targets.AddTarget(target.GetPath())


def _add_samples(layer: Sdf.Layer, animation: UsdSkel.Animation, take: Take, weights: np.ndarray, keys: Kept) -> None:
    """The keys of the head and of the blend shapes (weights: [T, K] float32), which may be different ones."""
    from pxr import Gf, Sdf, Vt

    rotations = animation.CreateRotationsAttr().GetPath()
    translations = animation.CreateTranslationsAttr().GetPath()
    shapes = animation.CreateBlendShapeWeightsAttr().GetPath()
    quaternion = take.quaternion.tolist()
    with Sdf.ChangeBlock():  # one notice instead of one per key
        for key in keys.head.tolist():
            x, y, z, w = quaternion[key]
            layer.SetTimeSample(rotations, key, Vt.QuatfArray([Gf.Quatf(w, x, y, z)]))
            layer.SetTimeSample(translations, key, Vt.Vec3fArray([Gf.Vec3f(*take.position[key].tolist())]))
        for key in keys.face.tolist():
            layer.SetTimeSample(shapes, key, Vt.FloatArray.FromNumpy(weights[key]))


def _channels(meshes: Sequence[MorphMesh]) -> tuple[list[list[str]], np.ndarray]:
    """Names of each mesh's targets, and the weights [T, K] float32 of all of them, in the order of their first naming.

    One animation moves all meshes and finds their targets by name, so a name is shared only where the weights are.
    """
    columns: dict[str, np.ndarray] = {}
    names = []
    for mesh in meshes:
        own: list[str] = []
        for target, weights in zip(mesh.target_names, mesh.weights.astype(np.float32).T, strict=True):
            name = _identifier(target)
            while name in own or not np.array_equal(columns.get(name, weights), weights):
                name = f"{_identifier(mesh.name)}_{name}"
            columns[name] = weights
            own.append(name)
        names.append(own)
    none = np.zeros((len(meshes[0].weights), 0), np.float32)
    return names, np.column_stack([none, *columns.values()])


def _identifier(name: str) -> str:
    """A name that a prim can have, and a node of Maya: letters, digits and underscores."""
    from pxr import Tf

    return Tf.MakeValidIdentifier(name.replace("+", "_plus").replace("-", "_minus"))


def _room(take: Take, meshes: Sequence[MorphMesh]) -> np.ndarray:
    """[2, 3] float32: lower and upper corner of a box that no key leaves.

    Wide rather than exact, which would mean every vertex at every key: a box about each mesh, grown by how far each
    target's weight may move a vertex, turned and moved with the head.
    """
    corners = []
    for mesh in meshes:
        low = mesh.points.min(axis=0) + mesh.weights @ mesh.targets.min(axis=1).clip(max=0)  # [T, 3]
        high = mesh.points.max(axis=0) + mesh.weights @ mesh.targets.max(axis=1).clip(min=0)
        choice = np.array([[i >> axis & 1 for axis in range(3)] for i in range(8)], bool)
        frontal = np.where(choice, high[:, None], low[:, None])  # [T, 8, 3]
        corners.append(frontal @ take.rotation.swapaxes(-1, -2) + take.position[:, None])
    box = np.concatenate(corners)
    return np.stack([box.min(axis=(0, 1)), box.max(axis=(0, 1))]).astype(np.float32)
