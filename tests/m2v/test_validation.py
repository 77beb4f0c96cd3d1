"""What validation prints: figures whose values are known for clips made by hand, from the same clips every time."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from m2v.data import Clip, Sample
from m2v.validation import figures_of, high_band, reconstructions, strip, validation_figures, validation_samples
from tests.m2v.tiny import autoencoder, clips, denoiser, training_clips

MOUTH = torch.tensor([20.0, 40.0, 9.0, 4.0]).expand(4, -1)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return training_clips(tmp_path_factory.mktemp("m2v-validation"))


@pytest.fixture(scope="module")
def sample(read: list[Clip]) -> Sample:
    return validation_samples(read, n=1, n_frames=4)[0]


def real() -> Tensor:
    return clips(1)[0] * 0.5


def test_an_even_error_has_its_own_psnr_everywhere() -> None:
    figures = figures_of(real() + 0.2, real(), MOUTH)
    assert figures["psnr"] == pytest.approx(20, abs=1e-3) and figures["mouth_psnr"] == pytest.approx(20, abs=1e-3)
    assert figures["mouth_energy"] == pytest.approx(1, abs=1e-3)
    assert math.isinf(figures_of(real(), real(), MOUTH)["psnr"])


def test_an_error_at_the_mouth_is_an_error_of_the_mouth() -> None:
    at_mouth, elsewhere = real(), real()
    at_mouth[:, :, 38:42, 15:25] += 0.3
    elsewhere[:, :, :4, 50:60] += 0.3
    assert figures_of(at_mouth, real(), MOUTH)["mouth_psnr"] < 30
    assert math.isinf(figures_of(elsewhere, real(), MOUTH)["mouth_psnr"])
    psnr = [figures_of(clip, real(), MOUTH)["psnr"] for clip in (at_mouth, elsewhere)]
    assert psnr[0] == pytest.approx(psnr[1], abs=1e-3)


def test_blur_takes_the_energy_of_fine_detail_and_noise_adds_to_it() -> None:
    blurred = torch.nn.functional.avg_pool2d(real(), 3, stride=1, padding=1)
    assert figures_of(blurred, real(), MOUTH)["mouth_energy"] < 0.3
    assert figures_of(real() + clips(1)[0].roll(7, dims=-1), real(), MOUTH)["mouth_energy"] > 2
    slope = torch.linspace(-1, 1, 16).expand(3, 16, 16)
    assert high_band(slope) == pytest.approx(0, abs=1e-9)  # a change of light is none


def test_mouths_at_the_border_are_measured_as_far_as_they_are_seen() -> None:
    figures = figures_of(real() + 0.2, real(), torch.tensor([2.0, 62.0, 9.0, 4.0]).expand(4, -1))
    assert all(math.isfinite(value) for value in figures.values())


def test_the_same_held_out_clips_every_time_of_everybody(read: list[Clip]) -> None:
    one, two = (validation_samples(read, n=3, n_frames=4) for _ in range(2))
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert a["clip"].shape == (3, 4, 256, 256)
    assert not torch.equal(one[0]["reference"], one[1]["reference"])


def test_planes_of_each_kind_are_shown_side_by_side(sample: Sample) -> None:
    shown = reconstructions(autoencoder(by=0.02), sample, denoiser(by=0.05))
    assert list(shown) == ["real", "warp", "zero", "true", "mean", "sampled"]
    assert all(clip.shape == (3, 4, 256, 256) and clip.abs().max() <= 1 for clip in shown.values())
    assert torch.equal(shown["real"], sample["clip"])
    names = list(shown)
    assert all(not torch.equal(shown[a], shown[b]) for k, a in enumerate(names) for b in names[:k])


def test_figures_are_means_over_clips(sample: Sample) -> None:
    model = autoencoder()
    once, twice = validation_figures(model, [sample]), validation_figures(model, [sample, sample])
    assert set(once) == {f"{k}_{f}" for k in ("warp", "zero", "true") for f in ("psnr", "mouth_psnr", "mouth_energy")}
    assert once == pytest.approx(twice)
    assert once["zero_psnr"] == pytest.approx(once["true_psnr"])  # before training planes say nothing


def test_a_strip_has_a_line_for_every_clip() -> None:
    black, white = torch.full((3, 9, 8, 10), -1.0), torch.full((3, 9, 8, 10), 1.0)
    drawn = strip([{"a": black, "b": white}, {"a": white, "b": black}], n_columns=5)
    assert drawn.shape == (4 * 8, 5 * 10, 3) and drawn.dtype == np.uint8
    assert drawn[::8, 0, 0].tolist() == [0, 255, 255, 0]
