"""Gaussian diffusion for every denoiser: schedules, parameterisations, the training loss, guidance and samplers.

A *denoiser* is any callable (x_t [B, ...] float32, timesteps [B] int64) -> prediction like x_t; what it sees besides
(audio, reference, planes) is bound by the caller. `prediction` names what it returns: "eps", "x_0", or "v" (Salimans &
Ho 2022). Samplers are plain functions over explicit timesteps, largest first; they are handed their noise and draw
nothing from the global generator. Papers: Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Lu et al. 2022
(DPM-Solver++), Zhao et al. 2023 (UniPC).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]  # x_t [B, ...], timesteps [B] -> prediction [B, ...]
Noise = Callable[[Tensor], Tensor]  # like torch.randn_like


@dataclass
class DiffusionConfig:
    """What a denoiser was trained with; sampling must use the same."""

    schedule: str = (
        "cosine"  # "cosine" (zero terminal SNR) or "sqrt_linear" (latent diffusion's, DiffTalk's and PVDM's)
    )
    n_timesteps: int = 1000
    prediction: str = "v"  # "eps", "x_0" or "v"; eps can't be used with zero terminal SNR
    min_snr_gamma: float = 0.0  # Hang et al. 2023 use 5; 0 leaves the loss unweighted

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "sqrt_linear"):
            raise ValueError(f'schedule must be "cosine" or "sqrt_linear", got "{self.schedule}"')
        if self.prediction not in ("eps", "x_0", "v"):
            raise ValueError(f'prediction must be "eps", "x_0" or "v", got "{self.prediction}"')
        check_informative(self.prediction, 0.0 if self.schedule == "cosine" else 1.0)

    def alpha_bar(self) -> Tensor:
        """[n_timesteps] float32."""
        make = cosine_alpha_bar if self.schedule == "cosine" else sqrt_linear_alpha_bar
        return make(self.n_timesteps)


# ---- schedules


def sqrt_linear_alpha_bar(n_timesteps: int = 1000, beta_first: float = 0.0015, beta_last: float = 0.0195) -> Tensor:
    """The schedule of latent diffusion, DiffTalk and PVDM: betas linear in their square root.

    Their code calls it "linear". Returns alpha_bar [n_timesteps] float32, for the defaults 0.9985 ... 1.4e-4.
    """
    betas = torch.linspace(beta_first**0.5, beta_last**0.5, n_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


def cosine_alpha_bar(n_timesteps: int = 1000, offset: float = 0.008) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17, without their cap on beta: the last step is pure noise (Lin et al. 2024).

    Returns alpha_bar [n_timesteps] float32, from just below 1 to exactly 0.
    """
    u = torch.arange(n_timesteps + 1, dtype=torch.float64) / n_timesteps
    f = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    f[-1] = 0  # the cosine of pi / 2 leaves 1e-33
    return (f[1:] / f[0]).float()


def pvdm_timesteps(n_steps: int, n_timesteps: int = 1000) -> list[int]:
    """PVDM's table, evenly spaced from the last timestep down; after its smallest one alpha_bar is 1.

    Ours as well: it always holds the last timestep, which zero terminal SNR asks for.
    """
    if not 1 <= n_steps <= n_timesteps:
        raise ValueError(f"n_steps must lie in 1..{n_timesteps}, got {n_steps}")
    times = torch.linspace(-1, n_timesteps - 1, n_steps + 1, dtype=torch.float32).int().tolist()
    return times[:0:-1]


def difftalk_timesteps(n_steps: int, n_timesteps: int = 1000) -> list[int]:
    """DiffTalk's (latent diffusion's) table: 1, 1 + c, 1 + 2c, ... with c = n_timesteps // n_steps, largest first.

    Where n_steps doesn't divide n_timesteps it has more than n_steps entries (30 gives 31). Some (300, all above 500)
    would run past the last timestep, where the published code fails: ValueError.
    """
    stride = n_timesteps // n_steps if n_steps > 0 else 0
    times = [t + 1 for t in range(0, n_timesteps, stride)] if stride else []
    if not times or times[-1] >= n_timesteps:
        raise ValueError(f"DiffTalk's table has no {n_steps} of {n_timesteps} steps; a divisor such as 50 or 200 works")
    return times[::-1]


