"""Reading others' pickles: arrays and plain containers come out, everything else is inert, and nothing is run."""

import argparse
import io
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import unpickle
from common.unpickle import Placeholder, load, load_npy

FUZZ = settings(max_examples=200, deadline=None)
REPOSITORY = Path(__file__).resolve().parents[2]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.sets(st.integers() | st.text())
    ),
    max_leaves=12,
)
ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    np.asfortranarray(np.arange(6, dtype=">u2").reshape(2, 3)),
    np.array(3, dtype=np.int8),
    np.zeros((0, 3), dtype=complex),
    np.array([True, False]),
    np.array(["some", "text"]),
    np.array([b"some", b"bytes"]),
    np.array([None, {"a": [1]}, "x"], dtype=object),
]


def loads(content: bytes) -> Any:
    return load(io.BytesIO(content))


class Foreign:
    """What a pickle of another project holds: an object with a state, itself never imported by us."""

    def __init__(self) -> None:
        self.weights = np.arange(3)


class ForeignDict(dict[str, Any]):
    pass


class Runs:
    """An object that is made by a call when it is read."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@FUZZ
@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_out_as_pythons_own_reader_has_them(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    assert loads(content) == pickle.loads(content) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_out_in_value_type_and_shape(protocol: int) -> None:
    for array in ARRAYS:
        read = np.asarray(loads(pickle.dumps(array, protocol)))
        assert read.dtype.newbyteorder("=") == array.dtype.newbyteorder("=") and read.shape == array.shape
        assert np.array_equal(read, array)
    assert loads(pickle.dumps(np.float32(0.1), protocol)) == np.float32(0.1)


def test_an_npy_of_objects_is_read_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array({"faces": np.arange(4), "hook": Foreign()}, dtype=object), allow_pickle=True)
    content = load_npy(path.read_bytes()).item()
    assert content["faces"].tolist() == [0, 1, 2, 3] and isinstance(content["hook"], Placeholder)
    np.save(path, ARRAYS[2])
    assert np.array_equal(load_npy(path.read_bytes()), ARRAYS[2])


def test_unknown_objects_keep_their_name_and_state_and_do_nothing() -> None:
    filled = ForeignDict(a=1)
    thing, mapping = loads(pickle.dumps([Foreign(), filled]))
    assert isinstance(thing, Placeholder) and thing.name == f"{__name__}.Foreign"
    assert np.asarray(thing.state["weights"]).tolist() == [0, 1, 2]
    assert isinstance(mapping, Placeholder) and mapping.items == [("a", 1)]


HOSTILE = [
    Runs(os.system, "touch {}"),
    Runs(os.mkdir, "{}"),
    Runs(eval, "__import__('os').mkdir('{}')"),
    Runs(getattr(__builtins__, "exec", exec), "import os; os.mkdir('{}')"),
    Runs(subprocess.check_call, ["touch", "{}"]),
    Runs(map, Runs(getattr, os, "mkdir"), ["{}"]),
    Runs(np.load, "{}"),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_calls_become_placeholders_with_their_arguments(protocol: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for hostile in HOSTILE[:5]:
        function, args = hostile.call
        filled = tuple([a.format(made) for a in x] if isinstance(x, list) else x.format(made) for x in args)
        read = loads(pickle.dumps({"weights": np.arange(2), "x": Runs(function, *filled)}, protocol))
        assert isinstance(read["x"], Placeholder) and read["x"].args == filled
        assert np.asarray(read["weights"]).tolist() == [0, 1]
    assert not made.exists()


def test_hand_written_attacks_are_inert_or_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"
    mkdir = f"cos\nmkdir\n(V{made}\ntR."
    attacks = [
        mkdir.encode(),
        f"(V{made}\nios\nmkdir\n.".encode(),  # INST
        f"cos\nmkdir\n(V{made}\nto.".encode(),  # OBJ without its mark
        b"cnumpy\nload\n(V/etc/passwd\ntR.",
        b"c_codecs\nencode\n(Vx\nVzlib\ntR.",  # a codec is a module
        b"cbuiltins\ngetattr\n(cos\nmkdir\nV__call__\ntR(V/tmp/x\ntR.",
        b"\x82\x01.",  # a registered extension
        b"Pname\n.",  # a persistent name
        b"ccommon.unpickle\nUnpickler\n(Vx\ntR.",
        b"cnumpy\ndtype\n(VV16\ntR.",  # a structured type
        b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n(t(tI0\nNtR.",
    ]
    for attack in attacks:
        try:
            read = loads(attack)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(read, Placeholder)
    assert not made.exists()


def test_a_state_can_change_nothing_but_what_was_read() -> None:
    """BUILD on a class or a function of ours would change it for every later reader."""
    before = {key: vars(value).copy() for key, value in unpickle._KNOWN.items() if hasattr(value, "__dict__")}
    for module, name in unpickle._KNOWN:
        target = f"c{module}\n{name}\n".encode()
        for state in (
            b"}V__doc__\nVx\ns",
            b"N}V__doc__\nVx\ns\x86",
            b"N}V__setstate__\nNs\x86",
            b"N}V__defaults__\nNs\x86",
        ):
            with np.errstate(all="ignore"):
                loads(target + state + b"b.")
    after = {key: vars(value).copy() for key, value in unpickle._KNOWN.items() if hasattr(value, "__dict__")}
    assert before == after


def array_pickle(shape: tuple[int, ...], dtype: str, content: bytes) -> bytes:
    """An array whose parts may contradict each other."""
    parts = b"".join(b"I%d\n" % length for length in shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR(I1\n("
        + parts
        + b"tcnumpy\ndtype\n(V"
        + dtype.encode()
        + b"\nI0\nI1\ntR(I3\nV<\nNNNI-1\nI-1\nI0\ntb\x89B"
        + struct.pack("<I", len(content))
        + content
        + b"tb."
    )


def test_arrays_that_contradict_themselves_are_refused() -> None:
    assert loads(array_pickle((2,), "f8", struct.pack("<2d", 1, 2))).tolist() == [1, 2]
    for shape, dtype, content in (
        ((3,), "f8", bytes(16)),
        ((-2,), "f8", bytes(16)),
        ((2**62, 2**62), "f8", b""),
        ((2**33,), "u1", bytes(8)),
        ((1,), "O8", bytes(8)),  # a pointer from the file
        ((1,), "f3", bytes(3)),
        ((1,), "M8[ns]", bytes(8)),
    ):
        with pytest.raises(ValueError):
            loads(array_pickle(shape, dtype, content))


def test_a_memo_number_takes_no_memory() -> None:
    """Five bytes that make the reader in C clear gigabytes."""
    assert loads(b"\x80\x02Nr" + struct.pack("<I", 2**31) + b".") is None


@FUZZ
@given(st.data())
def test_damaged_pickles_are_values_or_value_errors(data: st.DataObject) -> None:
    content = {"a": ARRAYS[:3], "b": [1, "x", (2.5, None)], "c": Foreign(), "d": OrderedDict(x=1)}
    damaged = bytearray(pickle.dumps(content, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        loads(bytes(damaged[: data.draw(st.none() | st.integers(0, len(damaged)))]))
    except ValueError as error:
        assert "\n" not in str(error)


@FUZZ
@given(st.binary(max_size=100))
def test_any_bytes_are_a_value_or_a_value_error(content: bytes) -> None:
    try:
        loads(content)
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_reads_a_training_checkpoint_through_it(is_zip: bool, tmp_path: Path) -> None:
    """Weights come out; hyperparameters, callbacks and whatever else the trainer pickled are inert."""
    net = torch.nn.Linear(3, 2)
    content = {
        "state_dict": net.state_dict(),
        "scale": torch.nn.Parameter(torch.full((2,), 0.5)),
        "half": torch.ones(2, dtype=torch.float16),
        "hyper_parameters": argparse.Namespace(width=3),
        "callbacks": {Foreign: Foreign()},
        "hostile": Runs(os.mkdir, str(tmp_path / "made")),
        "epoch": 7,
    }
    path = tmp_path / "last.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    read = torch.load(path, pickle_module=unpickle, weights_only=False, map_location="cpu")
    for key, weight in net.state_dict().items():
        assert torch.equal(read["state_dict"][key], weight)
    assert read["epoch"] == 7 and read["scale"].tolist() == [0.5, 0.5] and read["half"].dtype == torch.float16
    assert read["hyper_parameters"].state == {"width": 3}
    assert isinstance(read["hostile"], Placeholder) and not (tmp_path / "made").exists()


def test_reading_imports_nothing_that_the_pickle_names() -> None:
    program = (
        "import io, sys; from common.unpickle import load; before = set(sys.modules)\n"
        "load(io.BytesIO(b'cantigravity\\nfly\\n(tR.')); load(io.BytesIO(b'cthis\\ns\\n.'))\n"
        "sys.exit(len({'antigravity', 'this'} & (set(sys.modules) - before)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0
