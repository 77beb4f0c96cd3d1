"""C3D: other readers find 68 markers in millimetres; what they write comes back; what is damaged takes nothing down."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.export import c3d
from common.export.points import POINT_NAMES
from common.export.take import METRES_PER_UNIT, Take
from common.face.model import RIGID, FaceModel
from tests.common.export.takes import RATES, assert_close, smooth_take, takes

ezc3d = pytest.importorskip("ezc3d")

FEW = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])  # each starts a process
PRECISION_M, PRECISION_RAD = 3e-7, 5e-7  # float32 of a metre in millimetres (3e-8), of three half turns (4e-7)


def written(take: Take, folder: Path) -> Path:
    path = folder / "take.c3d"
    c3d.write(path, take)
    return path


def edited(path: Path, change: Callable[[Any], None]) -> Path:
    """As another tool writes it again."""
    content = ezc3d.c3d(str(path))
    change(content)
    content.write(str(path))
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        c3d.read(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(again: Take, take: Take) -> None:
    assert_close(again, take, PRECISION_M, PRECISION_RAD)


@FEW
@given(take=takes())
def test_any_take_comes_back_within_float32(tmp_path: Path, take: Take) -> None:
    assert_same(c3d.read(written(take, tmp_path)), take)


def test_ten_thousand_keys_come_back(tmp_path: Path) -> None:
    take = smooth_take(10_000)
    assert_same(c3d.read(written(take, tmp_path)), take)


@pytest.mark.parametrize("fps", RATES)
def test_ezc3d_finds_named_markers_in_millimetres_at_the_rate(tmp_path: Path, fps: float) -> None:
    take = smooth_take(12, fps)
    path = written(take, tmp_path)
    content = ezc3d.c3d(str(path))
    point, analog = content["parameters"]["POINT"], content["parameters"]["ANALOG"]
    assert tuple(point["LABELS"]["value"]) == POINT_NAMES and point["UNITS"]["value"] == ["mm"]
    assert point["RATE"]["value"] == pytest.approx(fps, rel=1e-7) and point["FRAMES"]["value"] == 12
    np.testing.assert_allclose(content["data"]["points"][:3].transpose(2, 1, 0), 1000 * take.posed, atol=1e-4)
    assert analog["LABELS"]["value"] == list(c3d.CHANNELS)
    np.testing.assert_allclose(content["data"]["analogs"][0, :3].T, 1000 * take.position, atol=1e-5)
    words = np.frombuffer(path.read_bytes()[:512], "<u2")
    assert (words[1], words[3], words[4]) == (68, 1, 12)  # points; first and last frame, as the format counts them


def test_markers_are_found_by_name_in_any_order_and_unit(tmp_path: Path) -> None:
    take = smooth_take(6)

    def change(content: Any) -> None:
        order = np.random.default_rng(0).permutation(68)
        point = content["parameters"]["POINT"]
        point["LABELS"]["value"] = [f"Actor:{POINT_NAMES[number].upper()}" for number in order] + ["extra"]
        point["UNITS"]["value"] = ["cm"]
        points = content["data"]["points"][:, order] / 10
        content["data"]["points"] = np.concatenate([points, points[:, :1]], axis=1)
        del content["data"]["meta_points"]

    assert_same(c3d.read(edited(written(take, tmp_path), change)), take)


def rigid(take: Take) -> Take:
    """The same, but what moves with the skull doesn't move in it."""
    points = take.points.copy()
    points[:, RIGID] = take.neutral[RIGID, :]
    return replace(take, points=points)


@pytest.mark.parametrize("is_z_up", [False, True])
def test_without_channels_or_with_other_axes_the_skull_tells_the_head(tmp_path: Path, is_z_up: bool) -> None:
    take = rigid(smooth_take(12))

    def drop_channels(content: Any) -> None:
        content["data"]["analogs"] = np.zeros((1, 0, 12))
        content["parameters"]["ANALOG"]["LABELS"]["value"] = []

    def turn(content: Any) -> None:  # what goes up is z now, what came to the viewer goes along -y
        content["parameters"]["POINT"]["Y_SCREEN"]["value"] = ["+Z"]
        points = content["data"]["points"]
        points[1], points[2] = -points[2].copy(), points[1].copy()

    assert_same(c3d.read(edited(written(take, tmp_path), turn if is_z_up else drop_channels)), take)


def test_alignment_finds_a_rigid_motion() -> None:
    take = smooth_take(50)
    posed = take.neutral @ take.rotation.swapaxes(1, 2) + take.position[:, None]
    rotation, position = c3d.aligned(posed, take.neutral)
    np.testing.assert_allclose(rotation, take.rotation, atol=1e-9)
    np.testing.assert_allclose(position, take.position, atol=1e-9)
    flipped, _ = c3d.aligned(posed * [1, 1, -1], take.neutral)
    np.testing.assert_allclose(np.linalg.det(flipped), 1)  # a mirror image has no rotation, and none is made up


