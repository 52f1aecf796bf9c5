from typing import cast

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from emu_edit.diffusion.prediction import (
    Prediction,
    add_noise,
    check,
    copying,
    estimates,
    target,
    with_source,
)
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.errors import InputError
from tests.diffusion.oracles import ON_TABLE, exact_coefficients

PLAIN = NoiseSchedule.scaled_linear(zero_terminal_snr=False)
ZERO = NoiseSchedule.scaled_linear()


def latents(b: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(b, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("prediction", ON_TABLE)
def test_a_perfect_output_converts_back_to_latent_and_noise(prediction):
    t = torch.arange(0, 1000, 37)
    z_0, eps, c = latents(len(t), 0), latents(len(t), 1), exact_coefficients(PLAIN, t)
    z_t = add_noise(z_0, eps, c)
    output = target(z_0, eps, c, prediction)
    # dividing by alpha = 0.07 or sigma = 0.03 costs about two of sixteen digits
    z_0_hat, eps_hat = estimates(output, z_t, c, prediction)
    torch.testing.assert_close(z_0_hat, z_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", [Prediction.v, Prediction.z0, Prediction.change])
def test_the_last_step_of_a_zero_terminal_snr_schedule_converts_exactly(prediction):
    t = torch.tensor([999])
    z_0, eps, c = latents(1, 0), latents(1, 1), exact_coefficients(ZERO, t)
    z_t = add_noise(z_0, eps, c)
    assert torch.equal(z_t, eps)
    output = target(z_0, eps, c, prediction)
    z_0_hat, eps_hat = estimates(output, z_t, c, prediction)
    assert torch.equal(z_0_hat, z_0)
    assert torch.equal(eps_hat, eps)


@pytest.mark.parametrize("prediction", ON_TABLE)
def test_copying_is_the_output_that_stands_for_the_source(prediction):
    schedule = PLAIN if prediction is Prediction.eps else ZERO
    t = torch.tensor([0, 370, 998, 999])
    z_0, z_source = latents(4, 0), latents(4, 2)
    c = schedule.at(t)
    z_t = add_noise(z_0, latents(4, 1), c)
    predict = with_source(copying(z_source, schedule, prediction), z_source, prediction)
    z_0_hat, _ = estimates(predict(z_t, t), z_t, c, prediction)
    # coefficients are float32, and sigma = 0.03 is divided by
    torch.testing.assert_close(z_0_hat, z_source, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", [PLAIN, ZERO])
def test_noising_and_velocity_are_those_of_diffusers(schedule):
    theirs = DDPMScheduler(
        beta_start=8.5e-4,
        beta_end=1.2e-2,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=schedule.has_zero_terminal_snr,
    )
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    their_t = cast(torch.IntTensor, t)  # they annotate IntTensor and index with any integers
    z_0, eps = latents(len(t), 0, torch.float32), latents(len(t), 1, torch.float32)
    c = schedule.at(t)
    # their tables are a float32 product of up to 1000 factors; near alpha = 0 its square root
    # turns an error of 1e-7 into one of 2e-4
    tolerance = {"rtol": 0, "atol": 3e-4}
    torch.testing.assert_close(
        add_noise(z_0, eps, c), theirs.add_noise(z_0, eps, their_t), **tolerance
    )
    torch.testing.assert_close(
        target(z_0, eps, c, Prediction.v), theirs.get_velocity(z_0, eps, their_t), **tolerance
    )


def test_noise_prediction_with_zero_terminal_snr_is_refused():
    message = (
        r"model\.prediction='eps' cannot be used with a zero-terminal-SNR schedule "
        r"\(alpha\[T-1\] = 0\); set model\.prediction: v, or model\.zero_terminal_snr: false"
    )
    with pytest.raises(InputError, match=message):
        check(Prediction.eps, ZERO)


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [
        (Prediction.eps, PLAIN),
        (Prediction.v, ZERO),
        (Prediction.z0, ZERO),
        (Prediction.change, ZERO),
    ],
)
def test_every_other_pair_is_allowed(prediction, schedule):
    check(prediction, schedule)


def test_the_change_is_added_to_the_source():
    z_source, change = latents(2, 0), latents(2, 1)
    predict = with_source(lambda _z_t, _t: change, z_source, Prediction.change)
    z_0 = predict(latents(2, 2), torch.tensor([1, 2]))
    assert torch.equal(z_0, z_source + change)


@pytest.mark.parametrize("prediction", [Prediction.eps, Prediction.v, Prediction.z0])
def test_other_predictions_do_not_touch_the_source(prediction):
    def predict(z_t: torch.Tensor, _t: torch.Tensor) -> torch.Tensor:
        return z_t

    assert with_source(predict, latents(2, 0), prediction) is predict
