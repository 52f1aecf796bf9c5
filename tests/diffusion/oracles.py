"""Denoisers whose answer is known exactly, for the tests of losses and samplers."""

import torch
from torch import Tensor

from emu_edit.diffusion.prediction import Predict, Prediction, target
from emu_edit.diffusion.schedule import Coefficients, Schedule

ON_TABLE = [p for p in Prediction if p is not Prediction.flow]
ON_PATH = [Prediction.z0, Prediction.change, Prediction.flow]


def exact_coefficients(schedule: Schedule, t: Tensor) -> Coefficients:
    """In float64, where `schedule.at` gives float32."""
    levels = [schedule.level(each) for each in t.tolist()]
    both = [[level.alpha for level in levels], [level.sigma for level in levels]]
    alpha, sigma = torch.tensor(both, dtype=torch.float64).view(2, -1, 1, 1, 1).unbind(0)
    return Coefficients(alpha, sigma)


def perfect(z_0: Tensor, schedule: Schedule, prediction: Prediction) -> Predict:
    """A denoiser that knows the only image there is."""

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        c = exact_coefficients(schedule, t)
        eps = (z_t - c.alpha * z_0) / c.sigma
        return target(z_0, eps, c, prediction).to(z_t.dtype)

    return predict


def gaussian(mean: float, std: float, schedule: Schedule, prediction: Prediction) -> Predict:
    """The best denoiser for data N(mean, std²): z_0_hat is the posterior mean, linear in z_t."""

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        c = exact_coefficients(schedule, t)
        gain = c.alpha * std**2 / (c.alpha**2 * std**2 + c.sigma**2)
        z_0 = mean + gain * (z_t - c.alpha * mean)
        return target(z_0, (z_t - c.alpha * z_0) / c.sigma, c, prediction).to(z_t.dtype)

    return predict
