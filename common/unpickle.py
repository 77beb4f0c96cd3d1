"""Reading pickles of others without running what is in them.

A pickle names functions and classes and has them called; a hostile one names `os.system`. Here a name that is not on
the list below becomes a `Placeholder`: it keeps what it was given and does nothing. On the list are plain containers,
numpy arrays (put together here from type, shape and bytes, each checked) and torch's tensors. So a FLAME `.pkl` is read
without chumpy and an old Lightning `.ckpt` without the project that wrote it: the arrays come out, the rest is inert.

    torch.load(path, pickle_module=common.unpickle, weights_only=False, map_location="cpu")  # needs Unpickler and load

It can't be made to run code; a crafted file can still waste time and memory.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

_PLAIN_DTYPE = re.compile(r"\?|[biufc][0-9]{1,2}|[SU][0-9]{1,6}|O8?")


class Placeholder:
    """An object whose class is not on the list: its class's name, what it was made from, its state. It does nothing."""

    name: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        made = object.__new__(cls)
        made.args, made.state, made.items = (*args, *kwargs.values()), None, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return Placeholder(self, *args, **kwargs)

    def append(self, item: Any) -> None:
        """What a list, a set or a dictionary of a foreign class would have been filled with."""
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))


class _Dtype:
    """A numpy dtype by its code ('f8') and byte order; structured ones are refused."""

    def __init__(self, code: str, *_: Any) -> None:
        if not _PLAIN_DTYPE.fullmatch(code):
            raise ValueError(f"arrays of the type {code!r} are not read")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, fields = state[1], state[3:5]
        if order not in ("<", ">", "=", "|") or fields != (None, None):
            raise ValueError(f"arrays of the type {self.code!r} with {fields} are not read")
        self.order = order

    def numpy(self) -> np.dtype:
        return np.dtype(object) if self.code[0] == "O" else np.dtype(self.order.replace("|", "=") + self.code)


class _Array(np.ndarray):
    """An array that checks its state before it takes it."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        if not all(type(length) is int and 0 <= length < 2**40 for length in shape):
            raise ValueError(f"an array can't have the shape {shape}")
        dtype = dtype.numpy()
        content = content.encode("latin1") if isinstance(content, str) else content  # Python 2's bytes
        wanted, kind = (1, list) if dtype.hasobject else (dtype.itemsize, bytes)
        if not isinstance(content, kind) or len(content) != wanted * math.prod(shape):
            raise ValueError(f"an array of the shape {shape} has too few or too many values")
        checked: Any = (1, tuple(shape), dtype, bool(is_fortran), content)
        super().__setstate__(checked)


def _reconstruct(*_: Any) -> np.ndarray:
    return _Array(0)


def _frombuffer(
    buffer: Any, dtype: _Dtype, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    array = np.frombuffer(buffer, dtype.numpy()).reshape(shape, order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(axes)


def _scalar(dtype: _Dtype, content: Any) -> Any:
    return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype.numpy())[0]


def _no_bytes() -> bytes:
    return b""


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how protocol 2 writes bytes; any other codec is a module to import
        raise ValueError(f"bytes can't be encoded as {encoding!r}")
    return text.encode("latin1")


def _new_object(cls: Any, *_: Any) -> Any:
    return cls() if isinstance(cls, type) and issubclass(cls, Placeholder) else Placeholder(cls)


def _rebuild_tensor(storage: Any, *layout: Any) -> Any:
    if isinstance(storage, Placeholder):  # its storage was a nested pickle
        return Placeholder(storage, *layout)
    offset, size, stride = layout[:3]
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
for _module in ("builtins", "__builtin__"):
    _KNOWN |= {(_module, "set"): set, (_module, "frozenset"): frozenset, (_module, "bytes"): _no_bytes}
for _module in ("copyreg", "copy_reg"):
    _KNOWN |= {(_module, "_reconstructor"): _new_object}
for _module in ("numpy.core", "numpy._core"):
    _KNOWN |= {(f"{_module}.multiarray", "_reconstruct"): _reconstruct, (f"{_module}.multiarray", "scalar"): _scalar}
    _KNOWN |= {(f"{_module}.numeric", "_frombuffer"): _frombuffer}


class Unpickler(pickle._Unpickler):
    """Makes what is on the list and placeholders for everything else.

    Python's own, not the one in C: that one's memo table can be made to fill the memory by five bytes.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        return known or type("Placeholder", (Placeholder,), {"name": f"{module}.{name}"})

    def get_extension(self, code: int) -> None:
        raise ValueError(f"it uses the registered extension {code}")

    def load_build(self) -> None:
        """Give an object its state; setting attributes of anything but our own objects is left out."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Placeholder | _Array | _Dtype):
            self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def load(file: BinaryIO, *, encoding: str = "latin1", **_: Any) -> Any:
    """Read one pickle; ValueError where it is damaged or wants what can't be given.

    encoding: of Python 2's strings; latin1 keeps every byte of theirs.
    """
    try:
        return Unpickler(file, encoding=encoding).load()
    except Exception as error:  # a damaged pickle fails in any way it likes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"damaged, or not a pickle: {reason[:120]}") from error


def load_npy(content: bytes) -> np.ndarray:
    """Read the bytes of an .npy file, one of Python objects included; ValueError where it is damaged."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(file)
    except Exception as error:  # numpy evaluates the header's text
        raise ValueError("damaged, or not an .npy file") from error
    if dtype.hasobject:
        return np.asarray(load(file))
    file.seek(0)
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise ValueError(f"a damaged .npy file: {error}") from error
