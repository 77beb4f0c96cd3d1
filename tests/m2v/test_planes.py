"""Planes for the denoiser's training: encoded once, by the autoencoder that is asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.triplane import unpack
from m2v.autoencoder import Autoencoder
from m2v.data import ClipSamples, DataConfig, conditions_of
from m2v.denoiser import glance
from m2v.planes import NAMES, Encoded, PlaneSamples, encode, encoded, fingerprint, heard, statistics
from tests.m2v.tiny import AUTOENCODER, autoencoder, denoiser, training_clips

N, SIDE = 5, 8
CONFIG = DataConfig(size_px=64, crop_px=64, n_frames=4)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> ClipSamples:
    return ClipSamples(training_clips(tmp_path_factory.mktemp("m2v-planes")), CONFIG, seed=0)


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    return autoencoder(by=0.05)


@pytest.fixture(scope="module")
def arrays(model: Autoencoder, samples: ClipSamples, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return encode(model, samples, N, tmp_path_factory.mktemp("arrays") / "planes")


def test_planes_are_encoded_once(model: Autoencoder, samples: ClipSamples, tmp_path: Path) -> None:
    folder = tmp_path / "planes"
    first = {name: np.array(array) for name, array in encode(model, samples, 2, folder).items()}
    stamp = (folder / "planes.npy").stat().st_mtime_ns
    again = encode(model, samples, 2, folder)
    assert (folder / "planes.npy").stat().st_mtime_ns == stamp
    assert set(again) == set(first) == {"planes", "heard", *NAMES}
    assert all((again[name] == first[name]).all() for name in first)
    other = encode(autoencoder(by=0.06), samples, 2, folder)
    assert (folder / "planes.npy").stat().st_mtime_ns != stamp
    assert (other["planes"] != first["planes"]).any() and (other["drawn"] == first["drawn"]).all()


def test_unfinished_planes_are_encoded_again(model: Autoencoder, samples: ClipSamples, tmp_path: Path) -> None:
    first = np.array(encode(model, samples, 1, tmp_path)["planes"])
    (tmp_path / "made_from.json").unlink()  # written last
    (tmp_path / "planes.npy").write_bytes(b"half of it")
    assert (encode(model, samples, 1, tmp_path)["planes"] == first).all()


def test_what_is_stored_is_what_the_autoencoder_and_the_sample_give(
    model: Autoencoder, samples: ClipSamples, arrays: Encoded
) -> None:
    sample = samples[2]
    given = conditions_of(sample).batched()
    with torch.inference_mode():
        exact = model.encode(sample["clip"][None], given).pack()[0]
    error = torch.from_numpy(np.array(arrays["planes"][2])).float() - exact
    assert error.abs().mean() < 0.05 * exact.std()  # bf16
    batch = stored(arrays, 2)
    for name, part in zip(NAMES, glance(given), strict=True):
        assert torch.allclose(batch[name], part[0], atol=1.01 / 127.5), name  # bytes


def stored(arrays: Encoded, k: int) -> dict[str, torch.Tensor]:
    """Sample k as the training sees it, wherever the order has it."""
    found = [PlaneSamples(arrays, 0)[i] for i in range(N)]
    return next(each for each in found if (each["planes"].numpy() == arrays["planes"][k]).all())


def test_statistics_standardise_what_is_heard_to_mean_0_and_std_1(arrays: Encoded) -> None:
    mean, std = statistics(arrays)
    assert mean.shape == std.shape == (3, AUTOENCODER.plane_channels)
    model = denoiser()
    model.plane_mean.copy_(mean)
    model.plane_std.copy_(std)
    packed = torch.from_numpy(np.array(arrays["planes"], np.float32))
    weights = unpack(torch.from_numpy(np.array(arrays["heard"], np.float32)), CONFIG.n_frames, SIDE, SIDE)
    for plane, weight in zip(model.standardised(unpack(packed, CONFIG.n_frames, SIDE, SIDE)), weights, strict=True):
        mean, square = ((weight * part).sum(dim=(0, 2, 3)) / weight.sum() for part in (plane, plane.square()))
        assert torch.allclose(mean, torch.zeros(4), atol=1e-3) and torch.allclose(square, torch.ones(4), atol=1e-2)


def test_a_place_of_a_plane_is_heard_as_far_as_in_any_frame_row_or_column() -> None:
    region = torch.zeros(1, 2, 1, 3, 4)
    region[0, 1, 0, 2, 3], region[0, 0, 0, 0, 1] = 0.5, 1.0
    planes = unpack(heard(region), 2, 3, 4)
    assert planes.xy[0, 0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.5]]
    assert planes.xt[0, 0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0.5]]
    assert planes.yt[0, 0].tolist() == [[1, 0, 0], [0, 0, 0.5]]


def test_every_sample_comes_once_a_round_in_an_order_of_its_own(arrays: Encoded) -> None:
    rounds = PlaneSamples(arrays, seed=1)
    known = [array.tobytes() for array in np.array(arrays["planes"])]
    orders = [[known.index(rounds[i]["planes"].numpy().tobytes()) for i in range(N * r, N * r + N)] for r in range(4)]
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    again = PlaneSamples(arrays, seed=1)
    assert all(torch.equal(again[i]["planes"], rounds[i]["planes"]) for i in (7, 3))


def test_encoding_does_not_depend_on_what_was_encoded_before(
    model: Autoencoder, samples: ClipSamples, arrays: Encoded
) -> None:
    assert (encoded(model, samples, 3)["planes"] == arrays["planes"][3]).all()


def test_fingerprints_tell_weights_apart(model: Autoencoder, samples: ClipSamples) -> None:
    known = fingerprint(model, samples)
    assert known == fingerprint(autoencoder(by=0.05), samples) != fingerprint(autoencoder(), samples)
