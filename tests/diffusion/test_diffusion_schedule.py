import copy
import pickle

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr

from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.errors import InputError

both = pytest.mark.parametrize("zero_terminal_snr", [True, False])


def reference(zero_terminal_snr: bool) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=8.5e-4,
        beta_end=1.2e-2,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=zero_terminal_snr,
    )


@both
def test_the_schedule_preserves_variance(zero_terminal_snr):
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero_terminal_snr)
    torch.testing.assert_close(
        schedule.alpha**2 + schedule.sigma**2,
        torch.ones(1000, dtype=torch.float64),
        rtol=0,
        atol=1e-14,
    )


@both
def test_noise_grows_at_every_step(zero_terminal_snr):
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero_terminal_snr)
    assert (schedule.alpha.diff() < 0).all()
    assert (schedule.sigma.diff() > 0).all()
    assert (schedule.snr.diff() < 0).all()


@both
def test_the_tables_are_those_of_diffusers(zero_terminal_snr):
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero_terminal_snr)
    # diffusers multiplies a thousand float32 numbers: 1000 roundings of 6e-8
    torch.testing.assert_close(
        schedule.alpha**2,
        reference(zero_terminal_snr).alphas_cumprod.double(),
        rtol=0,
        atol=1e-5,
    )


def test_the_rescale_is_diffusers_rescale_of_the_same_betas():
    root = torch.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000, dtype=torch.float64)
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(root**2), dim=0)
    ours = NoiseSchedule.scaled_linear(zero_terminal_snr=False).with_zero_terminal_snr()
    torch.testing.assert_close(ours.alpha**2, theirs, rtol=1e-10, atol=1e-14)


def test_the_rescale_keeps_the_first_step_and_ends_in_pure_noise():
    plain = NoiseSchedule.scaled_linear(zero_terminal_snr=False)
    rescaled = plain.with_zero_terminal_snr()
    torch.testing.assert_close(rescaled.alpha[0], plain.alpha[0], rtol=1e-15, atol=0)
    assert not plain.has_zero_terminal_snr
    assert rescaled.has_zero_terminal_snr
    assert rescaled.alpha[-1] == 0
    assert rescaled.sigma[-1] == 1
    assert rescaled.snr[-1] == 0


def test_rescaling_twice_is_rescaling_once():
    once = NoiseSchedule.scaled_linear()
    twice = once.with_zero_terminal_snr()
    torch.testing.assert_close(twice.alpha, once.alpha, rtol=1e-14, atol=0)


def test_lookup_gives_float32_that_broadcast_over_latents():
    schedule = NoiseSchedule.scaled_linear(10)
    t = torch.tensor([9, 0, 4])
    coefficients = schedule.at(t)
    assert coefficients.alpha.shape == coefficients.sigma.shape == (3, 1, 1, 1)
    assert torch.equal(coefficients.alpha.flatten(), schedule.alpha[t].float())
    assert torch.equal(coefficients.sigma.flatten(), schedule.sigma[t].float())


def test_lookup_never_reads_a_number_back_from_the_device():
    schedule = NoiseSchedule.scaled_linear(10)
    # a meta tensor has no values: anything that waited for one would raise
    coefficients = schedule.at(torch.zeros(4, dtype=torch.int64, device="meta"))
    assert coefficients.alpha.device.type == "meta"


def test_a_lookup_in_inference_mode_does_not_spoil_training():
    schedule = NoiseSchedule.scaled_linear(10)
    t = torch.tensor([3])
    with torch.inference_mode():
        schedule.at(t)
    z = torch.ones(1, 1, 1, 1, requires_grad=True)
    (schedule.at(t).alpha * z).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad.flatten().double(), schedule.alpha[3:4], rtol=1e-6, atol=0)


def test_a_schedule_survives_pickling_and_copying():
    schedule = NoiseSchedule.scaled_linear(10)
    schedule.at(torch.tensor([1]))
    for other in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert torch.equal(other.alpha, schedule.alpha)
        assert other.to_config() == schedule.to_config()


@both
def test_the_config_round_trip_gives_the_same_tables(zero_terminal_snr):
    schedule = NoiseSchedule.scaled_linear(50, 1e-3, 2e-2, zero_terminal_snr)
    again = NoiseSchedule.from_config(schedule.to_config())
    assert torch.equal(again.alpha, schedule.alpha)
    assert torch.equal(again.sigma, schedule.sigma)


@both
def test_diffusers_loads_the_config_and_samples_as_we_do(zero_terminal_snr):
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero_terminal_snr)
    loaded = DDIMScheduler.from_config(schedule.to_config() | {"prediction_type": "v_prediction"})
    assert isinstance(loaded, DDIMScheduler)
    assert torch.equal(loaded.alphas_cumprod, reference(zero_terminal_snr).alphas_cumprod)
    assert loaded.config["timestep_spacing"] == "trailing"
    assert loaded.final_alpha_cumprod == 1
    assert not loaded.config["clip_sample"]


def test_an_old_config_without_the_rescale_key_is_not_rescaled():
    config = NoiseSchedule.scaled_linear().to_config()
    del config["rescale_betas_zero_snr"]
    assert not NoiseSchedule.from_config(config).has_zero_terminal_snr


def test_tables_made_by_hand_have_no_config():
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="made from tables has no config"):
        NoiseSchedule(0.6 * one, 0.8 * one).to_config()


def test_tables_that_do_not_preserve_variance_are_refused():
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"alpha² \+ sigma² must be 1 at every step.*off by 0\.28"):
        NoiseSchedule(0.8 * one, 0.8 * one)


@pytest.mark.parametrize("steps", [1, 10**9])
def test_a_schedule_of_one_step_or_of_a_billion_is_refused(steps):
    with pytest.raises(InputError, match=f"needs 2 to 100000 training steps, got {steps}"):
        NoiseSchedule.scaled_linear(steps)


@pytest.mark.parametrize("value", ["many", None, [1], float("inf")])
def test_a_config_whose_number_is_none_is_refused(value):
    config = NoiseSchedule.scaled_linear().to_config() | {"num_train_timesteps": value}
    with pytest.raises(
        InputError,
        match=r"the scheduler config (has num_train_timesteps .* needs a number|holds no number)",
    ):
        NoiseSchedule.from_config(config)


@pytest.mark.parametrize("betas", [(0.0, 0.1), (0.2, 0.1), (0.1, 1.0)])
def test_betas_out_of_order_are_refused(betas):
    with pytest.raises(InputError, match=r"0 < beta_start <= beta_end < 1, got"):
        NoiseSchedule.scaled_linear(10, *betas)


def test_a_config_that_is_not_a_schedule_is_refused():
    with pytest.raises(InputError, match="lacks num_train_timesteps, beta_start"):
        NoiseSchedule.from_config({"beta_end": 0.1, "beta_schedule": "scaled_linear"})


@pytest.mark.parametrize(
    ("change", "named"),
    [({"beta_schedule": "linear"}, "'linear'"), ({"trained_betas": [0.1]}, "'trained_betas'")],
)
def test_a_config_with_other_betas_is_refused(change, named):
    config = NoiseSchedule.scaled_linear().to_config() | change
    with pytest.raises(InputError, match=f"has betas {named}; only 'scaled_linear'"):
        NoiseSchedule.from_config(config)
