"""Diffusion: schedules, conversions, the loss and the samplers, on denoisers whose right answer is known.

For data N(MEAN, STD^2) the best denoiser is a formula (`gaussian`), and so is the path without noise that it defines:
x_t keeps its standardised value. Deterministic samplers have a pointwise answer, then, and stochastic ones a
distribution.
"""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from common import diffusion
from common.triplane import unpack
from common.unet import UNet, UNetConfig

# Too large for the repository: a copy at $DUET_REFERENCE is used.
REFERENCE = Path(os.environ.get("DUET_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
VECTORS = REFERENCE / "vectors"
needs_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="needs the reference vectors; $DUET_REFERENCE names their folder"
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers

MEAN, STD = 0.7, 0.4
KINDS = ["eps", "x_0", "v"]
SCHEDULES = {"cosine": diffusion.cosine_alpha_bar(), "sqrt_linear": diffusion.sqrt_linear_alpha_bar()}


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def gaussian(alpha_bar: Tensor, kind: str = "x_0", mean: float = MEAN, std: float = STD) -> diffusion.Denoiser:
    """E[x_0 | x_t] of independent normal elements, stated as the given kind of prediction."""

    def denoiser(x_t: Tensor, timesteps: Tensor) -> Tensor:
        a = diffusion.expand(alpha_bar[timesteps], x_t).double()
        x_0_pred = mean + a.sqrt() * std**2 * (x_t - a.sqrt() * mean) / (a * std**2 + 1 - a)
        return diffusion.convert(x_0_pred, x_t.double(), a, "x_0", kind).to(x_t.dtype)

    return denoiser


def gaussian_flow(x_T: Tensor, a: float) -> Tensor:
    """Where the deterministic path of that denoiser leads from x_T at alpha_bar a, as the steps become short."""
    return MEAN + STD * (x_T - a**0.5 * MEAN) / (a * STD**2 + 1 - a) ** 0.5


# ---- schedules


@pytest.mark.parametrize("name", SCHEDULES)
def test_alpha_bar_falls_from_about_1_to_about_0(name: str) -> None:
    alpha_bar = SCHEDULES[name]
    assert alpha_bar.dtype == torch.float32
    assert 0.998 < alpha_bar[0] < 1
    assert 0 <= alpha_bar[-1] < 2e-4
    assert (alpha_bar.diff() < 0).all()


def test_cosine_schedule_ends_in_pure_noise_and_follows_the_formula() -> None:
    alpha_bar = diffusion.cosine_alpha_bar(50)
    assert alpha_bar[-1] == 0
    u = torch.tensor([0.0, 20 / 50], dtype=torch.float64)
    f = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    torch.testing.assert_close(alpha_bar[19].double(), f[1] / f[0], rtol=0, atol=1e-7)


def test_published_betas() -> None:
    alpha_bar = diffusion.sqrt_linear_alpha_bar()
    assert float(alpha_bar[0]) == pytest.approx(1 - 0.0015, abs=1e-7)
    assert float(1 - alpha_bar[-1] / alpha_bar[-2]) == pytest.approx(0.0195, rel=1e-4)
    assert float(alpha_bar[-1]) == pytest.approx(1.423e-4, rel=1e-3)


def test_published_step_tables() -> None:
    assert diffusion.difftalk_timesteps(200) == list(range(996, 0, -5))
    assert len(diffusion.difftalk_timesteps(30)) == 31
    with pytest.raises(ValueError, match="no 300 of 1000 steps"):
        diffusion.difftalk_timesteps(300)  # 334 entries, the first of them 1000
    assert diffusion.pvdm_timesteps(100) == list(range(999, 0, -10))
    assert diffusion.pvdm_timesteps(1000) == list(range(999, -1, -1))
    assert diffusion.pvdm_timesteps(1) == [999]


@given(n_steps=st.integers(-2, 1200), n_timesteps=st.integers(1, 1100))
@settings(max_examples=50, deadline=None)
def test_step_tables_stay_inside_the_schedule_or_say_why_not(n_steps: int, n_timesteps: int) -> None:
    for table in (diffusion.pvdm_timesteps, diffusion.difftalk_timesteps):
        try:
            steps = table(n_steps, n_timesteps)
        except ValueError:
            assert table is diffusion.difftalk_timesteps or not 1 <= n_steps <= n_timesteps
            continue
        assert all(0 <= t < n_timesteps for t in steps)
        assert all(later < t for t, later in pairwise(steps))
        if table is diffusion.pvdm_timesteps:
            assert len(steps) == n_steps
            assert steps[0] == n_timesteps - 1


def test_config_refuses_eps_at_zero_terminal_snr() -> None:
    with pytest.raises(ValueError, match="zero terminal SNR"):
        diffusion.DiffusionConfig(schedule="cosine", prediction="eps")
    with pytest.raises(ValueError, match='got "noise"'):
        diffusion.DiffusionConfig(prediction="noise")
    assert diffusion.DiffusionConfig(schedule="sqrt_linear", prediction="eps", n_timesteps=8).alpha_bar().shape == (8,)


# ---- noising and parameterisations


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_sample_at_step_0_is_nearly_x_0_and_at_the_last_nearly_noise(name: str) -> None:
    alpha_bar = SCHEDULES[name]
    x_0, eps = torch.randn(2, 64, 3, 5, generator=seeds(0)[0]).unbind(0)
    n = len(alpha_bar)
    at_start = diffusion.q_sample(x_0, torch.zeros(64, dtype=torch.int64), eps, alpha_bar)
    at_end = diffusion.q_sample(x_0, torch.full((64,), n - 1), eps, alpha_bar)
    assert (at_start - x_0).std() < 0.04  # sqrt(1 - 0.9985)
    assert (at_end - eps).std() < 0.013  # sqrt(1.42e-4)
    if alpha_bar[-1] == 0:
        assert torch.equal(at_end, eps)


def test_q_sample_keeps_unit_variance_at_every_timestep() -> None:
    x_0, eps = torch.randn(2, 10, 20_000, generator=seeds(1)[0]).unbind(0)
    x_t = diffusion.q_sample(x_0, torch.arange(0, 1000, 100), eps, SCHEDULES["cosine"])
    torch.testing.assert_close(x_t.std(dim=1), torch.ones(10), rtol=0, atol=0.02)  # 4 standard errors


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize(
    ("source", "a"),
    # not eps at 0 and x_0 at 1: there x_t holds nothing of the other half
    [(kind, a) for kind in KINDS for a in (0.0, 1e-4, 0.3, 0.9985, 1.0) if (kind, a) not in (("eps", 0), ("x_0", 1))],
)
def test_conversions_give_back_the_pair_wherever_it_is_determined(source: str, to: str, a: float) -> None:
    x_0, eps = torch.randn(2, 100, generator=seeds(2)[0], dtype=torch.float64).unbind(0)
    x_t = a**0.5 * x_0 + (1 - a) ** 0.5 * eps
    pred = diffusion.target(x_0, eps, a, source)
    tolerance = 0 if a in (0, 1) else 1e-10  # float64 through a division by sqrt(a) >= 0.01
    converted = diffusion.convert(pred, x_t, a, source, to)
    torch.testing.assert_close(converted, diffusion.target(x_0, eps, a, to), rtol=0, atol=tolerance)


# ---- training


def test_drawn_timesteps_are_uniform_and_spread_over_the_batch() -> None:
    generator = seeds(3)[0]
    drawn = torch.stack([diffusion.draw(torch.zeros(4, 1), 8, generator)[0] for _ in range(800)])  # [800, 4]
    for column in drawn.unbind(1):
        counts = torch.bincount(column, minlength=8)
        assert ((counts - 100).abs() < 47).all()  # 5 standard deviations of a binomial
    assert ((drawn // 2).sort(dim=1).values == torch.arange(4)).all()  # one in each quarter


@pytest.mark.parametrize("kind", KINDS)
def test_loss_of_the_exact_denoiser_is_the_variance_it_cannot_know(kind: str) -> None:
    alpha_bar = SCHEDULES["sqrt_linear"] if kind == "eps" else SCHEDULES["cosine"]
    x_0 = MEAN + STD * torch.randn(1000, 50, generator=seeds(4)[0])
    measured = diffusion.loss(gaussian(alpha_bar, kind), x_0, alpha_bar, seeds(5)[0], kind)
    a = alpha_bar.double()
    var_x_0 = STD**2 * (1 - a) / (a * STD**2 + 1 - a)  # posterior variance of x_0 given x_t
    scale = {"x_0": torch.ones_like(a), "eps": a / (1 - a), "v": 1 / (1 - a)}[kind]
    assert float(measured) == pytest.approx(float((scale * var_x_0).mean()), rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights_are_one_loss_of_x_0_whatever_the_prediction(kind: str) -> None:
    a = torch.tensor([1e-3, 0.2, 0.5, 0.99], dtype=torch.float64)
    x_0, eps, off = torch.randn(3, 4, 6, generator=seeds(6)[0], dtype=torch.float64).unbind(0)
    x_t = a[:, None].sqrt() * x_0 + (1 - a[:, None]).sqrt() * eps
    pred = diffusion.convert(x_0 + off, x_t, a[:, None], "x_0", kind)
    expected = diffusion.target(x_0, eps, a[:, None], kind)
    weighted = diffusion.min_snr_weight(a, 5.0, kind)[:, None] * (pred - expected) ** 2
    snr = a / (1 - a)
    torch.testing.assert_close(weighted, snr.clamp(max=5)[:, None] * off**2)


def test_masked_elements_do_not_count_and_an_empty_mask_is_harmless() -> None:
    pred = torch.randn(2, 3, 4, generator=seeds(7)[0], requires_grad=True)
    expected = torch.zeros(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])[:, :, None]
    loss = diffusion.weighted_mse(pred, expected, mask=mask)
    kept = pred[mask.bool().expand_as(pred)]
    torch.testing.assert_close(loss, (kept**2).mean())
    empty = diffusion.weighted_mse(pred, expected, mask=torch.zeros(2, 3, 1))
    empty.backward()
    assert empty == 0
    assert pred.grad is not None and pred.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["x_0", "v"])
def test_gradients_are_finite_at_zero_terminal_snr(kind: str) -> None:
    alpha_bar = diffusion.cosine_alpha_bar(2)  # every second draw is the last timestep
    scale = torch.ones((), requires_grad=True)
    loss = diffusion.loss(lambda x_t, _: scale * x_t, torch.randn(8, 3), alpha_bar, seeds(8)[0], kind, 5.0)
    loss.backward()
    assert loss.isfinite()
    assert scale.grad is not None and scale.grad.isfinite()


# ---- sampling

Sampler = Callable[..., Tensor]


def quadratic_timesteps(n_steps: int) -> list[int]:
    """999 ... 0, dense near 0 (Song et al. 2021, app. D.2): the last jump, to alpha_bar 1, is short on any schedule."""
    return sorted({round((i / (n_steps - 1)) ** 2 * 999) for i in range(n_steps)}, reverse=True)


DETERMINISTIC: dict[str, tuple[Sampler, list[int], float]] = {
    # the largest error over |x_T| <= 3: measured, times two; first order at 1000 steps, second order at 49
    "ddim": (diffusion.ddim, diffusion.pvdm_timesteps(1000), 0.024),
    "dpm_solver": (diffusion.dpm_solver, quadratic_timesteps(50), 0.006),
    "unipc": (diffusion.unipc, quadratic_timesteps(50), 0.006),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_samplers_follow_the_exact_path_of_a_gaussian(name: str, schedule: str, kind: str) -> None:
    sampler, steps, tolerance = DETERMINISTIC[name]
    alpha_bar = SCHEDULES[schedule]
    x_T = torch.linspace(-3, 3, 40)[:, None]
    if kind == "eps" and alpha_bar[-1] == 0:
        with pytest.raises(ValueError, match="zero terminal SNR"):
            sampler(gaussian(alpha_bar), x_T, steps, alpha_bar, "eps")
        return
    sample = sampler(gaussian(alpha_bar, kind), x_T, steps, alpha_bar, kind)
    torch.testing.assert_close(sample, gaussian_flow(x_T, float(alpha_bar[-1])), rtol=0, atol=tolerance)


@pytest.mark.parametrize("sampler", [diffusion.dpm_solver, diffusion.unipc])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_second_order_is_far_nearer_than_ddim_at_the_same_steps(schedule: str, sampler: Sampler) -> None:
    alpha_bar, steps = SCHEDULES[schedule], quadratic_timesteps(15)
    x_T = torch.linspace(-3, 3, 40)[:, None]
    exact = gaussian_flow(x_T, float(alpha_bar[-1]))
    error = [
        (s(gaussian(alpha_bar), x_T, steps, alpha_bar, "x_0") - exact).abs().max() for s in (sampler, diffusion.ddim)
    ]
    assert error[0] < error[1] / 2.5  # measured 3.2 to 4.7


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_returns_the_mean_and_deviation_of_the_gaussian(schedule: str, eta: float) -> None:
    alpha_bar = SCHEDULES[schedule]
    noise = diffusion.noise_from(seeds(9))
    x_T = noise(torch.empty(1, 20_000))
    denoiser, steps = gaussian(alpha_bar), quadratic_timesteps(250)
    sample = diffusion.ddim(denoiser, x_T, steps, alpha_bar, "x_0", eta=eta, noise=noise)
    assert float(sample.mean()) == pytest.approx(MEAN, abs=0.012)  # 4 standard errors
    assert float(sample.std()) == pytest.approx(STD, abs=0.014)  # 4 standard errors, and 250 steps of first order


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_first_order_dpm_solver_is_ddim(schedule: str) -> None:
    alpha_bar = SCHEDULES[schedule]
    x_T = torch.randn(4, 7, generator=seeds(10)[0])
    steps = [999, 640, 300, 77, 3]
    ours = diffusion.ddim(gaussian(alpha_bar), x_T, steps, alpha_bar, "x_0", clamp_x_0=None)
    theirs = diffusion.dpm_solver(gaussian(alpha_bar), x_T, steps, alpha_bar, "x_0", order=1)
    # 2^-12 of x_T: the floor that diffusers needs under alpha_bar at zero terminal SNR
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5 if schedule == "sqrt_linear" else 5e-4)


@pytest.mark.parametrize("sampler", [diffusion.ddim, diffusion.dpm_solver, diffusion.unipc])
def test_one_step_from_pure_noise_is_the_prediction(sampler: Sampler) -> None:
    alpha_bar = SCHEDULES["cosine"]
    sample = sampler(gaussian(alpha_bar, "v"), torch.randn(3, 2, generator=seeds(11)[0]), [999], alpha_bar, "v")
    torch.testing.assert_close(sample, torch.full((3, 2), MEAN))


@pytest.mark.parametrize("sampler", [diffusion.ddim, diffusion.dpm_solver, diffusion.unipc])
def test_samplers_refuse_timesteps_outside_or_out_of_order(sampler: Sampler) -> None:
    alpha_bar = SCHEDULES["cosine"]
    for steps in ([], [1000], [5, -1], [3, 3], [1, 2]):
        with pytest.raises(ValueError, match="fall strictly"):
            sampler(gaussian(alpha_bar), torch.zeros(1, 1), steps, alpha_bar, "x_0")


def test_ddim_with_eta_asks_for_its_noise() -> None:
    with pytest.raises(ValueError, match="needs noise"):
        diffusion.ddim(gaussian(SCHEDULES["cosine"]), torch.zeros(1, 1), [9], SCHEDULES["cosine"], "x_0", eta=1.0)


def test_a_seed_gives_the_same_sample_in_any_batch() -> None:
    alpha_bar = SCHEDULES["cosine"]

    def sample(*numbers: int) -> Tensor:
        noise = diffusion.noise_from(seeds(*numbers))
        x_T = noise(torch.empty(len(numbers), 3, 4))
        steps = diffusion.pvdm_timesteps(6)
        return diffusion.ddim(gaussian(alpha_bar, "v"), x_T, steps, alpha_bar, "v", eta=1.0, noise=noise)

    together = sample(5, 6, 7)
    for i, seed in enumerate((5, 6, 7)):
        assert torch.equal(sample(seed)[0], together[i])
    with pytest.raises(ValueError, match="1 generators for a batch of 2"):
        diffusion.noise_from(seeds(0))(torch.empty(2, 3))


def test_guidance_scale_1_is_the_conditional_model_and_0_the_unconditional_one() -> None:
    alpha_bar = SCHEDULES["cosine"]
    cond, uncond = gaussian(alpha_bar, "v"), gaussian(alpha_bar, "v", mean=-0.5)
    x_t, t = torch.randn(2, 5, generator=seeds(12)[0]), torch.tensor([400, 900])
    assert torch.equal(diffusion.guided(cond, uncond, 1.0)(x_t, t), cond(x_t, t))
    assert torch.equal(diffusion.guided(cond, uncond, 0.0)(x_t, t), uncond(x_t, t))
    w = 1.5  # PVDM writes (1 + w) e(c) - w e(0)
    expected = (1 + w) * cond(x_t, t) - w * uncond(x_t, t)
    torch.testing.assert_close(diffusion.guided(cond, uncond, 1 + w)(x_t, t), expected)


def test_guidance_does_not_depend_on_the_kind_of_prediction() -> None:
    alpha_bar, steps = SCHEDULES["sqrt_linear"], diffusion.pvdm_timesteps(10)
    x_T = torch.randn(2, 5, generator=seeds(13)[0])
    samples = []
    for kind in KINDS:
        denoiser = diffusion.guided(gaussian(alpha_bar, kind), gaussian(alpha_bar, kind, mean=-0.5), 3.0)
        samples.append(diffusion.ddim(denoiser, x_T, steps, alpha_bar, kind))
    torch.testing.assert_close(samples[0], samples[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(samples[2], samples[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", [diffusion.ddim, diffusion.dpm_solver, diffusion.unipc])
def test_clamped_samples_stay_in_range(sampler: Sampler) -> None:
    alpha_bar = SCHEDULES["cosine"]
    x_T = 2 * torch.randn(4, 50, generator=seeds(14)[0])
    sample = sampler(gaussian(alpha_bar, "v"), x_T, diffusion.pvdm_timesteps(8), alpha_bar, "v", clamp_x_0=0.8)
    assert sample.abs().max() <= 0.8 + 1e-6


def test_ending_at_difftalks_alpha_bar_leaves_its_noise_in() -> None:
    alpha_bar = diffusion.sqrt_linear_alpha_bar()
    x_T = torch.randn(1, 20_000, generator=seeds(15)[0])
    steps = diffusion.difftalk_timesteps(20)
    certain = gaussian(alpha_bar, std=1e-4)  # data without spread: what is left is noise
    sample = diffusion.ddim(certain, x_T, steps, alpha_bar, "x_0", last_alpha_bar=float(alpha_bar[0]))
    assert float(sample.std()) == pytest.approx(0.0387, rel=0.02)


def test_known_part_is_the_known_sample_noised_to_the_timestep_of_the_call() -> None:
    alpha_bar = SCHEDULES["cosine"]
    x_0 = torch.full((2, 1, 4, 4), -1.0)
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., 2:] = 1
    eps = torch.randn(2, 1, 4, 4, generator=seeds(16)[0])
    seen: list[Tensor] = []

    def denoiser(x_t: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(x_t)
        return gaussian(alpha_bar)(x_t, timesteps)

    hook = diffusion.keep_known(x_0, mask, alpha_bar, lambda like: eps)
    diffusion.ddim(denoiser, torch.zeros(2, 1, 4, 4), [900, 500, 100], alpha_bar, "x_0", before_call=hook)
    for t, x_t in zip([900, 500, 100], seen, strict=True):
        expected = diffusion.q_sample(x_0, torch.full((2,), t), eps, alpha_bar)
        assert torch.equal(x_t[..., 2:], expected[..., 2:])
    assert torch.equal(seen[0][..., :2], torch.zeros(2, 1, 4, 2))


# ---- published samplers


def load_unet(name: str, **more: object) -> UNet:
    """The small network of a vector file, with the weights that made the vectors."""
    path = VECTORS / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        published = json.loads(file.metadata()["config"])
    fields = {key: value for key, value in published.items() if key in UNetConfig.__dataclass_fields__}
    unet = UNet(UNetConfig(**{**fields, **more}))
    weights = {k.removeprefix("weight."): v.float() for k, v in load_file(path).items() if k.startswith("weight.")}
    unet.load_state_dict(weights, strict=True)
    return unet.eval()


@needs_vectors
@torch.inference_mode()
def test_ddim_equals_difftalks() -> None:
    vectors = load_file(VECTORS / "difftalk_ddim.safetensors")
    alpha_bar, steps = diffusion.sqrt_linear_alpha_bar(), diffusion.difftalk_timesteps(8)
    assert torch.equal(alpha_bar, vectors["sched.alphas_cumprod_f64"].float())
    assert steps == vectors["sched.ddim_timesteps"].flip(0).tolist()
    assert diffusion.difftalk_timesteps(200) == vectors["sched.ddim200_timesteps"].flip(0).tolist()
    assert diffusion.difftalk_timesteps(30) == vectors["sched.ddim30_timesteps"].flip(0).tolist()

    unet = load_unet("difftalk_unet")
    context = torch.cat([vectors["in.audio"], vectors["in.landmarks"]], dim=1)[:, None]  # [B, 1, 48]
    fixed = torch.cat([vectors["in.mask_latent"], vectors["in.reference_latent"]], dim=1)

    def denoiser(x_t: Tensor, timesteps: Tensor) -> Tensor:
        return unet(torch.cat([x_t, fixed], dim=1), timesteps, context)

    last = float(alpha_bar[0])
    x_T = vectors["in.x_T"]
    sample = diffusion.ddim(denoiser, x_T, steps, alpha_bar, "eps", last_alpha_bar=last)
    torch.testing.assert_close(sample, vectors["out.sample"], rtol=0, atol=1e-5 * float(vectors["out.sample"].std()))

    noises = iter(vectors["in.q_sample_noise"])
    hook = diffusion.keep_known(vectors["in.x0"], vectors["in.mask"].float(), alpha_bar, lambda _: next(noises))
    sample = diffusion.ddim(denoiser, x_T, steps, alpha_bar, "eps", last_alpha_bar=last, before_call=hook)
    expected = vectors["out.sample_inpaint"]
    torch.testing.assert_close(sample, expected, rtol=0, atol=1e-5 * float(expected.std()))


@needs_vectors
@torch.inference_mode()
def test_ddim_equals_pvdms() -> None:
    vectors = load_file(VECTORS / "pvdm_ddim.safetensors")
    alpha_bar, steps = diffusion.sqrt_linear_alpha_bar(), diffusion.pvdm_timesteps(7)
    torch.testing.assert_close(alpha_bar, vectors["sched.alphas_cumprod"], rtol=1e-6, atol=0)
    assert steps == [t for t in vectors["sched.times"].tolist() if t >= 0]

    unet = load_unet("pvdm_unet", in_channels=8, plane_attention_resolutions=(2, 1))

    def denoiser(x_t: Tensor, timesteps: Tensor) -> Tensor:
        x = torch.cat([x_t, vectors["in.cond"]], dim=1)  # packed alike: xy, then PVDM's yt (our xt), then its xt
        return unet(unpack(x, n_frames=4, height=8, width=8), timesteps).pack()

    noises = iter(vectors["in.noises"])
    sample = diffusion.ddim(
        denoiser, next(noises), steps, alpha_bar, "eps", eta=1.0, noise=lambda _: next(noises), clamp_x_0=1.0
    )
    torch.testing.assert_close(sample, vectors["out.sample"], rtol=0, atol=1e-4)
