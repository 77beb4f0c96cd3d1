"""What the models hear is aligned to video frames, the same in chunks as in one piece, and finite."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from common import audio
from common.errors import InputError


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small transforms on many threads spend their time waiting for each other when the machine is busy."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def click(n_samples: int, *positions: int) -> Tensor:
    samples = torch.zeros(n_samples)
    samples[list(positions)] = 0.9
    return samples


def noise(n_samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(n_samples, generator=torch.Generator().manual_seed(seed))


def test_the_number_of_frames_is_rounded_up() -> None:
    assert [audio.n_frames(n) for n in (0, 1, 640, 641, 16000)] == [0, 1, 1, 2, 25]


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.zeros(0), torch.zeros(5, dtype=torch.int16)])
def test_audio_of_another_shape_or_type_is_an_error(bad: Tensor) -> None:
    for function in (audio.log_mel, audio.frame_level_db):
        with pytest.raises(ValueError, match="16 kHz"):
            function(bad)


# --- log-mel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [1, 639, 640, 641, 3200, 16001])
def test_log_mel_has_two_states_of_128_for_every_frame(n_samples: int) -> None:
    features = audio.log_mel(noise(n_samples))
    assert features.shape == (audio.n_frames(n_samples), 2, audio.LOG_MEL_DIM)
    assert features.dtype == torch.float32 and features.isfinite().all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20 * 640 - 1))
def test_a_click_is_loudest_in_its_own_frame(position: int) -> None:
    energy = audio.log_mel(click(20 * 640, position)).sum((1, 2))
    assert int(energy.argmax()) == position // 640


@pytest.mark.parametrize("position", [0, 640 * 7, 640 * 7 + 639, 640 * 749 + 639, 640 * 750, 640 * 15100 + 320])
def test_a_click_lands_on_its_frame_after_ten_minutes_and_at_the_seams(position: int) -> None:
    features = audio.log_mel(click(640 * 15110, position))
    loud = (features.sum((1, 2)) > features.sum((1, 2)).median() + 1).nonzero().flatten()
    assert int(features.sum((1, 2)).argmax()) == position // 640
    assert set(loud.tolist()) <= {position // 640 - 1, position // 640, position // 640 + 1}


def test_columns_are_centred_in_their_ten_milliseconds() -> None:
    for column in range(12):
        features = audio.log_mel(click(640 * 3, 160 * column + 80))
        columns = features.reshape(-1, audio.N_MELS)  # 100 a second, in time order
        assert int(columns.sum(1).argmax()) == column


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30 * 640), st.integers(1, 40))
def test_chunks_equal_the_whole(n_samples: int, chunk_frames: int) -> None:
    samples = noise(n_samples)
    whole = audio.log_mel(samples, chunk_frames=10_000)
    torch.testing.assert_close(audio.log_mel(samples, chunk_frames), whole, atol=1e-5, rtol=0)


def test_a_frame_hears_only_its_surroundings() -> None:
    """A window is 25 ms, so a frame sees 7.5 ms beyond its own 40."""
    samples = noise(640 * 20)
    changed = samples.clone()
    changed[640 * 10 : 640 * 11] = 0
    moved = (audio.log_mel(samples) != audio.log_mel(changed)).any(-1).any(-1).nonzero().flatten().tolist()
    assert moved == [9, 10, 11]


def test_log_mel_equals_a_slow_transform() -> None:
    """Column by column with NumPy's FFT of the windowed samples, and the filters as transformers builds them."""
    from transformers.audio_utils import mel_filter_bank

    samples = noise(640 * 4, seed=3)
    filters = mel_filter_bank(257, 64, 50.0, 8000.0, 16000, norm=None, mel_scale="slaney")
    np.testing.assert_allclose(audio.mel_filters().T, filters, atol=2e-5)
    window = np.hanning(400)
    padded = np.pad(samples.double().numpy(), 400)
    columns = []
    for j in range(16):
        first = 400 + 160 * j + 80 - 200  # 200 samples on both sides of the column's middle
        spectrum = np.fft.rfft(padded[first : first + 400] * window, 512)
        power = (2 / window.sum() * np.abs(spectrum)) ** 2
        columns.append(1 + 10 * np.log10(power @ filters + 1e-10) / 50)
    expected = np.array(columns).reshape(4, 2, 128)
    np.testing.assert_allclose(audio.log_mel(samples), expected, atol=1e-4)


def test_the_scale_is_fixed_silence_minus_one_and_a_full_scale_sine_one() -> None:
    assert audio.log_mel(torch.zeros(6400)).eq(-1).all()
    time_s = torch.arange(16000) / 16000
    for hz in (200, 1000, 4000):
        top = audio.log_mel(torch.sin(2 * math.pi * hz * time_s))[5:-5].amax()
        assert top == pytest.approx(1, abs=0.12)  # 6 dB: a sine between two bins or two filters loses that much
    quiet, loud = audio.log_mel(noise(16000) * 0.1), audio.log_mel(noise(16000))
    torch.testing.assert_close(loud - quiet, torch.full_like(loud, 20 / 50), atol=1e-3, rtol=0)


