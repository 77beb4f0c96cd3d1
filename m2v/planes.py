"""Planes of training clips, encoded once: what the denoiser learns from.

The autoencoder is frozen by then, and encoding costs more than a step of the denoiser: so a few thousand clips, each
with a reference picture, other light and other landmarks, are encoded into plain arrays in the run's folder and mapped
from there. A run that is started again, with the same autoencoder and clips, goes on with them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import InputError
from common.files import atomic_path
from common.triplane import TriPlane, unpack
from m2v.autoencoder import Autoencoder
from m2v.data import ClipSamples, conditions_of
from m2v.denoiser import glance

log = logging.getLogger(__name__)

PlaneBatch = dict[str, Tensor]
Encoded = dict[str, np.ndarray]
NAMES = ("drawn", "warped", "reference")  # of a Glance, stored as bytes: 0..1, [-1, 1] and [-1, 1]


def encode(autoencoder: Autoencoder, samples: ClipSamples, n_samples: int, folder: Path) -> Encoded:
    """Planes float16 [N, C, L] and what the denoiser is told, uint8, of samples 0..N-1; mapped from `folder`."""
    made_of = fingerprint(nn.ModuleList(autoencoder.encoder_parts()), samples)
    return cached(partial(encoded, autoencoder, samples), n_samples, folder, made_of)


def cached(make: Callable[[int], Encoded], n_samples: int, folder: Path, made_of: str) -> Encoded:
    """Arrays of samples 0..N-1, stacked and mapped from `folder`; made there, unless they, or more, were, of the same.

    Raises InputError for a folder with other things in it: it is emptied first.
    """
    made_from = {"n": n_samples, "of": made_of}
    stamp = folder / "made_from.json"
    there: dict[str, Any] = json.loads(stamp.read_text()) if stamp.is_file() else {"n": 0, "of": ""}
    if there["n"] >= n_samples and there["of"] == made_of:
        return {path.stem: np.load(path, mmap_mode="r")[:n_samples] for path in folder.glob("*.npy")}
    if others := [path.name for path in folder.glob("*") if path.suffix != ".npy" and "made_from" not in path.name]:
        raise InputError(f"{folder} holds other things than planes ({others[0]}): name one of planes, or a new one.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arrays: Encoded = {}
    started = time.monotonic()
    # A clip for each of two threads: half of it is work that torch does in one.
    with ThreadPoolExecutor(2, "cache") as pool:
        for k, values in enumerate(pool.map(make, range(n_samples))):
            for name, value in values.items():
                if name not in arrays:
                    arrays[name] = np.lib.format.open_memmap(
                        folder / f"{name}.npy", mode="w+", dtype=value.dtype, shape=(n_samples, *value.shape)
                    )
                arrays[name][k] = value
            if (k + 1) % 100 == 0:
                log.info("%s: %d of %d clips in %.0f s", folder.name, k + 1, n_samples, time.monotonic() - started)
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]  # memmaps have it
    with atomic_path(stamp, overwrite=True) as temporary:
        temporary.write_text(json.dumps(made_from))
    return arrays


@torch.inference_mode()
def encoded(autoencoder: Autoencoder, samples: ClipSamples, index: int) -> Encoded:
    """One sample."""
    sample = samples[index]
    conditions = conditions_of(sample).batched()
    with torch.autocast("cpu", torch.bfloat16):
        planes = autoencoder.encode(sample["clip"][None], conditions)
    parts = dict(zip(NAMES, (part[0] for part in glance(conditions)), strict=True))
    parts["warped"], parts["reference"] = (parts["warped"] + 1) / 2, (parts["reference"] + 1) / 2
    parts["heard"] = heard(conditions.region)[0]
    bytes_ = {name: (part * 255).round().clamp(0, 255).byte().numpy() for name, part in parts.items()}
    return {"planes": planes.pack()[0].half().numpy(), **bytes_}


def heard(region: Tensor) -> Tensor:
    """How much of each place of the planes the decoder hears: Conditions.region [B, S, 1, h, w] -> packed [B, 1, L]."""
    frames = region[:, :, 0]  # [B, S, h, w]
    return TriPlane(*(frames.amax(dim=axis)[:, None] for axis in (1, 2, 3))).pack()


def statistics(arrays: Encoded) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each plane's channels over all samples, where they are heard: [3, C] each."""
    packed = torch.from_numpy(np.asarray(arrays["planes"], np.float32))
    weights = torch.from_numpy(np.asarray(arrays["heard"], np.float32))
    n_frames, side = arrays["drawn"].shape[1], arrays["drawn"].shape[-1] // 2
    means, stds = [], []
    for plane, weight in zip(*(unpack(each, n_frames, side, side) for each in (packed, weights)), strict=True):
        share = weight / weight.sum()
        mean = (share * plane).sum(dim=(0, 2, 3))
        means.append(mean)
        stds.append((share * (plane - mean[:, None, None]).square()).sum(dim=(0, 2, 3)).sqrt())
    return torch.stack(means), torch.stack(stds).clamp(min=1e-3)


class PlaneSamples:
    """Endless samples, in an order that the seed shuffles anew each time round."""

    def __init__(self, arrays: Encoded, seed: int) -> None:
        self.arrays, self.seed = arrays, seed

    def __getitem__(self, index: int) -> PlaneBatch:
        n = len(self.arrays["planes"])
        order = np.random.default_rng((self.seed, index // n)).permutation(n)
        k = int(order[index % n])
        sample = {name: torch.from_numpy(np.array(self.arrays[name][k])).float() / 255 for name in (*NAMES, "heard")}
        sample["warped"], sample["reference"] = sample["warped"] * 2 - 1, sample["reference"] * 2 - 1
        return {**sample, "planes": torch.from_numpy(np.array(self.arrays["planes"][k]))}


def fingerprint(model: nn.Module, samples: ClipSamples) -> str:
    """Of the weights, of the clips and of how they are sampled."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.float().numpy().tobytes())
    config = replace(samples.config, cache_dir="")  # where frames lie changes nothing
    digest.update(repr((config, samples.seed, [(clip.name, len(clip.frames)) for clip in samples.clips])).encode())
    return digest.hexdigest()[:16]
