"""Live Link Face's CSV, read back as Unreal's importer reads it."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from common.export import livelink
from common.export.arkit import CURVES, solve
from common.export.take import Take
from tests.common.export.takes import RATES, smooth_take, takes

_TIMECODE = re.compile(r"(\d\d+):([0-5]\d):([0-5]\d):([0-5]\d\.\d{3})")
_CELL = re.compile(r"-?\d+\.\d{10}")


def _seconds(timecode: str) -> float:
    matched = _TIMECODE.fullmatch(timecode)
    assert matched, timecode
    hours, minutes, seconds, frames = (float(part) for part in matched.groups())
    return 3600 * hours + 60 * minutes + seconds + frames / 60


def _rows(path: Path, take: Take) -> list[dict[str, str]]:
    livelink.write(path, take, solve(take))
    with path.open(encoding="ascii", newline="") as file:
        return list(csv.DictReader(file))


def test_the_columns_are_those_of_the_apps_recordings(tmp_path: Path) -> None:
    livelink.write(tmp_path / "a.csv", take := smooth_take(1), solve(take))
    header = (tmp_path / "a.csv").read_text().splitlines()[0].split(",")
    assert header[:5] == ["Timecode", "BlendShapeCount", "EyeBlinkLeft", "EyeLookDownLeft", "EyeLookInLeft"]
    assert header[16:20] == ["JawForward", "JawRight", "JawLeft", "JawOpen"]
    assert header[53:57] == ["TongueOut", "HeadYaw", "HeadPitch", "HeadRoll"]
    assert header[-1] == "RightEyeRoll" and len(header) == 2 + 61


@given(take=takes(most_keys=12))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cell_holds_a_number_with_ten_decimals_and_comes_back(tmp_path: Path, take: Take) -> None:
    rows, curves = _rows(tmp_path / "a.csv", take), solve(take)
    assert len(rows) == take.n_keys
    for k, row in enumerate(rows):
        assert None not in row and None not in row.values()  # as many cells as columns
        assert row["BlendShapeCount"] == "61"
        assert all(_CELL.fullmatch(row[name]) for name in livelink.COLUMNS)
        assert not any(row[name] == "-0.0000000000" for name in livelink.COLUMNS)
        values = np.array([float(row[name[0].upper() + name[1:]]) for name in CURVES])
        np.testing.assert_allclose(values, curves.values[k], atol=0.5e-10)
        assert _seconds(row["Timecode"]) == pytest.approx(k / take.fps, abs=1e-5)  # half of 1/60,000 s


def test_a_key_at_0_04_s_is_frame_2_4() -> None:
    assert livelink.timecode(0.04) == "00:00:00:02.400"
    assert livelink.timecode(1.0) == "00:00:01:00.000"
    assert livelink.timecode(3723.5) == "01:02:03:30.000"
    assert livelink.timecode(59.9999999) == "00:01:00:00.000"


@given(fps=st.sampled_from(RATES), k=st.integers(0, 10_000))
def test_timecodes_rise_from_key_to_key(fps: float, k: int) -> None:
    assert _seconds(livelink.timecode((k + 1) / fps)) > _seconds(livelink.timecode(k / fps))


@pytest.mark.parametrize(
    ("axis", "column", "sign"), [("y", "HeadYaw", -1), ("x", "HeadPitch", 1), ("z", "HeadRoll", -1)]
)
def test_a_turn_about_one_axis_is_in_one_column(tmp_path: Path, axis: str, column: str, sign: int) -> None:
    rotation = Rotation.from_euler(axis, [[0.3], [-0.2]]).as_matrix()
    rows = _rows(tmp_path / "a.csv", replace(smooth_take(2), rotation=rotation))
    for name in (*livelink.HEAD, *livelink.GAZE):
        wanted = [0.3 * sign, -0.2 * sign] if name == column else [0, 0]
        np.testing.assert_allclose([float(row[name]) for row in rows], wanted, atol=1e-9)


@pytest.mark.parametrize(
    "recorded", [(-0.25831, -0.13067, 0.03356), (0.13526, -0.24305, -0.03342), (-0.35968, -0.17415, 0.06184)]
)
def test_angles_are_those_of_recorded_eyes(recorded: tuple[float, float, float]) -> None:
    """Eyes of a public recording turn about two axes, first the face's y, then its x: their roll follows, to 6 %."""
    pitch = np.arctan2(np.tan(recorded[1]), np.cos(recorded[0]))
    yaw = np.arcsin(np.sin(recorded[0]) * np.cos(recorded[1]))
    found = livelink.turns_rad(Rotation.from_euler("yx", [[-yaw, pitch]]).as_matrix())[0]
    np.testing.assert_allclose(found[:2], recorded[:2], atol=1e-5)
    np.testing.assert_allclose(found[2], recorded[2], rtol=0.06)


@given(take=takes(most_keys=10))
@settings(max_examples=20, deadline=None)
def test_the_angles_give_the_rotation_back(take: Take) -> None:
    yaw, pitch, roll = livelink.turns_rad(take.rotation).T
    back = Rotation.from_euler("YXZ", np.column_stack([-yaw, pitch, -roll])).as_matrix()
    np.testing.assert_allclose(back, take.rotation, atol=1e-6)


@pytest.mark.parametrize("stem", ["MySlate_1_iPhone", "a_12_b_c", "my_slate_3_duet"])
def test_names_as_the_app_gives_them_stay(stem: str) -> None:
    assert livelink.named(Path("folder") / f"{stem}.csv") == Path("folder") / f"{stem}.csv"


@given(stem=st.text("abc_1é -", min_size=1, max_size=12))
def test_other_names_become_such_and_then_stay(stem: str) -> None:
    path = livelink.named(Path("folder") / f"x{stem}.csv")
    slate, take, subject = re.fullmatch(r"(.+)_(\d+)_(.+)", path.stem).groups()  # type: ignore[union-attr]
    assert slate and take and subject and path.parent == Path("folder") and path.suffix == ".csv"
    assert livelink.named(path) == path
