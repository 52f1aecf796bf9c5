"""Our samplers against diffusers' schedulers, step for step, with the same network and noise."""

from typing import Literal

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.samplers import Sampler, sample
from emu_edit.diffusion.schedule import NoiseSchedule

BETAS = {
    "beta_start": 8.5e-4,
    "beta_end": 1.2e-2,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
}
PLAIN = NoiseSchedule.scaled_linear(zero_terminal_snr=False)
ZERO = NoiseSchedule.scaled_linear()
NAMES: dict[Prediction, Literal["epsilon", "v_prediction", "sample"]] = {
    Prediction.eps: "epsilon",
    Prediction.v: "v_prediction",
    Prediction.z0: "sample",
}
# numpy 2 on their `np.array(tensor)`; not ours to fix
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
# Their tables are float32 products of up to 1000 factors, ours float64: coefficients differ by up
# to 1e-5, and near alpha = 0 (zero terminal SNR) the square root makes that 3e-4 at the second
# noisiest step.
TOLERANCE = {"rtol": 0, "atol": 3e-4}
HALF_A_LEVEL = 0.5 / 127.5  # of 255 grey levels, for values in [-1, 1]


def network(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth non-linear function of latent and step, the same for both sides."""
    return torch.tanh(1.3 * z_t + torch.sin(t / 150.0).view(-1, 1, 1, 1)) * 0.8


def noise() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def ours(schedule, prediction, sampler, num_steps) -> torch.Tensor:
    return sample(
        network,
        noise(),
        schedule=schedule,
        prediction=prediction,
        num_steps=num_steps,
        sampler=sampler,
        generator=torch.Generator().manual_seed(7),
    )


def theirs(scheduler, start: torch.Tensor, num_steps: int, **step_arguments) -> torch.Tensor:
    """Run diffusers' loop as its pipelines do."""
    scheduler.set_timesteps(num_steps)
    latents = start
    for t in scheduler.timesteps:
        z_t = scheduler.scale_model_input(latents, t)
        output = network(z_t, t.expand(len(z_t)))
        latents = scheduler.step(output, t, latents, **step_arguments).prev_sample
    return latents


def ddim(schedule: NoiseSchedule, prediction: Prediction) -> DDIMScheduler:
    return DDIMScheduler(
        **BETAS,
        prediction_type=NAMES[prediction],
        rescale_betas_zero_snr=schedule.has_zero_terminal_snr,
        clip_sample=False,
    )


@pytest.mark.parametrize("num_steps", [1, 2, 8, 20])
@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(PLAIN, p) for p in NAMES] + [(ZERO, Prediction.v), (ZERO, Prediction.z0)],
)
def test_ddim_is_diffusers_ddim(schedule, prediction, num_steps):
    """For step counts that divide 1000: theirs steps back by floor(1000 / n), off the grid else."""
    expected = theirs(ddim(schedule, prediction), noise(), num_steps)
    result = ours(schedule, prediction, Sampler.ddim, num_steps)
    torch.testing.assert_close(result, expected, **TOLERANCE)


@pytest.mark.parametrize("num_steps", [3, 7, 30, 999])
@pytest.mark.parametrize("prediction", [Prediction.eps, Prediction.v])
def test_ddim_is_diffusers_euler_for_step_counts_that_do_not_divide_1000(prediction, num_steps):
    """The same solver in variance-exploding form, x = z / alpha, on the exact grid."""
    scheduler = EulerDiscreteScheduler(**BETAS, prediction_type=NAMES[prediction])
    start = noise() / PLAIN.alpha[-1].float()
    expected = theirs(scheduler, start, num_steps)
    result = ours(PLAIN, prediction, Sampler.ddim, num_steps)
    torch.testing.assert_close(result, expected, rtol=0, atol=HALF_A_LEVEL)


@pytest.mark.parametrize(("num_steps", "levels"), [(7, (2.0, 2.5)), (30, (0.4, 0.8))])
@pytest.mark.parametrize("schedule", [PLAIN, ZERO])
def test_diffusers_ddim_leaves_the_grid_where_steps_do_not_divide_1000(schedule, num_steps, levels):
    """What docs/editing.md says: it ends at step 0 or later, with noise left, instead of clean."""
    expected = theirs(ddim(schedule, Prediction.v), noise(), num_steps)
    result = ours(schedule, Prediction.v, Sampler.ddim, num_steps)
    least, most = levels
    assert least < 127.5 * (result - expected).abs().mean().item() < most


@pytest.mark.parametrize("num_steps", [2, 7, 20, 30])
@pytest.mark.parametrize("prediction", list(NAMES))
def test_dpm_solver_is_diffusers_dpm_solver(prediction, num_steps):
    """Without zero terminal SNR: theirs replaces alpha[T-1] = 0 by 2^-12, ours takes the limit."""
    scheduler = DPMSolverMultistepScheduler(
        **BETAS,
        prediction_type=NAMES[prediction],
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    expected = theirs(scheduler, noise(), num_steps)
    result = ours(PLAIN, prediction, Sampler.dpm_solver_pp_2m, num_steps)
    torch.testing.assert_close(result, expected, **TOLERANCE)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 20, 30])
@pytest.mark.parametrize("prediction", [Prediction.eps, Prediction.v])
def test_euler_ancestral_is_diffusers_in_variance_exploding_form(prediction, num_steps):
    """Without zero terminal SNR, where their sigma is infinite; x starts at sigma_VE noise."""
    scheduler = EulerAncestralDiscreteScheduler(**BETAS, prediction_type=NAMES[prediction])
    sigma_ve = (PLAIN.sigma[-1] / PLAIN.alpha[-1]).float()
    expected = theirs(
        scheduler, sigma_ve * noise(), num_steps, generator=torch.Generator().manual_seed(7)
    )
    result = ours(PLAIN, prediction, Sampler.euler_ancestral, num_steps)
    # their x reaches sigma_VE = 14.6 in float32, ours stays of order 1
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("num_steps", [1, 2, 8, 20])
@pytest.mark.parametrize("schedule", [PLAIN, ZERO])
def test_euler_ancestral_is_ddim_with_eta_one_even_from_pure_noise(schedule, num_steps):
    expected = theirs(
        ddim(schedule, Prediction.v),
        schedule.sigma[-1].float() * noise(),
        num_steps,
        eta=1.0,
        generator=torch.Generator().manual_seed(7),
    )
    result = ours(schedule, Prediction.v, Sampler.euler_ancestral, num_steps)
    torch.testing.assert_close(result, expected, **TOLERANCE)
