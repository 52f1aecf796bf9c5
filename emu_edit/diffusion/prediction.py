"""What the network's output means, and the conversions between the meanings.

Noise eps, velocity v, clean latent z0, or the change of the source; z_t is known, so each gives the
others:
    z_t = alpha z_0 + sigma eps        v = alpha eps - sigma z_0
    z_0 = alpha z_t - sigma v          eps = sigma z_t + alpha v
`change` becomes z0 at one place, `with_source`; everything after it treats the two alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


# diffusers' `prediction_type`; for `change` it holds once the source latents are added
DIFFUSERS_NAMES = {
    Prediction.eps: "epsilon",
    Prediction.v: "v_prediction",
    Prediction.z0: "sample",
    Prediction.change: "sample",
}
# a model directory of this project says which of the two a `sample` is
MEANT = {
    **{DIFFUSERS_NAMES[one]: one for one in (Prediction.eps, Prediction.v, Prediction.z0)},
    **{one.name: one for one in Prediction},
}


@dataclass(frozen=True)
class TrainedAs:
    """What weights were trained for, as the diffusers scheduler config beside them says.

    Attributes:
        where: that file, or where it was looked for, in messages.
        config: its entries; empty where there is no such file.
    """

    where: str
    config: Mapping[str, object]

    def schedule(self, *, zero_terminal_snr: bool) -> NoiseSchedule:
        """Return the noise schedule of these betas, its end as asked; ours where none are told.

        Raises:
            InputError: if the betas are no scaled-linear ramp.
        """
        if not self.config:
            return NoiseSchedule.scaled_linear(zero_terminal_snr=zero_terminal_snr)
        try:
            return NoiseSchedule.from_config({
                **self.config,
                "rescale_betas_zero_snr": zero_terminal_snr,
            })
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error

    def contradiction(self, prediction: Prediction, schedule: NoiseSchedule) -> str | None:
        """Say in one line how the weights are to be read otherwise than trained; None if they are.

        Raises:
            InputError: if the config names a prediction type that nobody here knows.
        """
        ends = schedule.has_zero_terminal_snr
        read = f"model.prediction {prediction.name}, model.zero_terminal_snr {ends}".lower()
        if not self.config:
            return (
                f"{self.where} is missing, so nothing says what the base predicts; read as {read}"
            )
        said = self.config.get("prediction_type", "epsilon")  # as in diffusers' schedulers
        meant = MEANT.get(str(said))
        if meant is None:
            raise InputError(
                f"{self.where} has prediction_type {said!r}, needs one of {', '.join(MEANT)}"
            )
        ended = bool(self.config.get("rescale_betas_zero_snr", False))
        if (meant, ended) == (prediction, ends):
            return None
        own = f"--model.prediction {meant.name} --model.zero_terminal_snr {ended}".lower()
        return (
            f"{self.where}: the base was trained with prediction_type {said!r} and "
            f"rescale_betas_zero_snr {str(ended).lower()}, here it is read as {read}, so training "
            f"has to turn it first; to go on as it is: {own}"
        )


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


def check_type(config: Mapping[str, object], prediction: Prediction) -> None:
    """Refuse a scheduler config that says another prediction than the model it belongs to.

    Raises:
        InputError: with both.
    """
    name = DIFFUSERS_NAMES[prediction]
    if (said := config.get("prediction_type", name)) != name:
        raise InputError(
            f"prediction_type is {said!r}, model_index.json says prediction {prediction.name}, "
            f"which needs {name!r}; export the model again"
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


def estimates(
    output: Float[Tensor, "b c h w"],
    z_t: Float[Tensor, "b c h w"],
    coefficients: Coefficients,
    prediction: Prediction,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Return the clean latent and the noise that an output stands for, z_0_hat and eps_hat.

    eps: (z_t - sigma output) / alpha, infinite at alpha = 0;  output
    v: alpha z_t - sigma output;  sigma z_t + alpha output
    z0, change: output;  (z_t - alpha output) / sigma
    """
    alpha, sigma = coefficients.alpha, coefficients.sigma
    match prediction:
        case Prediction.eps:
            return (z_t - sigma * output) / alpha, output
        case Prediction.v:
            return alpha * z_t - sigma * output, sigma * z_t + alpha * output
        case Prediction.z0 | Prediction.change:
            return output, (z_t - alpha * output) / sigma


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
    return lambda z_t, t: z_source + predict(z_t, t)
