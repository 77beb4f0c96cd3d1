"""CSV, JSON, NPZ: a take comes back within the text's precision, edited as people edit, or is refused in a sentence."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.export import table
from common.export.points import POINT_NAMES
from common.export.take import Take
from common.export.turns import from_euler_deg
from common.motion import Motion
from tests.common.export.takes import RATES, assert_close, smooth_take, takes

FUZZ = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
WAYS = {"csv": (table.write_csv, table.read_csv), "json": (table.write_json, table.read_json)}
BOTH = pytest.mark.parametrize("kind", WAYS)
PRECISION_M, PRECISION_RAD = 0.6e-7, 1e-7  # seven decimals of a metre, of a degree; nine of a quaternion


def written(take: Take, folder: Path, kind: str) -> Path:
    path = folder / f"take.{kind}"
    WAYS[kind][0](path, take)
    return path


def read(path: Path) -> Take:
    return WAYS[path.suffix[1:]][1](path)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(again: Take, take: Take) -> None:
    assert_close(again, take, PRECISION_M, PRECISION_RAD)
    one, other = again.motion(), take.motion()
    torch.testing.assert_close(one.landmarks, other.landmarks, rtol=0, atol=2 * PRECISION_M / 0.1)
    torch.testing.assert_close(one.posed(), other.posed(), rtol=0, atol=3e-3)  # of a head 9 px per cm, up to 3 times
    torch.testing.assert_close(one.rest.landmarks, other.rest.landmarks, rtol=0, atol=2 * PRECISION_M / 0.1)


@BOTH
@FUZZ
@given(take=takes())
def test_any_take_comes_back_within_the_precision_of_the_text(tmp_path: Path, kind: str, take: Take) -> None:
    assert_same(read(written(take, tmp_path, kind)), take)


@FUZZ
@given(take=takes())
def test_an_npz_is_the_motion_bit_for_bit(tmp_path: Path, take: Take) -> None:
    path = tmp_path / "take.npz"
    table.write_npz(path, take)
    motion, again = take.motion(), Motion.load(path)
    assert torch.equal(again.landmarks, motion.landmarks) and torch.equal(again.posed(), motion.posed())
    assert torch.equal(again.rest.landmarks, motion.rest.landmarks) and again.fps == motion.fps
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_allclose(file["time_s"], take.time_s)
        np.testing.assert_allclose(file["posed_m"], take.posed, atol=1e-6)
        turned = file["frontal_m"] @ file["rotation"].swapaxes(1, 2)
        np.testing.assert_allclose(turned + file["position_m"][:, None], take.posed, atol=1e-6)
        assert tuple(file["names"]) == POINT_NAMES and str(file["units"]) == table.UNITS


@BOTH
def test_ten_thousand_keys_come_back(tmp_path: Path, kind: str) -> None:
    take = smooth_take(10_000)
    assert_same(read(written(take, tmp_path, kind)), take)


def test_other_readers_find_in_a_csv_what_its_names_say(tmp_path: Path) -> None:
    take = smooth_take(9, 30000 / 1001)
    lines = written(take, tmp_path, "csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [int(row["frame"]) for row in rows] == list(range(9))
    np.testing.assert_allclose([float(row["time_s"]) for row in rows], take.time_s, atol=1e-6)
    lip = np.array([[float(row[f"posed_lip_48_{axis}"]) for axis in "xyz"] for row in rows])
    np.testing.assert_allclose(lip, take.posed[:, 48], atol=1e-7)
    turns_deg = [[float(row[f"head_{name}_deg"]) for name in ("pitch", "yaw", "roll")] for row in rows]
    place = np.array([[float(row[f"head_{axis}_m"]) for axis in "xyz"] for row in rows])
    frontal = np.array([[float(row[f"frontal_lip_48_{axis}"]) for axis in "xyz"] for row in rows])
    np.testing.assert_allclose(
        np.einsum("tij,tj->ti", from_euler_deg(np.array(turns_deg)), frontal) + place, lip, atol=3e-7
    )


def test_other_readers_find_in_a_json_what_it_says(tmp_path: Path) -> None:
    take = smooth_take(9)
    content = json.loads(written(take, tmp_path, "json").read_text())
    assert content["names"] == list(POINT_NAMES) and "metres" in content["units"] and "y up" in content["axes"]
    np.testing.assert_allclose([key["posed"] for key in content["keys"]], take.posed, atol=1e-7)
    np.testing.assert_allclose([key["rotation"] for key in content["keys"]], take.quaternion, atol=1e-9)


def edited_csv(path: Path, change: Callable[[list[list[str]]], list[list[str]]]) -> Path:
    """As a spreadsheet does it: comments cut at commas, rows filled up, what it thinks needs quotes in quotes."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    width = max(map(len, rows))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(change([row + [""] * (width - len(row)) for row in rows]))
    return path


def test_a_csv_that_a_spreadsheet_saved_comes_back(tmp_path: Path) -> None:
    take = smooth_take(12)
    assert_same(read(edited_csv(written(take, tmp_path, "csv"), lambda rows: rows)), take)


def test_columns_count_by_name_and_posed_points_not_at_all(tmp_path: Path) -> None:
    take = smooth_take(5)

    def change(rows: list[list[str]]) -> list[list[str]]:
        first = next(number for number, row in enumerate(rows) if row[0] == "frame")
        kept = [column for column, name in enumerate(rows[first]) if not name.startswith("posed") and name != "frame"]
        kept = kept[::-1]
        return rows[:first] + [[row[column] for column in kept] for row in rows[first:]]

    assert_same(read(edited_csv(written(take, tmp_path, "csv"), change)), take)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_marks_between_cells_are_read(tmp_path: Path, delimiter: str) -> None:
    take = smooth_take(5)
    path = written(take, tmp_path, "csv")
    lines = [line if line[0] == "#" else line.replace(",", delimiter) for line in path.read_text().splitlines()]
    path.write_text("\r\n".join(lines))
    assert_same(read(path), take)


