import math
from itertools import pairwise

import pytest
import torch

from emu_edit.diffusion.flow import FlowSchedule
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.samplers import (
    Estimate,
    Sampler,
    ddim_step,
    dpm_solver_pp_2m_step,
    sample,
)
from emu_edit.diffusion.schedule import Level, NoiseSchedule
from emu_edit.errors import InputError
from tests.diffusion.oracles import ON_PATH, ON_TABLE, gaussian, perfect

PLAIN = NoiseSchedule.scaled_linear(zero_terminal_snr=False)
ZERO = NoiseSchedule.scaled_linear()
DETERMINISTIC = [Sampler.ddim, Sampler.dpm_solver_pp_2m]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(b: int, seed: int) -> torch.Tensor:
    return torch.randn(b, 2, 4, 4, generator=seeded(seed))


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(PLAIN, p) for p in ON_TABLE]
    + [(ZERO, p) for p in ON_TABLE if p is not Prediction.eps]
    + [(FlowSchedule(shift=3.0, shift_terminal=0.02), p) for p in ON_PATH],
)
def test_a_perfect_denoiser_leads_to_its_image(schedule, prediction, sampler, num_steps):
    z_0 = latents(3, 0)
    out = sample(
        perfect(z_0.double(), schedule, prediction),
        latents(3, 1),
        schedule=schedule,
        prediction=prediction,
        num_steps=num_steps,
        sampler=sampler,
        generator=seeded(2),
    )
    assert out.dtype == torch.float32
    # float32: eps divides by alpha = 0.07 at the first step
    torch.testing.assert_close(out, z_0, rtol=0, atol=1e-5)


def affine(schedule: NoiseSchedule, sampler: Sampler, num_steps: int) -> tuple[float, float]:
    """Return (gain, offset) of the map noise -> sample for data N(0.7, 0.4²); it is affine."""
    noise = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    out = sample(
        gaussian(0.7, 0.4, schedule, Prediction.v),
        noise,
        schedule=schedule,
        prediction=Prediction.v,
        num_steps=num_steps,
        sampler=sampler,
    ).flatten()
    return (out[1] - out[0]).item(), out[0].item()


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_deterministic_samplers_turn_noise_into_gaussian_data(sampler):
    std, mean = affine(ZERO, sampler, 500)
    assert mean == pytest.approx(0.7, abs=1e-2)
    assert std == pytest.approx(0.4, abs=1e-2)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_sampled_mean_and_variance_are_those_of_the_data(sampler):
    out = sample(
        gaussian(0.7, 0.4, ZERO, Prediction.v),
        torch.randn(1, 1, 100, 100, generator=seeded(0)),
        schedule=ZERO,
        prediction=Prediction.v,
        num_steps=1000,
        sampler=sampler,
        generator=seeded(1),
    )
    # standard errors of 10 000 draws: 0.004 for mean, 0.003 for std; the rest is discretisation
    assert out.mean().item() == pytest.approx(0.7, abs=0.015)
    assert out.std().item() == pytest.approx(0.4, abs=0.015)


def error_against_the_exact_flow(sampler: Sampler, num_steps: int) -> float:
    """Follow the probability flow of N(0, 0.4²) from lambda = -2 to 3 in equal steps; compare.

    Gaussian data flow along quantiles: z_t / std_t stays constant. Trailing steps are no grid for
    this: their last steps do not shrink in lambda as their number grows.
    """
    std = 0.4
    ramp = torch.linspace(-2, 3, num_steps + 1, dtype=torch.float64)
    alphas, sigmas = torch.sigmoid(2 * ramp).sqrt(), torch.sigmoid(-2 * ramp).sqrt()
    levels = [Level(a, s) for a, s in zip(alphas.tolist(), sigmas.tolist(), strict=True)]
    z_t, previous = torch.ones(1, 1, 1, 1, dtype=torch.float64), None
    for level, to in pairwise(levels):
        z_0 = z_t * level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
        now = Estimate(level, z_t, z_0, (z_t - level.alpha * z_0) / level.sigma)
        if sampler is Sampler.ddim:
            z_t = ddim_step(now, to)
        else:
            z_t = dpm_solver_pp_2m_step(now, to, previous)
        previous = now
    first, last = (math.hypot(levels[i].alpha * std, levels[i].sigma) for i in (0, -1))
    return abs(z_t.item() - last / first)


@pytest.mark.parametrize(("sampler", "order"), [(Sampler.ddim, 1), (Sampler.dpm_solver_pp_2m, 2)])
def test_solvers_converge_with_their_order(sampler, order):
    coarse, fine = (error_against_the_exact_flow(sampler, n) for n in (64, 256))
    assert math.log(coarse / fine, 4) == pytest.approx(order, abs=0.1)


