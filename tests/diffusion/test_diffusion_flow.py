"""The linear path against diffusers' scheduler of it, and against its own algebra in float64."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from scipy import stats

from emu_edit.diffusion.flow import DynamicShift, FlowSchedule, read_schedule
from emu_edit.diffusion.prediction import (
    Prediction,
    TrainedAs,
    add_noise,
    check,
    copying,
    estimates,
    scheduler_config,
    target,
)
from emu_edit.diffusion.samplers import Sampler, sample
from emu_edit.diffusion.schedule import LogitNormal, NoiseSchedule, Schedule, shift_to_noise
from emu_edit.diffusion.weighting import Weighting, check_weighting, denoising_error, loss_weight
from emu_edit.errors import InputError
from tests.diffusion.oracles import ON_PATH, ON_TABLE, exact_coefficients, gaussian, perfect

PATH = FlowSchedule()
ZERO = NoiseSchedule.scaled_linear()
FLUX = FlowSchedule(dynamic=DynamicShift())
QWEN = FlowSchedule(dynamic=DynamicShift(0.5, 0.9, 256, 8192), shift_terminal=0.02)
# as published: none, Stable Diffusion 3, FLUX.3 klein, FLUX.1, Qwen-Image-Edit; and both kinds
SCHEDULES = [
    PATH,
    FlowSchedule(shift=3.0),
    FlowSchedule(shift=6.93),
    FLUX,
    QWEN,
    FlowSchedule(shift=0.5, shift_terminal=0.1),
]


def latents(b: int, seed: int, side: int = 4) -> torch.Tensor:
    return torch.randn(b, 3, side, side, generator=torch.Generator().manual_seed(seed))


def network(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth non-linear function of latent and time, the same for both sides."""
    return torch.tanh(1.3 * z_t + torch.sin(t / 150.0).view(-1, 1, 1, 1)) * 0.8


