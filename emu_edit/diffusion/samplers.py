"""From noise to a clean latent in a few network calls: DDIM, Euler ancestral, DPM-Solver++(2M).

All three move from (alpha, sigma) to (alpha', sigma') with the estimates z_0_hat and eps_hat; the
last step goes to alpha' = 1, sigma' = 0 and returns z_0_hat. The papers' half-log-SNR lambda =
log(alpha / sigma) and the variance-exploding sigma_VE = sigma / alpha are infinite at a zero
terminal SNR, but only
    r = exp(-(lambda' - lambda)) = sigma_VE' / sigma_VE = (alpha sigma') / (sigma alpha')
enters the steps, and r = 0 there. A sampler knows neither conditions nor guidance: they are inside
`predict`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.diffusion.prediction import Predict, Prediction, check, estimates
from emu_edit.diffusion.schedule import Coefficients, Level, Schedule, Time, tokens_of
from emu_edit.errors import InputError

Generators = torch.Generator | Sequence[torch.Generator] | None
"""A CPU generator for the batch, or one per row (rows then ignore each other), or torch's own."""

StepEnd = Callable[[int, Time, Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"] | None]
OnStep = Callable[[int, int], None]  # called with (steps done, steps in all)
"""Called after step i = 0, 1, … with i, its time t (a whole number where the schedule is a table)
and the latent it led to, z'; what it returns, if not None, takes the place of z'."""


class Sampler(Enum):
    """ddim: first order; euler_ancestral: fresh noise each step; dpm_solver_pp_2m: second order."""

    ddim = "ddim"
    euler_ancestral = "euler_ancestral"
    dpm_solver_pp_2m = "dpm_solver_pp_2m"


@dataclass(frozen=True)
class Estimate:
    """What the network says at one level: where the latent comes from, and the noise in it."""

    level: Level
    z_t: Float[Tensor, "b c h w"]
    z_0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]


def sample(
    predict: Predict,
    noise: Float[Tensor, "b c h w"],
    *,
    schedule: Schedule,
    prediction: Prediction,
    num_steps: int = 20,
    sampler: Sampler = Sampler.ddim,
    generator: Generators = None,
    on_step: StepEnd | None = None,
    tokens: int | None = None,
    times: Sequence[Time] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Return the clean latent that `noise` leads to, with one call of `predict` per step.

    Works in the dtype of `noise` (give float32) with float64 coefficients. Gradients are recorded
    unless the caller switches them off.

    Args:
        predict: the network with conditions and guidance bound; for `change` already through
        `with_source`.
        noise: standard normal, on the device of the network.
        schedule: the one the network was trained with.
        prediction: what the network outputs.
        num_steps: 1 to the number of training steps, spaced as the schedule says.
        sampler: which solver.
        generator: draws the noise of euler_ancestral on the CPU; the others are deterministic.
        on_step: called after each step; may replace the latent, in the dtype of `noise`.
        tokens: latent cells that the network sees at once; None means those of `noise`.
        times: visit these, noisiest first, in place of `num_steps` as the schedule spaces them.

    Raises:
        InputError: for a prediction that the schedule does not go with, or a number of steps out of
            range.
    """
    check(prediction, schedule)
    steps = schedule.times(num_steps, tokens_of(noise) if tokens is None else tokens)
    steps = steps if times is None else list(times)
    levels = [*(schedule.level(t) for t in steps), Level(1.0, 0.0)]
    z_t = first_latent(noise, levels[0], sampler)
    previous = None
    for i, t in enumerate(steps):
        now = _estimate(predict, z_t, t, levels[i], prediction)
        match sampler:
            case Sampler.ddim:
                z_t = ddim_step(now, levels[i + 1])
            case Sampler.euler_ancestral:
                z_t = euler_ancestral_step(now, levels[i + 1], generator)
            case Sampler.dpm_solver_pp_2m:
                z_t = dpm_solver_pp_2m_step(now, levels[i + 1], previous)
        previous = now
        if on_step is not None and (replaced := on_step(i, t, z_t)) is not None:
            z_t = replaced
    return z_t


def noise_of(
    predict: Predict,
    z_0: Float[Tensor, "b c h w"],
    *,
    schedule: Schedule,
    prediction: Prediction,
    times: Sequence[Time],
    refine: int = 3,
) -> Float[Tensor, "b c h w"]:
    """Return the latent at the first of some times that DDIM leads from to a clean latent.

        z' = alpha' (z - sigma eps_hat(z', t')) / alpha + sigma' eps_hat(z', t')

    from less noise to more, each step solved by iteration, which begins with the noise of the step
    before. From there `sample` with these times gives z_0 again, as far as the iterations went.
    Source: DDIM inversion, Song et al. 2021, arXiv:2010.02502, section 4.3; solved as in Pan et al.
    2023, arXiv:2309.04907, section 3.

    Args:
        predict: the network with conditions and guidance bound.
        z_0: the clean latent.
        schedule: the one the network was trained with.
        prediction: what the network outputs.
        times: noisiest first, none of noise alone, in which nothing is left of z_0.
        refine: iterations of a step, at least 1.

    Raises:
        InputError: if the first time is of noise alone.
    """
    if schedule.level(times[0]).alpha == 0:
        raise InputError("nothing of a picture is left in noise alone; invert to an earlier time")
    now, z = Level(1.0, 0.0), z_0
    eps = _estimate(predict, z_0, times[-1], schedule.level(times[-1]), prediction).eps
    for t in reversed(times):
        to = schedule.level(t)
        for _ in range(refine):
            z_to = to.alpha / now.alpha * (z - now.sigma * eps) + to.sigma * eps
            eps = _estimate(predict, z_to, t, to, prediction).eps
        now, z = to, to.alpha / now.alpha * (z - now.sigma * eps) + to.sigma * eps
    return z


def first_latent(
    noise: Float[Tensor, "b c h w"], level: Level, sampler: Sampler
) -> Float[Tensor, "b c h w"]:
    """Return z_T as each sampler's source begins: the same wherever the terminal SNR is zero.

    z_T = xi, of which Stable Diffusion's own schedule (sigma_T = 0.9977) has seen latents of unit
    variance; euler_ancestral, x_T = sigma_VE xi, begins at z_T = alpha_T x_T = sigma_T xi.

    Source: `init_noise_sigma` of diffusers' DDIM, DPMSolverMultistep and EulerAncestralDiscrete
    schedulers, the last with trailing spacing.
    """
    return level.sigma * noise if sampler is Sampler.euler_ancestral else noise


def ddim_step(now: Estimate, to: Level) -> Float[Tensor, "b c h w"]:
    """Keep the estimated noise and lower its level (eta = 0).

    z' = alpha' z_0_hat + sigma' eps_hat

    On the linear path that is Euler's step of dz = v dsigma, z' = z_t + (sigma' - sigma) v.
    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 with sigma_t = 0.
    """
    return to.alpha * now.z_0 + to.sigma * now.eps


def euler_ancestral_step(
    now: Estimate, to: Level, generator: Generators
) -> Float[Tensor, "b c h w"]:
    """Step below the wanted noise level and fill up with fresh noise xi.

    z' = alpha' z_0_hat + sigma' (r eps_hat + sqrt(1 - r²) xi)

    In variance-exploding form, x = z / alpha, this is an Euler step to sigma_down plus sigma_up xi
    where sigma_down = sigma_VE'² / sigma_VE and sigma_up² = sigma_VE'² - sigma_down². Multiplying
    by alpha' gives the line above, which is also DDIM with eta = 1. From pure noise r = 0: in the
    limit of an infinite sigma_VE all noise is fresh.

    Source: k-diffusion's sample_euler_ancestral (Karras et al. 2022, arXiv:2206.00364, notation),
    converted to VP.
    """
    if to.sigma == 0:
        return now.z_0
    r = _ratio(now.level, to)
    xi = _draw(now.z_t, generator)
    return to.alpha * now.z_0 + to.sigma * (r * now.eps + math.sqrt(1 - r**2) * xi)


def dpm_solver_pp_2m_step(
    now: Estimate, to: Level, previous: Estimate | None
) -> Float[Tensor, "b c h w"]:
    """Extrapolate z_0_hat from two estimates, then take an exponential-integrator step.

    z' = (sigma' / sigma) z_t + alpha' (1 - r) D
    D = z_0_hat + h / (2 h_previous) (z_0_hat - z_0_hat_previous)

    with h = lambda' - lambda. First order (D = z_0_hat) at the first step, after a step from pure
    noise (h_previous is infinite) and at the last step (h is infinite).

    Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2 (multistep, midpoint).
    """
    d = now.z_0
    if previous is not None and previous.level.alpha > 0 and to.sigma > 0:
        h = to.log_snr - now.level.log_snr
        h_previous = now.level.log_snr - previous.level.log_snr
        d = d + h / (2 * h_previous) * (now.z_0 - previous.z_0)
    return to.sigma / now.level.sigma * now.z_t + to.alpha * (1 - _ratio(now.level, to)) * d


def _estimate(
    predict: Predict, z_t: Tensor, t: Time, level: Level, prediction: Prediction
) -> Estimate:
    """Ask the network at time t and read its output as z_0 and eps."""
    kind = torch.int64 if isinstance(t, int) else torch.float32
    steps = torch.full((len(z_t),), t, dtype=kind, device=z_t.device)
    # a bf16 output must not pull the solver down to bf16
    output = predict(z_t, steps).to(z_t.dtype)
    shape = (len(z_t), 1, 1, 1)
    coefficients = Coefficients(z_t.new_full(shape, level.alpha), z_t.new_full(shape, level.sigma))
    z_0, eps = estimates(output, z_t, coefficients, prediction)
    return Estimate(level, z_t, z_0=z_0, eps=eps)


def _ratio(now: Level, to: Level) -> float:
    """Return r = (alpha sigma') / (sigma alpha'), 0 from pure noise."""
    return (now.alpha * to.sigma) / (now.sigma * to.alpha)


def _draw(like: Tensor, generator: Generators) -> Tensor:
    """Draw standard normal noise like a tensor."""
    # on the CPU: CUDA streams differ between GPU models, seeds must not
    if isinstance(generator, Sequence):
        if len(generator) != len(like):
            raise ValueError(
                f"got {len(generator)} generators for a batch of {len(like)}; give one per row"
            )
        xi = torch.stack([torch.randn(like.shape[1:], generator=each) for each in generator])
    else:
        xi = torch.randn(like.shape, generator=generator)
    return xi.to(like)


def progress(on_step: OnStep | None, num_steps: int) -> StepEnd | None:
    """Let `on_step` count the sampler's steps; it leaves the latents alone."""
    if on_step is None:
        return None

    def count(i: int, _t: Time, _z_t: Tensor) -> None:
        on_step(i + 1, num_steps)

    return count
