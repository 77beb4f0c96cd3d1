"""What a glTF 2.0 file says: its accessors as arrays, its nodes and their weights at any time.

Binary (.glb) or text (.gltf) with its buffers inside or beside it. Everything that a file claims is held against its
bytes before it is believed; what doesn't fit raises one of `common.files.UNREADABLE`.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

MAGIC, JSON_CHUNK, BINARY_CHUNK = b"glTF", b"JSON", b"BIN\0"
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}  # numbers in an element
_MOST_BYTES = 1 << 30
_MOST_ZEROS = 1 << 20  # elements of a sparse accessor, which may claim any number without bytes for them
_MOST_NODES_UP = 256
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}


@dataclass(frozen=True)
class Sampler:
    """An animated property: keys at times_s [n], rising; values [n, D], or [n, 3, D] with tangents for CUBICSPLINE."""

    times_s: np.ndarray
    values: np.ndarray
    interpolation: str


@dataclass(frozen=True)
class GltfFile:
    """document: the JSON; buffers: the bytes that its bufferViews are parts of."""

    document: dict[str, Any]
    buffers: list[memoryview]

    @staticmethod
    def load(path: Path) -> GltfFile:
        content = _content(path)
        binary = None
        if content[:4] == MAGIC:
            content, binary = _chunks(memoryview(content))
        document = json.loads(content.decode("utf-8-sig"))
        if not isinstance(document, dict) or not str(document["asset"]["version"]).startswith("2."):
            raise ValueError("it isn't glTF 2.0")
        for extension in document.get("extensionsRequired", []):
            if "compression" in extension:
                raise ValueError(f"it is compressed with {extension}, which we can't read")
        buffers: list[memoryview] = []
        for stated in document.get("buffers", []):
            buffers.append(_buffer(stated, binary, path.parent))
            if sum(map(len, buffers)) > _MOST_BYTES:
                raise ValueError("its buffers are more than a take")
        return GltfFile(document, buffers)

    def items(self, what: str) -> list[dict[str, Any]]:
        found = self.document.get(what, [])
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise ValueError(f"{what} is no list of objects")
        return found

    def accessor(self, number: int) -> np.ndarray:
        """Its values [count, width]; float64 for floats and normalised integers, else int64."""
        stated = self.document["accessors"][_natural(number)]
        kind, width = _COMPONENTS[stated["componentType"]], WIDTHS[stated["type"]]
        count = _natural(stated["count"])
        if "bufferView" in stated:
            values = self._elements(stated["bufferView"], stated.get("byteOffset", 0), kind, count, width)
        elif count > _MOST_ZEROS:
            raise ValueError(f"it claims {count} numbers that it doesn't have")
        else:
            values = np.zeros((count, width), kind)
        if "sparse" in stated:
            values = self._with_sparse(values, stated["sparse"])
        if kind == "<f4":
            if not np.isfinite(values).all():
                raise ValueError("it holds numbers that are not finite")
            return values.astype(np.float64)
        if stated.get("normalized", False):
            return (values / np.iinfo(kind).max).clip(-1)  # specification 3.11
        return values.astype(np.int64)

    def _elements(self, view_number: int, offset: int, kind: str, count: int, width: int) -> np.ndarray:
        view = self.document["bufferViews"][_natural(view_number)]
        start, length = _natural(view.get("byteOffset", 0)), _natural(view["byteLength"])
        buffer = self.buffers[_natural(view["buffer"])]
        if start + length > len(buffer):
            raise ValueError("it is cut off: a view reaches beyond its buffer")
        size = np.dtype(kind).itemsize
        stride = max(_natural(view.get("byteStride", 0)), size * width)
        if count and _natural(offset) + (count - 1) * stride + size * width > length:
            raise ValueError("it is cut off: an accessor reaches beyond its view")
        return np.ndarray((count, width), kind, buffer[start : start + length], offset if count else 0, (stride, size))

    def _with_sparse(self, values: np.ndarray, sparse: dict[str, Any]) -> np.ndarray:
        count, indices, changed = _natural(sparse["count"]), sparse["indices"], sparse["values"]
        kind = _COMPONENTS[indices["componentType"]]
        at = self._elements(indices["bufferView"], indices.get("byteOffset", 0), kind, count, 1)[:, 0]
        values = values.copy()
        values[at.astype(np.int64)] = self._elements(
            changed["bufferView"], changed.get("byteOffset", 0), values.dtype.str, count, values.shape[1]
        )
        return values

    def upwards(self, node: int) -> list[int]:
        """The numbers of a node, its parent and so on up to its root."""
        parents = {
            _natural(child): parent
            for parent, item in enumerate(self.items("nodes"))
            for child in item.get("children", [])
        }
        chain = [node]
        while chain[-1] in parents:
            chain.append(parents[chain[-1]])
            if len(chain) > _MOST_NODES_UP:
                raise ValueError("its nodes are nested without end")
        return chain

    def animated(self) -> dict[tuple[int, str], dict[str, Any]]:
        """Each animated property's sampler, by node and path, over all animations: the first that there is."""
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for animation in self.items("animations"):
            for channel in animation["channels"]:
                target = channel["target"]
                if "node" in target:
                    sampler = animation["samplers"][_natural(channel["sampler"])]
                    found.setdefault((_natural(target["node"]), str(target["path"])), sampler)
        return found

    def sampler(self, stated: dict[str, Any]) -> Sampler:
        times_s, values = self.accessor(stated["input"])[:, 0], self.accessor(stated["output"])
        interpolation = stated.get("interpolation", "LINEAR")
        if interpolation not in ("LINEAR", "STEP", "CUBICSPLINE"):
            raise ValueError(f"its keys are joined by {interpolation}, which glTF 2.0 hasn't")
        if len(times_s) == 0 or not (np.diff(times_s) > 0).all():
            raise ValueError("the times of its keys don't rise")
        parts = (len(times_s), 3) if interpolation == "CUBICSPLINE" else (len(times_s),)
        if values.size == 0 or values.size % np.prod(parts):
            raise ValueError("its keys and their values are not equally many")
        return Sampler(times_s, values.reshape(*parts, -1), interpolation)