# ---- noising and parameterisations


def expand(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] with as many axes as `like`, on its device."""
    return values.to(like.device).view(-1, *[1] * (like.ndim - 1))


def q_sample(x_0: Tensor, timesteps: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noise clean samples to the given timesteps (Ho et al. 2020, eq. 4).

    x_0, eps: [B, ...], unit variance; timesteps: [B] int64 in 0..N-1; alpha_bar: [N] float32. Returns x_t like x_0.
    """
    a = expand(alpha_bar[timesteps.to(alpha_bar.device)], x_0)  # [B, 1, ...]
    return a.sqrt() * x_0 + (1 - a).sqrt() * eps


def target(x_0: Tensor, eps: Tensor, a: Tensor | float, prediction: str) -> Tensor:
    """What a denoiser with this parameterisation should return; a: alpha_bar, a number or [B, 1, ...]."""
    if prediction == "eps":
        return eps
    if prediction == "x_0":
        return x_0
    return a**0.5 * eps - (1 - a) ** 0.5 * x_0


def x_0_and_eps(pred: Tensor, x_t: Tensor, a: Tensor | float, prediction: str) -> tuple[Tensor, Tensor]:
    """The clean sample and the noise that a prediction stands for, so that sqrt(a) x_0 + sqrt(1 - a) eps = x_t.

    a: alpha_bar, a number or [B, 1, ...]. From v both are exact at a = 0 and a = 1. From eps, x_0 needs a > 0 (at 0,
    x_t holds nothing of it: `check_informative`); from x_0, eps needs a < 1, which every schedule here gives.
    """
    if prediction == "eps":
        return (x_t - (1 - a) ** 0.5 * pred) / a**0.5, pred
    if prediction == "x_0":
        return pred, (x_t - a**0.5 * pred) / (1 - a) ** 0.5
    return a**0.5 * x_t - (1 - a) ** 0.5 * pred, (1 - a) ** 0.5 * x_t + a**0.5 * pred


def convert(pred: Tensor, x_t: Tensor, a: Tensor | float, source: str, to: str) -> Tensor:
    """A prediction of one kind as another kind; the limits of `x_0_and_eps` hold."""
    return pred if source == to else target(*x_0_and_eps(pred, x_t, a, source), a, to)


def check_informative(prediction: str, smallest_alpha_bar: float) -> None:
    """ValueError for eps-prediction where alpha_bar reaches 0: there the noise says nothing about x_0."""
    if prediction == "eps" and smallest_alpha_bar == 0:
        raise ValueError('eps-prediction is undefined at alpha_bar = 0; use "v" or "x_0" with zero terminal SNR')


# ---- training


