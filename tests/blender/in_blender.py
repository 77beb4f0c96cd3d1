"""What Blender makes of a file, in numbers. Blender's own Python runs this, so nothing of the repository is imported:

    uv run --no-project --isolated --python 3.11 --with "bpy==5.0.1" python in_blender.py JOBS.json

JOBS.json: a list of objects like `Job`. Each is imported into an empty scene whose rate was set first, as a user must:
glTF knows only seconds. What is found goes to an .npz; positions are Blender's own (metres, Z up), of the evaluated
meshes, so shape keys, armatures and object transforms all count.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy
import numpy as np


@dataclass(frozen=True)
class Job:
    """fps / fps_base is the scene's rate; reexport: a .glb that Blender writes of what it imported."""

    file: str
    out: str
    frames: list[float]
    fps: int
    fps_base: float = 1.0
    reexport: str = ""
    reexport_extras: bool = False


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        do(Job(**job))


def do(job: Job) -> None:
    new_scene(job.fps, job.fps_base)
    load(job.file)
    is_bvh = job.file.endswith(".bvh")
    np.savez(job.out, **scene_found(), **(head_found(job.frames) if is_bvh else face_found(job.frames)))
    if job.reexport:
        bpy.ops.export_scene.gltf(filepath=job.reexport, export_format="GLB", export_extras=job.reexport_extras)


def new_scene(fps: int, fps_base: float = 1.0) -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = fps
    bpy.context.scene.render.fps_base = fps_base


def load(path: str) -> None:
    """File > Import, options as they come (but for BVH's scale: Blender takes its numbers for metres)."""
    if path.endswith((".usda", ".usdc")):
        bpy.ops.wm.usd_import(filepath=path)
    elif path.endswith(".bvh"):
        bpy.ops.import_anim.bvh(filepath=path, global_scale=0.01)
    else:
        bpy.ops.import_scene.gltf(filepath=path)


def scene_found() -> dict[str, Any]:
    """Rate, range, and of every animated value where its keys lie."""
    scene = bpy.context.scene
    curves = {}
    for action in bpy.data.actions:
        for bag in (bag for layer in action.layers for strip in layer.strips for bag in strip.channelbags):
            for curve in bag.fcurves:
                name = f"{bag.slot.name_display}: {curve.data_path} {curve.array_index}"
                curves[name] = [point.co[0] for point in curve.keyframe_points]
    return {
        "rate_hz": scene.render.fps / scene.render.fps_base,
        "range": np.array([scene.frame_start, scene.frame_end]),
        "keyed_frames": json.dumps(curves),
    }


def face_found(frames: list[float]) -> dict[str, Any]:
    """Positions of the points, of a dense mesh beside them, and a curve as a face of the user's own follows it."""
    mesh, dense = face(), [each for each in meshes() if len(each.data.vertices) > 68]
    own = face_of_ones_own(mesh)
    return {
        "positions_m": np.stack([positions(mesh, frame) for frame in frames]),  # [F, V, 3]
        "dense_m": np.array([[positions(each, frame) for frame in frames] for each in dense]),  # [meshes, F, V, 3]
        "point_names": np.array(mesh.data.get("point_names", "").split(), str),  # from glTF's extras
        "jaw_open": np.array([weight(mesh, "jawOpen", frame) for frame in frames]),
        "own_jaw_open": np.array([weight(own, "jawOpen", frame) for frame in frames]),
    }


def face() -> Any:
    """The mesh of the landmarks, or the only one."""
    return next((each for each in meshes() if len(each.data.vertices) == 68), meshes()[0])


def meshes() -> list[Any]:
    return [each for each in bpy.context.scene.objects if each.type == "MESH"]


def positions(mesh: Any, frame: float) -> np.ndarray:
    """[V, 3] in world space, at a frame that may lie between two."""
    to_frame(frame)
    evaluated = mesh.evaluated_get(bpy.context.evaluated_depsgraph_get())
    vertices = evaluated.to_mesh().vertices
    local = np.empty(3 * len(vertices))
    vertices.foreach_get("co", local)
    world = np.array(evaluated.matrix_world)
    evaluated.to_mesh_clear()
    return local.reshape(-1, 3) @ world[:3, :3].T + world[:3, 3]


def face_of_ones_own(mesh: Any) -> Any:
    """Another mesh with a shape key `jawOpen`, which is given the take's action and slot."""
    own = bpy.data.objects.new("own", bpy.data.meshes.new("own"))
    own.data.from_pydata([(0, 0, 0), (1, 0, 0), (0, 1, 0)], [], [(0, 1, 2)])
    bpy.context.scene.collection.objects.link(own)
    for name in ("Basis", "jawOpen"):
        own.shape_key_add(name=name)
    follows, leads = own.data.shape_keys.animation_data_create(), mesh.data.shape_keys.animation_data
    follows.action = leads.action
    follows.action_slot = leads.action_slot
    return own


def weight(mesh: Any, name: str, frame: float) -> float:
    to_frame(frame)
    keys = mesh.data.shape_keys.evaluated_get(bpy.context.evaluated_depsgraph_get())
    return float(keys.key_blocks[name].value)


def head_found(frames: list[float]) -> dict[str, Any]:
    """[F, 4, 4]: how BVH's one bone is turned and moved from where it rests, in the world."""
    (armature,) = (each for each in bpy.context.scene.objects if each.type == "ARMATURE")
    bone, moves = armature.pose.bones["head"], []
    for frame in frames:
        to_frame(frame)
        move = bone.matrix @ bone.bone.matrix_local.inverted()
        moves.append(np.array(armature.matrix_world @ move @ armature.matrix_world.inverted()))
    return {"head": np.stack(moves)}


def to_frame(frame: float) -> None:
    bpy.context.scene.frame_set(int(frame // 1), subframe=frame % 1)


if __name__ == "__main__":
    main()
