"""glTF files in tests: written, taken apart, edited as tools edit them."""

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.export import gltf
from common.export.arkit import solve
from common.export.keys import kept
from common.export.morphs import EXACT_M, MorphMesh, landmark_mesh
from common.export.take import Take

OFF_M = 1.1 * EXACT_M  # of a point that comes back: what correctives leave, and float32

Document = dict[str, Any]


def written(folder: Path, take: Take, *more: MorphMesh, key_error_m: float = 0.0) -> Path:
    path = folder / "take.glb"
    meshes = [landmark_mesh(take, solve(take)), *more]
    gltf.write(path, take, meshes, kept(take, key_error_m, meshes))
    return path


def parts(path: Path) -> tuple[Document, bytes]:
    """The JSON and the binary of a .glb, as the specification says where they are (4.4)."""
    content = path.read_bytes()
    magic, version, length, n_json, kind = struct.unpack_from("<4sIII4s", content)
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), b"JSON")
    n_binary, kind = struct.unpack_from("<I4s", content, 20 + n_json)
    assert kind == b"BIN\0" and length == 28 + n_json + n_binary and n_json % 4 == n_binary % 4 == 0
    return json.loads(content[20 : 20 + n_json]), content[28 + n_json :]


def as_text(path: Path, document: Document, binary: bytes) -> Path:
    """The same as one .gltf: JSON with its binary inside."""
    document["buffers"] = [{"byteLength": len(binary), "uri": "data:;base64," + base64.b64encode(binary).decode()}]
    path.write_text(json.dumps(document))
    return path


def floats(document: Document, binary: bytes, number: int) -> np.ndarray:
    """A tightly packed accessor of floats."""
    accessor = document["accessors"][number]
    view = document["bufferViews"][accessor["bufferView"]]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
    assert accessor["componentType"] == 5126 and view["byteLength"] == 4 * width * accessor["count"]
    return np.frombuffer(binary, "<f4", width * accessor["count"], view["byteOffset"]).reshape(-1, width)


def edited(folder: Path, take: Take, edit: Callable[[Document, bytes], bytes]) -> Take:
    """A take as it comes back when a tool did this to its file."""
    document, binary = parts(written(folder, take))
    return gltf.read(as_text(folder / "edited.gltf", document, edit(document, binary)))


def appended(document: Document, binary: bytes, values: np.ndarray, kind: str) -> tuple[int, bytes]:
    """Another accessor of floats."""
    binary += bytes(-len(binary) % 4)
    document["bufferViews"].append({"buffer": 0, "byteOffset": len(binary), "byteLength": 4 * values.size})
    view, count = len(document["bufferViews"]) - 1, values.size // {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[kind]
    document["accessors"].append({"bufferView": view, "componentType": 5126, "count": count, "type": kind})
    return len(document["accessors"]) - 1, binary + values.astype("<f4").tobytes()
