"""One training loop for every model, on accelerate: one process on a laptop or many under `accelerate launch`.

A stage describes what is trained (`Task`), `train` does the rest: batches made ahead, bf16 autocast, AdamW under a
cosine with warm-up, a moving average of the weights (EMA), logs, samples, checkpoints. Nothing a run needs is kept in a
generator's or a loader's state: samples, noise and dropout follow from (seed, step), so a run that was killed and
started again ends with the same weights as one that was not, and two processes see what one would.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from common.errors import InputError
from common.files import atomic_path
from common.training_record import CHECKPOINT_NAME, Record, Signals, Timer
from common.weights import check as check_weights
from common.weights import read_checkpoint

try:
    from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, PartialState
    from accelerate.utils import gather_object, send_to_device
except ModuleNotFoundError:
    HAS_ACCELERATE = False  # check_config says so: this module is read by more than training
else:
    HAS_ACCELERATE = True

log = logging.getLogger(__name__)

WEIGHTS_DIR, SAMPLES_DIR = "weights", "samples"
N_AHEAD = 3  # batches made ahead of the one in use
PATIENCE = timedelta(hours=6)  # of processes that wait for the first one: torch's ten minutes are less than data take
PRECISIONS, DEVICES = ("bf16", "no"), ("auto", "cpu")

Loss = Callable[[nn.Module, Any, torch.Generator], dict[str, Tensor]]


class Samples(Protocol):
    """An endless data set: sample number i follows from the data set's seed and i alone."""

    def __getitem__(self, number: int, /) -> Any: ...


@dataclass
class Task:
    """What is trained. `loss(model, batch, generator)` gives named, weighted terms, which are added up.

    The loss calls the module itself (never what lies inside it: gradients of several processes meet there), draws all
    noise from `generator` (which lives where the batch does), and takes means over the batch. It runs under autocast:
    bring predictions to float32 before comparing them. Terms without a gradient are only reported.
    """

    model: nn.Module
    loss: Loss
    dataset: Samples  # nested dictionaries and tuples of tensors; batches are stacked from them
    save: Callable[[nn.Module, Path], None]  # the EMA into a folder that `from_pretrained` reads
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    sample: Callable[[nn.Module, Path], None] | None = None  # draws a picture of what the model does now


@dataclass
class TrainConfig:
    n_steps: int = 10_000
    minutes: float = 0.0  # if > 0, the run also ends (and the learning rate falls) by the clock: no longer repeatable
    batch_size: int = 16  # per process
    n_accumulate: int = 1  # batches per step; one step takes batch_size * n_accumulate * processes samples
    learning_rate: float = 2e-4
    final_rate: float = 0.02  # the cosine's end, as a share of learning_rate
    warmup_steps: int = 200
    weight_decay: float = 0.01  # of matrices and kernels; biases, norms and other vectors are left alone
    beta1: float = 0.9
    beta2: float = 0.99
    grad_clip: float = 1.0  # greatest norm of the gradient; 0: no limit
    ema_decay: float = 0.999
    precision: str = "bf16"  # or "no"
    seed: int = 0
    checkpoint_minutes: float = 5.0
    log_every: int = 20  # steps, as the next two; 0: never
    validate_every: int = 1000
    sample_every: int = 1000
    most_bad_steps: int = 10  # in a row, with a loss or gradient that is not finite: skipped, then the run stops
    n_workers: int = 0  # processes that make batches; 0: one thread
    n_threads: int = 0  # of torch; 0: as they are
    device: str = "auto"  # or "cpu"
    compile: bool = False
    find_unused: bool = False  # several processes: the loss leaves some parameters out now and then


