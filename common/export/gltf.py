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

from common.export.keys import face_keys, head_keys, point_keys
from common.export.morphs import MorphMesh
from common.export.take import Take
from common.face.mesh import vertex_normals

HEADER, POINT_NAMES_KEY = "duet_take", "point_names"  # in extras
MAGIC, JSON_CHUNK, BINARY_CHUNK = b"glTF", b"JSON", b"BIN\0"
_USHORT, _UINT, _FLOAT = 5123, 5125, 5126
_VERTICES, _TRIANGLES = 34962, 34963  # what a buffer view is for
_SIZES = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_STILL_M = 1e-6  # a dense mesh's vertex that a target moves by less counts as one that it doesn't move
_SPARSE_PAYS = 1000  # bytes saved: a sparse accessor costs some 300 in JSON, and small meshes stay plain
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


def write(path: Path, take: Take, meshes: Sequence[MorphMesh], key_error_m: float = 0.0) -> None:
    """Write a .glb of the take's head and meshes, key k at k / fps seconds.

    key_error_m: how far any point may be off between keys that are left out; 0 leaves none out. Raises ValueError
    where the take is more than the format can hold: 4 GiB, or times that float32 can't tell apart.
    """
    document, binary = _document(take, meshes, key_error_m)
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    n_bytes = 12 + 8 + len(text) + 8 + binary.n_bytes
    if n_bytes >= 1 << 32:
        raise ValueError(f"a .glb holds less than 4 GiB, this take needs {n_bytes / 2**30:.1f}")
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
        single = values.astype("<f4").reshape(-1, _SIZES[kind])
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


def _document(take: Take, meshes: Sequence[MorphMesh], key_error_m: float) -> tuple[dict[str, Any], _Binary]:
    """The file's JSON and what goes into its binary chunk."""
    binary, animation = _Binary(), _Animation(take.time_s)
    quaternion = take.quaternion
    kept = head_keys(take, key_error_m)
    animation.add(binary, 0, "rotation", kept, quaternion, "VEC4")
    animation.add(binary, 0, "translation", kept, take.position, "VEC3")
    for node, mesh in enumerate(meshes, start=1):
        animation.add(binary, node, "weights", _mesh_keys(take, mesh, key_error_m), mesh.weights, "SCALAR")
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
            raise ValueError(f"glTF's times can't tell the keys of a take of {self.time_s[-1]:.0f} s apart: cut it")

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
    extras: dict[str, Any] = {"targetNames": list(mesh.target_names)}
    if mesh.point_names:
        extras[POINT_NAMES_KEY] = " ".join(mesh.point_names)
    weights = [0.0] * len(mesh.targets)  # the neutral face, where nothing is played
    return {"name": mesh.name, "primitives": [primitive], "weights": weights, "extras": extras}


def _no_zeros(normals: np.ndarray) -> np.ndarray:
    """A vertex without a triangle has no normal, but glTF wants one: to the front."""
    return np.where(np.abs(normals).max(axis=1, keepdims=True) > 0, normals, [0.0, 0.0, 1.0])


def _mesh_keys(take: Take, mesh: MorphMesh, key_error_m: float) -> np.ndarray:
    """Kept keys of a mesh's weights: as the points need them, or so that no vertex of a dense mesh is further off.

    A vertex moves by Σ Δw · target, whose length is at most that of the vector √K · Δw · (its greatest move).
    """
    if mesh.point_names or key_error_m == 0:
        return face_keys(take, key_error_m)
    greatest = np.linalg.norm(mesh.targets, axis=2).max(axis=1)  # [K]
    bound = mesh.weights * greatest * np.sqrt(len(greatest))
    return point_keys(bound[:, None], key_error_m / 2)