def theirs(schedule: Schedule, num_steps: int, tokens: int) -> Any:
    """Diffusers' scheduler from what we store, prepared as its Flux pipelines do."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config({**schedule.to_config()})
    config: Mapping = scheduler.config
    mu = None
    if config["use_dynamic_shifting"]:
        sizes, shifts = ("base_image_seq_len", "max_image_seq_len"), ("base_shift", "max_shift")
        mu = calculate_shift(tokens, *(config[name] for name in (*sizes, *shifts)))
    sigmas = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    return scheduler


@pytest.mark.parametrize("num_steps", [2, 7, 28])
@pytest.mark.parametrize("tokens", [64, 4096])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_times_are_those_of_diffusers(schedule, tokens, num_steps):
    expected = theirs(schedule, num_steps, tokens)
    times = schedule.times(num_steps, tokens)
    # theirs are float32 numbers up to 1000
    assert times == pytest.approx(expected.timesteps.tolist(), abs=2e-3)
    sigmas = [schedule.level(t).sigma for t in times]
    assert sigmas == pytest.approx(expected.sigmas.tolist()[:-1], abs=2e-6)
    assert times[0] == 1000
    if schedule.shift_terminal is not None:
        assert sigmas[-1] == pytest.approx(schedule.shift_terminal, rel=1e-9)


@pytest.mark.parametrize("num_steps", [2, 7, 28])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_is_that_of_diffusers(schedule, num_steps):
    noise = latents(2, 0, side=16)
    scheduler = theirs(schedule, num_steps, tokens=256)
    steps, expected = [], noise
    for t in scheduler.timesteps:
        output = network(expected, t.expand(2))
        expected = scheduler.step(output, t, expected, return_dict=False)[0]
        steps.append(expected)
    seen = []
    result = sample(
        network,
        noise,
        schedule=schedule,
        prediction=Prediction.flow,
        num_steps=num_steps,
        on_step=lambda _i, _t, z_t: seen.append(z_t),
    )
    # float32 on both sides, and sums in another order
    torch.testing.assert_close(torch.stack(seen), torch.stack(steps), rtol=0, atol=1e-5)
    assert torch.equal(result, seen[-1])


def test_a_single_step_goes_all_the_way_whatever_the_terminal_level():
    """Where diffusers divides 0 by 0."""
    assert FlowSchedule(shift_terminal=0.1).times(1, 64) == [1000]


def test_times_reach_the_network_as_fractions_and_steps_of_a_table_as_whole_numbers():
    kinds = []

    def predict(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kinds.append((t.dtype, t[0].item()))
        return z_t

    for schedule in (FlowSchedule(shift=3.0), ZERO):
        sample(predict, latents(1, 0), schedule=schedule, prediction=Prediction.z0, num_steps=3)
    assert kinds[1] == (torch.float32, pytest.approx(1000 * 6 / 7))
    assert kinds[3] == (torch.int64, 999)


@pytest.mark.parametrize("sampler", [Sampler.ddim, Sampler.dpm_solver_pp_2m])
def test_the_path_turns_noise_into_gaussian_data(sampler):
    noise = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    out = sample(
        gaussian(0.7, 0.4, PATH, Prediction.flow),
        noise,
        schedule=PATH,
        prediction=Prediction.flow,
        num_steps=500,
        sampler=sampler,
    ).flatten()
    assert out[0].item() == pytest.approx(0.7, abs=1e-2)
    assert (out[1] - out[0]).item() == pytest.approx(0.4, abs=1e-2)


@pytest.mark.parametrize("prediction", ON_PATH)
def test_a_perfect_output_converts_back_to_latent_and_noise(prediction):
    t = torch.tensor([1.0, 3.7, 250.25, 999.9, 1000.0], dtype=torch.float64)
    z_0, eps = latents(5, 0).double(), latents(5, 1).double()
    c = exact_coefficients(PATH, t)
    z_t = add_noise(z_0, eps, c)
    z_0_hat, eps_hat = estimates(target(z_0, eps, c, prediction), z_t, c, prediction)
    # dividing by sigma = 0.001 costs three of sixteen digits
    torch.testing.assert_close(z_0_hat, z_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=1e-12)


def test_the_flow_is_the_derivative_of_the_path():
    z_0, eps, h = latents(1, 0).double(), latents(1, 1).double(), 1e-3
    ends = [exact_coefficients(PATH, torch.tensor([1000 * s])) for s in (0.3 - h, 0.3 + h)]
    low, high = (add_noise(z_0, eps, c) for c in ends)
    flow = target(z_0, eps, ends[0], Prediction.flow)
    torch.testing.assert_close((high - low) / (2 * h), flow, rtol=0, atol=1e-4)
    assert torch.equal(flow, eps - z_0)


@pytest.mark.parametrize("prediction", ON_PATH)
def test_copying_is_the_output_that_stands_for_the_source(prediction):
    t, z_source = torch.tensor([1.0, 370.5, 1000.0]), latents(3, 2)
    c = PATH.at(t)
    z_t = add_noise(latents(3, 0), latents(3, 1), c)
    output = copying(z_source, PATH, prediction)(z_t, t)
    z_0_hat, _ = estimates(output, z_t, c, prediction)
    expected = torch.zeros_like(z_source) if prediction is Prediction.change else z_source
    # a float32 quotient by sigma = 0.001, times it again
    torch.testing.assert_close(z_0_hat, expected, rtol=0, atol=1e-5)


def test_levels_of_float32_are_those_of_float64():
    t = torch.tensor([1.0, 12.5, 500.0, 988.4086, 1000.0])
    exact, c = exact_coefficients(PATH, t), PATH.at(t)
    torch.testing.assert_close(c.sigma.double(), exact.sigma, rtol=1e-6, atol=0)
    torch.testing.assert_close(c.alpha + c.sigma, torch.ones_like(c.alpha), rtol=0, atol=1e-7)
    assert c.alpha[-1] == 0
    assert torch.equal(PATH.at(torch.tensor([500])).sigma, PATH.at(torch.tensor([500.0])).sigma)


def test_draws_of_even_numbers_are_even_levels():
    u = (torch.arange(2000) + 0.5) / 2000
    sigma = PATH.draw(u, tokens=64) / 1000
    torch.testing.assert_close(sigma, u.clamp(min=1e-3))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_draws_are_shifted_as_sampling_is_and_never_reach_the_end_without_noise(schedule):
    """Of 8 steps those at 1 - i/8; the terminal level is the sampler's alone."""
    even = 1 - torch.arange(8) / 8
    unstretched = FlowSchedule(schedule.shift, schedule.dynamic)
    expected = torch.tensor(unstretched.times(8, 1024))
    torch.testing.assert_close(schedule.draw(even, tokens=1024), expected, rtol=1e-5, atol=0)
    ends = schedule.draw(torch.tensor([0.0, 1.0]), tokens=1024)
    assert ends.tolist() == [1.0, 1000.0]


