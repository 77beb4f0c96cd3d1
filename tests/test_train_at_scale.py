"""Training AToM-Net itself, from one CPU to many processes: the same losses, and runs that go on to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train_a2m
from common.trainer import CHECKPOINT_NAME
from tests.tiny_data import write_data

REPOSITORY = Path(__file__).resolve().parents[1]
SIZES = ["model.width=32", "model.n_layers=1", "model.ff_width=32", "model.n_lip=3", "model.n_rest=2"]
SETTINGS = ["train.batch_size=2", "train.device=cpu", "train.precision=no", "train.log_every=1", "train.warmup_steps=1"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [("a_00", "anna", "train", "talking", 70), ("c_00", "cleo", "val", "talking", 30)]
    return write_data(tmp_path_factory.mktemp("tiny") / "data", clips)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_a_run_cut_in_two_ends_as_one_that_was_not_and_says_where_its_time_went(data_dir: Path, tmp_path: Path) -> None:
    """The rate is constant, for with a cosine the number of steps counts; data, noise and dropout go on."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    looks = ["train.validate_every=2", "train.sample_every=0", "train.n_accumulate=2", "train.final_rate=1"]
    common = [f"data={data_dir}", *SIZES, *SETTINGS, *looks]
    train_a2m.main([*common, f"out={tmp_path / 'whole'}", "train.n_steps=4"])
    for n_steps in (2, 4):
        train_a2m.main([*common, f"out={tmp_path / 'halves'}", f"train.n_steps={n_steps}"])
    whole, halves = (torch.load(tmp_path / name / CHECKPOINT_NAME, weights_only=True) for name in ("whole", "halves"))
    for part in ("model", "ema"):
        assert all(torch.equal(whole[part][key], halves[part][key]) for key in whole[part])
    for one, other in zip(whole["optimizer"]["state"].values(), halves["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)

    steps = [line for line in lines(tmp_path / "halves") if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["loss"] for line in steps] == [line["loss"] for line in lines(tmp_path / "whole") if "loss" in line]
    assert all(line["samples_per_s"] > 0 and 0 <= line["waiting"] <= 1 for line in steps)
    looked = [line["step"] for line in lines(tmp_path / "halves") if "val/running/energy" in line]
    assert looked == [0, 2, 4]
    board = EventAccumulator(str(tmp_path / "whole" / "tensorboard")).Reload()
    assert {"loss", "samples_per_s", "waiting", "val/running/energy"} <= set(board.Tags()["scalars"])
    written = [event.value for event in board.Scalars("loss")]
    assert written == pytest.approx([line["loss"] for line in steps], rel=1e-6)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_at_the_same_global_batch(data_dir: Path, tmp_path: Path) -> None:
    quiet = ["train.validate_every=0", "train.sample_every=0", "train.n_steps=4"]
    common = [str(REPOSITORY / "train_a2m.py"), f"data={data_dir}", *SIZES, *SETTINGS, *quiet]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    two = [*launch, "--multi_gpu", "--num_processes", "2", *common, f"out={tmp_path / 'two'}"]  # of CPUs, if need be
    one = [sys.executable, *common, f"out={tmp_path / 'one'}", "train.n_accumulate=2"]
    for command in (two, one):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, timeout=600)
    a, b = (lines(tmp_path / name) for name in ("two", "one"))
    assert [line["step"] for line in a] == [line["step"] for line in b] == [1, 2, 3, 4]
    for x, y in zip(a, b, strict=True):
        for name in ("loss", "reconstruction", "velocity", "grad_norm"):
            assert x[name] == pytest.approx(y[name], rel=2e-5)  # the order of additions differs
    states = (load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("two", "one"))
    for x_state, y_state in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close(x_state, y_state, rtol=1e-2, atol=1e-5)  # bfloat16
