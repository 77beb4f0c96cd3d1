"""What AToM-Net hears: log-mel or a HuBERT's states, in training as in generation, and of that HuBERT only."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

import train_a2m
from a2m.data import Clip, read_clips, read_sound
from a2m.hearing import clip_features, fingerprint, load_hubert, map_states, recording_features, with_states
from a2m.model import AToMConfig
from a2m.pipeline import AudioToMotion
from a2m.samples import hear
from a2m.speech import analyse
from common.audio import HubertFeatures
from common.errors import InputError
from common.face.model import FaceModel
from common.face.pos import Pose
from tests.common.test_audio import SMALL
from tests.tiny_data import write_data

HEARS_HUBERT = AToMConfig(features="hubert", audio_dim=32, n_audio_states=2)


def save_hubert(folder: Path, seed: int) -> Path:
    """A random HuBERT of one layer, saved as the hub has it; group norm and normalised sound, as HuBERT base."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(seed)
    HubertModel(HubertConfig(num_hidden_layers=1, **SMALL)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hubert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hubert(tmp_path_factory.mktemp("hubert"), 0)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [("a_00", "anna", "train", "talking", 40), ("c_00", "cleo", "val", "talking", 30)]
    clips.append(("b_00", "bert", "train", "silent", 30))
    return write_data(tmp_path_factory.mktemp("tiny") / "data", clips)


@pytest.fixture(scope="module")
def hubert(hubert_dir: Path) -> Iterator[HubertFeatures]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield HubertFeatures.from_pretrained(str(hubert_dir))
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def clip(data_dir: Path) -> Clip:
    return read_clips(data_dir, "train", FaceModel.builtin())[0]


def test_states_are_computed_once_and_are_those_of_the_recording(
    clip: Clip, data_dir: Path, hubert: HubertFeatures, tmp_path: Path
) -> None:
    (heard,) = with_states([clip], data_dir, hubert, tmp_path)
    (file,) = tmp_path.glob("*/*.npy")
    written = file.stat().st_mtime_ns
    (again,) = with_states([clip], data_dir, hubert, tmp_path)
    assert file.stat().st_mtime_ns == written and file.parent.name == fingerprint(hubert)
    assert heard.states is not None and again.states is not None and torch.equal(heard.states, again.states)
    assert heard.states.shape == (40, 2, 32) and heard.states.dtype == torch.float16

    audio = read_sound(data_dir, clip.name, 40)
    live = recording_features(audio, analyse(audio), hubert)
    torch.testing.assert_close(clip_features(heard)(5, 9), live(5, 9), atol=2e-3, rtol=2e-3)  # half precision
    assert live(0, 40).dtype == clip_features(heard)(0, 40).dtype == torch.float32


def test_log_mel_of_a_clip_is_that_of_its_recording(clip: Clip, data_dir: Path) -> None:
    audio = read_sound(data_dir, clip.name, 40)
    live = recording_features(audio, analyse(audio), None)
    assert clip_features(clip)(3, 20).shape == (17, 1, 256)
    torch.testing.assert_close(clip_features(clip)(3, 20), live(3, 20), atol=1e-4, rtol=1e-4)


def test_how_loud_a_recording_is_does_not_change_its_states(data_dir: Path, hubert: HubertFeatures) -> None:
    audio = read_sound(data_dir, "a_00", 40)
    loud, quiet = (recording_features(x, analyse(x), hubert)(0, 40) for x in (audio, 0.1 * audio))
    torch.testing.assert_close(loud, quiet, atol=1e-3, rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 20), n=st.integers(1, 20), n_states=st.sampled_from([0, 2]))
def test_training_at_plain_speed_hears_the_states_of_its_frames(start: int, n: int, n_states: int) -> None:
    """Of log-mel, which is disturbed, only how much there is can be told."""
    states = torch.randn(40, 2, 8, generator=Generator().manual_seed(0)).half() if n_states else None
    mel = torch.randn(40, 4, 64, generator=Generator().manual_seed(1))
    plain = _clip(mel, states)
    heard = hear(plain, float(start), n, 1.0, Generator().manual_seed(0))
    if states is None:
        assert heard.shape == (n, 256)
    else:
        torch.testing.assert_close(heard, states[start : start + n].flatten(0, 1).float(), atol=1e-5, rtol=1e-5)


def test_stretched_states_move_with_the_frames() -> None:
    """States that tell their own time, in frames: at any speed they tell the frames' times."""
    time = ((torch.arange(80) + 0.5) / 2 - 0.5).view(40, 2, 1)
    heard = hear(_clip(torch.zeros(40, 4, 64), time), 4.0, 20, 1.25, Generator()).view(20, 2)
    frame = 4.0 + (torch.arange(20) + 0.5) * 1.25 - 0.5
    torch.testing.assert_close(heard.mean(dim=1), frame)


