"""Score distillation, K-bin times and hinge losses against worked values and autograd."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from emu_edit.diffusion.distillation import (
    judged_drawn,
    judged_real,
    k_bin_times,
    score_distillation,
)
from emu_edit.diffusion.prediction import Prediction, add_noise, estimates
from emu_edit.diffusion.samplers import sample
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.diffusion.windows import towards
from emu_edit.errors import InputError


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=12))
def test_one_time_of_every_bin_noisiest_first(u: list[float]) -> None:
    k, num_steps = len(u), 100
    times = k_bin_times(u, num_steps)
    assert times[0] == num_steps - 1
    assert all(before > after for before, after in pairwise(times))
    bins = [num_steps * j // k for j in range(k + 1)]
    for i, t in enumerate(times):
        assert bins[k - 1 - i] <= t < bins[k - i]


def test_times_cover_their_bins_evenly() -> None:
    drawn = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0))
    second = torch.tensor([k_bin_times(u, 90)[1] for u in drawn.tolist()])
    assert set(second.tolist()) == set(range(30, 60))
    assert float(second.bincount(minlength=60)[30:60].float().std()) < 3 * 10  # of 100 in the mean
    with pytest.raises(InputError, match="1 to 90 steps, got 91"):
        k_bin_times([0.5] * 91, 90)


def test_the_gradient_is_the_papers_and_zero_where_the_teacher_returns_the_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    schedule = NoiseSchedule.scaled_linear(100)
    drawn = torch.randn(2, 3, 4, 4, generator=generator, requires_grad=True)
    eps = torch.randn(2, 3, 4, 4, generator=generator)
    level = schedule.at(torch.tensor([30, 80]))
    z_t = add_noise(drawn.detach(), eps, level)
    # the teacher that returns the noise
    z_0, _ = estimates(eps, z_t, level, Prediction.eps)
    (gradient,) = torch.autograd.grad(score_distillation(drawn, z_0).sum(), drawn)
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)
    # any other: c(t) (eps_hat - eps) with c = sigma / alpha, over the numbers of a sample
    eps_hat = torch.randn(2, 3, 4, 4, generator=generator)
    z_0, _ = estimates(eps_hat, z_t, level, Prediction.eps)
    (gradient,) = torch.autograd.grad(score_distillation(drawn, z_0).sum(), drawn)
    expected = level.sigma / level.alpha * (eps_hat - eps) / (3 * 4 * 4)
    assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_judges_and_student_want_the_opposite() -> None:
    real, drawn = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0], requires_grad=True)
    assert judged_real(real, drawn).item() == pytest.approx(0.25 + 0.5)
    (gradient,) = torch.autograd.grad(judged_drawn(drawn), drawn)
    assert gradient.tolist() == [-0.5, -0.5]  # also where the judge is sure, unlike as printed


def test_a_video_is_led_to_what_is_known_for_the_first_steps() -> None:
    generator = torch.Generator().manual_seed(2)
    schedule = NoiseSchedule.scaled_linear(100)
    noise, known = torch.randn(1, 8, 2, 2, generator=generator), torch.ones(1, 2, 2, 2, 2)
    calls = []

    def predict(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(int(t[0]))
        return torch.zeros_like(z_t)

    led = towards(predict, known, schedule=schedule, prediction=Prediction.z0, steps=3)
    found = sample(led, noise, schedule=schedule, prediction=Prediction.z0, num_steps=3)
    assert_close(found, torch.ones_like(found))  # the mean of what is missing goes to all
    led = towards(predict, known, schedule=schedule, prediction=Prediction.z0, steps=2)
    found = sample(led, noise, schedule=schedule, prediction=Prediction.z0, num_steps=3)
    assert_close(found, torch.zeros_like(found))  # the last step is the network's own
    assert len(calls) == 6
    # v stands for the same z0
    v = towards(
        lambda z_t, t: (
            -schedule.at(t).sigma * 0 + schedule.at(t).alpha / schedule.at(t).sigma * z_t
        ),
        known,
        schedule=schedule,
        prediction=Prediction.v,
        steps=1,
    )
    t = torch.tensor([60])
    level = schedule.at(t)
    z_0, eps = estimates(v(noise, t), noise, level, Prediction.v)
    assert_close(z_0[:, :4], known.flatten(1, 2), atol=1e-5, rtol=1e-5)
    assert_close(add_noise(z_0, eps, level), noise, atol=1e-5, rtol=1e-5)
