"""The training loop's claims: exact resume, the same samples however they are cut into batches, safe checkpoints."""

import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from common import trainer, weights
from common.errors import InputError
from common.trainer import Task, TrainConfig, learning_rate, sample_numbers, train

REPOSITORY = Path(__file__).resolve().parents[2]


class Line(nn.Module):
    """y = w x + b behind a layer with dropout, so that the global generator matters."""

    def __init__(self, p_dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(p_dropout), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Points:
    """Sample number n follows from n alone."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        x = torch.randn(4, generator=torch.Generator().manual_seed(number))
        return {"x": x, "y": x.sum(0, keepdim=True)}


def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    noise = 0.1 * torch.randn(batch["x"].shape, generator=generator, device=batch["x"].device)
    error = model(batch["x"] + noise).float() - batch["y"]
    return {"l2": error.square().mean(), "l1": 0.5 * error.abs().mean(), "largest": error.abs().max().detach()}


def slow_loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    time.sleep(0.01)
    return loss(model, batch, generator)


def noiseless_loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    return {"l2": (model(batch["x"]).float() - batch["y"]).square().mean()}


def save(model: nn.Module, folder: Path) -> None:
    weights.save(folder, model, {}, torch.float32)


def task(p_dropout: float = 0.1, of: trainer.Loss = loss) -> Task:
    torch.manual_seed(0)
    return Task(Line(p_dropout), of, Points(), save)


def config(n_steps: int = 8, **changes: object) -> TrainConfig:
    values = {
        "n_steps": n_steps,
        "batch_size": 4,
        "warmup_steps": 3,
        "device": "cpu",
        "log_every": 2,
        "precision": "no",
    }
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def log_lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


# ---- what is learned


def test_same_seed_gives_identical_weights(tmp_path: Path) -> None:
    first, second = (train(task(), tmp_path / name, config()) for name in ("first", "second"))
    other = train(task(), tmp_path / "third", config(seed=1))
    assert same(first, second)
    assert not same(first, other)


def test_the_loss_falls_and_the_weights_in_the_folder_are_the_average(tmp_path: Path) -> None:
    ema = train(task(), tmp_path, config(300, batch_size=16, learning_rate=0.01, log_every=10, precision="bf16"))
    lines = log_lines(tmp_path)
    assert lines[-1]["l2"] < lines[0]["l2"] / 5
    assert abs(lines[-1]["loss"] - lines[-1]["l2"] - lines[-1]["l1"]) < 1e-5  # terms without gradient are not added
    state, _ = weights.from_pretrained(tmp_path / "weights", ema)
    assert all(torch.equal(state[name], tensor) for name, tensor in ema.state_dict().items())


def test_accumulated_gradients_equal_a_larger_batch(tmp_path: Path) -> None:
    large = train(task(0, noiseless_loss), tmp_path / "large", config(batch_size=8))
    small = train(task(0, noiseless_loss), tmp_path / "small", config(batch_size=2, n_accumulate=4))
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # the order of additions differs
    assert abs(log_lines(tmp_path / "large")[-1]["loss"] - log_lines(tmp_path / "small")[-1]["loss"]) < 1e-5


def test_trains_in_training_mode_and_averages_in_eval_mode(tmp_path: Path) -> None:
    given = task()
    given.model.eval()
    assert not train(given, tmp_path / "eval", config()).training
    assert given.model.training
    assert same(train(task(), tmp_path / "train", config()), train(task(), tmp_path / "eval", config()))


def test_average_of_what_stays_is_what_stays(tmp_path: Path) -> None:
    start = task().model
    ema = train(task(), tmp_path, config(learning_rate=0.0))
    assert same(ema, start)


def test_average_follows_its_recursion(tmp_path: Path) -> None:
    """Step by step against the plain formula, with the decay warmed up as (1 + step) / (10 + step)."""
    expected = [p.detach().clone() for p in task().model.parameters()]
    for step in range(4):
        train(task(), tmp_path, config(step + 1, final_rate=1.0, ema_decay=0.2))
        model = torch.load(tmp_path / trainer.CHECKPOINT_NAME, weights_only=True)["model"]
        decay = min(0.2, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, model.values(), strict=True)]
    state, _ = weights.from_pretrained(tmp_path / "weights")
    for e, kept in zip(expected, (state[name] for name in task().model.state_dict()), strict=True):
        torch.testing.assert_close(e, kept, rtol=1e-6, atol=1e-7)


@given(n_steps=st.integers(1, 500), warmup=st.integers(0, 50), final=st.floats(0, 1), rate=st.floats(1e-6, 1.0))
def test_rate_warms_up_then_falls_to_its_share(n_steps: int, warmup: int, final: float, rate: float) -> None:
    settings = TrainConfig(n_steps=n_steps, warmup_steps=warmup, final_rate=final, learning_rate=rate)
    rates = [learning_rate(step, step / n_steps, settings) for step in range(n_steps + 1)]
    assert all(0 <= r <= rate * (1 + 1e-9) for r in rates)
    assert rates[0] == pytest.approx(rate / max(warmup, 1))
    after = rates[warmup:]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
    assert learning_rate(10**6, 1.0, settings) == pytest.approx(rate * final)


@given(batch=st.integers(1, 5), accumulate=st.integers(1, 4), world=st.integers(1, 4), start=st.integers(0, 9))
def test_every_sample_is_taken_once_however_the_work_is_cut(
    batch: int, accumulate: int, world: int, start: int
) -> None:
    settings = TrainConfig(batch_size=batch, n_accumulate=accumulate)
    taken: list[int] = []
    for rank in range(world):
        numbers = sample_numbers(settings, start, rank, world)
        taken += [number for _ in range(accumulate) for number in next(numbers)]
    n_per_step = batch * accumulate * world
    assert sorted(taken) == list(range(start * n_per_step, (start + 1) * n_per_step))


# ---- runs that go on


@pytest.mark.parametrize("n_workers", [0, 1])
def test_stopped_and_started_again_equals_uninterrupted(tmp_path: Path, n_workers: int) -> None:
    """Only the number of steps differs, and with it the cosine: so the rate is held constant here."""
    whole = train(task(), tmp_path / "whole", config(8, final_rate=1.0))
    train(task(), tmp_path / "halves", config(4, final_rate=1.0, n_workers=n_workers))
    halves = train(task(), tmp_path / "halves", config(8, final_rate=1.0, n_workers=n_workers))
    assert same(whole, halves)
    steps = [[line["step"] for line in log_lines(tmp_path / name)] for name in ("whole", "halves")]
    assert steps[0] == steps[1] == [2, 4, 6, 8]


N_STEPS = 150
CHILD = """
import sys
from pathlib import Path
from tests.common import test_trainer as t
t.train(t.task(of=t.slow_loss), Path(sys.argv[1]), t.config(t.N_STEPS, checkpoint_minutes=0, n_threads=1))
"""


def test_killed_and_started_again_equals_uninterrupted(tmp_path: Path) -> None:
    """A checkpoint at every step, SIGKILL at no particular moment, as often as there is time for."""
    run_dir = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(run_dir)], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        waited = time.monotonic() + 300
        while time.monotonic() < waited and not (
            (run_dir / "log.jsonl").exists() and len((run_dir / "log.jsonl").read_text().splitlines()) >= 10
        ):
            assert child.poll() is None
            time.sleep(0.003)
    finally:
        child.kill()
        child.wait()
    step = torch.load(run_dir / trainer.CHECKPOINT_NAME, weights_only=True)["step"]
    assert 10 <= step < N_STEPS
    settings = config(N_STEPS, n_threads=torch.get_num_threads())
    assert same(train(task(), run_dir, settings), train(task(), tmp_path / "whole", settings))
    assert not list(run_dir.glob(".*.part*"))
    assert [line["step"] for line in log_lines(run_dir)] == list(range(2, N_STEPS + 1, 2))


@pytest.mark.parametrize("n_workers", [0, 1])
def test_sigterm_writes_a_checkpoint_and_stops(tmp_path: Path, n_workers: int) -> None:
    """As batch systems send it: to the processes that make batches, too."""
    n_calls = 0

    def interrupted(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            for process in multiprocessing.active_children():
                process.terminate()
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch, generator)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="step 3"):
        train(task(of=interrupted), tmp_path / "stopped", config(n_workers=n_workers))
    assert signal.getsignal(signal.SIGTERM) == before
    assert torch.load(tmp_path / "stopped" / trainer.CHECKPOINT_NAME, weights_only=True)["step"] == 3
    assert (tmp_path / "stopped" / "weights" / "model.safetensors").exists()
    assert same(train(task(), tmp_path / "stopped", config()), train(task(), tmp_path / "whole", config()))


def test_a_run_ends_by_the_clock_with_a_last_look(tmp_path: Path) -> None:
    looking = replace(task(of=slow_loss), validate=lambda model: {"error": 0.0})
    train(looking, tmp_path, config(100_000, minutes=0.3 / 60, log_every=1))
    assert [line for line in log_lines(tmp_path) if "val/error" in line] == [
        {"step": 0, "val/error": 0.0}, {"step": log_lines(tmp_path)[-2]["step"], "val/error": 0.0}
    ]  # fmt: skip
    lines = [line for line in log_lines(tmp_path) if "loss" in line]
    assert 1 < len(lines) < 60
    assert lines[-1]["learning_rate"] < 0.2 * max(line["learning_rate"] for line in lines)


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first = train(task(), tmp_path, config())
    second = train(task(), tmp_path, config())
    assert same(first, second)


def test_looks_before_the_first_step_and_every_so_often(tmp_path: Path) -> None:
    seen: list[bool] = []

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(model.training or torch.is_grad_enabled())
        return {"error": float(len(seen))}

    def sample(model: nn.Module, path: Path) -> None:
        path.write_bytes(b"picture")

    looking = replace(task(), validate=validate, sample=sample)
    train(looking, tmp_path, config(8, validate_every=4, sample_every=3))
    assert seen == [False] * 3
    assert [line["step"] for line in log_lines(tmp_path) if "val/error" in line] == [0, 4, 8]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "000000.png", "000003.png", "000006.png", "000008.png"
    ]  # fmt: skip


# ---- what can go wrong


def test_a_loss_that_is_never_finite_stops_with_a_sentence_and_the_checkpoint_stays(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {"l2": loss(model, batch, generator)["l2"] * math.nan}

    train(task(), tmp_path, config(4))
    before = (tmp_path / trainer.CHECKPOINT_NAME).read_bytes()
    with pytest.raises(InputError, match="not finite for 5 steps") as caught:
        train(task(of=broken), tmp_path, config(50, most_bad_steps=5, checkpoint_minutes=60))
    assert "\n" not in str(caught.value)
    assert (tmp_path / trainer.CHECKPOINT_NAME).read_bytes() == before


def test_a_single_bad_step_changes_nothing(tmp_path: Path) -> None:
    n_calls = 0

    def stumbling(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal n_calls
        n_calls += 1
        return {"l2": loss(model, batch, generator)["l2"] * (math.inf if n_calls == 1 else 1.0)}

    start = task().model
    ema = train(task(of=stumbling), tmp_path / "one", config(1))
    assert same(ema, start)
    n_calls = 0
    ema = train(task(of=stumbling), tmp_path / "more", config(4))
    assert all(p.isfinite().all() for p in ema.parameters())
    assert not same(ema, start)


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("was-run",)


def damaged(kind: str, path: Path) -> None:
    content = torch.load(path, weights_only=True)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "hostile":
        torch.save({**content, "step": Hostile()}, path)
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "moments":
        content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
        torch.save(content, path)
    else:
        key, value = kind.split("=")
        torch.save({**content, key: json.loads(value)}, path)


@pytest.mark.parametrize(
    "kind", ["truncated", "empty", "hostile", "a list", "moments", "step=-1", 'step="x"', "optimizer={}", "model=3",
             "total_s=NaN", 'ema={"a": 1}']
)  # fmt: skip
def test_damaged_and_hostile_checkpoints_give_one_sentence(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(task(), tmp_path / "run", config(2))
    damaged(kind, tmp_path / "run" / trainer.CHECKPOINT_NAME)
    before = (tmp_path / "run" / trainer.CHECKPOINT_NAME).read_bytes()
    with pytest.raises(InputError) as caught:
        train(task(), tmp_path / "run", config(4))
    assert "checkpoint" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()
    assert (tmp_path / "run" / trainer.CHECKPOINT_NAME).read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(task(), tmp_path, config(2))
    other = replace(task(), model=nn.Linear(4, 1))
    with pytest.raises(InputError, match="don't fit this model"):
        train(other, tmp_path, config(4))


@pytest.mark.parametrize(
    "changes", [{"n_steps": 0}, {"batch_size": 0}, {"learning_rate": math.nan}, {"ema_decay": 1.0}, {"seed": -1},
                {"precision": "fp8"}, {"device": "tpu"}, {"grad_clip": -1.0}, {"minutes": math.inf}]
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused_by_name(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"train.{next(iter(changes))} is"):
        train(task(), tmp_path, config(**changes))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_data_ends_the_run_and_its_thread(tmp_path: Path) -> None:
    class Broken(Points):
        def __getitem__(self, number: int) -> dict[str, Tensor]:
            if number == 30:
                raise InputError("The clip x is broken: remove it.")
            return super().__getitem__(number)

    with pytest.raises(InputError, match="clip x"):
        train(replace(task(), dataset=Broken()), tmp_path, config(50))
