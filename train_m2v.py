"""Train stage two, motion to video (MC-VDM), in three runs:

    uv run --extra train train_m2v.py stage=autoencoder data=DIR out=runs/autoencoder
    uv run --extra train train_m2v.py stage=diffusion data=DIR out=runs/denoiser autoencoder=runs/autoencoder/weights
    uv run --extra train train_m2v.py stage=finishing data=DIR out=runs/finished autoencoder=runs/autoencoder/weights \
        denoiser=runs/denoiser/weights planes=runs/denoiser/planes

The last one is the decoder's again, on what the denoiser samples: its result takes the autoencoder's place. The same
command again goes on where the run in `out` stopped. conf/train holds what can be set (train.minutes=60, init=small to
start from the built-in weights); the result is `out`/weights.
"""

from dataclasses import dataclass, field
from pathlib import Path

from common.command import compose, open_run, run
from common.errors import InputError
from common.trainer import TrainConfig, first_process_first, train
from m2v.autoencoder import AutoencoderConfig
from m2v.denoiser import DenoiserConfig
from m2v.training import DataConfig, setup_autoencoder, setup_diffusion, setup_finishing

STAGES, FEATURES = ("autoencoder", "diffusion", "finishing"), ("auto", "lpips", "landmarks", "none")


@dataclass
class TrainAutoencoderConfig:
    data: str = "???"  # folder with index.csv, clips/ and tracks/
    out: str = "???"  # folder of the run
    init: str = ""  # weights to start from: "small" (built in), a folder, a hub id; "": none
    features: str = "auto"  # of the perceptual loss: lpips, landmarks, none; auto: LPIPS if it and its trunk can be had
    decoder_only: bool = False  # leave what makes planes as it is, for a denoiser that knows them
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    options: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class TrainDiffusionConfig:
    data: str = "???"
    out: str = "???"
    init: str = ""
    autoencoder: str = "small/m2v_autoencoder"  # whose planes are diffused: built-in name, folder, hub id
    n_samples: int = 2000  # clips whose planes are encoded, once, into the run's folder
    model: DenoiserConfig = field(default_factory=DenoiserConfig)
    options: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class TrainFinishingConfig:
    data: str = "???"
    out: str = "???"
    autoencoder: str = "small/m2v_autoencoder"  # whose decoder is finished: built-in name, folder, hub id
    denoiser: str = "small/m2v_denoiser"  # trained on its planes
    planes: str = ""  # folder that the denoiser's training left them in (same data, options, seed); "": made anew
    n_samples: int = 1000  # clips, at most as many as have planes
    features: str = "auto"
    has_discriminator: bool = True  # False: for comparison
    options: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def main(overrides: list[str]) -> None:
    stages = [override.removeprefix("stage=") for override in overrides if override.startswith("stage=")]
    rest = [override for override in overrides if not override.startswith("stage=")]
    if stages == ["autoencoder"]:
        train_autoencoder(compose("autoencoder", TrainAutoencoderConfig, rest))
    elif stages == ["diffusion"]:
        train_diffusion(compose("diffusion", TrainDiffusionConfig, rest))
    elif stages == ["finishing"]:
        train_finishing(compose("finishing", TrainFinishingConfig, rest))
    else:
        raise InputError(f"Say once what to train: {' or '.join(f'stage={stage}' for stage in STAGES)}.")


def train_autoencoder(c: TrainAutoencoderConfig) -> None:
    data_dir, run_dir = Path(c.data), Path(c.out)
    check_features(c.features)
    with first_process_first(c.train):
        open_run(run_dir, c, lasting=("model", "decoder_only"))  # crops may grow from one start to the next
        task = setup_autoencoder(data_dir, c.model, c.options, c.init, c.train.seed, c.features, c.decoder_only)
    train(task, run_dir, c.train)


def check_features(name: str) -> None:
    if name not in FEATURES:
        raise InputError(f"There are no features '{name}': choose {', '.join(FEATURES)}.")


def train_diffusion(c: TrainDiffusionConfig) -> None:
    data_dir, run_dir = Path(c.data), Path(c.out)
    with first_process_first(c.train):
        open_run(run_dir, c, lasting=("model", "autoencoder", "n_samples"))
        task = setup_diffusion(data_dir, c.model, c.options, run_dir, c.init, c.autoencoder, c.n_samples, c.train.seed)
    train(task, run_dir, c.train)


def train_finishing(c: TrainFinishingConfig) -> None:
    data_dir, run_dir = Path(c.data), Path(c.out)
    check_features(c.features)
    with first_process_first(c.train):
        open_run(run_dir, c, lasting=("autoencoder", "denoiser", "n_samples"))
        planes_dir = Path(c.planes) if c.planes else run_dir / "planes"
        task = setup_finishing(
            data_dir,
            c.options,
            run_dir,
            planes_dir,
            c.autoencoder,
            c.denoiser,
            n_samples=c.n_samples,
            seed=c.train.seed,
            features=c.features,
            has_discriminator=c.has_discriminator,
        )
    train(task, run_dir, c.train)


if __name__ == "__main__":
    run(main)
