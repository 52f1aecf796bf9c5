"""What the network's output means, and the conversions between the meanings.

Noise eps, velocity v, clean latent z0, or the change of the source: each is the others in disguise,
as z_t is known.
    z_t = alpha z_0 + sigma eps        v = alpha eps - sigma z_0
    z_0 = alpha z_t - sigma v          eps = sigma z_t + alpha v
`change` becomes z0 at one place, `with_source`; everything after it treats the two alike.
"""

from collections.abc import Callable
from enum import Enum

from jaxtyping import Float, Int64
from torch import Tensor

from emu_edit.diffusion.schedule import Coefficients, NoiseSchedule
from emu_edit.errors import InputError

Predict = Callable[[Float[Tensor, "b c h w"], Int64[Tensor, " b"]], Float[Tensor, "b c h w"]]
"""The seam between networks and maths: predict(z_t, t) -> output, with conditions bound inside."""


class Prediction(Enum):
    """What a network outputs; `change` means z_0_hat = z_source + output (ours)."""

    eps = "eps"
    v = "v"
    z0 = "z0"
    change = "change"


def check(prediction: Prediction, schedule: NoiseSchedule) -> None:
    """Refuse noise prediction where the latent is nothing but noise: it says nothing about z_0.

    Raises:
        InputError: for eps on a schedule with zero terminal SNR.
    """
    if prediction is Prediction.eps and schedule.has_zero_terminal_snr:
        raise InputError(
            "model.prediction='eps' cannot be used with a zero-terminal-SNR schedule "
            "(alpha[T-1] = 0); set model.prediction: v, or model.zero_terminal_snr: false"
        )


def add_noise(
    z_0: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], coefficients: Coefficients
) -> Float[Tensor, "b c h w"]:
    """Draw the noisy latent.

    z_t = alpha z_0 + sigma eps

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 4.
    """
    return coefficients.alpha * z_0 + coefficients.sigma * eps


def target(
    z_0: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
    coefficients: Coefficients,
    prediction: Prediction,
) -> Float[Tensor, "b c h w"]:
    """Return the output a perfect network would give (for `change`: after `with_source`).

    Source: v = alpha eps - sigma z_0 is Salimans & Ho 2022, arXiv:2202.00512, appendix D.
    """
    match prediction:
        case Prediction.eps:
            return eps
        case Prediction.v:
            return coefficients.alpha * eps - coefficients.sigma * z_0
        case Prediction.z0 | Prediction.change:
            return z_0


def to_z0(
    output: Float[Tensor, "b c h w"],
    z_t: Float[Tensor, "b c h w"],
    coefficients: Coefficients,
    prediction: Prediction,
) -> Float[Tensor, "b c h w"]:
    """Return the clean latent an output stands for.

    eps: (z_t - sigma output) / alpha, infinite at alpha = 0
    v: alpha z_t - sigma output
    z0, change: output
    """
    match prediction:
        case Prediction.eps:
            return (z_t - coefficients.sigma * output) / coefficients.alpha
        case Prediction.v:
            return coefficients.alpha * z_t - coefficients.sigma * output
        case Prediction.z0 | Prediction.change:
            return output


def to_eps(
    output: Float[Tensor, "b c h w"],
    z_t: Float[Tensor, "b c h w"],
    coefficients: Coefficients,
    prediction: Prediction,
) -> Float[Tensor, "b c h w"]:
    """Return the noise an output stands for.

    eps: output
    v: sigma z_t + alpha output
    z0, change: (z_t - alpha output) / sigma
    """
    match prediction:
        case Prediction.eps:
            return output
        case Prediction.v:
            return coefficients.sigma * z_t + coefficients.alpha * output
        case Prediction.z0 | Prediction.change:
            return (z_t - coefficients.alpha * output) / coefficients.sigma


def with_source(
    predict: Predict, z_source: Float[Tensor, "b c h w"], prediction: Prediction
) -> Predict:
    """Make a network that predicts the change one that predicts z_0; return others as they are.

    z_0_hat = z_source + output

    `z_source` has a row for every row `predict` will get: zeros where the image is dropped, three
    stacked branches under guidance (so call this inside `guided`, not around it).
    Source: ours.
    """
    if prediction is not Prediction.change:
        return predict

    def predict_z0(
        z_t: Float[Tensor, "b c h w"], t: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        return z_source + predict(z_t, t)

    return predict_z0
