"""What the network's output means, and the conversions between the meanings.

Noise eps, velocity v, clean latent z0, the change of the source, or the direction of flow; z_t is
known, so each gives the others. Where alpha² + sigma² = 1:
    z_t = alpha z_0 + sigma eps        v = alpha eps - sigma z_0
    z_0 = alpha z_t - sigma v          eps = sigma z_t + alpha v
and on the linear path, where alpha + sigma = 1:
    z_t = alpha z_0 + sigma eps        flow = eps - z_0
    z_0 = z_t - sigma flow             eps = z_t + alpha flow
`change` becomes z0 at one place, `with_source`; everything after it treats the two alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float, Real
from torch import Tensor

from emu_edit.diffusion.flow import CLASS, FlowSchedule, is_flow
from emu_edit.diffusion.schedule import Coefficients, NoiseSchedule, Schedule
from emu_edit.errors import InputError

Predict = Callable[[Float[Tensor, "b c h w"], Real[Tensor, " b"]], Float[Tensor, "b c h w"]]
"""The seam between networks and maths: predict(z_t, t) -> output, with conditions bound inside.

`t` are times of the schedule: int64 steps of a table, float32 on the linear path."""


class Prediction(Enum):
    """What a network outputs; `change` means z_0_hat = z_source + output (ours).

    z0 and change go with every schedule, eps and v with the table, flow with the linear path.
    """

    eps = "eps"
    v = "v"
    z0 = "z0"
    change = "change"
    flow = "flow"


# diffusers' `prediction_type`; for `change` it holds once the source latents are added
DIFFUSERS_NAMES = {
    Prediction.eps: "epsilon",
    Prediction.v: "v_prediction",
    Prediction.z0: "sample",
    Prediction.change: "sample",
    Prediction.flow: "flow_prediction",
}
# a model directory of this project says which of the two a `sample` is
MEANT = {
    **{DIFFUSERS_NAMES[one]: one for one in Prediction if one is not Prediction.change},
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

    @property
    def said(self) -> object:
        """The prediction type that the config names; without one, that of its scheduler's class."""
        usual = Prediction.flow if is_flow(self.config) else Prediction.eps
        return self.config.get("prediction_type", DIFFUSERS_NAMES[usual])

    @property
    def prediction(self) -> Prediction:
        """What the weights predict; eps where nothing is told, as in diffusers.

        Raises:
            InputError: if the config names a prediction type that nobody here knows.
        """
        if (meant := MEANT.get(str(self.said))) is None:
            raise InputError(
                f"{self.where} has prediction_type {self.said!r}, needs one of {', '.join(MEANT)}"
            )
        return meant

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether their schedule ends in noise alone; the linear path always does."""
        return is_flow(self.config) or bool(self.config.get("rescale_betas_zero_snr", False))

    def schedule(
        self,
        prediction: Prediction,
        flow: FlowSchedule | None = None,
        *,
        zero_terminal_snr: bool,
    ) -> Schedule:
        """Return the schedule to read the weights with; ours where the config tells none.

        It is the linear path where `flow` is given, or predicted (then of these shifts); else the
        table of these betas, its end as asked.

        Raises:
            InputError: if the betas are no scaled-linear ramp, the shifts cannot be read, or the
                linear path is to end otherwise than in noise alone.
        """
        is_linear = flow is not None or prediction is Prediction.flow
        if is_linear and not zero_terminal_snr:
            raise InputError(
                "model.zero_terminal_snr=false is for tables of steps; the linear path of "
                "model.prediction: flow and of model.flow always ends in noise alone: leave it out"
            )
        if flow is not None:
            return flow
        is_told = bool(self.config) and is_flow(self.config) == is_linear
        try:
            if is_linear:
                return FlowSchedule.from_config(self.config) if is_told else FlowSchedule()
            if not is_told:
                return NoiseSchedule.scaled_linear(zero_terminal_snr=zero_terminal_snr)
            return NoiseSchedule.from_config({
                **self.config,
                "rescale_betas_zero_snr": zero_terminal_snr,
            })
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error

    def contradiction(self, prediction: Prediction, schedule: Schedule) -> str | None:
        """Say in one line how the weights are to be read otherwise than trained; None if they are.

        Raises:
            InputError: if the config names a prediction type that nobody here knows.
        """
        linear = isinstance(schedule, FlowSchedule)
        ends = schedule.has_zero_terminal_snr
        read = " ".join(_options(prediction, ends, linear=linear)).replace(" model", ", model")
        if not self.config:
            return (
                f"{self.where} is missing, so nothing says what the base predicts; read as {read}"
            )
        meant, ended, was_linear = self.prediction, self.zero_terminal_snr, is_flow(self.config)
        if (meant, ended, was_linear) == (prediction, ends, linear):
            return None
        told = f"rescale_betas_zero_snr {str(ended).lower()}"
        own = " ".join(f"--{option}" for option in _options(meant, ended, linear=was_linear))
        return (
            f"{self.where}: the base was trained with prediction_type {self.said!r} and "
            f"{CLASS if was_linear else told}, here it is read as {read}, so training "
            f"has to turn it first; to go on as it is: {own}"
        )


def _options(prediction: Prediction, ends: bool, *, linear: bool) -> list[str]:
    """Return the options with which a training reads weights so."""
    own = f"model.prediction {prediction.name}"
    if not linear:
        return [own, f"model.zero_terminal_snr {ends}".lower()]
    # `flow` alone says which path, the others go with both
    return [own] if prediction is Prediction.flow else [own, "model.flow.shift 1"]


def check(prediction: Prediction, schedule: Schedule) -> None:
    """Refuse a prediction with a schedule that it does not go with.

    Noise says nothing about z_0 where the latent is nothing but noise; the velocity is that of a
    schedule with alpha² + sigma² = 1, the flow that of the linear path.

    Raises:
        InputError: for eps with zero terminal SNR, eps or v on the linear path, or flow with a
            table.
    """
    linear = isinstance(schedule, FlowSchedule)
    if linear and prediction in {Prediction.eps, Prediction.v}:
        raise InputError(
            f"model.prediction={prediction.name!r} does not go with the linear path; set "
            "model.prediction: flow (z0 and change go, too), or leave model.flow out"
        )
    if prediction is Prediction.flow and not linear:
        raise InputError(
            "prediction 'flow' is of the linear path, the schedule is a table; give its scheduler "
            f"as {CLASS}, or another prediction"
        )
    if prediction is Prediction.eps and schedule.has_zero_terminal_snr:
        raise InputError(
            "model.prediction='eps' cannot be used with a zero-terminal-SNR schedule "
            "(alpha[T-1] = 0); set model.prediction: v, or model.zero_terminal_snr: false"
        )


def scheduler_config(prediction: Prediction, schedule: Schedule) -> dict[str, object]:
    """Return the `scheduler_config.json` of diffusers for a model of ours.

    A flow is what diffusers' scheduler of the linear path is always given, so it is not told.
    """
    if prediction is Prediction.flow:
        return {**schedule.to_config()}
    return {**schedule.to_config(), "prediction_type": DIFFUSERS_NAMES[prediction]}


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

    Source: v = alpha eps - sigma z_0 is Salimans & Ho 2022, arXiv:2202.00512, appendix D; flow =
    eps - z_0 as in diffusers, Lipman et al. 2023, arXiv:2210.02747, with time turned round.
    """
    match prediction:
        case Prediction.eps:
            return eps
        case Prediction.v:
            return coefficients.alpha * eps - coefficients.sigma * z_0
        case Prediction.z0 | Prediction.change:
            return z_0
        case Prediction.flow:
            return eps - z_0


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
    flow: z_t - sigma output;  z_t + alpha output
    """
    alpha, sigma = coefficients.alpha, coefficients.sigma
    match prediction:
        case Prediction.eps:
            return (z_t - sigma * output) / alpha, output
        case Prediction.v:
            return alpha * z_t - sigma * output, sigma * z_t + alpha * output
        case Prediction.z0 | Prediction.change:
            return output, (z_t - alpha * output) / sigma
        case Prediction.flow:
            return z_t - sigma * output, z_t + alpha * output


def copying(
    z_source: Float[Tensor, "b c h w"], schedule: Schedule, prediction: Prediction
) -> Predict:
    """Return the network that takes the source for z_0: what a trained one is compared with.

    change: 0;  otherwise `target` for z_0 = z_source and the noise that is then in z_t
    """

    def predict(z_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        if prediction is Prediction.change:
            return torch.zeros_like(z_source)
        coefficients = schedule.at(t)
        _, eps_hat = estimates(z_source, z_t, coefficients, Prediction.z0)
        return target(z_source, eps_hat, coefficients, prediction)

    return predict


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