def train(task: Task, run_dir: Path, config: TrainConfig) -> nn.Module:
    """Train to the end, going on from run_dir's checkpoint if there is one; returns the EMA.

    run_dir gets checkpoint.pt (all a run needs to go on), weights/ (the EMA), samples/, log.jsonl and tensorboard/.
    SIGTERM and Ctrl-C write a checkpoint, then raise KeyboardInterrupt. Raises InputError, in one sentence, where the
    config or the checkpoint does not fit, or the loss stops being finite.
    """
    check_config(config)
    accelerator = start_processes(config)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    is_main = accelerator.is_main_process

    model, ema = task.model.to(device), copy.deepcopy(task.model).to(device, torch.float32)
    optimizer = make_optimizer(model, config)
    step, before_s = 0, 0.0  # steps done; seconds that earlier starts of this run took
    if (run_dir / CHECKPOINT_NAME).exists():
        step, before_s = restore(run_dir / CHECKPOINT_NAME, model, ema, optimizer)
    if accelerator.num_processes > 1 and len(set(gather_object([step]))) > 1:
        raise InputError(f"Not all machines see the same checkpoint in {run_dir}: let out be on a disk they share.")
    if config.compile:
        model.compile()
    parallel = accelerator.prepare_model(model)
    if step == 0:
        ema.load_state_dict(model.state_dict())  # after prepare_model: every process now has the first one's weights
    model.train()  # weights to start from may have come in eval mode
    ema.eval().requires_grad_(False)
    averaged: list[Tensor] = [*ema.parameters()]
    current = [parameter.detach() for parameter in model.parameters()]  # share their memory
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    n_per_step = config.batch_size * config.n_accumulate * world
    if is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        for left in run_dir.glob(f".{Path(CHECKPOINT_NAME).stem}.*.part.pt"):  # by a run killed while it wrote one
            left.unlink()
        n_parameters = sum(p.numel() for p in trained)
        what = f"{n_parameters / 1e6:.2f} M parameters, {n_per_step} samples a step on {world} x {device.type}"
        goes_on = f"goes on from step {step}" if step else "starts"
        log.info("%s: training %s (%s, precision %s)", run_dir, goes_on, what, config.precision)

    generator = torch.Generator(device)
    record, signals, timer = Record(run_dir, step, is_main), Signals(), Timer(before_s)
    with record, signals, closing(make_batches(task.dataset, config, step, rank, world, device)) as batches:
        if step == 0:
            look(task, ema, run_dir, 0, 0.0, config, record, is_main)
        timer.lap()  # what came before is nobody's step
        wants_stop, progress = agree(accelerator, signals.came, share_done(step, timer.total_s, config))
        while progress < 1 and not wants_stop:
            rate = learning_rate(step, progress, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for k in range(config.n_accumulate):
                batch = next(batches)
                timer.waited()
                batch = send_to_device(batch, device, non_blocking=True)
                reseed(generator, config.seed, step, k * world + rank)
                is_last = k == config.n_accumulate - 1
                with nullcontext() if is_last else accelerator.no_sync(parallel):
                    with autocast(device, config):
                        terms = task.loss(parallel, batch, generator)
                    loss = torch.stack([term for term in terms.values() if term.requires_grad]).sum()
                    (loss / config.n_accumulate).backward()
                record.add(terms, loss)
            grad_norm = nn.utils.clip_grad_norm_(trained, config.grad_clip or math.inf).item()
            if math.isfinite(grad_norm):  # of all processes' gradients: all come to the same decision
                optimizer.step()
                decay = min(config.ema_decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(averaged, current, 1 - decay)
                for kept, buffer in zip(ema.buffers(), model.buffers(), strict=True):
                    kept.copy_(buffer)
            optimizer.zero_grad(set_to_none=True)
            step += 1
            record.add_step(grad_norm, run_dir, config)
            timer.lap(n_per_step)

            if config.log_every and step % config.log_every == 0:
                record.write(accelerator, step, {"learning_rate": rate, **timer.figures()})
            wants_stop, progress = agree(accelerator, signals.came, share_done(step, timer.total_s, config))
            is_over = wants_stop or progress >= 1
            if is_main and (is_over or timer.since_checkpoint_s > 60 * config.checkpoint_minutes):
                task.save(ema, run_dir / WEIGHTS_DIR)
                save_checkpoint(run_dir / CHECKPOINT_NAME, model, ema, optimizer, step, timer.total_s, config)
                timer.checkpointed()
            if not wants_stop and look(task, ema, run_dir, step, progress, config, record, is_main):
                timer.lap()
    accelerator.wait_for_everyone()
    if progress < 1:
        raise KeyboardInterrupt(f"stopped at step {step}; the same command goes on from there")
    return ema


# ---- what a step follows from ---------------------------------------------------------------------------------------


def learning_rate(step: int, progress: float, config: TrainConfig) -> float:
    """Linear warm-up times a cosine from 1 to `final_rate`; progress in [0, 1]."""
    warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * warmup * (config.final_rate + (1 - config.final_rate) * cosine)


def share_done(step: int, total_s: float, config: TrainConfig) -> float:
    """How much of the run is over, in [0, 1]: by steps, or by the clock if that is sooner."""
    by_clock = total_s / (60 * config.minutes) if config.minutes else 0.0
    return min(1.0, max(step / config.n_steps, by_clock))


def reseed(generator: torch.Generator, seed: int, step: int, part: int) -> None:
    """Seed the loss's generator and the global one (dropout draws from it) for one batch of one step."""
    noise, dropout = np.random.SeedSequence((seed, step, part)).generate_state(2, np.uint64)
    generator.manual_seed(int(noise >> np.uint64(1)))
    torch.manual_seed(int(dropout >> np.uint64(1)))


def sample_numbers(config: TrainConfig, step: int, rank: int, world: int) -> Iterator[list[int]]:
    """The numbers of the samples in this process's batches, from `step` on.

    A step's samples are numbered through: batch k of process r is part k * world + r of the step, so 2 processes, or 1
    that accumulates 2 batches, take the same samples in the same parts.
    """
    for part in itertools.count(step * config.n_accumulate):
        first = (part * world + rank) * config.batch_size
        yield list(range(first, first + config.batch_size))


def make_batches(
    dataset: Samples, config: TrainConfig, step: int, rank: int, world: int, device: torch.device
) -> Generator[Any]:
    """This process's batches from `step` on, without end, made ahead by one thread or by `n_workers` processes."""
    numbers = sample_numbers(config, step, rank, world)
    if config.n_workers:
        loader: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]  # it has no length
            batch_sampler=numbers,
            num_workers=config.n_workers,
            worker_init_fn=ignore_signals,
            pin_memory=device.type == "cuda",
        )
        yield from loader
        return
    n_threads = torch.get_num_threads()
    # Batches are made on one core, so that they don't wait for the step's threads, nor these for them.
    with ThreadPoolExecutor(1, "batches", initializer=torch.set_num_threads, initargs=(1,)) as thread:
        thread.submit(torch.get_num_threads).result()  # it has started; matrix products take the last setting anywhere:
        torch.set_num_threads(n_threads)

        def submit() -> Any:
            return thread.submit(lambda these: default_collate([dataset[n] for n in these]), next(numbers))

        pending = deque(submit() for _ in range(N_AHEAD))
        try:
            while True:
                batch = pending.popleft().result()
                pending.append(submit())
                yield batch
        finally:
            for future in pending:
                future.cancel()


