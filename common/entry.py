"""What every program shares: overrides in, one sentence out where the user can mend it, a clean end when stopped."""

import logging
import os
import re
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from common.errors import InputError
from common.memory import keep_freed_memory

if TYPE_CHECKING:  # a wrong flag should not wait for it
    from omegaconf import DictConfig

Config = TypeVar("Config")

CONF_DIR = Path(__file__).resolve().parents[1] / "conf"


def run(
    program: Callable[[list[str]], None],
    stopped: str = "stopped; nothing was written",
    level: int = logging.WARNING,
    form: str = "%(levelname)s: %(message)s",
) -> None:
    """Run an entry point on its arguments: what the user can mend becomes one sentence and exit code 2."""
    keep_freed_memory()
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal, `timeout`, a batch system: clean up as on Ctrl-C
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:  # `nohup`
            signal.signal(getattr(signal, name), stop)
    logging.basicConfig(format=form, level=level, stream=sys.stderr)
    try:
        program(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; Python flushes once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except InputError as error:
        fail(str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        fail("The device's memory is full: ask for less at a time (a smaller batch), or try the CPU.")
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or stopped, file=sys.stderr)
        sys.exit(130)


def fail(reason: str) -> NoReturn:
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)
    sys.exit(2)


def stop(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


class Parser(ArgumentParser):
    """Flags whose errors are raised as InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]} (--help lists the flags)")


def compose(folder: Path, name: str, schema: type[Config], overrides: list[str]) -> Config:
    """`folder`/`name`.yaml under its schema (it names it "schema"), then the overrides, as the schema's dataclass."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    where = f"{(folder / name).relative_to(CONF_DIR.parent)}.yaml names what there is"
    for override in overrides:
        if not re.match(r"~?[\w.@/]+=?", override):
            raise InputError(f"'{override}' is not an override like seed=3: {where}")
    ConfigStore.instance().store(name="schema", node=writable(OmegaConf.structured(schema)))
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = OmegaConf.to_object(hydra_compose(name, overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split())[:240]
        raise InputError(f"The configuration does not fit ({reason}): {where}") from error
    assert isinstance(config, schema)
    return config


def writable(node: "DictConfig") -> "DictConfig":
    """The same node, in which overrides may be set below frozen dataclasses too."""
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.set_readonly(node, False)
    for key in node:
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(child, DictConfig):
            writable(child)
    return node
