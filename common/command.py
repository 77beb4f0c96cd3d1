"""What the training programs share: overrides in, one sentence out, and a folder that knows which run it holds."""

import logging
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf

from common import entry
from common.errors import InputError
from common.files import atomic_path
from common.trainer import CHECKPOINT_NAME

log = logging.getLogger(__name__)

Config = TypeVar("Config")

REPOSITORY = Path(__file__).resolve().parents[1]
CONF_DIR = REPOSITORY / "conf" / "train"
CONFIG_NAME = "config.yaml"


def run(program: Callable[[list[str]], None]) -> None:
    """Run a training program; see `entry.run`."""
    level = logging.INFO if is_first_process() else logging.WARNING
    entry.run(program, stopped="stopped", level=level, form="%(message)s")


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def compose(name: str, schema: type[Config], overrides: list[str]) -> Config:
    """conf/train/<name>/config.yaml under its schema, then the overrides, as the schema's dataclass."""
    for override in overrides:
        if not re.match(r"~?[\w.@/]+=", override):
            raise InputError(f"'{override}' is not an override like train.seed=3: conf/train/{name} has what there is.")
    return entry.compose(CONF_DIR / name, "config", schema, overrides)


def open_run(run_dir: Path, config: Any, lasting: tuple[str, ...]) -> None:
    """Make run_dir this run's, with its config.yaml; raises InputError where it holds something else.

    A run that goes on (it has a checkpoint) must have the same values in the `lasting` fields.
    """
    values = asdict(config)
    config_path = run_dir / CONFIG_NAME
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"{run_dir} is a file: give the name of a folder for the run, as in out=runs/mine.")
    if run_dir.is_dir() and any(run_dir.iterdir()) and not config_path.is_file():
        raise InputError(f"{run_dir} holds other things than a run: give another folder, as in out=runs/mine.")
    if (run_dir / CHECKPOINT_NAME).exists():
        try:
            earlier = OmegaConf.to_container(OmegaConf.load(config_path))
            assert isinstance(earlier, dict)
            differs = list(differences({key: earlier.get(key) for key in lasting}, {k: values[k] for k in lasting}))
        except Exception as error:  # a damaged file can be anything
            raise InputError(f"Can't read {config_path} ({type(error).__name__}): start in another folder.") from error
        if differs:
            more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
            raise InputError(
                f"The run in {run_dir} was started with {', '.join(differs[:3])}{more}: go on with the same, or choose "
                "another folder."
            )
    if is_first_process():
        with atomic_path(config_path, overwrite=True) as temporary:
            temporary.write_text(OmegaConf.to_yaml(values), encoding="utf-8")
        log.info("%s: %s, torch %s", run_dir, commit(), torch.__version__)


def differences(earlier: Any, now: Any, name: str = "") -> list[str]:
    """'model.width=64 (now 128)' for every value that is not the same, lists and tuples being alike."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = [*earlier, *(key for key in now if key not in earlier)]
        return [
            each
            for key in keys
            for each in differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    a, b = (list(value) if isinstance(value, tuple) else value for value in (earlier, now))
    return [] if a == b else [f"{name}={a} (now {b})"]


def commit() -> str:
    """Which state of the code runs."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    try:
        return "commit " + subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
