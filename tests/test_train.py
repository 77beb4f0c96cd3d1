"""The training programs: what can be set composes, what can't is said in a sentence, and runs go on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import train_a2m
import train_m2v
from a2m.model import AToMNet
from a2m.phonetics.encoder import PhoneticEncoder
from common import command
from common.command import CONF_DIR, compose, differences, open_run
from common.errors import InputError
from m2v.autoencoder import Autoencoder
from m2v.denoiser import Denoiser
from tests.tiny_data import write_data

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, tuple[type[Any], Callable[[Any], nn.Module]]] = {
    "a2m": (train_a2m.TrainA2MConfig, AToMNet),
    "phonetics": (train_a2m.TrainPhoneticsConfig, PhoneticEncoder),
    "autoencoder": (train_m2v.TrainAutoencoderConfig, Autoencoder),
    "diffusion": (train_m2v.TrainDiffusionConfig, Denoiser),
}
PRESETS = [(path.parts[-3], path.stem) for path in sorted(CONF_DIR.glob("*/model/*.yaml"))]
NEEDED = ["data=nowhere", "out=nowhere"]
NEEDED_BY = {"phonetics": ["corpus=nowhere", "out=nowhere"]}


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("program, preset", PRESETS)
def test_every_preset_composes_and_builds(program: str, preset: str) -> None:
    schema, build = PROGRAMS[program]
    config = compose(program, schema, [*NEEDED, f"model={preset}"])
    with torch.device("meta"):
        module = build(config.model)
    assert n_parameters(module) > 1e6
    if preset == "small":
        assert config.model == type(config.model)()


def test_paper_preset_has_the_published_sizes() -> None:
    model = compose("a2m", train_a2m.TrainA2MConfig, [*NEEDED, "model=paper"]).model
    sizes = (model.width, model.n_layers, model.n_heads, model.ff_width, model.window, model.audio_dim)
    assert sizes == (512, 8, 8, 1024, 156, 1024)
    assert sum(model.value_counts) == 204
    assert (model.n_timesteps, model.n_steps, model.guidance_scale, model.eta) == (1000, 50, 2.0, 1.0)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_defaults_are_the_schema_s_own(program: str) -> None:
    schema, _ = PROGRAMS[program]
    assert compose(program, schema, NEEDED_BY.get(program, NEEDED)).model == schema().model


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["stage=both", *NEEDED], "stage=motion or stage=phonetics"),
        (["stage=phonetics", "stage=motion", *NEEDED], "stage=motion or stage=phonetics"),
        (["stage=phonetics", "out=nowhere"], "corpus"),
        (["stage=phonetics", *NEEDED_BY["phonetics"], "options.lip_weight=1"], "options.lip_weight"),
    ],
)
def test_speech_to_motion_has_two_stages(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        train_a2m.main(overrides)


@pytest.mark.parametrize(
    "overrides, words",
    [
        ([], "stage=autoencoder or stage=diffusion or stage=finishing"),
        (["stage=both"], "stage=autoencoder or stage=diffusion or stage=finishing"),
        (["stage=autoencoder", *NEEDED, "train.n_stps=3"], "train.n_stps"),
        (["stage=autoencoder", *NEEDED, "train.n_steps=many"], "many"),
        (["stage=autoencoder", *NEEDED, "train.n_steps=0"], "train.n_steps is 0"),
        (["stage=autoencoder", *NEEDED, "model=huge"], "huge"),
        (["stage=autoencoder", *NEEDED, "features=vgg"], "vgg"),
        (["stage=autoencoder", *NEEDED, "model.width=3"], "model.width"),
        (["stage=autoencoder", "data=nowhere"], "out"),
        (["stage=diffusion", *NEEDED, "+extra=1"], "extra"),
        (["stage=finishing", *NEEDED, "model.widths=[8,16]"], "model"),
        (["stage=finishing", *NEEDED, "features=vgg"], "vgg"),
        (["stage=diffusion", *NEEDED, "train"], "'train' is not an override"),
        (["stage=diffusion", *NEEDED, "train.seed=[1"], "'[1'"),
        (["stage=diffusion", *NEEDED, "model.diffusion.prediction"], "is not an override"),
    ],
)
def test_wrong_settings_give_one_sentence_and_exit_code_2(
    overrides: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_m2v.py", *overrides])
    with pytest.raises(SystemExit) as caught:
        command.run(train_m2v.main)
    assert caught.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert said.startswith("error: ")
    assert words in said
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    config = compose("a2m", train_a2m.TrainA2MConfig, NEEDED)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="other things"):
        open_run(tmp_path, config, lasting=("model",))
    with pytest.raises(InputError, match="is a file"):
        open_run(tmp_path / "thesis.tex", config, lasting=("model",))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_goes_on_with_the_same_model_only(tmp_path: Path) -> None:
    def config(*overrides: str) -> train_a2m.TrainA2MConfig:
        return compose("a2m", train_a2m.TrainA2MConfig, [*NEEDED, *overrides])

    open_run(tmp_path / "run", config(), lasting=("model", "options"))
    open_run(tmp_path / "run", config("model.width=96"), lasting=("model", "options"))  # nothing was trained yet
    (tmp_path / "run" / command.CHECKPOINT_NAME).write_bytes(b"")
    open_run(tmp_path / "run", config("model.width=96", "train.n_steps=5"), lasting=("model", "options"))
    with pytest.raises(InputError, match=r"model.width=96 \(now "):
        open_run(tmp_path / "run", config(), lasting=("model", "options"))
    (tmp_path / "run" / command.CONFIG_NAME).write_text("{")
    with pytest.raises(InputError, match="Can't read"):
        open_run(tmp_path / "run", config(), lasting=("model", "options"))


def test_differences_are_those_of_values_not_of_their_containers() -> None:
    assert differences({"a": [1, 2], "b": {"c": 1.0}}, {"a": (1, 2), "b": {"c": 1}}) == []
    assert differences({"a": 1}, {"a": 1, "b": None}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == ["a.b=1 (now 2)"]
    assert differences({"a": (1, 2)}, {"a": (1, 3)}) == ["a=[1, 2] (now [1, 3])"]


# ---- whole runs


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [("a_00", "anna", "train", "talking", 240), ("c_00", "cleo", "val", "talking", 30)]
    return write_data(tmp_path_factory.mktemp("tiny") / "data", clips)


TINY = ["train.batch_size=2", "train.n_steps=2", "train.device=cpu", "train.log_every=1", "train.warmup_steps=1"]


def test_speech_to_motion_trains_goes_on_and_starts_from_weights(data_dir: Path, tmp_path: Path) -> None:
    sizes = ["model.width=32", "model.n_layers=1", "model.n_encoder_layers=1", "model.ff_width=32", "model.n_lip=3"]
    common = [f"data={data_dir}", *TINY, *sizes, "model.n_rest=2"]
    train_a2m.main([*common, f"out={tmp_path / 'first'}"])
    train_a2m.main([*common, f"out={tmp_path / 'first'}", "train.n_steps=3"])
    lines = (tmp_path / "first" / "log.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines if "learning_rate" in line] == [f'{{"step": {k}' for k in (1, 2, 3)]
    assert list((tmp_path / "first" / "samples").glob("*.png"))
    again = [*common, f"out={tmp_path / 'again'}", f"init={tmp_path / 'first' / 'weights'}", "train.learning_rate=0"]
    train_a2m.main(again)
    before, after = (load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("first", "again"))
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("net."))


def test_the_phonetic_encoder_trains_on_a_corpus_and_on_real_speech(data_dir: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, n in (("train", 400), ("held_out", 200)):
        folder = tmp_path / "corpus" / part
        folder.mkdir(parents=True)
        np.save(folder / "mel.npy", random.normal(size=(2 * n, 64)).astype(np.float16))
        np.save(folder / "phones.npy", random.integers(0, 40, n).astype(np.int8))
        np.save(folder / "sound.npy", np.ones(n // 2, bool))
        row = {"first": 0, "n": n, "speaker": "", "language": "", "text": ""}
        (folder / "index.json").write_text(json.dumps({"utterances": [row]}))
    sizes = ["model.width=16", "model.dilations=[1,2]", "options.crop_states=50", "options.real_share=0.5"]
    common = ["stage=phonetics", f"corpus={tmp_path / 'corpus'}", f"data={data_dir}", *TINY, *sizes]
    train_a2m.main([*common, f"out={tmp_path / 'run'}"])
    train_a2m.main([*common, f"out={tmp_path / 'run'}", "train.n_steps=3"])
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "val/bilabial_recall" in log and "val/agreement_real" in log
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    assert PhoneticEncoder.from_pretrained(tmp_path / "run" / "weights").config.dilations == (1, 2)


def test_motion_to_video_trains_in_three_runs(data_dir: Path, tmp_path: Path) -> None:
    cheap = ["train.validate_every=0", "train.sample_every=0", "train.precision=no"]
    common = [f"data={data_dir}", *TINY, *cheap, f"options.cache_dir={tmp_path / 'cache'}"]
    autoencoder = ["stage=autoencoder", *common, "options.crop_px=64", "options.n_frames=4", "model.widths=[8,16]"]
    train_m2v.main([*autoencoder, "model.n_blocks=[1,1]", "model.plane_width=8", f"out={tmp_path / 'a'}"])
    diffusion = ["stage=diffusion", *common, f"autoencoder={tmp_path / 'a' / 'weights'}", "n_samples=2"]
    sizes = ["model.model_channels=32", "model.channel_mult=[1]", "model.condition_width=8"]
    train_m2v.main([*diffusion, *sizes, "model.plane_attention_resolutions=[]", f"out={tmp_path / 'd'}"])
    made = (tmp_path / "d" / "planes" / "planes.npy").stat().st_mtime_ns
    finishing = ["stage=finishing", *diffusion[1:], f"denoiser={tmp_path / 'd' / 'weights'}", "features=none"]
    train_m2v.main([*finishing, f"planes={tmp_path / 'd' / 'planes'}", f"out={tmp_path / 'f'}"])
    assert (tmp_path / "d" / "planes" / "planes.npy").stat().st_mtime_ns == made
    before, after = (load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("a", "f"))
    learnt = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert before.keys() == after.keys() and learnt == {
        "spread",
        "middle",
        "wide",
        "up",
        "fuse",
        "blocks",
        "head",
        "shift",
    }


TWO_PROCESSES = """
import sys
from pathlib import Path
from tests.common import test_trainer as t
t.train(t.task(), Path(sys.argv[1]), t.config(6, n_accumulate=int(sys.argv[2])))
"""


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates_two_batches(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for n_processes, n_accumulate in ((2, 1), (1, 2)):
        arguments = [str(tmp_path / "child.py"), str(tmp_path / f"{n_processes}"), str(n_accumulate)]
        subprocess.run([*launch, str(n_processes), *arguments], env=environment, check=True, timeout=120)
    two, one = (load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("2", "1"))
    for key in two:
        torch.testing.assert_close(two[key], one[key], rtol=1e-6, atol=1e-7)  # the order of additions differs
