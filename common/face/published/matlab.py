"""Arrays of numbers in MATLAB's version 5 to 7 files (`save -v7`, scipy's `savemat`), and nothing else in them.

scipy reads such files too, but a damaged one can take the whole program with it (a segmentation fault in 1.17). Format:
a header of 128 bytes, then elements: type, length, content, padded to 8 bytes; a matrix is an element of elements
(flags, dimensions, name, values); an element may be deflated.
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_NUMERIC_CLASSES = range(6, 16)  # double, single, (u)int8 to 64
_MAX_BYTES = 2**31


def read_mat(content: bytes, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of those names that are there, as stored (integers may be narrower than in MATLAB).

    Raises ValueError where the file is damaged, of another version, or one of the names is no array of numbers.
    """
    if content.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise ValueError("a MATLAB 7.3 file, which must be saved as version 7 or lower")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("not a MATLAB 5 to 7 file")
    found, rest = {}, memoryview(content)[128:]
    try:
        while len(rest) >= 8:
            kind, element, rest = _element(rest, order)
            if kind == _COMPRESSED:
                inflated = zlib.decompressobj().decompress(element, _MAX_BYTES)
                kind, element, _ = _element(memoryview(inflated), order)
            if kind == _MATRIX:
                name, flags, dimensions, values = _matrix(element, order)
                if name in names:
                    found[name] = _numbers(name, flags, dimensions, values, order)
    except (struct.error, zlib.error) as error:
        raise ValueError("a damaged MATLAB file") from error
    return found


def _element(content: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Type and content of the first element, and what comes after it."""
    kind, length = struct.unpack_from(order + "II", content)
    if kind >> 16:  # a short one: both in four bytes, the content in the next four
        kind, length, start, end = kind & 0xFFFF, kind >> 16, 4, 8
    else:
        start, end = 8, 8 + (length if kind == _COMPRESSED else -(-length // 8) * 8)
    if length > len(content) - start:
        raise ValueError("a truncated MATLAB file")
    return kind, content[start : start + length], content[end:]


def _matrix(content: memoryview, order: str) -> tuple[str, int, list[int], memoryview]:
    """Name, flags, dimensions and what follows."""
    _, flags, content = _element(content, order)
    _, dimensions, content = _element(content, order)
    _, name, content = _element(content, order)
    lengths = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions[: len(dimensions) // 4 * 4])
    return bytes(name).decode("latin1"), struct.unpack_from(order + "I", flags)[0], list(lengths), content


def _numbers(name: str, flags: int, dimensions: list[int], content: memoryview, order: str) -> np.ndarray:
    if flags & 0xFF not in _NUMERIC_CLASSES:
        raise ValueError(f"{name} is not of numbers")
    kind, values, _ = _element(content, order)
    dtype = np.dtype(order + _TYPES[kind]) if kind in _TYPES else None
    if dtype is None or min(dimensions, default=0) < 0 or math.prod(dimensions) * dtype.itemsize != len(values):
        raise ValueError(f"{name} has too few or too many numbers")
    return np.frombuffer(values, dtype).reshape(dimensions, order="F")
