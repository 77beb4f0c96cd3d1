"""Train stage one, speech to motion (AToM-Net), and the phonetic encoder that it may listen through:

    uv run --extra train train_a2m.py data=DIR out=runs/a2m
    uv run --extra train accelerate launch --multi_gpu train_a2m.py data=DIR out=runs/a2m
    uv run --extra train train_a2m.py stage=phonetics corpus=DIR speech=DIR data=DIR out=runs/phonetics

`stage=motion` is what is meant where no stage is said. The same command again goes on where the run in `out` stopped.
conf/train/a2m and conf/train/phonetics hold what can be set (train.minutes=60, init=small to start from the built-in
weights); the result is `out`/weights.
"""

from dataclasses import dataclass, field
from pathlib import Path

from a2m.model import AToMConfig
from a2m.phonetics.encoder import PhoneticConfig
from a2m.phonetics.training import PhoneticDataConfig
from a2m.phonetics.training import setup as setup_phonetics
from a2m.samples import DataConfig
from a2m.training import setup
from common.command import compose, open_run, run
from common.errors import InputError
from common.trainer import TrainConfig, first_process_first, train

STAGES = ("motion", "phonetics")


@dataclass
class TrainA2MConfig:
    data: str = "???"  # folder with index.csv, clips/ and tracks/
    out: str = "???"  # folder of the run
    hubert: str = ""  # model=paper: the HuBERT whose states are heard, a folder or hub id
    states: str = ""  # folder where its states of the clips are kept, for other runs too; "": in `out`
    init: str = ""  # weights to start from: "small" (built in), a folder, a hub id; "": none
    lags: str = ""  # file of `python -m a2m.lag`: by how much each clip's sound is late; "": by nothing
    phonetics: str = "small/a2m_phonetics"  # encoder that models hear log-mel through, too; "": none
    model: AToMConfig = field(default_factory=AToMConfig)
    options: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class TrainPhoneticsConfig:
    corpus: str = "???"  # folder that `python -m a2m.phonetics.corpus` made, or one with several of them
    out: str = "???"
    speech: str = ""  # folder of recordings of real speech, which need no labels; "": none
    data: str = ""  # folder with index.csv and clips/, whose talking clips are heard too; "": none
    init: str = ""
    model: PhoneticConfig = field(default_factory=PhoneticConfig)
    options: PhoneticDataConfig = field(default_factory=PhoneticDataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def main(overrides: list[str]) -> None:
    stages = [override.removeprefix("stage=") for override in overrides if override.startswith("stage=")]
    rest = [override for override in overrides if not override.startswith("stage=")]
    if stages in ([], ["motion"]):
        train_motion(compose("a2m", TrainA2MConfig, rest))
    elif stages == ["phonetics"]:
        train_phonetics(compose("phonetics", TrainPhoneticsConfig, rest))
    else:
        raise InputError(f"Say at most once what to train: {' or '.join(f'stage={stage}' for stage in STAGES)}.")


def train_motion(c: TrainA2MConfig) -> None:
    data_dir, run_dir = Path(c.data), Path(c.out)
    with first_process_first(c.train):
        open_run(run_dir, c, lasting=("model", "options", "hubert", "phonetics"))
        states_dir = Path(c.states) if c.states else run_dir / "states"
        lags_path = Path(c.lags) if c.lags else None
        task = setup(
            data_dir, c.model, c.options, c.init, c.train.seed, c.hubert, states_dir, lags_path, phonetics=c.phonetics
        )
    train(task, run_dir, c.train)


def train_phonetics(c: TrainPhoneticsConfig) -> None:
    run_dir = Path(c.out)
    speech_dir, data_dir = (Path(folder) if folder else None for folder in (c.speech, c.data))
    with first_process_first(c.train):
        open_run(run_dir, c, lasting=("model",))  # the corpus may grow from one start to the next
        task = setup_phonetics(Path(c.corpus), speech_dir, data_dir, c.model, c.options, c.init, c.train.seed)
    train(task, run_dir, c.train)


if __name__ == "__main__":
    run(main)