def test_a_moved_marker_moves_that_point_alone(tmp_path: Path) -> None:
    take = smooth_take(6)

    def change(content: Any) -> None:
        content["data"]["points"][:3, POINT_NAMES.index("lip_57"), 2] += [0, -5, 0]

    again = c3d.read(edited(written(take, tmp_path), change))
    np.testing.assert_allclose(again.posed[2, 57], take.posed[2, 57] - [0, 0.005, 0], atol=PRECISION_M)
    assert (np.abs(again.points - take.points).max(axis=2) > PRECISION_M).sum() == 1


def test_a_rate_that_somebody_changed_is_believed(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["parameters"]["POINT"]["RATE"]["value"] = content["parameters"]["ANALOG"]["RATE"]["value"] = [50.0]

    assert c3d.read(edited(written(smooth_take(6), tmp_path), change)).fps == 50.0


@pytest.mark.parametrize("is_z_up", [False, True])
def test_markers_of_a_stage_are_nobodys_face_where_the_take_begins(tmp_path: Path, is_z_up: bool) -> None:
    take = smooth_take(6, 50.0)

    def change(content: Any) -> None:
        del content["parameters"]["DUET"]
        content["data"]["analogs"] = np.zeros((1, 0, 6))
        content["parameters"]["ANALOG"]["LABELS"]["value"] = []
        points = content["data"]["points"]
        if is_z_up:
            points[1], points[2] = -points[2].copy(), points[1].copy()
        points[:3] += np.array([500.0, 1700.0, 3000.0])[:, None, None]

    again = c3d.read(edited(written(take, tmp_path), change))
    assert again.fps == 50.0 and not again.is_named and not again.position[0].any()
    np.testing.assert_allclose(again.rotation[0], np.eye(3), atol=1e-6)
    mean = FaceModel.builtin().mean.double().numpy() * METRES_PER_UNIT
    unturned, _ = c3d.aligned(take.posed[:1], mean)
    moves, truth = again.posed - again.posed[0], (take.posed - take.posed[0]) @ unturned[0]
    np.testing.assert_allclose(moves, truth, atol=1e-6)  # float32 of metres
    again.motion()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["data"]["points"].__setitem__((slice(3), 48, 3), np.nan),
            "lip_48 is not seen in frame 4",
        ),
        (
            lambda content: content["parameters"]["POINT"]["LABELS"]["value"].__setitem__(48, "chin"),
            "1 of 68 markers, lip_48",
        ),
        (lambda content: content["parameters"]["POINT"]["UNITS"].__setitem__("value", ["furlong"]), "'furlong'"),
        (lambda content: content["parameters"]["DUET"]["HEADER"].__setitem__("value", ["{"]), "not a usable"),
    ],
)
def test_markers_that_are_no_take_are_refused(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    assert message in refused(edited(written(smooth_take(6), tmp_path), change))


def test_a_take_longer_than_the_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    take = smooth_take(1)
    n_keys = c3d.MOST_FRAMES + 1
    long = replace(take, points=np.broadcast_to(take.points, (n_keys, 68, 3)))
    with pytest.raises(InputError, match="65535 frames, 43 minutes at 25 a second"):
        c3d.write(tmp_path / "long.c3d", long)
    assert not list(tmp_path.iterdir())


def test_history_with_spaces_and_of_any_length_does_no_harm(tmp_path: Path) -> None:
    take = smooth_take(2)
    spaced = replace(take, provenance={"say": "a  b " * 3000, "who": "Zoë\n"})
    assert_same(c3d.read(written(spaced, tmp_path)), spaced)
    endless = replace(take, provenance={"say": "word " * 50_000})
    again = c3d.read(written(endless, tmp_path))
    assert again.provenance == {}
    assert_same(again, replace(take, provenance={}))


@pytest.mark.parametrize("suffix", [".C3D", ".c3d"])
def test_the_file_has_the_name_that_was_asked_for(tmp_path: Path, suffix: str) -> None:
    c3d.write(tmp_path / f"take{suffix}", smooth_take(1))
    assert [path.name for path in tmp_path.iterdir()] == [f"take{suffix}"]


@pytest.mark.parametrize(
    "content", [b"", b"P", b"\x02\x50" + bytes(1022), b"\xff" * 2000, b"\x02\x50" + bytes(513) + b"\x54" + bytes(2000)]
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.c3d").write_bytes(content)
    refused(tmp_path / "other.c3d")


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = written(smooth_take(40), tmp_path)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    assert "cut off" in refused(path)


@settings(FEW, max_examples=8)
@given(data=st.data())
def test_damaged_files_are_refused_or_read_as_a_take(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(written(smooth_take(3), tmp_path).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + 8] = data.draw(st.binary(min_size=8, max_size=8))
    path = tmp_path / "bad.c3d"
    path.write_bytes(content)
    try:
        c3d.read(path).motion()
    except InputError as error:
        assert "bad.c3d" in str(error) and "\n" not in str(error)