@pytest.mark.parametrize("fps", RATES)
def test_an_edited_number_moves_that_point_alone(tmp_path: Path, fps: float) -> None:
    take = smooth_take(5, fps)

    def change(rows: list[list[str]]) -> list[list[str]]:
        names = next(row for row in rows if row[0] == "frame")
        rows[-1][names.index("frontal_lip_57_y")] = "-0.125"
        return rows

    again = read(edited_csv(written(take, tmp_path, "csv"), change))
    moved = np.abs(again.points - take.points) > PRECISION_M
    assert again.points[-1, 57, 1] == -0.125 and moved.sum() == 1 and moved[-1, 57, 1]


@pytest.mark.parametrize("fps", RATES)
def test_without_its_comments_a_csv_is_nobodys_face_at_the_rate_of_its_times(tmp_path: Path, fps: float) -> None:
    take = smooth_take(200, fps)
    path = written(take, tmp_path, "csv")
    path.write_text("".join(line for line in path.read_text().splitlines(True) if line[0] != "#"))
    again = read(path)
    assert again.fps == pytest.approx(fps, rel=3e-5) and not again.is_named  # three decimals of a rate
    np.testing.assert_allclose(again.posed, take.posed, atol=3e-7)


def cut(take: Take, start: int, stop: int) -> Take:
    return replace(
        take, points=take.points[start:stop], rotation=take.rotation[start:stop], position=take.position[start:stop]
    )


def test_a_trimmed_csv_is_the_rest_of_the_take(tmp_path: Path) -> None:
    take = smooth_take(20)
    path = written(take, tmp_path, "csv")
    lines = path.read_text().splitlines(True)
    first = next(number for number, line in enumerate(lines) if line.startswith("frame")) + 1
    path.write_text("".join(lines[:first] + lines[first + 4 : -3]))
    assert_same(read(path), cut(take, 4, 17))


def test_a_row_that_is_missing_in_the_middle_is_named(tmp_path: Path) -> None:
    path = written(smooth_take(20), tmp_path, "csv")
    lines = path.read_text().splitlines(True)
    path.write_text("".join(lines[:-10] + lines[-9:]))
    assert "from row 10 to 11" in refused(path)


@BOTH
@pytest.mark.parametrize(("fps", "stated"), [(30.0, 24.0), (24.0, 23.976), (24000 / 1001, 24.0)])
def test_times_that_say_another_rate_are_believed(tmp_path: Path, kind: str, fps: float, stated: float) -> None:
    path = damaged(written(smooth_take(10, fps), tmp_path, kind), f'"fps": {fps}', f'"fps": {stated}')
    assert read(path).fps == pytest.approx(fps, abs=1e-3)  # three decimals


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", "[]", "its keys are not a list"),
        ("a.json", '{"keys": [1]}', "its keys are not a list"),
        ("a.csv", "Timecode,BlendShapeCount,EyeBlinkLeft\n00:00:00:00.000,61,0.5\n", "Live Link Face's"),
    ],
)
def test_files_of_another_kind_are_told(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    assert reason in refused(tmp_path / name)


@BOTH
@pytest.mark.parametrize("number", ["nan", "1e999", "x", ""])
def test_what_is_not_a_finite_number_is_refused(tmp_path: Path, kind: str, number: str) -> None:
    take = smooth_take(3)
    path = written(take, tmp_path, kind)
    value = f"{take.points[1, 20, 1]:.7f}"
    path.write_text(path.read_text().replace(value, {"nan": "NaN"}.get(number, number) if kind == "json" else number))
    refused(path)


@BOTH
def test_a_take_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    take = smooth_take(4)
    beyond = replace(take, position=take.position + np.array([0, 0, 2.0]))
    assert "through the camera" in refused(written(beyond, tmp_path, kind))
    assert "lacks" in refused(damaged(written(take, tmp_path, kind), '"mean_m"', '"mean"'))
    refused(damaged(written(take, tmp_path, kind), '"fps": 25.0', '"fps": 1' + 400 * "0"))
    refused(damaged(written(take, tmp_path, kind), '"header": {"' if kind == "json" else "# header: {", "# header: "))
    missing = damaged(written(take, tmp_path, kind), "frontal_lip_57_y" if kind == "csv" else '"frontal"', '"lip"')
    assert "frontal" in refused(missing)


def damaged(path: Path, old: str, new: str) -> Path:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    return path


@BOTH
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\n\n", b"#", b'"', b"frame,time_s\n", b"# header: {\n", b"{}", b"[]", b"null", b"[" * 100_000),
        *(b'{"keys": []}', b'{"keys": [1]}', b'{"keys": [{"frontal": [[1, 2]]}]}'),
        *(b"\xff\xfe\x00", b"PK\x03\x04", b"a" * 3_000_000),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"other.{kind}"
    path.write_bytes(content)
    refused(path)


@BOTH
@FUZZ
@given(data=st.data())
def test_damaged_files_are_refused_or_read_as_a_take(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(written(smooth_take(3), tmp_path, kind).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
    path = tmp_path / f"bad.{kind}"
    path.write_bytes(content)
    try:
        read(path).motion()
    except InputError as error:
        assert "bad" in str(error) and "\n" not in str(error)


@BOTH
@FUZZ
@given(content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"any.{kind}"
    path.write_bytes(content)
    refused(path)
