"""Where training looks hardest: noise levels (shift) and small changes (balance)."""

import pytest
import torch

from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule, shift_to_noise, uniform_timesteps
from emu_edit.diffusion.weighting import Weighting, change_balance, check_weighting
from emu_edit.errors import InputError


def test_shift_one_changes_nothing():
    u = torch.rand(64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shift_to_noise(u, 1.0), u, rtol=0, atol=0)


@pytest.mark.parametrize("shift", [2.0, 4.0, 20.0])
def test_shift_keeps_order_and_range_and_moves_the_median(shift):
    u = torch.linspace(0, 1 - 2**-24, 1001)
    shifted = shift_to_noise(u, shift)
    assert (shifted.diff() >= 0).all()
    assert shifted[0] == 0
    assert uniform_timesteps(shifted, 1000).max() == 999
    # the median of u' = s u / (1 + (s - 1) u) is s / (s + 1)
    torch.testing.assert_close(shifted[500].item(), shift / (shift + 1), rtol=1e-5, atol=0)


def test_shift_below_one_is_refused():
    with pytest.raises(InputError, match="timestep_shift must be at least 1"):
        shift_to_noise(torch.zeros(1), 0.5)


def test_power_zero_leaves_all_pairs_alike():
    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(change_balance(z, torch.zeros_like(z), 0.0), torch.ones(3))


def test_balance_is_the_power_of_the_mean_squared_change():
    z_source = torch.zeros(2, 1, 2, 2)
    z_0 = torch.zeros(2, 1, 2, 2)
    z_0[0, 0, 0, 0] = 2.0  # mean squared change 1
    z_0[1] = 2.0  # mean squared change 4
    expected = torch.tensor([(1 + 0.05) ** -0.5, (4 + 0.05) ** -0.5])
    torch.testing.assert_close(change_balance(z_0, z_source, 0.5), expected)


def test_an_unchanged_pair_has_a_bounded_factor():
    z = torch.ones(1, 1, 2, 2)
    torch.testing.assert_close(change_balance(z, z, 1.0), torch.tensor([20.0]))


@pytest.mark.parametrize("prediction", [Prediction.v, Prediction.z0, Prediction.change])
def test_min_snr_is_refused_where_it_would_never_train_the_first_sampling_step(prediction):
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    with pytest.raises(InputError, match="weight 0 to the last step"):
        check_weighting(Weighting.min_snr, prediction, schedule)
    check_weighting(
        Weighting.min_snr, prediction, NoiseSchedule.scaled_linear(zero_terminal_snr=False)
    )


def test_one_plus_min_snr_is_refused_for_eps():
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=False)
    with pytest.raises(InputError, match=r"cannot be used with .*='eps'"):
        check_weighting(Weighting.one_plus_min_snr, Prediction.eps, schedule)