def _clip(mel: Tensor, states: Tensor | None) -> Clip:
    T, still = len(mel), torch.zeros(len(mel))
    pose = Pose(1 + still, torch.eye(3).repeat(T, 1, 1), torch.zeros(T, 2))
    points, lips = torch.zeros(T, 68, 3), torch.zeros(T, 37, 3)
    return Clip("a", "a", mel, torch.zeros(64), still > -1, points, pose, lips, 1 + still, still, 0.6, states=states)


def test_a_fingerprint_tells_huberts_apart_but_not_by_their_names(hubert_dir: Path, tmp_path: Path) -> None:
    mine, same = (HubertFeatures.from_pretrained(str(hubert_dir)) for _ in range(2))
    other = HubertFeatures.from_pretrained(str(save_hubert(tmp_path / "other", 1)))
    assert fingerprint(mine) == fingerprint(same) != fingerprint(other)
    same.is_normalised = False
    assert fingerprint(mine) != fingerprint(same)


def test_what_does_not_fit_together_is_one_sentence(hubert_dir: Path, hubert: HubertFeatures) -> None:
    name = str(hubert_dir)
    found = load_hubert(replace(HEARS_HUBERT, hubert=fingerprint(hubert)), name)
    assert found is not None and found.dim == 32 and load_hubert(AToMConfig(), "") is None
    wrong = [
        (AToMConfig(), name, "hears log-mel"),
        (HEARS_HUBERT, "", "folder or hub id"),
        (replace(HEARS_HUBERT, features="wavlm"), name, "log-mel or hubert"),
        (replace(HEARS_HUBERT, audio_dim=64), name, "2 states of 32 numbers, the model hears 2 of 64"),
        (replace(HEARS_HUBERT, hubert="0123456789abcdef"), name, "not the HuBERT that the model was trained with"),
    ]
    for config, given_name, words in wrong:
        with pytest.raises(InputError, match=words) as caught:
            load_hubert(config, given_name)
        assert "\n" not in str(caught.value)


def test_a_hub_id_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nobody/no-hubert is no folder and no download") as caught:
        load_hubert(HEARS_HUBERT, "nobody/no-hubert")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", b"nothing of the kind"])
def test_a_damaged_file_of_states_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match="delete it"):
        map_states(tmp_path / "a.npy", 4, 32)
    np.save(tmp_path / "b.npy", np.zeros((5, 2, 32), np.float16))
    with pytest.raises(InputError, match="not \\(4, 2, 32\\)"):
        map_states(tmp_path / "b.npy", 4, 32)


def test_the_papers_model_trains_on_a_hubert_and_speaks_with_that_one_only(
    data_dir: Path, hubert_dir: Path, tmp_path: Path
) -> None:
    sizes = ["model=paper", "options=paper", "model.audio_dim=32", "model.width=32", "model.n_heads=2"]
    sizes += ["model.n_layers=1", "model.n_encoder_layers=1", "model.ff_width=32", "model.window=32", "model.overlap=8"]
    quick = ["train.n_steps=1", "train.batch_size=4", "train.device=cpu", "train.validate_every=0"]
    given = [f"data={data_dir}", f"out={tmp_path / 'run'}", f"hubert={hubert_dir}", *sizes, *quick]
    with pytest.raises(InputError, match="can't be muted"):
        train_a2m.main([*given, "options.muted_share=0.1"])
    train_a2m.main([*given, "options.silent_share=0.5"])
    assert len(list((tmp_path / "run" / "states").glob("*/*.npy"))) == 2  # train and val

    weights = tmp_path / "run" / "weights"
    a2m = AudioToMotion.from_pretrained(weights, hubert=str(hubert_dir))
    reference = Pose(torch.tensor(50.0), torch.eye(3), torch.tensor([128.0, 128.0]))
    motion = a2m(read_sound(data_dir, "a_00", 40), torch.zeros(68, 3), reference, (256, 256), n_steps=2)
    assert motion.n_frames == 40 and torch.as_tensor(motion.landmarks).isfinite().all()
    with pytest.raises(InputError, match="name its folder or hub id"):
        AudioToMotion.from_pretrained(weights)
    with pytest.raises(InputError, match="not the HuBERT"):
        AudioToMotion.from_pretrained(weights, hubert=str(save_hubert(tmp_path / "other", 1)))