def test_a_shift_of_training_multiplies_that_of_the_schedule():
    u = torch.rand(50, generator=torch.Generator().manual_seed(0))
    twice = FlowSchedule(shift=3.0).draw(shift_to_noise(u, 2.0), tokens=64)
    torch.testing.assert_close(twice, FlowSchedule(shift=6.0).draw(u, tokens=64))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 1.0), (-0.5, 1.7)])
def test_logit_normal_draws_have_the_quantiles_of_scipys(mean, std):
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    expected = 1 / (1 + np.exp(-stats.norm(mean, std).ppf(u.numpy())))
    torch.testing.assert_close(
        LogitNormal(mean, std).of(u), torch.from_numpy(expected), rtol=1e-10, atol=0
    )
    drawn = LogitNormal(mean, std).of(
        torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    )
    logits = torch.log(drawn / (1 - drawn)).numpy()
    assert stats.kstest(logits, stats.norm(mean, std).cdf).pvalue > 0.01


def test_one_number_decides_a_logit_normal_level_and_its_ends_are_numbers():
    u = torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24])
    drawn = LogitNormal().of(u)
    assert (drawn.diff() > 0).all()
    assert PATH.draw(drawn, tokens=64).isfinite().all()
    assert ZERO.draw(LogitNormal(std=50.0).of(u), tokens=64).tolist() == [0, 0, 500, 999]


def test_weights_on_the_path_weigh_the_same_error_of_the_image():
    """An error d of z_0 is |d| / sigma in the flow."""
    t = torch.tensor([1.0, 80.0, 612.5, 1000.0])
    for weighting in (Weighting.min_snr, Weighting.one_plus_min_snr):
        here = loss_weight(weighting, t, PATH, Prediction.flow) / PATH.at(t).sigma.flatten() ** 2
        there = loss_weight(weighting, t, PATH, Prediction.z0)
        torch.testing.assert_close(here, there, rtol=1e-5, atol=0)
    assert loss_weight(Weighting.uniform, t, PATH, Prediction.flow).tolist() == [1] * 4


def test_weights_of_flow_are_finite_at_both_ends():
    for weighting in Weighting:
        weight = loss_weight(weighting, torch.tensor([0.0, 1000.0]), PATH, Prediction.flow)
        assert weight.isfinite().all()
    with pytest.raises(InputError, match="weight 0 to the last step"):
        check_weighting(Weighting.min_snr, Prediction.flow, PATH)


@pytest.mark.parametrize("prediction", ON_PATH)
def test_a_perfect_network_has_no_error(prediction):
    z_0, eps, t = latents(3, 0), latents(3, 1), torch.tensor([40.0, 500.5, 1000.0])
    error = denoising_error(
        perfect(z_0.double(), PATH, prediction), z_0, eps, t, schedule=PATH, prediction=prediction
    )
    # recovering eps divides a float32 z_t by sigma = 0.04
    torch.testing.assert_close(error, torch.zeros(3), rtol=0, atol=1e-10)


def test_predictions_and_schedules_that_do_not_go_together_are_refused():
    for prediction in ON_PATH:
        check(prediction, PATH)
    for prediction in set(ON_TABLE) - set(ON_PATH):
        with pytest.raises(InputError, match="does not go with the linear path"):
            check(prediction, PATH)
    with pytest.raises(InputError, match="prediction 'flow' is of the linear path"):
        check(Prediction.flow, ZERO)


