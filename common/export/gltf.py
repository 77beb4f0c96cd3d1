"""glTF 2.0: the animated face as one binary file (.glb), and the way back from it.

A node `head` turns and moves; below it lie the meshes, in the head's space, whose morph targets make the expressions.
glTF's space is the take's own: metres, right-handed, y up, the face looks along +z (specification 3.4). What glTF has
no words for, `Take.header`, is JSON text in the scene's extras: text comes through all tools, nested objects don't.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from common.export import rates
from common.export.gltf_file import (
    BINARY_CHUNK,
    JSON_CHUNK,
    MAGIC,
    WIDTHS,
    GltfFile,
    Sampler,
    evaluate,
    extras,
    local_matrices,
)
from common.export.keys import Kept, kept
from common.export.morphs import MorphMesh
from common.export.points import POINT_NAMES
from common.export.take import Take, plain_header
from common.face.mesh import vertex_normals
from common.face.model import N_POINTS
from common.files import reading

HEADER, NAMES = "duet_take", "point_names"  # in extras
_USHORT, _UINT, _FLOAT = 5123, 5125, 5126
_VERTICES, _TRIANGLES = 34962, 34963  # what a buffer view is for
_STILL_M = 1e-6  # a dense mesh's vertex that a target moves by less counts as one that it doesn't move
_SPARSE_PAYS = 1000  # bytes saved: a sparse accessor costs some 300 in JSON, and small meshes stay plain
_MOST_FPS, _USUAL_FPS = 1000, 25.0
_OFF_GRID, _MOST_OFF_GRID = 0.02, 0.45  # of a key: what tools are off by; beyond, it could be the next one
_MOST_TARGETS = 4096
_MOST_VERTICES = 1024  # that 68 points may have become: tools split vertices where a face's normals differ
_MOST_KEYS = 1 << 16  # 44 minutes at 25 a second; or eight times as many as the file has
# A dull light skin: what is black or mirrors in one tool is so in all. Seen from both sides, as the face has no back.
_SKIN = {
    "name": "skin",
    "pbrMetallicRoughness": {
        "baseColorFactor": [0.72, 0.52, 0.43, 1.0],
        "metallicFactor": 0.0,
        "roughnessFactor": 0.65,
    },
    "doubleSided": True,
}


def write(path: Path, take: Take, meshes: Sequence[MorphMesh], keys: Kept | None = None) -> None:
    """Write a .glb of the take's head and meshes, key k at k / fps seconds.

    keys: those that are written (`common.export.keys.kept`), by default all of them. Raises InputError
    where the take is more than the format can hold: 4 GiB, or times that float32 can't tell apart.
    """
    document, binary = _document(take, meshes, keys or kept(take, 0.0))
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    n_bytes = 12 + 8 + len(text) + 8 + binary.n_bytes
    if n_bytes >= 1 << 32:
        raise InputError(
            f"A .glb holds less than 4 GiB, this take needs {n_bytes / 2**30:.1f}: cut the speech into parts."
        )
    with path.open("wb") as file:
        file.write(struct.pack("<4sII", MAGIC, 2, n_bytes))
        file.write(struct.pack("<I4s", len(text), JSON_CHUNK) + text)
        file.write(struct.pack("<I4s", binary.n_bytes, BINARY_CHUNK))
        for array in binary.arrays:
            file.write(array.data)
            file.write(bytes(-array.nbytes % 4))


@dataclass
class _Binary:
    """The arrays of the binary chunk, each with a view of its own, and the accessors that say what they are."""

    arrays: list[np.ndarray] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    n_bytes: int = 0

    def view(self, array: np.ndarray, use: int | None = None) -> int:
        self.views.append({"buffer": 0, "byteOffset": self.n_bytes, "byteLength": array.nbytes})
        if use:
            self.views[-1]["target"] = use
        self.arrays.append(np.ascontiguousarray(array))
        self.n_bytes += array.nbytes + -array.nbytes % 4
        return len(self.views) - 1

    def floats(self, values: np.ndarray, kind: str, use: int | None = None, has_bounds: bool = False) -> int:
        """An accessor of values [..., 1, 3 or 4 as the kind says], as float32."""
        single = values.astype("<f4").reshape(-1, WIDTHS[kind])
        accessor = {"componentType": _FLOAT, "count": len(single), "type": kind}
        return self._add({"bufferView": self.view(single, use), **accessor}, single if has_bounds else None)

    def triangles(self, triangles: np.ndarray, n_vertices: int) -> int:
        """An accessor of vertex numbers [F, 3]; the greatest of a type means something else and stays free."""
        dtype, component = ("<u2", _USHORT) if n_vertices < 0xFFFF else ("<u4", _UINT)
        view = self.view(triangles.astype(dtype).ravel(), _TRIANGLES)
        return self._add({"bufferView": view, "componentType": component, "count": triangles.size, "type": "SCALAR"})

    def target(self, moves: np.ndarray) -> int:
        """An accessor of a morph target's moves [V, 3], sparse where that is smaller: most vertices may stay still."""
        single = moves.astype("<f4")
        moved = np.flatnonzero(np.abs(single).max(axis=1) > _STILL_M).astype("<u4")
        moved = moved if len(moved) else np.zeros(1, "<u4")  # none is not allowed
        if 12 * len(single) - 16 * len(moved) < _SPARSE_PAYS:
            return self.floats(single, "VEC3", _VERTICES, has_bounds=True)
        values = single[moved]
        sparse = {
            "count": len(moved),
            "indices": {"bufferView": self.view(moved), "componentType": _UINT},
            "values": {"bufferView": self.view(values)},
        }
        whole = np.concatenate([values, np.zeros((1, 3), "<f4")])  # what bounds are of: some stay still
        return self._add({"componentType": _FLOAT, "count": len(single), "type": "VEC3", "sparse": sparse}, whole)

    def _add(self, accessor: dict[str, Any], bounded: np.ndarray | None = None) -> int:
        if bounded is not None:
            accessor |= {"min": bounded.min(axis=0).tolist(), "max": bounded.max(axis=0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _document(take: Take, meshes: Sequence[MorphMesh], keys: Kept) -> tuple[dict[str, Any], _Binary]:
    """The file's JSON and what goes into its binary chunk."""
    binary, animation = _Binary(), _Animation(take.time_s)
    quaternion = take.quaternion
    animation.add(binary, 0, "rotation", keys.head, quaternion, "VEC4")
    animation.add(binary, 0, "translation", keys.head, take.position, "VEC3")
    for node, mesh in enumerate(meshes, start=1):
        animation.add(binary, node, "weights", keys.face, mesh.weights, "SCALAR")
    head = {
        "name": "head",
        "rotation": quaternion[0].tolist(),
        "translation": take.position[0].tolist(),
        "children": list(range(1, len(meshes) + 1)),
    }
    document = {
        "asset": {"version": "2.0", "generator": "Duet"},
        "scene": 0,
        "scenes": [
            {"name": "take", "nodes": [0], "extras": {HEADER: json.dumps(take.header(), ensure_ascii=False)}},
        ],
        "nodes": [head, *({"name": mesh.name, "mesh": i} for i, mesh in enumerate(meshes))],
        "meshes": [_mesh(binary, mesh) for mesh in meshes],
        "materials": [_SKIN],
        "animations": [{"name": "take", "channels": animation.channels, "samplers": animation.samplers}],
        "accessors": binary.accessors,
        "bufferViews": binary.views,
        "buffers": [{"byteLength": binary.n_bytes}],
    }
    return document, binary


@dataclass
class _Animation:
    """Channels of one animation; time_s: [T], of all keys. Channels that keep the same keys share their times."""

    time_s: np.ndarray
    channels: list[dict[str, Any]] = field(default_factory=list)
    samplers: list[dict[str, Any]] = field(default_factory=list)
    inputs: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (np.diff(self.time_s.astype(np.float32)) > 0).all():
            raise InputError(
                f"glTF's times can't tell the keys of a take of {self.time_s[-1]:.0f} s apart: cut the speech into "
                "parts, or choose a lower --fps."
            )

    def add(self, binary: _Binary, node: int, path: str, kept: np.ndarray, values: np.ndarray, kind: str) -> None:
        """A channel that holds the kept keys of values [T, ...] and is linear between them."""
        if (times := kept.tobytes()) not in self.inputs:
            self.inputs[times] = binary.floats(self.time_s[kept], "SCALAR", has_bounds=True)
        output = binary.floats(values[kept], kind)
        self.channels.append({"sampler": len(self.samplers), "target": {"node": node, "path": path}})
        self.samplers.append({"input": self.inputs[times], "interpolation": "LINEAR", "output": output})


def _mesh(binary: _Binary, mesh: MorphMesh) -> dict[str, Any]:
    normals = vertex_normals(torch.from_numpy(mesh.points), torch.from_numpy(mesh.triangles)).numpy()
    primitive = {
        "attributes": {
            "POSITION": binary.floats(mesh.points, "VEC3", _VERTICES, has_bounds=True),
            "NORMAL": binary.floats(_no_zeros(normals), "VEC3", _VERTICES),
        },
        "indices": binary.triangles(mesh.triangles, len(mesh.points)),
        "material": 0,
        "targets": [{"POSITION": binary.target(moves)} for moves in mesh.targets],
    }
    named: dict[str, Any] = {"targetNames": list(mesh.target_names)}
    if mesh.point_names:
        named[NAMES] = " ".join(mesh.point_names)
    weights = [0.0] * len(mesh.targets)  # the neutral face, where nothing is played
    return {"name": mesh.name, "primitives": [primitive], "weights": weights, "extras": named}


def _no_zeros(normals: np.ndarray) -> np.ndarray:
    """A vertex without a triangle has no normal, but glTF wants one: to the front."""
    return np.where(np.abs(normals).max(axis=1, keepdims=True) > 0, normals, [0.0, 0.0, 1.0])


def read(path: Path) -> Take:
    """The take in a .glb or .gltf: what `write` wrote, also after a tool changed it and wrote it again.

    The face is the mesh of 68 points, told by their names or, where a tool dropped them, by their number and order
    (vertices that a tool split are one again). All nodes above it move it; keys that are not there are interpolated as
    the file says. The rate is the one in the header if the keys lie on it, else that of the keys; a file without a
    header is a face of nobody in particular (`plain_header`). Raises InputError that names the file.
    """
    with reading(path, "glTF file", "export it again, with the face's 68 points"):
        return _take(GltfFile.load(path))


def _take(file: GltfFile) -> Take:
    node, shapes = _face(file)
    chain, animated = file.upwards(node), file.animated()
    samplers = {
        (item, track): file.sampler(animated[item, track])
        for item in chain
        for track in ("translation", "rotation", "scale", *(["weights"] if item == node else []))
        if (item, track) in animated
    }
    header = _header(file)
    times = [sampler.times_s for sampler in samplers.values()] or [np.zeros(1)]
    fps = _rate(np.unique(np.concatenate(times)), float(header["fps"]) if header else None)
    last, most = max(each[-1] for each in times), max(map(len, times))
    if not 0 <= last * fps < max(_MOST_KEYS, 8 * most):
        raise ValueError(f"its {most} keys are spread over {last:.6g} s")
    at_s = np.arange(int(last * fps + _slack(last, fps)) + 1) / fps
    on_grid = {target: _on_grid(sampler, fps) for target, sampler in samplers.items()}

    local = _morphed(file, node, shapes, on_grid.get((node, "weights")), at_s)
    world = np.eye(4)[None]
    for item in reversed(chain):
        tracks = {track: sampler for (other, track), sampler in on_grid.items() if other == item}
        world = world @ local_matrices(file.items("nodes")[item], tracks, at_s)
    if not np.isfinite(world).all():
        raise ValueError("its nodes hold numbers that are not finite")
    world = np.broadcast_to(world, (len(at_s), 4, 4))
    u, _, vt = np.linalg.svd(world[:, :3, :3])
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]  # a rotation, no reflection
    rotation = u @ vt
    stretched = rotation.swapaxes(1, 2) @ world[:, :3, :3]  # the identity, or a tool's own scale
    points = np.broadcast_to(local, (len(at_s), N_POINTS, 3)) @ stretched.swapaxes(1, 2)
    return Take.of_header({**(header or plain_header(fps)), "fps": fps}, points, rotation, world[:, :3, 3])


def _face(file: GltfFile) -> tuple[int, np.ndarray]:
    """The node that has the face's mesh, and the mesh: [1 + K, 68, 3], its points and targets in our order."""
    others = []
    for number, node in enumerate(file.items("nodes")):
        if "mesh" not in node:
            continue
        mesh = file.items("meshes")[node["mesh"]]
        if (shapes := _shapes(file, mesh)) is not None:
            if "skin" in node:
                raise ValueError("its face hangs on a skeleton: export without skinning")
            names = str(mesh.get("extras", {}).get(NAMES, "")).split()
            if sorted(names) == sorted(POINT_NAMES):
                return number, shapes[:, [names.index(name) for name in POINT_NAMES]]
            others.append((number, shapes))
    if not others:
        raise ValueError("it has no mesh of 68 points")
    return others[0]


def _shapes(file: GltfFile, mesh: dict[str, Any]) -> np.ndarray | None:
    """Points and targets of a mesh [1 + K, 68, 3], vertices that are alike in all of them joined; None if not 68."""
    if len(mesh["primitives"]) != 1:
        return None
    primitive = mesh["primitives"][0]
    accessors = [primitive["attributes"]["POSITION"]]
    accessors += [target["POSITION"] for target in primitive.get("targets", []) if "POSITION" in target]
    counts = {file.items("accessors")[number]["count"] for number in accessors}
    if len(counts) != 1 or not N_POINTS <= max(counts) <= _MOST_VERTICES:
        return None
    if len(accessors) > _MOST_TARGETS:
        raise ValueError(f"it has {len(accessors) - 1} morph targets")
    shapes = np.stack([file.accessor(number) for number in accessors])
    if shapes.shape[1:] == (N_POINTS, 3):
        return shapes
    _, first = np.unique(shapes.swapaxes(0, 1).reshape(shapes.shape[1], -1), axis=0, return_index=True)
    return shapes[:, np.sort(first)] if len(first) == N_POINTS else None


def _morphed(file: GltfFile, node: int, shapes: np.ndarray, weights: Sampler | None, at_s: np.ndarray) -> np.ndarray:
    """The face's points in its node's space, [T, 68, 3], or [1, 68, 3] where nothing is animated."""
    points, targets = shapes[0], shapes[1:]
    if weights is not None:
        values = evaluate(weights, at_s)
    else:
        item = file.items("nodes")[node]
        still = item.get("weights", file.items("meshes")[item["mesh"]].get("weights", [0.0] * len(targets)))
        values = np.asarray(still, np.float64)[None]
    if values.shape[1] != len(targets):
        raise ValueError(f"it has {values.shape[1]} weights for {len(targets)} morph targets")
    return points + np.tensordot(values, targets, 1)


def _header(file: GltfFile) -> dict[str, Any] | None:
    for found in extras(file.document):
        if HEADER in found:
            header = json.loads(found[HEADER])
            if not isinstance(header, dict):
                raise ValueError(f"its {HEADER} is no header of a take")
            return header
    return None


def _rate(times_s: np.ndarray, stated: float | None) -> float:
    """Keys a second, of all times [n] at which there are some: the stated rate if they lie on it, else their own."""

    def fits(fps: float) -> bool:
        at = times_s * fps
        return bool((np.abs(at - at.round()) < _slack(times_s, fps)).all())

    if stated and fits(stated):
        return stated
    gaps = np.diff(times_s)
    gaps = gaps[gaps > 1 / (_MOST_FPS + 1)]
    if len(gaps) == 0:
        return stated or _USUAL_FPS
    near = gaps[gaps < 1.5 * gaps.min()]
    own = 1 / near.mean()
    for fps in (*sorted(rates.USUAL, key=lambda rate: abs(rate - own)), round(own, 3)):
        if abs(fps / own - 1) < 0.01 and fits(fps):
            return fps
    return stated or own


def _on_grid(sampler: Sampler, fps: float) -> Sampler:
    """The same with times that mean a key of the take at it exactly: float32 has 0.04 s as 0.03999999911."""
    at = sampler.times_s * fps
    near = at.round()
    times_s = np.where(np.abs(at - near) < _slack(sampler.times_s, fps), near, at) / fps
    return Sampler(times_s, sampler.values, sampler.interpolation)


def _slack(times_s: np.ndarray, fps: float) -> np.ndarray:
    """How far from a key a time may lie that means it, in keys: float32 knows 3 h to 1 ms, 0.06 of a key at 60."""
    spacing_s = np.spacing(times_s.astype(np.float32)).astype(np.float64)
    return np.minimum(_OFF_GRID + spacing_s * fps, _MOST_OFF_GRID)
