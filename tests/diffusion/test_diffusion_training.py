import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from emu_edit.diffusion.prediction import Prediction, target
from emu_edit.diffusion.schedule import NoiseSchedule, trailing_timesteps, uniform_timesteps
from emu_edit.diffusion.weighting import Weighting, denoising_error, loss_weight, region_weights
from emu_edit.errors import InputError
from tests.diffusion.oracles import ON_TABLE, perfect

PLAIN = NoiseSchedule.scaled_linear(zero_terminal_snr=False)
ZERO = NoiseSchedule.scaled_linear()


def latents(b: int, seed: int) -> torch.Tensor:
    return torch.randn(b, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_even_numbers_give_every_training_step_equally_often():
    u = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    counts = torch.bincount(uniform_timesteps(u, 1000), minlength=1000)
    assert counts.tolist() == [3] * 1000


def test_the_largest_float_below_one_stays_inside_the_schedule():
    u = torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0]))
    # 2**24 - 1 steps: the product rounds up to 2**24 - 1 in float32
    assert uniform_timesteps(u, 1000).tolist() == [999]
    assert uniform_timesteps(u, 2**24).item() < 2**24


@given(st.integers(1, 1000))
def test_trailing_spacing_starts_at_the_noisiest_step_and_descends(num_steps):
    t = trailing_timesteps(1000, num_steps)
    assert len(t) == num_steps
    assert t[0] == 999
    assert t[-1] >= 0
    assert (t.diff() < 0).all()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 20, 30, 50, 100, 333, 999, 1000])
def test_trailing_spacing_is_that_of_diffusers(num_steps):
    theirs = DDIMScheduler(timestep_spacing="trailing")
    theirs.set_timesteps(num_steps)
    assert trailing_timesteps(1000, num_steps).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_a_number_of_sampling_steps_out_of_range_is_refused(num_steps):
    with pytest.raises(InputError, match=rf"num_steps must be 1 to 1000.*got {num_steps}$"):
        trailing_timesteps(1000, num_steps)


@pytest.mark.parametrize("prediction", ON_TABLE)
def test_uniform_weights_are_one(prediction):
    t = torch.tensor([0, 500, 999])
    assert loss_weight(Weighting.uniform, t, PLAIN, prediction).tolist() == [1, 1, 1]


@pytest.mark.parametrize("prediction", ON_TABLE)
def test_min_snr_weights_follow_the_paper(prediction):
    t = torch.arange(1000)
    snr = PLAIN.snr
    capped = torch.minimum(snr, torch.tensor(5.0))
    expected = {
        Prediction.eps: capped / snr,
        Prediction.v: capped / (snr + 1),
        Prediction.z0: capped,
        Prediction.change: capped,
    }[prediction]
    weight = loss_weight(Weighting.min_snr, t, PLAIN, prediction)
    # float32 tables squared: a few roundings of 6e-8
    torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=0)


def test_one_plus_min_snr_keeps_teaching_the_noisiest_step():
    t = torch.tensor([0, 999])
    for prediction in (Prediction.z0, Prediction.change):
        weight = loss_weight(Weighting.one_plus_min_snr, t, ZERO, prediction)
        assert weight.tolist() == [6, 1]
    assert loss_weight(Weighting.one_plus_min_snr, t, ZERO, Prediction.v)[1] == 1


@pytest.mark.parametrize(
    ("weighting", "prediction"),
    [
        (weighting, prediction)
        for weighting in Weighting
        for prediction in ON_TABLE
        if (weighting, prediction) != (Weighting.one_plus_min_snr, Prediction.eps)  # refused, below
    ],
)
def test_weights_are_finite_where_nothing_but_noise_is_left(weighting, prediction):
    weight = loss_weight(weighting, torch.tensor([999]), ZERO, prediction)
    assert weight.isfinite().all()
    assert (weight >= 0).all()


def test_gamma_caps_the_weight():
    t = torch.tensor([0])
    assert loss_weight(Weighting.min_snr, t, PLAIN, Prediction.z0, gamma=2.0).item() == 2


def test_one_plus_min_snr_with_noise_prediction_is_refused():
    with pytest.raises(InputError, match=r"one_plus_min_snr' cannot be used with .*='eps'"):
        loss_weight(Weighting.one_plus_min_snr, torch.tensor([1]), PLAIN, Prediction.eps)