def ignore_signals(worker: int) -> None:
    """Batch systems send SIGTERM to all processes at once: those that make batches go on until the first one stops."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


# ---- set-up ---------------------------------------------------------------------------------------------------------


def check_config(config: TrainConfig) -> None:
    """Raise InputError for a value that can't be meant, or if accelerate is missing."""
    if not HAS_ACCELERATE:
        raise InputError("Training needs accelerate, which is not installed: use `uv run --extra train`.")
    at_least = {"n_steps": 1, "batch_size": 1, "n_accumulate": 1, "most_bad_steps": 1, "minutes": 0, "warmup_steps": 0}
    at_least |= {"weight_decay": 0, "grad_clip": 0, "seed": 0, "checkpoint_minutes": 0, "n_workers": 0, "n_threads": 0}
    at_least |= {"log_every": 0, "validate_every": 0, "sample_every": 0, "learning_rate": 0, "final_rate": 0}
    for name, least in at_least.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= least):
            raise InputError(f"train.{name} is {value}: give a number of at least {least}.")
    for name in ("ema_decay", "beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"train.{name} is {getattr(config, name)}: give a number from 0 to below 1.")
    for name, choices in (("precision", PRECISIONS), ("device", DEVICES)):
        if getattr(config, name) not in choices:
            raise InputError(f"train.{name} is '{getattr(config, name)}': choose {' or '.join(choices)}.")
    if config.compile and not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise InputError("train.compile needs a C++ compiler and there is none here: install one, or leave it away.")


@contextmanager
def first_process_first(config: TrainConfig) -> Iterator[None]:
    """For a task's set-up: fresh weights follow from the seed, and what is cached on disk is made by one process."""
    check_config(config)
    torch.manual_seed(config.seed)
    with PartialState(cpu=config.device == "cpu", timeout=PATIENCE).main_process_first():
        yield


def start_processes(config: TrainConfig) -> Accelerator:
    """The accelerator: this process's device, and its place among the others. Autocast stays visible in the loop."""
    if config.n_threads:
        torch.set_num_threads(config.n_threads)
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.find_unused)
    accelerator = Accelerator(mixed_precision="no", cpu=config.device == "cpu", kwargs_handlers=[unused])
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM):
        name = accelerator.distributed_type.value
        raise InputError(f"Training under {name} is not supported: let `accelerate launch` use --multi_gpu instead.")
    return accelerator


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that want a gradient, in one fused kernel."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def agree(accelerator: Accelerator, wants_stop: bool, progress: float) -> tuple[bool, float]:
    """Whether to stop and how far we are, the same in all processes: the greatest of each."""
    if accelerator.num_processes == 1:
        return wants_stop, progress
    both = torch.tensor([float(wants_stop), progress], dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    return bool(both[0]), both[1].item()


def look(
    task: Task,
    ema: nn.Module,
    run_dir: Path,
    step: int,
    progress: float,
    config: TrainConfig,
    record: Record,
    is_main: bool,
) -> bool:
    """Now and then, before the first step and after the last: figures on held-out data and a picture; True if any.

    The first look also brings to light, at once, what would otherwise fail after an hour.
    """
    last = progress >= 1
    validates = task.validate is not None and config.validate_every and (last or step % config.validate_every == 0)
    samples = task.sample is not None and config.sample_every and (last or step % config.sample_every == 0)
    if is_main and (validates or samples):
        device = next(ema.parameters()).device
        with torch.no_grad(), autocast(device, config):
            if task.validate is not None and validates:
                record.put(step, {f"val/{name}": value for name, value in task.validate(ema).items()})
            if task.sample is not None and samples:
                (run_dir / SAMPLES_DIR).mkdir(exist_ok=True)
                task.sample(ema, run_dir / SAMPLES_DIR / f"{step:06d}.png")
    return bool(validates or samples)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def save_checkpoint(
    path: Path,
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    total_s: float,
    config: TrainConfig,
) -> None:
    """Write all that a run needs to go on, beside the old checkpoint, whose name it then takes: one is always whole."""
    content = {
        "step": step,
        "total_s": total_s,
        "model": model.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": asdict(config),
    }
    with atomic_path(path, overwrite=True) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def restore(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Load a checkpoint of the same model; returns the steps done and the seconds they took."""
    content = read_checkpoint(path)
    remedy = "start in another folder, or delete it to start afresh"
    try:
        step, total_s = int(content["step"]), float(content["total_s"])
        states: list[Mapping[str, Tensor]] = [content["model"], content["ema"]]
        for module, state in zip((model, ema), states, strict=True):
            module.load_state_dict(check_weights(state, module, path))
        for name, moments in content["optimizer"]["state"].items():
            parameter = [p for group in optimizer.param_groups for p in group["params"]][name]
            if any(moments[key].shape != parameter.shape for key in ("exp_avg", "exp_avg_sq")):
                raise ValueError(f"the optimizer's moments of parameter {name} have another shape")
        wanted = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(content["optimizer"])
    except InputError:
        raise
    except Exception as error:  # the content can be anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"The checkpoint {path} is not one of this training ({reason}): {remedy}.") from error
    if step < 0 or not total_s >= 0:
        raise InputError(f"The checkpoint {path} says step {step} after {total_s} s: {remedy}.")
    for group, settings in zip(optimizer.param_groups, wanted, strict=True):
        group.update(settings)  # the settings are this start's
    return step, total_s
