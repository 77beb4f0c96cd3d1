"""The training loop's claims: exact resume, the same samples however they are cut into batches, safe checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common import weights
from common.trainer import Task, TrainConfig, train


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


def save(model: nn.Module, folder: Path) -> None:
    weights.save(folder, model, {}, torch.float32)


def task(p_dropout: float = 0.1) -> Task:
    torch.manual_seed(0)
    return Task(Line(p_dropout), loss, Points(), save)


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


def test_same_seed_gives_identical_weights(tmp_path: Path) -> None:
    first, second = (train(task(), tmp_path / name, config()) for name in ("first", "second"))
    other = train(task(), tmp_path / "third", config(seed=1))
    assert same(first, second)
    assert not same(first, other)


def test_the_loss_falls_and_the_weights_in_the_folder_are_the_average(tmp_path: Path) -> None:
    ema = train(task(), tmp_path, config(300, batch_size=16, learning_rate=0.01, log_every=10, precision="bf16"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["l2"] < lines[0]["l2"] / 5
    assert abs(lines[-1]["loss"] - lines[-1]["l2"] - lines[-1]["l1"]) < 1e-5  # terms without gradient are not added
    state, _ = weights.from_pretrained(tmp_path / "weights", ema)
    assert all(torch.equal(state[name], tensor) for name, tensor in ema.state_dict().items())


@pytest.mark.parametrize("n_workers", [0, 1])
def test_stopped_and_started_again_equals_uninterrupted(tmp_path: Path, n_workers: int) -> None:
    """Only the number of steps differs, and with it the cosine: so the rate is held constant here."""
    whole = train(task(), tmp_path / "whole", config(8, final_rate=1.0))
    train(task(), tmp_path / "halves", config(4, final_rate=1.0, n_workers=n_workers))
    halves = train(task(), tmp_path / "halves", config(8, final_rate=1.0, n_workers=n_workers))
    assert same(whole, halves)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "halves")]
    steps = [[json.loads(line)["step"] for line in lines] for lines in logs]
    assert steps[0] == steps[1] == [2, 4, 6, 8]