def test_the_second_order_solver_is_the_better_one_at_few_steps():
    first, second = (error_against_the_exact_flow(sampler, 8) for sampler in DETERMINISTIC)
    assert second < 0.2 * first


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
def test_zero_terminal_snr_is_the_limit_of_small_terminal_snr(sampler, num_steps):
    """No step may be special: moving alpha[T-1] from 1e-6 to 0 moves the sample by as little."""
    alpha = ZERO.alpha.clone()
    alpha[-1] = 1e-6
    nearly = NoiseSchedule(alpha, (1 - alpha**2).sqrt())
    out = [
        sample(
            gaussian(0.7, 0.4, schedule, Prediction.v),
            latents(2, 0).double(),
            schedule=schedule,
            prediction=Prediction.v,
            num_steps=num_steps,
            sampler=sampler,
            generator=seeded(1),
        )
        for schedule in (ZERO, nearly)
    ]
    # the second-order term of DPM-Solver++ fades with 1 / lambda: 1/14 of a step's change is left
    tolerance = 0.02 if sampler is Sampler.dpm_solver_pp_2m else 1e-5
    torch.testing.assert_close(*out, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_the_first_call_sees_the_noise_that_the_samplers_source_begins_with(sampler):
    seen = []

    def predict(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((z_t, t))
        return torch.zeros_like(z_t)

    noise = latents(2, 0)
    sample(predict, noise, schedule=PLAIN, prediction=Prediction.z0, num_steps=3, sampler=sampler)
    scale = PLAIN.sigma[-1].float() if sampler is Sampler.euler_ancestral else 1
    torch.testing.assert_close(seen[0][0], scale * noise)
    assert [t.tolist() for _, t in seen] == [[999] * 2, [666] * 2, [332] * 2]


def test_sampling_in_half_precision_networks_stays_in_float32():
    def predict(z_t: torch.Tensor, _t: torch.Tensor) -> torch.Tensor:
        return (0.3 * z_t).bfloat16()

    for sampler in Sampler:
        out = sample(
            predict,
            latents(1, 0),
            schedule=ZERO,
            prediction=Prediction.v,
            num_steps=4,
            sampler=sampler,
            generator=seeded(0),
        )
        assert out.dtype == torch.float32


@pytest.mark.parametrize("sampler", list(Sampler))
def test_every_step_is_told_with_its_training_step_and_latent(sampler):
    seen = []

    def predict(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((t.item(), z_t))
        return z_t

    told = []
    out = sample(
        predict,
        latents(1, 0),
        schedule=ZERO,
        prediction=Prediction.v,
        num_steps=3,
        sampler=sampler,
        generator=seeded(0),
        on_step=lambda i, t, z_t: told.append((i, t, z_t)),
    )
    assert [(i, t) for i, t, _ in told] == [(0, 999), (1, 666), (2, 332)]
    assert [t for t, _ in seen] == [999, 666, 332]
    # the latent after a step is what the network sees at the next, or the result
    for (*_, after), before in zip(told, [z_t for _, z_t in seen[1:]] + [out], strict=True):
        assert after is before


@pytest.mark.parametrize("sampler", list(Sampler))
def test_sampling_goes_on_from_the_latent_that_the_hook_returns(sampler):
    """The network says z_0_hat = z_t / 2 + 1; the last step returns it, so from zeros it is 1."""
    out = sample(
        lambda z_t, _t: z_t / 2 + 1,
        latents(1, 0),
        schedule=ZERO,
        prediction=Prediction.z0,
        num_steps=3,
        sampler=sampler,
        generator=seeded(0),
        on_step=lambda i, _t, z_t: torch.zeros_like(z_t) if i == 1 else None,
    )
    assert torch.equal(out, torch.ones_like(out))


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_deterministic_samplers_draw_nothing(sampler):
    generator = seeded(0)
    before = generator.get_state()
    sample(
        lambda z_t, _t: z_t,
        latents(1, 0),
        schedule=ZERO,
        prediction=Prediction.v,
        num_steps=3,
        sampler=sampler,
        generator=generator,
    )
    assert torch.equal(generator.get_state(), before)


def ancestral(noise: torch.Tensor, generator) -> torch.Tensor:
    return sample(
        gaussian(0.7, 0.4, ZERO, Prediction.v),
        noise,
        schedule=ZERO,
        prediction=Prediction.v,
        num_steps=5,
        sampler=Sampler.euler_ancestral,
        generator=generator,
    )


def test_the_same_generator_gives_the_same_sample_and_another_a_different_one():
    noise = latents(2, 0)
    assert torch.equal(ancestral(noise, seeded(3)), ancestral(noise, seeded(3)))
    assert not torch.equal(ancestral(noise, seeded(3)), ancestral(noise, seeded(4)))


def test_with_a_generator_per_row_a_row_does_not_depend_on_its_neighbours():
    noise = latents(2, 0)
    together = ancestral(noise, [seeded(3), seeded(4)])
    alone = ancestral(noise[1:], [seeded(4)])
    assert torch.equal(together[1:], alone)


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="got 1 generators for a batch of 2; give one per row"):
        ancestral(latents(2, 0), [seeded(0)])


def test_sampling_noise_prediction_from_zero_terminal_snr_is_refused():
    with pytest.raises(InputError, match="'eps' cannot be used with a zero-terminal-SNR schedule"):
        sample(lambda z_t, _t: z_t, latents(1, 0), schedule=ZERO, prediction=Prediction.eps)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_sampling_with_a_number_of_steps_out_of_range_is_refused(num_steps):
    with pytest.raises(InputError, match="num_steps must be 1 to 1000"):
        sample(
            lambda z_t, _t: z_t,
            latents(1, 0),
            schedule=ZERO,
            prediction=Prediction.v,
            num_steps=num_steps,
        )
