"""MATLAB files: what scipy writes comes out as scipy reads it; the rest is a sentence."""

import io
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.io import loadmat, savemat

from common.face.published.matlab import read_mat

FUZZ = settings(max_examples=150, deadline=None)
DTYPES = st.sampled_from([np.dtype(code) for code in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")])
ARRAYS = DTYPES.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=2, max_dims=3, max_side=6)))


def written(content: dict[str, Any], is_compressed: bool = False) -> bytes:
    file = io.BytesIO()
    savemat(file, content, do_compression=is_compressed)
    return file.getvalue()


@FUZZ
@given(st.dictionaries(st.sampled_from(["a", "tri", "keypoints", "a_longer_name"]), ARRAYS, min_size=1), st.booleans())
def test_arrays_come_out_as_scipy_reads_them(content: dict[str, np.ndarray], is_compressed: bool) -> None:
    file = written(content, is_compressed)
    ours, theirs = read_mat(file, tuple(content)), loadmat(io.BytesIO(file))
    assert set(ours) == set(content)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])


def test_other_things_in_a_file_are_passed_over() -> None:
    file = written({"text": "abc", "cell": np.array([1, "x"], dtype=object), "struct": {"a": 1}, "x": np.eye(2)})
    assert read_mat(file, ("x", "absent"))["x"].tolist() == [[1, 0], [0, 1]]
    for name in ("text", "cell", "struct"):
        with pytest.raises(ValueError, match=f"{name} is not of numbers"):
            read_mat(file, (name,))


def test_big_endian_files_are_read() -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    parts = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 1, 2))
    parts += struct.pack(">HH", 1, 1) + b"x\0\0\0"  # a short element: length, type, content
    parts += element(9, struct.pack(">dd", 1.5, -2.0))
    file = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + element(14, parts)
    assert read_mat(file, ("x",))["x"].tolist() == loadmat(io.BytesIO(file))["x"].tolist() == [[1.5, -2.0]]


def test_other_versions_say_what_they_are() -> None:
    with pytest.raises(ValueError, match=r"7\.3"):
        read_mat(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512), ("x",))
    with pytest.raises(ValueError, match="not a MATLAB"):
        read_mat(b"<html>sign in</html>", ("x",))


@FUZZ
@given(st.data())
def test_damaged_files_are_arrays_or_value_errors(data: st.DataObject) -> None:
    damaged = bytearray(written({"x": np.eye(3), "y": np.arange(4, dtype=np.uint8)}, data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(124, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        read_mat(bytes(damaged[: data.draw(st.none() | st.integers(0, len(damaged)))]), ("x", "y"))
