"""BVH: whoever composes the channels in their order gets the head's rotation and place, at every key, in time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from scipy.spatial.transform import Rotation

from common.export import bvh
from common.export.take import Take
from tests.common.export.takes import RATES, smooth_take, takes


def read(path: Path) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """What the format's description makes of a file of one joint: R [T, 3, 3], place [T, 3], frame time, bone [3]."""
    hierarchy, motion = path.read_text("ascii").split("MOTION\n")
    words = hierarchy.split()
    assert words[:4] == ["HIERARCHY", "ROOT", "head", "{"] and words.count("{") == words.count("}") == 2
    offset, end = ([float(word) for word in words[i + 1 : i + 4]] for i, w in enumerate(words) if w == "OFFSET")
    assert offset == [0, 0, 0]
    channels = words[words.index("CHANNELS") + 2 :][: int(words[words.index("CHANNELS") + 1])]
    frames, frame_time, *rows = motion.splitlines()
    values = np.array([[float(word) for word in row.split()] for row in rows])
    assert frames == f"Frames: {len(rows)}" and values.shape == (len(rows), len(channels))
    place = values[:, [channels.index(f"{axis}position") for axis in "XYZ"]]
    rotation = Rotation.identity(len(rows))
    for column, channel in enumerate(channels):  # column vectors: the channel that comes first is leftmost
        if channel.endswith("rotation"):
            rotation = rotation * Rotation.from_euler(channel[0].lower(), values[:, [column]], degrees=True)
    return rotation.as_matrix(), place, float(frame_time.removeprefix("Frame Time:")), np.array(end)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(take=takes())
def test_the_channels_in_their_order_give_the_head(tmp_path: Path, take: Take) -> None:
    bvh.write(tmp_path / "head.bvh", take)
    rotation, place_cm, frame_time_s, bone_cm = read(tmp_path / "head.bvh")
    np.testing.assert_allclose(rotation, take.rotation, atol=1e-7)  # a millionth of a degree
    np.testing.assert_allclose(place_cm, 100 * take.position, atol=1e-6)
    np.testing.assert_allclose(bone_cm, 100 * take.neutral[30], atol=1e-6)
    assert frame_time_s == pytest.approx(1 / take.fps, abs=1e-9)


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("n_keys", [1, 10_000])
def test_every_key_is_written_at_any_rate(tmp_path: Path, n_keys: int, fps: float) -> None:
    take = smooth_take(1, fps)
    bvh.write(
        tmp_path / "head.bvh",
        replace(
            take,
            points=np.repeat(take.points, n_keys, axis=0),
            rotation=np.repeat(take.rotation, n_keys, axis=0),
            position=np.repeat(take.position, n_keys, axis=0),
        ),
    )
    lines = (tmp_path / "head.bvh").read_text().splitlines()
    assert f"Frames: {n_keys}" in lines and len(lines) == lines.index("MOTION") + 3 + n_keys
    frame_time_s = float(lines[lines.index("MOTION") + 2].removeprefix("Frame Time:"))
    assert n_keys * abs(frame_time_s - 1 / fps) < 1e-5  # the last key is where it was


@pytest.mark.parametrize(("axis", "column"), [("z", 3), ("y", 4), ("x", 5)])
def test_a_turn_about_one_axis_is_one_channel_and_never_leaps(tmp_path: Path, axis: str, column: int) -> None:
    angles = np.linspace(0, 540 if axis != "y" else 80, 55)  # the middle angle has its poles at 90 degrees
    turning = replace(smooth_take(55), rotation=Rotation.from_euler(axis, angles[:, None], degrees=True).as_matrix())
    bvh.write(tmp_path / "head.bvh", turning)
    rows = [line.split() for line in (tmp_path / "head.bvh").read_text().splitlines()[-55:]]
    turns = np.array(rows, float)
    np.testing.assert_allclose(turns[:, column], angles, atol=1e-5)
    np.testing.assert_allclose(np.delete(turns[:, 3:], column - 3, axis=1), 0, atol=1e-5)
