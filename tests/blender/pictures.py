"""Pictures of a take as Blender renders it, those of docs/animation among them. Run like `in_blender.py`:

    ... python pictures.py TAKE.glb FPS OUT.png FRAME:VIEW[:TOOL] ...

A row of square tiles, each a frame seen from the front, from the side (the person's left) or from between the two, with
the axes of a tool beside it where one is named. Cameras are orthographic, so that a place in the picture is one of the
world: `SIDE_M` metres are shown about the middle of the points in frame 0.
"""

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from in_blender import face, load, new_scene, positions
from mathutils import Euler, Vector

SIDE_M = 0.22
SIZE_PX = 320
N_SAMPLES = 24
VIEWS_DEG = {"front": (0, 0), "between": (28, 18), "side": (90, 0)}  # camera round to the person's left, and up
SKIN, INK, DAYLIGHT = (0.62, 0.40, 0.32), (0.03, 0.05, 0.09), (0.86, 0.88, 0.9)
PAPER = np.array([0.933, 0.945, 0.957])  # as the picture has it, not as light
RED, GREEN, BLUE = (0.75, 0.05, 0.05), (0.08, 0.42, 0.06), (0.05, 0.15, 0.8)  # of x, y and z, as everywhere
LEFT, UP, AHEAD = Vector((1, 0, 0)), Vector((0, 0, 1)), Vector((0, -1, 0))  # of a person, in Blender's world
AXES = {  # where x, y and z of a tool point once the face is in it
    "Maya": (LEFT, UP, AHEAD),
    "Blender": (LEFT, -AHEAD, UP),
    "Unity": (-LEFT, UP, AHEAD),
    "Unreal": (LEFT, AHEAD, UP),
}


def main() -> None:
    path, fps, out, *views = sys.argv[1:]
    new_scene(int(fps))
    load(path)
    mesh = face()
    dress(mesh)
    middle = Vector(positions(mesh, 0).mean(axis=0))
    tiles = []
    for view in views:
        frame, name, *tool = view.split(":")
        camera = look(middle, *(math.radians(angle) for angle in VIEWS_DEG[name]))
        gizmo = axes(tool[0], camera, middle) if tool else []
        tiles.append(render(float(frame)))
        for thing in gizmo:
            bpy.data.objects.remove(thing)
    save(np.concatenate(tiles, axis=1), Path(out))


def dress(mesh: Any) -> None:
    """Skin, the mesh's edges in ink above it, light from all around and from both sides."""
    scene = bpy.context.scene
    mesh.data.materials.clear()
    mesh.data.materials.append(material("skin", SKIN))
    mesh.data.materials.append(material("ink", INK))
    edges = mesh.modifiers.new("edges", "WIREFRAME")
    edges.thickness, edges.use_replace, edges.material_offset = 0.0006, False, 1
    scene.world = bpy.data.worlds.new("daylight")
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (*DAYLIGHT, 1)
    for angle_deg, strength in ((-60, 2.2), (50, 0.8)):
        sun = bpy.data.lights.new("sun", "SUN")
        sun.energy, sun.angle = strength, math.radians(10)
        light = bpy.data.objects.new("sun", sun)
        light.rotation_euler = (math.radians(55), 0, math.radians(angle_deg))
        scene.collection.objects.link(light)


def material(name: str, colour: tuple[float, float, float], is_flat: bool = False) -> Any:
    """is_flat: the colour whatever the light."""
    made = bpy.data.materials.new(name)
    surface = made.node_tree.nodes["Principled BSDF"].inputs
    surface["Base Color"].default_value = (0, 0, 0, 1) if is_flat else (*colour, 1)
    surface["Roughness"].default_value = 0.8
    surface["Specular IOR Level"].default_value = 0.0 if is_flat else 0.3
    surface["Emission Color"].default_value = (*colour, 1)
    surface["Emission Strength"].default_value = float(is_flat)
    return made


def look(middle: Vector, round_rad: float, up_rad: float) -> Any:
    """The scene's camera, looking at the middle."""
    lens = bpy.data.cameras.new("camera")
    lens.type, lens.ortho_scale = "ORTHO", SIDE_M
    camera = bpy.data.objects.new("camera", lens)
    camera.rotation_euler = Euler((math.pi / 2 - up_rad, 0, round_rad))
    camera.location = middle + camera.rotation_euler.to_matrix() @ Vector((0, 0, 1))
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    return camera


def axes(tool: str, camera: Any, middle: Vector) -> list[Any]:
    """Three arrows and the tool's name, at the lower right of the tile and nearer than the face."""
    turn = camera.rotation_euler.to_matrix()
    origin = middle + turn @ Vector((0.062, -0.066, 0.2))
    made = [text(tool, middle + turn @ Vector((-0.1, -0.1, 0.2)), camera, INK)]
    for name, colour, direction in zip("XYZ", (RED, GREEN, BLUE), AXES[tool], strict=True):
        for bottom, top, start, length in ((0.0013, 0.0013, 0.0, 0.028), (0.004, 0.0, 0.028, 0.01)):
            centre = origin + direction * (start + length / 2)
            along = direction.to_track_quat("Z", "Y").to_euler()
            bpy.ops.mesh.primitive_cone_add(
                vertices=24, radius1=bottom, radius2=top, depth=length, location=centre, rotation=along
            )
            made.append(bpy.context.object)
            made[-1].data.materials.append(material(name, colour, is_flat=True))
        made.append(text(name, origin + direction * 0.046 - turn @ Vector((0.004, 0.004, 0)), camera, colour))
    return made


def text(words: str, place: Vector, camera: Any, colour: tuple[float, float, float]) -> Any:
    """Words whose lower left corner is at a place, facing the camera."""
    curve = bpy.data.curves.new(words, "FONT")
    curve.body, curve.size = words, 0.013
    curve.materials.append(material(words, colour, is_flat=True))
    made = bpy.data.objects.new(words, curve)
    made.location, made.rotation_euler = place, camera.rotation_euler
    bpy.context.scene.collection.objects.link(made)
    return made


def render(frame: float) -> np.ndarray:
    """A tile [H, W, 4] on paper, the first row at the bottom as Blender keeps it."""
    scene = bpy.context.scene
    scene.frame_set(int(frame // 1), subframe=frame % 1)
    settings = scene.render
    settings.engine, settings.resolution_x, settings.resolution_y = "CYCLES", SIZE_PX, SIZE_PX
    settings.threads_mode, settings.threads = "FIXED", 1
    settings.film_transparent, settings.dither_intensity = True, 0  # else noise in the paper
    scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "CPU", N_SAMPLES, True
    scene.view_settings.view_transform = "Standard"
    with tempfile.TemporaryDirectory() as folder:
        settings.filepath, settings.image_settings.file_format = str(Path(folder) / "tile.png"), "PNG"
        settings.image_settings.color_mode = "RGBA"
        bpy.ops.render.render(write_still=True)
        picture = bpy.data.images.load(settings.filepath)
        pixels = np.array(picture.pixels[:]).reshape(SIZE_PX, SIZE_PX, 4)
    bpy.data.images.remove(picture)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    return np.concatenate([alpha * colour + (1 - alpha) * PAPER, np.ones_like(alpha)], axis=-1)


def save(pixels: np.ndarray, path: Path) -> None:
    height, width = pixels.shape[:2]
    picture = bpy.data.images.new("row", width, height)
    picture.pixels = pixels.ravel().tolist()
    settings = bpy.context.scene.render.image_settings
    settings.file_format, settings.color_mode, settings.compression = "PNG", "RGB", 100
    picture.save_render(str(path))


if __name__ == "__main__":
    main()