def evaluate(sampler: Sampler, at_s: np.ndarray, is_rotation: bool = False) -> np.ndarray:
    """Values [T, D] at times at_s [T], the first and last before and after all keys; specification, appendix C."""
    times, values = sampler.times_s, sampler.values
    at = at_s.clip(times[0], times[-1])
    if len(times) == 1:
        only = values[:, 1] if sampler.interpolation == "CUBICSPLINE" else values
        return np.repeat(only, len(at), axis=0)
    before = np.searchsorted(times, at, side="right").clip(1, len(times) - 1) - 1
    step = times[before + 1] - times[before]
    fraction = ((at - times[before]) / step)[:, None]
    if sampler.interpolation == "STEP":
        return np.where(fraction < 1, values[before], values[before + 1])
    if sampler.interpolation == "CUBICSPLINE":
        start, end, t = values[before], values[before + 1], fraction
        leaving, arriving = step[:, None] * start[:, 2], step[:, None] * end[:, 0]
        ahead = 3 * t**2 - 2 * t**3
        return (1 - ahead) * start[:, 1] + ahead * end[:, 1] + t * (1 - t) * ((1 - t) * leaving - t * arriving)
    if is_rotation:
        return Slerp(times, Rotation.from_quat(values))(at).as_quat()
    return (1 - fraction) * values[before] + fraction * values[before + 1]


def local_matrices(node: dict[str, Any], animated: dict[str, Sampler], at_s: np.ndarray) -> np.ndarray:
    """A node's transforms, [T, 4, 4], or [1, 4, 4] where nothing is animated."""
    if "matrix" in node:
        return np.asarray(node["matrix"], np.float64).reshape(1, 4, 4).swapaxes(1, 2)  # columns first
    parts = []
    for path, still in (("translation", [0, 0, 0]), ("rotation", [0, 0, 0, 1]), ("scale", [1, 1, 1])):
        if path in animated:
            parts.append(evaluate(animated[path], at_s, path == "rotation"))
        else:
            parts.append(np.asarray(node.get(path, still), np.float64).reshape(1, len(still)))
    translation, rotation, scale = parts
    matrices = np.tile(np.eye(4), (max(map(len, parts)), 1, 1))
    matrices[:, :3, :3] = Rotation.from_quat(rotation).as_matrix() * scale[:, None]
    matrices[:, :3, 3] = translation
    return matrices


def extras(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The extras of scenes, nodes and meshes: where tools keep what they don't understand, if they do."""
    for what in ("scenes", "nodes", "meshes"):
        for item in document.get(what, []):
            if isinstance(item.get("extras"), dict):
                yield item["extras"]


def _content(path: Path) -> bytes:
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{size / 2**30:.1f} GiB is more than a take")
    return path.read_bytes()


def _chunks(content: memoryview) -> tuple[bytes, memoryview | None]:
    """The JSON and the binary chunk of a .glb, specification 4.4."""
    version, length = struct.unpack_from("<II", content, 4)
    if version != 2:
        raise ValueError(f"it is version {version} of glTF, not 2")
    if length > len(content):
        raise ValueError(f"it is cut off: {length - len(content)} bytes are missing")
    found: dict[bytes, memoryview] = {}
    offset = 12
    while offset + 8 <= length:
        n_bytes, kind = struct.unpack_from("<I4s", content, offset)
        if offset + 8 + n_bytes > length:
            raise ValueError("it is cut off within a chunk")
        found.setdefault(kind, content[offset + 8 : offset + 8 + n_bytes])
        offset += 8 + n_bytes
    return bytes(found[JSON_CHUNK]), found.get(BINARY_CHUNK)


def _buffer(stated: dict[str, Any], binary: memoryview | None, folder: Path) -> memoryview:
    if "uri" not in stated:
        if binary is None:
            raise ValueError("its binary part is missing")
        return binary
    uri = str(stated["uri"])
    if uri.startswith("data:"):
        return memoryview(base64.b64decode(uri.partition(",")[2], validate=True))
    beside = folder / unquote(uri)
    if not beside.resolve().is_relative_to(folder.resolve()) or not beside.is_file():
        raise ValueError(f"its data {uri[:100]!r} is not beside it")
    return memoryview(_content(beside))


def _natural(value: Any) -> int:
    """A whole number that isn't negative, which as an index would count from the end."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise ValueError(f"{str(value)[:40]} stands where a whole number should")
    return value
