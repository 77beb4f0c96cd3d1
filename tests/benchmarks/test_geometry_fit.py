"""The fit's benchmark: its errors are those that were put in, and its commands run on small data."""

from pathlib import Path

import pytest
import torch
from torch import Generator

from benchmarks.geometry import __main__ as geometry
from benchmarks.geometry.fit import draw, errors, many_directions, peak_mb, placed_px, synthetic_table
from common.face.fit import Fit
from common.face.model import FaceModel
from common.face.pos import Pose
from common.face.rotations import from_axis_angle
from tests.tiny_data import write_data

MODEL = FaceModel.builtin()


def test_the_truth_has_no_error_and_a_known_one_is_found() -> None:
    identity, expression, pose = draw(MODEL, 20, Generator().manual_seed(0))
    exact = Fit(identity, expression, pose, torch.zeros(20))
    assert max(errors(MODEL, (identity, expression, pose), exact).values()) < 1e-3
    off = Pose(1.02 * pose.scale, from_axis_angle(torch.tensor([0.0, 0.1, 0.0])) @ pose.rotation, pose.translation + 3)
    direction = torch.zeros_like(identity)
    direction[4] = 0.5  # units of a decimetre, along a direction of length 1 over 68 points
    found = errors(MODEL, (identity, expression, pose), Fit(identity + direction, expression, off, torch.zeros(20)))
    assert found["rotation, degrees"] == pytest.approx(5.73, abs=0.01)
    assert found["scale, %"] == pytest.approx(1.98, abs=0.01)
    assert found["translation, px"] == pytest.approx(4.24, abs=0.01)
    assert found["identity, mm"] == pytest.approx(50 / 68**0.5, rel=1e-3)
    assert found["expression, mm"] < 1e-3


def test_a_shape_is_placed_on_itself_and_off_by_what_differs() -> None:
    _, _, pose = draw(MODEL, 10, Generator().manual_seed(1))
    seen = pose.project(MODEL.mean)
    assert placed_px(MODEL.mean, seen).max() < 1e-2
    noisy = seen + torch.randn(seen.shape, generator=Generator().manual_seed(2))
    # Two axes of 1 px, less the six numbers of a pose of 136.
    assert placed_px(MODEL.mean, noisy).square().mean().sqrt() == pytest.approx((2 * (1 - 6 / 136)) ** 0.5, rel=0.1)


def test_published_sizes_have_their_directions() -> None:
    model = many_directions(80, 64)
    assert len(model.identity) == 80 and len(model.expression) == 64 and len(model.mean) == 68


def test_tables_of_small_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [("lrwar_a", "ann"), ("talk_b", "bea"), ("talk_c", "cid")]
    data = write_data(tmp_path / "data", [(name, person, "test", "talking", 30) for name, person in names])
    geometry.main(["fit", "--data", str(data), "--parts", "tracks", "smoothing"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| running speech | 2 clips, 2 person labels") for line in lines) == 4
    assert sum(line.startswith("| single words (LRW-AR) | 1 clips") for line in lines) == 4
    assert [line.split(" | ")[0] for line in lines[-6:-1]] == ["| 0", "| 0.5", "| 1", "| 2", "| 4"]
    table = synthetic_table(MODEL, n_persons=1, n_frames=5)
    assert table.count("| 3D |") == table.count("| 2D |") == 4


def test_memory_is_counted_with_the_arrays_in_it() -> None:
    peak, arrays = peak_mb(2000, "fit")
    # 68 x 3 landmarks, 32 expressions, residual, scale, rotation and translation, of 4 bytes.
    assert arrays == pytest.approx(2000 * 4 * (204 + 32 + 1 + 1 + 9 + 2) / 2**20, rel=1e-6)
    assert peak > arrays


def test_an_unknown_command_and_missing_data_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        geometry.main(["fot"])
    assert "invalid choice" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        geometry.main(["fit", "--data", str(tmp_path)])
    assert "index.csv" in str(stop.value)
