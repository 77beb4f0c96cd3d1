"""The ablation of stage one: three models that differ by two switches, and a judge that knows the truth."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from a2m.samples import clip_values
from benchmarks import a2m_ablation as ablation
from benchmarks.openings import load_atom
from common.face.model import FaceModel
from tests.a2m.test_training import clip, speech
from tests.tiny_data import write_data


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_real_motion_is_judged_better_than_none() -> None:
    real = clip("a", 0, T=40)
    net, _ = speech([real])
    values, _ = clip_values(real, net.space, FaceModel.builtin())
    origin = values[int(real.opening.argmin())].clone()
    origin[: net.space.n_lip] = 0  # the picture's mouth is closed
    exact, still = (ablation.judge(net, real, x[None]) for x in (values - origin, torch.zeros_like(values)))
    assert exact.correlation > 0.99 and exact.amplitude == pytest.approx(1, abs=0.05)
    assert exact.face < 0.2 * still.face and exact.lips_course < 0.01 * still.lips_course
    assert exact.energy < 0.1 * still.energy


def test_three_models_differ_by_two_switches_and_are_compared_by_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [("a_00", "anna", "train"), ("c_00", "cleo", "val"), ("d_00", "dora", "val")]
    data_dir = write_data(tmp_path / "data", [(*each, "talking", 40) for each in people])
    sizes = ["model.width=32", "model.n_layers=1", "model.ff_width=32", "model.n_lip=3", "model.n_rest=2"]
    quick = ["model.n_steps=2", "train.batch_size=2", "train.device=cpu"]
    given = [*sizes, *quick, "--data", str(data_dir), "--out", str(tmp_path / "runs"), "--seeds", "2"]
    ablation.main([*given, "--steps", "1"])
    said = capsys.readouterr().out

    configs = [asdict(load_atom(tmp_path / "runs" / name / "weights").config) for name, _ in ablation.VARIANTS.values()]
    switches = [(config.pop("has_reference"), config.pop("has_streams")) for config in configs]
    assert switches == [(False, False), (True, False), (True, True)]
    assert configs[0] == configs[1] == configs[2]
    assert "Running speech, mean of 2 samples: 2 clips, 2 person labels" in said and "Single words" not in said
    for row in (*ablation.VARIANTS, ablation.STILL, "+ reference − baseline", "+ two streams − + reference"):
        assert said.count(f"| {row} |") == 2  # of means and of single samples
