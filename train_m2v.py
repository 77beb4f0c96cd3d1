"""Train stage two, motion to video (MC-VDM), in two runs:

    uv run --extra train train_m2v.py stage=autoencoder data=DIR out=runs/autoencoder
    uv run --extra train train_m2v.py stage=diffusion data=DIR out=runs/denoiser autoencoder=runs/autoencoder/weights

The same command again goes on where the run in `out` stopped. conf/train/autoencoder and conf/train/diffusion hold what
can be set (train.minutes=60, init=small to start from the built-in weights); the result is `out`/weights.
`accelerate launch` in front of train_m2v.py trains in several processes.
"""

from dataclasses import dataclass, field
from pathlib import Path

from common.command import compose, open_run, run
from common.errors import InputError
from common.trainer import TrainConfig, train
from m2v.autoencoder import AutoencoderConfig
from m2v.training import DataConfig, setup_autoencoder

STAGES = ("autoencoder",)


@dataclass
class TrainAutoencoderConfig:
    data: str = "???"  # folder with index.csv, clips/ and tracks/
    out: str = "???"  # folder of the run
    init: str = ""  # weights to start from: "small" (built in), a folder, a hub id; "": none
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    options: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def main(overrides: list[str]) -> None:
    stages = [override.removeprefix("stage=") for override in overrides if override.startswith("stage=")]
    rest = [override for override in overrides if not override.startswith("stage=")]
    if stages == ["autoencoder"]:
        train_autoencoder(compose("autoencoder", TrainAutoencoderConfig, rest))
    else:
        raise InputError(f"Say once what to train: {' or '.join(f'stage={stage}' for stage in STAGES)}.")


def train_autoencoder(config: TrainAutoencoderConfig) -> None:
    open_run(Path(config.out), config, lasting=("model", "options"))
    task = setup_autoencoder(Path(config.data), config.model, config.options, config.init, config.train.seed)
    train(task, Path(config.out), config.train)


if __name__ == "__main__":
    run(main)
