"""What is no take is refused with the reason, whatever is in the file."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.export import gltf
from tests.common.export.gltf_parts import Document, as_text, parts, written
from tests.common.export.takes import smooth_take


def nested(document: Document) -> None:
    document["nodes"][1]["children"] = [0]


def endless(document: Document) -> None:
    document["accessors"][0] |= {"count": 10**15}


def many_zeros(document: Document) -> None:
    position = document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]
    del document["accessors"][position]["bufferView"]
    document["accessors"][position]["count"] = 10**12


def many_keys(document: Document) -> None:
    document["scenes"][0]["extras"]["duet_take"] = document["scenes"][0]["extras"]["duet_take"].replace(
        '"fps": 25.0', '"fps": 1e300'
    )


def negative_view(document: Document) -> None:
    document["accessors"][0]["bufferView"] = -1


def outside(document: Document) -> None:
    document["buffers"] = [{"byteLength": 10, "uri": "../../../../etc/passwd"}]


def compressed(document: Document) -> None:
    document["extensionsRequired"] = ["KHR_draco_mesh_compression"]


def skinned(document: Document) -> None:
    document["nodes"][1]["skin"] = 0


def faceless(document: Document) -> None:
    document["meshes"][0]["primitives"] *= 2


def few_weights(document: Document) -> None:
    document["meshes"][0]["primitives"][0]["targets"].pop()


def no_asset(document: Document) -> None:
    del document["asset"]


def no_header(document: Document) -> None:
    document["scenes"][0]["extras"]["duet_take"] = "[1, 2]"


def flat(document: Document) -> None:
    document["nodes"][0]["scale"] = [float("nan")] * 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (nested, "nested without end"),
        (endless, "beyond its view"),
        (many_zeros, "no mesh of 68 points"),
        (many_keys, "spread over"),
        (negative_view, "-1 stands where"),
        (outside, "not beside it"),
        (compressed, "compressed with KHR_draco"),
        (skinned, "skeleton"),
        (faceless, "no mesh of 68 points"),
        (few_weights, "morph targets"),
        (no_asset, "lacks 'asset'"),
        (no_header, "no header"),
        (flat, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, damage: Callable[[Document], None], reason: str
) -> None:
    document, binary = parts(written(tmp_path, smooth_take(3)))
    path = as_text(tmp_path / "damaged.gltf", document, binary)
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=reason) as refusal:
        gltf.read(path).motion()
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b"glTF", b"glTF\2\0\0\0\xff\xff\xff\xff", b"[" * 100_000, b"{}", b"\xff\xfe", b"1"]
)
def test_what_is_no_gltf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.glb"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a usable glTF file"):
        gltf.read(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("gltf"), smooth_take(3))


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_a_take_or_refused(small: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.glb"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 30]))])
    read_or_refused(path)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_wrong_json_is_a_take_or_refused(small: Path, tmp_path: Path, data: st.DataObject) -> None:
    """One value anywhere in the file's JSON is something else, or gone."""
    document, binary = parts(small)
    document["buffers"][0]["uri"] = "data:;base64," + base64.b64encode(binary).decode()
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 3)) == 0:
            break
        place = inner
    if data.draw(st.booleans()):
        place[key] = data.draw(JUNK)
    else:
        del place[key]
    path = tmp_path / "wrong.gltf"
    path.write_text(json.dumps(document))
    read_or_refused(path)


def read_or_refused(path: Path) -> None:
    try:
        found = gltf.read(path)
    except InputError as refusal:
        assert str(path) in str(refusal) and len(str(refusal)) < len(str(path)) + 400
    else:
        assert found.points.shape == (found.n_keys, 68, 3)
