"""What a training run writes along the way, where its time goes, and how it hears that it shall stop."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from common.errors import InputError
from common.files import atomic_path

if TYPE_CHECKING:  # accelerate is an extra
    from accelerate import Accelerator

    from common.trainer import TrainConfig

log = logging.getLogger(__name__)

CHECKPOINT_NAME, LOG_NAME = "checkpoint.pt", "log.jsonl"


class Record:
    """Figures of the run: to the log, to log.jsonl, and to TensorBoard where that is installed (first process only)."""

    def __init__(self, run_dir: Path, step: int, is_main: bool) -> None:
        self.totals: dict[str, Tensor] = {}
        self.n_batches = self.n_steps = self.n_bad = self.n_bad_in_a_row = 0
        self.grad_norm = 0.0
        self.is_main = is_main
        if is_main:
            forget_after(run_dir / LOG_NAME, step)
            self.file = (run_dir / LOG_NAME).open("a", encoding="utf-8")
            self.board = open_board(run_dir, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_main:
            self.file.close()
            if self.board is not None:
                self.board.close()

    def add(self, terms: Mapping[str, Tensor], loss: Tensor) -> None:
        """Add one batch's terms; nothing waits for the device here."""
        for name, value in {"loss": loss, **terms}.items():
            value = value.detach().float()
            self.totals[name] = self.totals[name] + value if name in self.totals else value
        self.n_batches += 1

    def add_step(self, grad_norm: float, run_dir: Path, config: TrainConfig) -> None:
        """Count a step; raises InputError after too many in a row that were not finite."""
        self.n_steps += 1
        if math.isfinite(grad_norm):
            self.grad_norm += grad_norm
            self.n_bad_in_a_row = 0
            return
        self.n_bad, self.n_bad_in_a_row = self.n_bad + 1, self.n_bad_in_a_row + 1
        if self.n_bad_in_a_row >= config.most_bad_steps:
            terms = ", ".join(f"{name} {value.item():.3g}" for name, value in self.totals.items() if name != "loss")
            kept = "its last checkpoint is untouched" if (run_dir / CHECKPOINT_NAME).exists() else "nothing was saved"
            raise InputError(
                f"The gradient was not finite for {self.n_bad_in_a_row} steps in a row (sums of the terms: {terms}), "
                f"so the run in {run_dir} stopped and {kept}: lower train.learning_rate, or try train.precision=no."
            )

    def write(self, accelerator: Accelerator, step: int, figures: Mapping[str, float]) -> None:
        """One line: means since the last one, over all processes."""
        means = torch.stack([*self.totals.values()]) / self.n_batches
        if accelerator.num_processes > 1:
            means = accelerator.reduce(means, "mean")
        values = dict(zip(self.totals, means.tolist(), strict=True))
        values["grad_norm"] = self.grad_norm / max(self.n_steps - self.n_bad, 1)
        if self.n_bad:
            values["bad_steps"] = self.n_bad
        self.totals, self.n_batches, self.n_steps, self.n_bad, self.grad_norm = {}, 0, 0, 0, 0.0
        self.put(step, {**values, **figures})

    def put(self, step: int, values: Mapping[str, float]) -> None:
        if not self.is_main:
            return
        log.info("step %d  %s", step, "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)


def forget_after(path: Path, step: int) -> None:
    """Drop the lines that were written after the checkpoint a run goes on from: they will come again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # the last line of a killed run
            continue
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text("".join(kept) if step else "", encoding="utf-8")


def open_board(run_dir: Path, step: int) -> Any:
    """TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)


class Timer:
    """Where the time went: steps, and in them waiting for data."""

    def __init__(self, before_s: float) -> None:
        self.start = self.last = self.last_checkpoint = time.monotonic()
        self.before_s = before_s
        self.steps_s = self.waiting_s = 0.0
        self.n_samples = 0
        self.step_start = self.start

    @property
    def total_s(self) -> float:
        return self.before_s + time.monotonic() - self.start

    @property
    def since_checkpoint_s(self) -> float:
        return time.monotonic() - self.last_checkpoint

    def waited(self) -> None:
        """A batch has come."""
        self.waiting_s += time.monotonic() - self.last
        self.last = time.monotonic()

    def lap(self, n_samples: int = 0) -> None:
        """A step has ended, or (no samples) something that was no step."""
        now = time.monotonic()
        if n_samples:
            self.steps_s += now - self.step_start
            self.n_samples += n_samples
        self.step_start = self.last = now

    def checkpointed(self) -> None:
        self.last_checkpoint = time.monotonic()
        self.lap()

    def figures(self) -> dict[str, float]:
        """Samples per second and the share of the time that went into waiting for data, since the last call."""
        figures = {
            "samples_per_s": self.n_samples / max(self.steps_s, 1e-9),
            "waiting": self.waiting_s / max(self.steps_s, 1e-9),
            "minutes": self.total_s / 60,
        }
        self.steps_s = self.waiting_s = 0.0
        self.n_samples = 0
        return figures


class Signals:
    """SIGTERM, SIGINT and SIGHUP are remembered instead of ending the process; a second one ends it at once."""

    def __init__(self) -> None:
        self.came = False
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            number = getattr(signal, name, None)
            # What is ignored stays so (nohup); outside the main thread Python allows no handlers.
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                try:
                    self.handlers[number] = signal.signal(number, self.note)
                except ValueError:
                    return self
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        log.warning("stopping after this step, with a checkpoint; once more stops at once")
        self.came = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def __exit__(self, *exception: object) -> None:
        self.restore()