@pytest.mark.parametrize("prediction", [Prediction.eps, Prediction.v])
def test_weights_in_any_space_weigh_the_same_error_of_the_image(prediction):
    """An error d of z_0 is |d| alpha / sigma in eps and |d| / sigma in v: weight x error agrees."""
    t = torch.tensor([600])
    c = PLAIN.at(t)
    growth = {Prediction.eps: c.alpha / c.sigma, Prediction.v: 1 / c.sigma}[prediction].square()
    here = loss_weight(Weighting.min_snr, t, PLAIN, prediction) * growth.flatten()
    there = loss_weight(Weighting.min_snr, t, PLAIN, Prediction.z0)
    torch.testing.assert_close(here, there, rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", [Prediction.v, Prediction.z0, Prediction.change])
def test_a_perfect_network_has_no_error(prediction):
    z_0, eps, t = latents(3, 0), latents(3, 1), torch.tensor([1, 500, 999])
    error = denoising_error(
        perfect(z_0.double(), ZERO, prediction), z_0, eps, t, schedule=ZERO, prediction=prediction
    )
    # recovering eps divides a float32 z_t by sigma = 0.04 at the first step
    torch.testing.assert_close(error, torch.zeros(3), rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", ON_TABLE)
def test_the_error_of_a_silent_network_is_the_mean_square_of_the_target(prediction):
    z_0, eps, t = latents(3, 0), latents(3, 1), torch.tensor([1, 500, 999])
    error = denoising_error(
        lambda z_t, _t: torch.zeros_like(z_t),
        z_0,
        eps,
        t,
        schedule=PLAIN,
        prediction=prediction,
    )
    expected = target(z_0, eps, PLAIN.at(t), prediction).square().mean((1, 2, 3))
    torch.testing.assert_close(error, expected)


@pytest.mark.parametrize("c", [0.01, 0.5])
def test_pseudo_huber_is_the_square_of_small_errors_and_the_size_of_large_ones(c):
    z_0, eps, t = torch.zeros(4, 2, 4, 4), latents(4, 1), torch.tensor([5, 5, 5, 5])
    off = torch.tensor([0.0, 1e-3 * c, c, 1e3 * c])
    error = denoising_error(
        lambda _z_t, _t: off[:, None, None, None].expand(4, 2, 4, 4),
        z_0,
        eps,
        t,
        schedule=ZERO,
        prediction=Prediction.z0,
        huber_c=c,
    )
    small, middle, large = (1e-3 * c) ** 2, 2 * c**2 * (2**0.5 - 1), 2 * c * (1e3 * c)
    assert error[0] == 0
    assert error[1].item() == pytest.approx(small, rel=0.2)  # float32 at one in a million
    assert error[2].item() == pytest.approx(middle, rel=1e-4)
    assert error[3].item() == pytest.approx(large, rel=2e-3)


def test_the_network_is_shown_the_noisy_latent_and_its_step():
    z_0, eps, t = latents(2, 0), latents(2, 1), torch.tensor([3, 700])
    seen = []

    def predict(z_t: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        seen.append((z_t, step))
        return z_t

    denoising_error(predict, z_0, eps, t, schedule=ZERO, prediction=Prediction.v)
    ((z_t, step),) = seen
    c = ZERO.at(t)
    assert torch.equal(z_t, c.alpha * z_0 + c.sigma * eps)
    assert torch.equal(step, t)


def test_a_region_counts_only_the_error_inside_it():
    z_0, eps, t = torch.zeros(3, 2, 4, 4), latents(3, 1), torch.tensor([5, 5, 5])
    output = torch.zeros(3, 2, 4, 4)
    output[:, :, :, 2:] = 3.0  # an error of 9 in the right half
    region = torch.zeros(3, 1, 4, 4)
    region[0, :, :, 2:] = 1
    region[1, :, :, :2] = 1  # row 2 has an empty region
    error = denoising_error(
        lambda _z_t, _t: output,
        z_0,
        eps,
        t,
        schedule=ZERO,
        prediction=Prediction.z0,
        region=region,
    )
    assert error.tolist() == [9, 0, 0]


def test_a_region_of_ones_is_the_plain_mean():
    z_0, eps, t = latents(2, 0), latents(2, 1), torch.tensor([5, 800])

    def error(region: torch.Tensor | None) -> torch.Tensor:
        return denoising_error(
            lambda z_t, _t: 0.5 * z_t,
            z_0,
            eps,
            t,
            schedule=ZERO,
            prediction=Prediction.v,
            region=region,
        )

    torch.testing.assert_close(error(torch.ones(2, 1, 4, 4)), error(None))


def test_the_training_step_runs_without_reading_a_value_from_the_device():
    """On the meta device nothing has a value, so any host synchronisation would raise."""
    t = uniform_timesteps(torch.rand(4, device="meta"), 1000)
    z = torch.zeros(4, 2, 4, 4, device="meta")
    error = denoising_error(
        lambda z_t, _t: z_t, z, z, t, schedule=ZERO, prediction=Prediction.change
    )
    weight = loss_weight(Weighting.one_plus_min_snr, t, ZERO, Prediction.change)
    assert (weight * error).mean().device.type == "meta"


def test_region_weights_are_those_computed_by_hand():
    """Cells of 2x2 pixels; the mask covers one cell, half of another, and a quarter of a third."""
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2, :2] = True
    mask[:, :2, 2] = True
    mask[:, 2, 0] = True
    has_mask = torch.tensor([True, False])
    weights = region_weights(mask, has_mask, (2, 2), 5.0)
    assert weights.flatten(1).tolist() == [[5, 3, 2, 1], [1, 1, 1, 1]]


def test_the_error_with_region_weights_is_the_weighted_mean_computed_by_hand():
    z_0, eps, t = torch.zeros(3, 2, 2, 2), torch.zeros(3, 2, 2, 2), torch.tensor([5, 5, 5])
    output = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(3, 2, 2, 2)  # errors 1, 4, 9, 16
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[0, 2:, 2:] = True  # the cell whose error is 16
    mask[1] = True
    region = region_weights(mask, torch.tensor([True, True, True]), (2, 2), 3.0)
    error = denoising_error(
        lambda _z_t, _t: output,
        z_0,
        eps,
        t,
        schedule=ZERO,
        prediction=Prediction.z0,
        region=region,
    )
    # (1 + 4 + 9 + 3 * 16) / (1 + 1 + 1 + 3); a mask everywhere, or nowhere, changes nothing
    assert error.tolist() == pytest.approx([62 / 6, 7.5, 7.5])


def test_region_weights_of_huber_errors_count_the_same_cells():
    z_0, eps, t = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), torch.tensor([5])
    output = torch.zeros(1, 2, 2, 2)
    output[..., 1, 1] = 3.0
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 1, 1] = True
    errors = [
        denoising_error(
            lambda _z_t, _t: output,
            z_0,
            eps,
            t,
            schedule=ZERO,
            prediction=Prediction.z0,
            region=region,
            huber_c=0.5,
        ).item()
        for region in (None, region_weights(mask, torch.tensor([True]), (2, 2), 3.0))
    ]
    assert errors[1] == pytest.approx(errors[0] * 4 * 3 / 6)