def draw(x_0: Tensor, n_timesteps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Timesteps [B] int64, each uniform over 0..n_timesteps-1, and eps like x_0 (float32), from the generator.

    The timesteps of one batch are spread evenly (one uniform draw, shifted by i / B: Kingma et al. 2021, app. I.1),
    which lowers the variance of the loss at small batches and leaves its mean as it is.
    """
    n = len(x_0)
    u = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    u = (u + torch.arange(n, device=generator.device) / n) % 1
    timesteps = (u * n_timesteps).long().clamp(max=n_timesteps - 1)
    eps = torch.randn(x_0.shape, generator=generator, device=generator.device)
    return timesteps.to(x_0.device), eps.to(x_0.device)


def min_snr_weight(a: Tensor, gamma: float, prediction: str) -> Tensor:
    """Min-SNR-gamma (Hang et al. 2023): min(snr, gamma) on the loss of x_0, carried over to the kind of the prediction.

    a: alpha_bar at the drawn timesteps, any shape, below 1. At a = 0 the weight of x_0 and v is 0: with zero terminal
    SNR the timestep where sampling starts is then hardly trained, and the unweighted loss of v is the better choice.
    """
    snr = a / (1 - a)
    capped = snr.clamp(max=gamma)
    if prediction == "x_0":
        return capped
    return capped / snr if prediction == "eps" else capped / (snr + 1)


def weighted_mse(pred: Tensor, expected: Tensor, weight: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Mean squared error in float32, over all elements or, weighted by it, over those where mask is above 0.

    pred, expected: [B, ...]; weight: [B], one factor per sample; mask: 0 or more, broadcast against pred. Returns a
    scalar, 0 for an empty mask.
    """
    error = (pred.float() - expected.float()) ** 2
    if weight is not None:
        error = error * expand(weight, error)
    if mask is None:
        return error.mean()
    mask = mask.to(error.dtype).expand_as(error)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def loss(
    denoiser: Denoiser,
    x_0: Tensor,
    alpha_bar: Tensor,
    generator: torch.Generator,
    prediction: str = "eps",
    min_snr_gamma: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """One draw of the denoising loss (Ho et al. 2020, eq. 14), in the space of the prediction.

    x_0: [B, ...] of about unit variance; mask: broadcast against x_0, 1 where an element counts. Returns a scalar. A
    stage that adds terms of its own (on x_0, say) composes the same parts: draw, q_sample, x_0_and_eps, weighted_mse.
    """
    timesteps, eps = draw(x_0, len(alpha_bar), generator)
    a = alpha_bar.to(x_0.device)[timesteps]
    pred = denoiser(q_sample(x_0, timesteps, eps, alpha_bar), timesteps)
    weight = min_snr_weight(a, min_snr_gamma, prediction) if min_snr_gamma else None
    return weighted_mse(pred, target(x_0, eps, expand(a, x_0), prediction), weight, mask)


# ---- sampling


def noise_from(generators: Sequence[torch.Generator]) -> Noise:
    """randn_like with one generator per sample: sample i depends on its own seed only, whatever the batch size."""

    def noise(like: Tensor) -> Tensor:
        if len(like) != len(generators):
            raise ValueError(f"{len(generators)} generators for a batch of {len(like)}")
        each = [torch.randn(like.shape[1:], generator=g, device=g.device, dtype=like.dtype) for g in generators]
        return torch.stack([sample.to(like.device) for sample in each])

    return noise


def guided(cond: Denoiser, uncond: Denoiser, guidance_scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): uncond + guidance_scale (cond - uncond).

    Scale 1 is the conditional model itself and 0 the unconditional one, in one call a step; PVDM's w is guidance_scale
    - 1. At a given x_t the kinds of prediction are affine in each other, so the result doesn't depend on the kind.
    """
    if guidance_scale in (0, 1):
        return cond if guidance_scale == 1 else uncond

    def denoiser(x_t: Tensor, timesteps: Tensor) -> Tensor:
        without = uncond(x_t, timesteps)
        return without + guidance_scale * (cond(x_t, timesteps) - without)

    return denoiser


def keep_known(x_0: Tensor, mask: Tensor, alpha_bar: Tensor, noise: Noise) -> Callable[[Tensor, Tensor], Tensor]:
    """For `before_call` of ddim: where mask is 1, x_t becomes x_0 noised to the same timestep, with fresh noise.

    x_0: [B, ...], mask: broadcast against it, 0..1. As DiffTalk in-paints: nothing is blended after the last call, so
    the kept part of the result is the network's own; blend once more where it must be exact.
    """

    def blend(x_t: Tensor, timesteps: Tensor) -> Tensor:
        known = q_sample(x_0, timesteps, noise(x_t), alpha_bar)
        return known * mask + x_t * (1 - mask)

    return blend


def check_timesteps(timesteps: Sequence[int], alpha_bar: Tensor, prediction: str) -> list[float]:
    """alpha_bar at the timesteps as numbers; ValueError unless they fall strictly, inside the schedule."""
    steps = list(timesteps)
    falling = all(later < t for t, later in pairwise(steps))
    if not steps or not falling or steps[-1] < 0 or steps[0] >= len(alpha_bar):
        raise ValueError(f"timesteps must fall strictly within {len(alpha_bar) - 1}..0, got {steps}")
    a = alpha_bar.double().cpu()[steps].tolist()
    check_informative(prediction, a[0])
    return a


def ddim(
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[int],
    alpha_bar: Tensor,
    prediction: str = "eps",
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    clamp_x_0: float | None = None,
    last_alpha_bar: float = 1.0,
    before_call: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16) over explicit timesteps, largest first. Returns samples like x_T.

    x_T: [B, ...] standard normal, float32; alpha_bar: [N]. eta: 0 deterministic, 1 as noisy as ancestral sampling (over
    all N timesteps it is DDPM); with eta > 0, `noise` gives the noise after every call whose step ends below 1.
    clamp_x_0: bound of |x_0| (PVDM: 1); the direction keeps the eps of the prediction before the clamp, as there.
    last_alpha_bar: where the last step ends: 1, or DiffTalk's float(alpha_bar[0]), which leaves noise of 0.04 in.
    before_call: (x_t, timesteps [B]) -> x_t ahead of each call: see keep_known.
    """
    if eta > 0 and noise is None:
        raise ValueError("ddim with eta > 0 needs noise; pass noise_from(generators)")
    a_each = check_timesteps(timesteps, alpha_bar, prediction)
    x_t = x_T
    for t, a, a_next in zip(timesteps, a_each, [*a_each[1:], last_alpha_bar], strict=True):
        batch_t = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
        if before_call is not None:
            x_t = before_call(x_t, batch_t)
        x_0_pred, eps_pred = x_0_and_eps(denoiser(x_t, batch_t).to(x_t.dtype), x_t, a, prediction)
        if clamp_x_0 is not None:
            x_0_pred = x_0_pred.clamp(-clamp_x_0, clamp_x_0)
        # max(0, ...): a rounding error below zero, and DiffTalk's alpha_bar[0] after a table that already ends at 0
        sigma = eta * math.sqrt(max(0.0, (1 - a_next) / (1 - a) * (1 - a / a_next)))
        x_t = a_next**0.5 * x_0_pred + math.sqrt(max(0.0, 1 - a_next - sigma**2)) * eps_pred
        if sigma > 0:
            x_t = x_t + sigma * cast(Noise, noise)(x_t)
    return x_t


def dpm_solver(
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[int],
    alpha_bar: Tensor,
    prediction: str = "eps",
    *,
    order: int = 2,
    clamp_x_0: float | None = None,
) -> Tensor:
    """DPM-Solver++ (multistep, order 1 to 3), deterministic; arguments as for ddim. Order 1 is ddim with eta 0."""
    from diffusers import DPMSolverMultistepScheduler

    options: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": order}
    return _multistep(DPMSolverMultistepScheduler, options, denoiser, x_T, timesteps, alpha_bar, prediction, clamp_x_0)


def unipc(
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[int],
    alpha_bar: Tensor,
    prediction: str = "eps",
    *,
    order: int = 2,
    clamp_x_0: float | None = None,
) -> Tensor:
    """UniPC (predictor and corrector of the given order, B2), deterministic; arguments as for ddim."""
    from diffusers import UniPCMultistepScheduler

    options: dict[str, Any] = {"solver_order": order}
    return _multistep(UniPCMultistepScheduler, options, denoiser, x_T, timesteps, alpha_bar, prediction, clamp_x_0)


def _multistep(
    scheduler_class: Any,  # diffusers ships no types
    options: dict[str, Any],
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[int],
    alpha_bar: Tensor,
    prediction: str,
    clamp_x_0: float | None,
) -> Tensor:
    """Run a diffusers solver on exactly these timesteps.

    Not every scheduler there takes explicit timesteps, so it is told of a schedule that consists of ours alone. It sees
    x_0 only: the conversion is ours, exact at zero terminal SNR, where the log-SNR has to be floored (at 2^-24, as
    diffusers does itself).
    """
    check_timesteps(timesteps, alpha_bar, prediction)
    steps = list(timesteps)
    a = alpha_bar.double().cpu()[steps[::-1]].clamp(min=2**-24)
    betas = 1 - a / torch.cat([a.new_ones(1), a[:-1]])
    scheduler = scheduler_class(
        num_train_timesteps=len(steps),
        trained_betas=betas.tolist(),
        prediction_type="sample",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        **options,
    )
    scheduler.set_timesteps(len(steps))
    x_t = x_T
    for index, t in zip(scheduler.timesteps, steps, strict=True):
        batch_t = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
        pred = denoiser(x_t, batch_t).to(x_t.dtype)
        x_0_pred, _ = x_0_and_eps(pred, x_t, float(alpha_bar[t]), prediction)
        if clamp_x_0 is not None:
            x_0_pred = x_0_pred.clamp(-clamp_x_0, clamp_x_0)
        x_t = scheduler.step(x_0_pred, index, x_t, return_dict=False)[0]
    return x_t
