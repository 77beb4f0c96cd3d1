"""Train stage one, speech to motion (AToM-Net):

    uv run --extra train train_a2m.py data=DIR out=runs/a2m
    uv run --extra train accelerate launch --multi_gpu train_a2m.py data=DIR out=runs/a2m

The same command again goes on where the run in `out` stopped. conf/train/a2m holds what can be set (train.minutes=60,
init=small to start from the built-in weights); the result is `out`/weights.
"""

from dataclasses import dataclass, field
from pathlib import Path

from a2m.model import AToMConfig
from a2m.training import DataConfig, setup
from common.command import compose, open_run, run
from common.trainer import TrainConfig, first_process_first, train


@dataclass
class TrainA2MConfig:
    data: str = "???"  # folder with index.csv, clips/ and tracks/
    out: str = "???"  # folder of the run
    hubert: str = ""  # model=paper: the HuBERT whose states are heard, a folder or hub id
    states: str = ""  # folder where its states of the clips are kept, for other runs too; "": in `out`
    init: str = ""  # weights to start from: "small" (built in), a folder, a hub id; "": none
    model: AToMConfig = field(default_factory=AToMConfig)
    options: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def main(overrides: list[str]) -> None:
    c = compose("a2m", TrainA2MConfig, overrides)
    data_dir, run_dir = Path(c.data), Path(c.out)
    with first_process_first(c.train):
        open_run(run_dir, c, lasting=("model", "options", "hubert"))
        states_dir = Path(c.states) if c.states else run_dir / "states"
        task = setup(data_dir, c.model, c.options, c.init, c.train.seed, c.hubert, states_dir)
    train(task, run_dir, c.train)


if __name__ == "__main__":
    run(main)
