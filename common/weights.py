"""Weights in and out: a folder with `model.safetensors` (tensors) and `config.json` (what builds the module).

A name is looked up in this order: built-in (`small/<part>`, under the repository's `weights/`), a folder on this
machine, a hub id `org/name[@revision]`. Nothing is downloaded unless the user names a hub id. Pickled files can run
code when they are opened: `from_pretrained` refuses them, `read_checkpoint` reads tensors and plain containers only.
"""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import InputError
from common.files import atomic_path

BUILT_IN_DIR = Path(__file__).resolve().parents[1] / "weights"
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
_PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".tar", ".t7"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")

State = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


def from_pretrained(
    name_or_path: str | Path, expect: nn.Module | Mapping[str, Tensor] | None = None
) -> tuple[State, dict[str, Any]]:
    """Read weights and their configuration: (state_dict on the CPU, config).

    name_or_path: `small/<part>`, a folder, or a hub id `org/name[@revision]` (a Path is always a folder).
    expect: the module (or its state dict; the meta device will do) that the weights are for: keys and shapes must be
    the same, and floating-point tensors come back in its dtype. Without it they come back as they were stored.
    Raises InputError for what can't be found, read, or doesn't fit.
    """
    folder = find(name_or_path)
    config = _read_config(folder / CONFIG_NAME)
    state = _read_safetensors(folder / WEIGHTS_NAME)
    return (state if expect is None else check(state, expect, name_or_path)), config


def load_into(module: Module, state: Mapping[str, Tensor], source: str | Path) -> Module:
    """Check and copy a state dict into a module that must fit it exactly; returns the module."""
    module.load_state_dict(check(state, module, source), strict=True)
    return module


def built_in() -> list[str]:
    """Names of the weights that come with the repository, such as `small/face_model`."""
    return sorted(
        path.parent.relative_to(BUILT_IN_DIR).as_posix() for path in BUILT_IN_DIR.glob(f"*/**/{WEIGHTS_NAME}")
    )


def find(name_or_path: str | Path) -> Path:
    """The folder that holds the weights of that name; a hub id is fetched (or taken from the hub's cache)."""
    if isinstance(name_or_path, Path):
        return _checked_folder(name_or_path.expanduser())
    name = name_or_path.strip()
    first, _, part = name.partition("/")
    presets = {built.partition("/")[0] for built in built_in()} | {"small"}
    if (
        first in presets and part
    ):  # before local folders: what a built-in name means must not depend on where one stands
        if name.rstrip("/") not in built_in():
            known = ", ".join(built_in()) or "none"
            raise InputError(
                f"No built-in weights are called '{name}' (there are: {known}): choose one of these, "
                f"or write './{name}' for a folder of your own."
            )
        return BUILT_IN_DIR / name
    local = Path(name).expanduser()
    # A mistyped path below an existing folder isn't sent to the hub as if it were an id.
    if local.exists() or local.parent.is_dir() or not _HUB_ID.fullmatch(name):
        return _checked_folder(local)
    return _checked_folder(_fetch(name))


def _checked_folder(path: Path) -> Path:
    """The folder itself, if weights and configuration are in it; else an InputError that says what is there."""
    if path.is_file():
        if path.name == WEIGHTS_NAME:
            return _checked_folder(path.parent)
        kind = "a pickled file, which can run code when it is opened" if path.suffix in _PICKLE_SUFFIXES else "a file"
        raise InputError(
            f"{path} is {kind}: weights are read from a folder with {WEIGHTS_NAME} and {CONFIG_NAME} in it, "
            "so name such a folder."
        )
    if not path.is_dir():
        raise InputError(
            f"There are no weights at {path}: it is neither built-in ({', '.join(built_in()) or 'none are'}), nor a "
            "folder here, nor a hub id of the form org/name, so check the spelling."
        )
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        if not (path / name).is_file():
            pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLE_SUFFIXES)
            why = f"; it has {pickles[0]}, a pickled file, which can run code when it is opened" if pickles else ""
            raise InputError(f"{path} has no {name}{why}: name a folder that has {WEIGHTS_NAME} and {CONFIG_NAME}.")
    return path


