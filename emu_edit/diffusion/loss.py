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
    huber_c: float | None = None,
) -> Float[Tensor, " b"]:
    """Return the mean error of each sample in the space the network predicts.

    error = mean_{c,h,w} d², or with `huber_c` mean_{c,h,w} 2c (sqrt(d² + c²) - c),
    d = predict(alpha z_0 + sigma eps, t) - target

    The second, pseudo-Huber, is the first where |d| is far below c, and 2c |d| far above: the right
    answer is then the median and not the mean of what may be, so what should stay stays exactly.

    A network that predicts the change comes wrapped in `with_source`; its error is that of z_0.

    `region` weights latent cells (>= 0): the mean becomes a weighted mean, 0 where nothing has
    weight.
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14; Emu Edit, arXiv:2311.10089, eq. 2, with the
    task bound in `predict`. Pseudo-Huber as in Song & Dhariwal 2023, arXiv:2310.14189, section 3.3,
    for each element; the factor 2c as in Khrapov et al. 2024, arXiv:2403.16728.
    """
    coefficients = schedule.at(t)
    output = predict(add_noise(z_0, eps, coefficients), t)
    squared = (output - target(z_0, eps, coefficients, prediction)).square()
    if huber_c is not None:
        # in float32: under bf16 the difference of two near numbers would be lost
        squared = 2 * huber_c * ((squared.float() + huber_c**2).sqrt() - huber_c)
    if region is None:
        return squared.flatten(1).mean(1)
    weight = region.flatten(1).sum(1) * squared.shape[1]
    tiny = 1e-12  # keeps an empty region at 0 instead of 0 / 0
    return (squared * region).flatten(1).sum(1) / weight.clamp(min=tiny)
