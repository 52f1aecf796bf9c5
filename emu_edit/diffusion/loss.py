"""The training error: noise a clean latent, ask the network, compare; one number per sample.

Weights of noise levels are applied elsewhere (`weighting`), so that the plain error can be logged.
"""

from jaxtyping import Float, Int64
from torch import Tensor

from emu_edit.diffusion.prediction import Predict, Prediction, add_noise, target
from emu_edit.diffusion.schedule import NoiseSchedule


def denoising_error(
    predict: Predict,
    z_0: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
    t: Int64[Tensor, " b"],
    *,
    schedule: NoiseSchedule,
    prediction: Prediction,
    region: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Return the mean squared error of each sample in the space the network predicts.

    error = mean_{c,h,w} |predict(alpha z_0 + sigma eps, t) - target|²

    A network that predicts the change comes wrapped in `with_source`; its error is that of z_0.

    `region` weights latent cells (>= 0): the mean becomes a weighted mean, 0 where nothing has
    weight.
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14; Emu Edit, arXiv:2311.10089, eq. 2, with the
    task bound in `predict`.
    """
    coefficients = schedule.at(t)
    output = predict(add_noise(z_0, eps, coefficients), t)
    squared = (output - target(z_0, eps, coefficients, prediction)).square()
    if region is None:
        return squared.flatten(1).mean(1)
    weight = region.flatten(1).sum(1) * squared.shape[1]
    tiny = 1e-12  # keeps an empty region at 0 instead of 0 / 0
    return (squared * region).flatten(1).sum(1) / weight.clamp(min=tiny)