def _fetch(hub_id: str) -> Path:
    """Download (or find in the cache) the two files of a hub repository, both of the same revision."""
    # Imported here: it takes a while, and most runs never come this way.
    from huggingface_hub import constants, snapshot_download

    repo_id, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=[WEIGHTS_NAME, CONFIG_NAME]))
    except Exception as error:  # the hub's errors share no base class, and its HTTP library has changed before
        name = type(error).__name__
        if name in ("GatedRepoError", "RepositoryNotFoundError"):
            remedy = "check the spelling, or ask for access on its page and log in with `hf auth login`"
        elif name in ("RevisionNotFoundError", "HFValidationError", "HfUriError"):
            remedy = "check the id's spelling and its revision"
        elif constants.HF_HUB_OFFLINE:
            remedy = "unset HF_HUB_OFFLINE to let it be downloaded, or give the path of a folder"
        else:
            remedy = (
                "check the network connection and the spelling, or download it elsewhere and give the folder's path"
            )
        raise InputError(
            f"Can't get the weights '{hub_id}': they are not in {BUILT_IN_DIR.name}/, not a folder here, not in the "
            f"cache {constants.HF_HUB_CACHE}, and the hub did not give them ({name}); {remedy}."
        ) from error


def check(state: Mapping[str, Tensor], expect: nn.Module | Mapping[str, Tensor], source: str | Path) -> State:
    """The state dict in the dtypes that `expect` has, or an InputError when keys, shapes or kinds of number differ.

    Any floating-point type may stand for any other (files are stored in half precision); whole numbers must match.
    """
    wanted = expect.state_dict() if isinstance(expect, nn.Module) else expect
    wrong = [f"{key} is missing" for key in wanted if key not in state]
    wrong += [f"{key} is not expected" for key in state if key not in wanted]
    for key, target in wanted.items():
        if key not in state:
            continue
        tensor = state[key]
        if tensor.shape != target.shape:
            wrong.append(f"{key} has the shape {list(tensor.shape)} instead of {list(target.shape)}")
        elif tensor.dtype != target.dtype and not (tensor.is_floating_point() and target.is_floating_point()):
            wrong.append(f"{key} holds {_name(tensor.dtype)} instead of {_name(target.dtype)}")
    if wrong:
        more = f" and {len(wrong) - 3} more differences" if len(wrong) > 3 else ""
        raise InputError(
            f"The weights in {source} don't fit this model: {', '.join(wrong[:3])}{more}; "
            "they were made for another configuration or version, so use them with that, or choose others."
        )
    return {key: state[key].to(target.dtype) for key, target in wanted.items()}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a `.pt`, `.pth` or `.ckpt` file of tensors and plain containers, on the CPU, running none of its code.

    Returns the dictionary as stored (training code often puts the weights under 'state_dict' or 'model').
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint at {path}: check the path.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or damaged pickle can fail in any way it likes
        raise InputError(
            f"Can't read the checkpoint {path} safely ({type(error).__name__}): it is damaged, or holds more than "
            f"tensors and plain containers; save its weights as {WEIGHTS_NAME} where you trust it."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"The checkpoint {path} holds a {type(content).__name__}: a dictionary of tensors is needed.")
    return content


def save(
    folder: Path,
    module_or_state: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write weights and configuration; floating-point tensors as `dtype`, whole numbers and booleans as they are.

    Both files are written out before either takes its name, so an interruption leaves the old pair or the new one. The
    same weights give the same bytes. Other files in the folder stay. Raises ValueError where a finite number doesn't
    fit `dtype` (float16 ends at 65504), InputError where the folder can't be written.
    """
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"weights are saved as bfloat16, float16 or float32, got {dtype}")
    state = module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    stored = {key: _as_stored(key, tensor, dtype) for key, tensor in state.items()}
    text = json.dumps(dict(config), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with ExitStack() as stack:
        # Renamed in reverse order: weights first.
        config_path = stack.enter_context(atomic_path(folder / CONFIG_NAME, overwrite=True))
        weights_path = stack.enter_context(atomic_path(folder / WEIGHTS_NAME, overwrite=True))
        try:
            save_file(stored, weights_path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise InputError(f"Can't write {folder / WEIGHTS_NAME} ({error}): choose another place.") from error
        config_path.write_text(text, encoding="utf-8")


def _as_stored(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy on the CPU in the file's dtype (a copy: safetensors refuses tensors that share memory)."""
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return tensor.clone(memory_format=torch.contiguous_format)
    stored = tensor.to(dtype).clone(memory_format=torch.contiguous_format)
    if not torch.equal(stored.isfinite(), tensor.isfinite()):
        raise ValueError(f"{key} has values that don't fit {_name(dtype)}: save it as bfloat16 or float32")
    return stored


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: neither JSON nor UTF-8
        raise InputError(f"Can't read {path} ({error}): it must be a JSON file; get a fresh copy of it.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds a {type(config).__name__}: it must be a JSON object; get a fresh copy of it.")
    return config


def _read_safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"Can't read {path} ({error}): it is damaged or not a safetensors file (an unfinished download, or a Git "
            "LFS pointer in place of the file?); get a fresh copy of it."
        ) from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
