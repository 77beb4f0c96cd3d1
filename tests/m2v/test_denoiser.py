"""The denoiser of planes: what it is told, what it draws, and what neighbouring clips have in common."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import InputError
from common.triplane import TriPlane, packed_length, unpack
from m2v.denoiser import (
    Denoiser,
    DenoiserConfig,
    Glance,
    clip_noise,
    glance,
    load_denoiser,
    save_denoiser,
)
from tests.m2v.tiny import DENOISER, conditions, denoiser

N_FRAMES, SIDE = 4, 8  # of planes
LENGTH = packed_length(N_FRAMES, SIDE, SIDE)


def noise(n_clips: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_clips, DENOISER.plane_channels, LENGTH, generator=generator)


def other(seen: Glance, *which: int) -> Glance:
    """The same, but for some of drawn, warped, reference."""
    drawn, warped, reference = (part.flip(-2) if k in which else part for k, part in enumerate(seen))
    return drawn, warped, reference


@pytest.fixture
def model() -> Denoiser:
    """As after training: no weights are zero, and planes have a mean and a size of their own."""
    model, generator = denoiser(by=0.05), torch.Generator().manual_seed(4)
    model.plane_mean.copy_(torch.randn(model.plane_mean.shape, generator=generator))
    model.plane_std.copy_(0.2 + torch.rand(model.plane_std.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def seen() -> Glance:
    return glance(conditions())


def test_a_glance_is_a_quarter_of_the_side() -> None:
    given = conditions()
    drawn, warped, reference = glance(given)
    assert (
        drawn.shape == (2, 4, 16, 16, 16) and warped.shape == (2, 4, 4, 16, 16) and reference.shape == (2, 12, 16, 16)
    )
    assert torch.allclose(warped[:, :, :3].mean(dim=(-2, -1)), given.warped.mean(dim=(-2, -1)), atol=1e-5)
    assert torch.allclose(drawn[:, :, :12].sum(), given.maps.sum())


def test_standardised_planes_are_restored(model: Denoiser) -> None:
    planes = unpack(noise(), N_FRAMES, SIDE, SIDE)
    assert torch.allclose(model.restored(model.standardised(planes)).pack(), planes.pack(), atol=1e-5)
    as_expected = model.restored(planes.map(torch.zeros_like))
    for k, plane in enumerate(as_expected):
        assert torch.allclose(plane, model.plane_mean[k].view(1, -1, 1, 1).expand_as(plane))


def test_the_reference_tells_the_xy_plane_alone(model: Denoiser, seen: Glance) -> None:
    n = DENOISER.condition_channels
    told, otherwise = model.condition(seen), model.condition(other(seen, 2))
    assert told.xy.shape[1] == told.xt.shape[1] == 3 * n
    assert not told.xt[:, 2 * n :].any() and not told.yt[:, 2 * n :].any()
    assert torch.equal(told.xt, otherwise.xt) and torch.equal(told.yt, otherwise.yt)
    assert torch.equal(told.xy[:, : 2 * n], otherwise.xy[:, : 2 * n])
    assert not torch.allclose(told.xy[:, 2 * n :], otherwise.xy[:, 2 * n :], atol=1e-3)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_hidden_conditions_are_hidden_and_shown_ones_matter(model: Denoiser, seen: Glance, which: int) -> None:
    timesteps, keep = torch.tensor([500, 500]), torch.tensor([0.0, 1.0])
    x_t = noise()
    one, two = (model(x_t, timesteps, told, keep) for told in (seen, other(seen, which)))
    assert torch.equal(one[0], two[0])
    assert not torch.allclose(one[1], two[1], atol=1e-3)


def test_guidance_of_1_is_the_conditional_model_and_0_hides_the_conditions(model: Denoiser, seen: Glance) -> None:
    plain, x_T = model.sample(seen, noise()).pack(), noise()
    assert torch.equal(model.sample(seen, x_T, guidance_scale=1.0).pack(), plain)
    blind = model.sample(seen, x_T, guidance_scale=0.0).pack()
    assert torch.equal(model.sample(other(seen, 0, 1, 2), x_T, guidance_scale=0.0).pack(), blind)
    one_step = [model.sample(seen, x_T, 1, scale).pack() for scale in (0.0, 1.0, 3.0)]
    assert torch.allclose(one_step[2], one_step[0] + 3 * (one_step[1] - one_step[0]), atol=1e-3)


def test_one_step_is_the_prediction_of_x_0_at_the_last_timestep(model: Denoiser, seen: Glance) -> None:
    """There alpha_bar is 0 and v is -x_0: the mean that the conditions leave."""
    last = model.config.diffusion.n_timesteps - 1
    v_pred = model.denoise(noise(), torch.tensor([last, last]), model.condition(seen))
    x_0_pred = unpack(-v_pred, N_FRAMES, SIDE, SIDE)
    assert torch.allclose(model.sample(seen, noise(), n_steps=1).pack(), model.restored(x_0_pred).pack(), atol=1e-4)


def test_planes_are_those_of_the_noise_and_of_their_own_conditions(model: Denoiser, seen: Glance) -> None:
    planes = model.sample(seen, noise()).pack()
    assert torch.equal(model.sample(seen, noise()).pack(), planes)
    assert not torch.allclose(model.sample(seen, noise(seed=1)).pack(), planes, atol=1e-2)
    for k in range(2):
        drawn, warped, reference = (part[k : k + 1] for part in seen)
        alone = model.sample((drawn, warped, reference), noise()[k : k + 1]).pack()
        assert torch.allclose(alone, planes[k : k + 1], atol=1e-3)


def test_before_training_the_prediction_is_zero(seen: Glance) -> None:
    assert not denoiser()(noise(), torch.tensor([3, 900]), seen, torch.ones(2)).any()


def test_gradients_reach_all_weights_after_a_step(seen: Glance) -> None:
    model = denoiser().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # blocks of the UNet end in zeros as well
        optimizer.zero_grad()
        pred = model(noise(), torch.tensor([100, 700]), seen, torch.ones(2))
        (pred - noise(seed=1)).square().mean().backward()
        optimizer.step()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []  # several processes would wait for their gradients
    still = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert all(name.startswith(("reference.pool.heads.1", "reference.pool.heads.2")) for name in still)  # z_r: xy alone


def frame_noise(first: int) -> TriPlane:
    generators = [torch.Generator().manual_seed(frame) for frame in range(first, first + 16)]
    shared = torch.randn(4, SIDE, SIDE, generator=torch.Generator().manual_seed(99))
    return unpack(clip_noise(16, SIDE, 4, shared, generators), 16, SIDE, SIDE)


def test_neighbouring_clips_start_from_the_same_noise_where_they_overlap() -> None:
    one, two = frame_noise(0), frame_noise(12)
    assert torch.equal(one.xy, two.xy)
    assert torch.equal(one.xt[:, :, 12:], two.xt[:, :, :4]) and torch.equal(one.yt[:, :, 12:], two.yt[:, :, :4])
    assert not torch.equal(one.xt[:, :, :4], two.xt[:, :, :4])
    values = one.pack().flatten()
    assert values.mean().abs() < 0.15 and abs(values.std() - 1) < 0.1
    rows = torch.cat([one.xt, one.yt], dim=-1).flatten(1, 1)[0].movedim(1, 0).flatten(1)  # [16, ...]: no two alike
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.6


def test_weights_come_back_from_a_folder(tmp_path: Path, model: Denoiser, seen: Glance) -> None:
    save_denoiser(model, tmp_path)
    loaded = load_denoiser(tmp_path)
    assert loaded.config == DENOISER and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name
    with pytest.raises(InputError, match="don't fit this model"):
        load_denoiser(tmp_path, DenoiserConfig())
    with pytest.raises(InputError, match="does not hold a denoiser"):
        load_denoiser("small/landmarks")


def test_the_small_denoiser_is_small_and_takes_the_small_planes() -> None:
    with torch.device("meta"):
        model = Denoiser()
        x_t = torch.empty(1, 8, packed_length(16, 32, 32))
        seen = torch.empty(1, 16, 16, 64, 64), torch.empty(1, 16, 4, 64, 64), torch.empty(1, 12, 64, 64)
        pred = model(x_t, torch.empty(1, dtype=torch.int64), seen, torch.empty(1))
    assert sum(p.numel() for p in model.parameters()) <= 12e6
    assert pred.shape == x_t.shape