def test_every_filter_hears_something_and_gradients_are_finite_in_silence() -> None:
    assert (audio.mel_filters().sum(1) > 0.5).all()
    samples = torch.zeros(6400, requires_grad=True)
    audio.log_mel(samples).sum().backward()
    assert samples.grad is not None and samples.grad.isfinite().all()


# --- level ---------------------------------------------------------------------------------------------------------


def test_the_level_is_that_of_the_samples_of_each_frame() -> None:
    samples = torch.cat([torch.full((640,), 0.1), torch.zeros(640), torch.full((10,), -1.0)])
    torch.testing.assert_close(audio.frame_level_db(samples), torch.tensor([-20.0, -100.0, 0.0]), atol=1e-3, rtol=0)


# --- HuBERT --------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(scope="module")
def hubert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random HuBERT of two layers, saved as the hub has it."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    HubertModel(HubertConfig(num_hidden_layers=2, **SMALL)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def test_hubert_gives_the_numbers_of_the_model_itself(hubert_dir: Path) -> None:
    from transformers import HubertModel, Wav2Vec2FeatureExtractor

    samples = noise(16000 * 3 + 77)
    features = audio.HubertFeatures.from_pretrained(str(hubert_dir))(samples)
    T = audio.n_frames(len(samples))
    assert features.shape == (T, 2, 32) and features.dtype == torch.float32

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(hubert_dir)
    inputs = torch.as_tensor(extractor(samples.numpy(), sampling_rate=16000).input_values[0])
    padded = torch.nn.functional.pad(inputs, (0, 640 * T + 80 - len(inputs)))
    with torch.no_grad():
        states = HubertModel.from_pretrained(hubert_dir).eval()(padded[None]).last_hidden_state[0]
    assert len(states) == 2 * T
    torch.testing.assert_close(features.reshape(-1, 32), states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_samples", [1, 640, 641, 16000])
def test_hubert_has_a_row_for_every_frame(hubert_dir: Path, n_samples: int) -> None:
    features = audio.HubertFeatures.from_pretrained(str(hubert_dir), layer=1)(noise(n_samples))
    assert features.shape == (audio.n_frames(n_samples), 2, 32) and features.isfinite().all()


def test_hubert_in_windows_equals_the_whole_where_the_model_is_local() -> None:
    """Without attention and without normalising over time a state sees 8 states to either side (its position
    convolution): windows must then agree with the whole to rounding, which proves every offset."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(num_hidden_layers=0, feat_extract_norm="layer", **SMALL)
    features = audio.HubertFeatures(HubertModel(config), chunk_frames=10_000)
    samples = noise(640 * 101 + 300)
    whole = features(samples)
    for chunk_frames, context_frames in ((7, 5), (25, 4), (100, 5)):
        features.chunk_frames, features.context_frames = chunk_frames, context_frames
        torch.testing.assert_close(features(samples), whole, atol=1e-5, rtol=1e-4)


def test_hubert_in_windows_is_close_to_the_whole_with_attention() -> None:
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(num_hidden_layers=2, feat_extract_norm="layer", **SMALL)
    features = audio.HubertFeatures(HubertModel(config), chunk_frames=10_000)
    samples = noise(640 * 150)
    whole = features(samples).flatten(0, 1)
    features.chunk_frames, features.context_frames = 50, 25
    similarity = torch.cosine_similarity(features(samples).flatten(0, 1), whole, dim=-1)
    assert similarity.min() > 0.99


@pytest.mark.parametrize("frame", [3, 10, 11, 25])
def test_a_click_moves_the_hubert_states_of_its_frame_most(frame: int) -> None:
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(num_hidden_layers=0, feat_extract_norm="layer", **SMALL)
    features = audio.HubertFeatures(HubertModel(config), is_normalised=False, chunk_frames=9, context_frames=5)
    with_click = noise(640 * 30) + click(640 * 30, 640 * frame + 320)
    change = (features(with_click) - features(noise(640 * 30))).norm(dim=-1).sum(1)
    assert int(change.argmax()) == frame


def damage(folder: Path, kind: str) -> None:
    if kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "config is no JSON":
        (folder / "config.json").write_text("{")
    elif kind == "another model":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "wav2vec2"}))
    elif kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "truncated weights":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif kind == "a weight missing":
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("feature_projection.projection.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif kind == "another size":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    elif kind == "another hop":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"conv_stride": [5, 2, 2, 2, 2, 2, 1]}))


@pytest.mark.parametrize(
    "kind",
    [
        "no config",
        "config is no JSON",
        "another model",
        "no weights",
        "truncated weights",
        "a weight missing",
        "another size",
        "another hop",
    ],
)
def test_a_folder_that_is_no_whole_hubert_is_refused_in_one_sentence(
    hubert_dir: Path, tmp_path: Path, kind: str
) -> None:
    for file in hubert_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path, kind)
    with pytest.raises(InputError, match=r"HuBERT|weights") as caught:
        audio.HubertFeatures.from_pretrained(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_id_without_a_network_is_one_sentence_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: True)
    with pytest.raises(InputError, match="hf download") as caught:
        audio.HubertFeatures.from_pretrained("nobody/no-such-hubert")
    assert "nobody/no-such-hubert" in str(caught.value) and "\n" not in str(caught.value)