@pytest.mark.parametrize("schedule", [*SCHEDULES, ZERO])
def test_a_stored_schedule_is_read_back(schedule):
    assert read_schedule(schedule.to_config()).content() == schedule.content()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_diffusers_stores_of_our_schedule_is_our_schedule(schedule, tmp_path):
    theirs(schedule, 4, 64).save_pretrained(tmp_path)
    stored, _ = FlowMatchEulerDiscreteScheduler.load_config(tmp_path, return_unused_kwargs=True)
    assert isinstance(stored, dict)
    assert FlowSchedule.from_config(stored) == schedule


def test_a_flow_is_not_told_to_diffusers_scheduler_which_knows_no_other():
    assert "prediction_type" not in scheduler_config(Prediction.flow, PATH)
    assert scheduler_config(Prediction.change, PATH)["prediction_type"] == "sample"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_karras_sigmas": True}, "use_karras_sigmas, which cannot be read here"),
        ({"stochastic_sampling": True}, "stochastic_sampling, which cannot"),
        ({"num_train_timesteps": 500}, "num_train_timesteps 500, needs 1000"),
        ({"shift": "3"}, "shift '3', needs a number"),
        ({"shift": math.nan}, "shift nan, needs a number"),
        ({"shift": -1}, "shift must be above 0"),
        ({"shift_terminal": True}, "shift_terminal True, needs a number"),
        ({"shift_terminal": 1.5}, "shift_terminal must be between 0 and 1"),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, "needs 'exponential'"),
        ({"use_dynamic_shifting": True, "max_shift": 0.1}, "0 <= base_shift <= max_shift"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "base_tokens < max_tokens"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        FlowSchedule.from_config(values)


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="exclude each other; leave one of them out"):
        FlowSchedule(shift=3.0, dynamic=DynamicShift())
    with pytest.raises(InputError, match=r"is exp\(170\), sizes of 256 to 4096 are meant"):
        FLUX.times(4, 1000 * 1000)
    with pytest.raises(InputError, match="num_steps must be 1 to 1000"):
        PATH.times(1001, 64)
    for mean, std in ((math.inf, 1.0), (0.0, 0.0), (0.0, math.nan)):
        with pytest.raises(InputError, match="logit_normal needs a finite mean and a std above 0"):
            LogitNormal(mean, std)


def test_a_base_says_its_path_and_a_training_may_ask_for_another():
    shifted = FlowSchedule(shift=3.0)
    base = TrainedAs("base/scheduler_config.json", scheduler_config(Prediction.flow, shifted))
    assert base.prediction is Prediction.flow
    assert base.zero_terminal_snr
    assert base.schedule(Prediction.flow, zero_terminal_snr=True) == shifted
    assert base.schedule(Prediction.flow, PATH, zero_terminal_snr=True) == PATH
    assert base.contradiction(Prediction.flow, shifted) is None
    table = base.schedule(Prediction.v, zero_terminal_snr=True)
    assert isinstance(table, NoiseSchedule)
    said = str(base.contradiction(Prediction.v, table))
    assert "'flow_prediction' and FlowMatchEulerDiscreteScheduler, here it is read as" in said
    assert said.endswith("to go on as it is: --model.prediction flow")
    with pytest.raises(InputError, match="always ends in noise alone: leave it out"):
        base.schedule(Prediction.flow, zero_terminal_snr=False)


def test_a_base_of_steps_is_turned_to_the_path_and_says_so():
    base = TrainedAs("base", scheduler_config(Prediction.z0, ZERO))
    path = base.schedule(Prediction.z0, PATH, zero_terminal_snr=True)
    said = str(base.contradiction(Prediction.z0, path))
    assert "read as model.prediction z0, model.flow.shift 1, so" in said
    assert said.endswith("--model.prediction z0 --model.zero_terminal_snr true")
