"""The error that training makes small, kept in a model's directory for whoever trains on it later.

A vector learnt with another weighting, or at other noise levels, than its base would be judged by
an error the base was never good at. So export writes these choices into `model_index.json`, and
task inversion reads them back.
"""

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from emu_edit.diffusion.prediction import Predict, Prediction, with_source
from emu_edit.diffusion.schedule import LogitNormal, Schedule, shift_to_noise
from emu_edit.diffusion.weighting import (
    Weighting,
    change_balance,
    check_weighting,
    denoising_error,
    loss_weight,
    region_weights,
)
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import choice, number
from emu_edit.errors import InputError


@dataclass(frozen=True)
class Objective:
    """The weighted error of training, without network and data; the names are `EditModule`'s.

    Attributes:
        weighting: how much each noise level counts.
        timestep_shift: at least 1; above it, more of the training happens at high noise.
        balance: 0 to 1; above 0, pairs that change little count more.
        huber_c: above it errors count as their size, no longer as its square; None squares all.
        region_weight: how often the errors inside a pair's mask count, relative to those outside;
            None looks at no mask.
        logit_normal: how often each noise level is trained, before the shift; None means equally.
    """

    weighting: Weighting = Weighting.uniform
    timestep_shift: float = 1.0
    balance: float = 0.0
    huber_c: float | None = None
    region_weight: float | None = None
    logit_normal: LogitNormal | None = None

    @staticmethod
    def usual(prediction: Prediction) -> "Objective":
        """Return what the packaged recipes train a prediction with; flow as Esser et al. 2024 do.

        For model directories that do not say it.
        """
        match prediction:
            case Prediction.change:
                return Objective(Weighting.one_plus_min_snr, timestep_shift=50.0, balance=1.0)
            case Prediction.v | Prediction.z0:
                return Objective(Weighting.one_plus_min_snr)
            case Prediction.eps:
                return Objective(Weighting.uniform)
            case Prediction.flow:
                return Objective(Weighting.uniform, logit_normal=LogitNormal())

    @staticmethod
    def of_editor(editor: Editor) -> "Objective":
        """Return what an editor's networks were trained with, or the usual if it is not recorded.

        Raises:
            InputError: if the record in the model's directory is damaged.
        """
        if editor.objective is None:
            return Objective.usual(editor.prediction)
        return Objective.from_dict(editor.objective, where="the model's objective")

    def to_dict(self) -> dict[str, object]:
        """Return the choices as JSON-ready primitives."""
        return {
            "weighting": self.weighting.name,
            "timestep_shift": self.timestep_shift,
            "balance": self.balance,
            "huber_c": self.huber_c,
            "region_weight": self.region_weight,
            # absent where it is not used: such a directory keeps its bytes
            **({} if self.logit_normal is None else {"logit_normal": asdict(self.logit_normal)}),
        }

    @staticmethod
    def from_dict(values: object, *, where: str) -> "Objective":
        """Rebuild the choices from `to_dict`.

        Raises:
            InputError: if an entry is missing, of another kind, or out of its range.
        """
        if not isinstance(values, dict):
            raise InputError(f"{where} must be a JSON object, got {values!r}; export it again")
        objective = Objective(
            Weighting[choice(values, "weighting", [w.name for w in Weighting], where)],
            timestep_shift=number(values, "timestep_shift", where),
            balance=number(values, "balance", where),
            huber_c=_number_or_none(values, "huber_c", where),
            region_weight=_number_or_none(values, "region_weight", where),
            logit_normal=_read_logit_normal(values.get("logit_normal"), f"{where}: logit_normal"),
        )
        c = objective.huber_c
        if objective.timestep_shift < 1 or (c is not None and c <= 0):
            raise InputError(
                f"{where}: timestep_shift must be at least 1 and huber_c above 0, got "
                f"{objective.timestep_shift!r} and {c!r}; export the model again"
            )
        return objective

    def check(self, prediction: Prediction, schedule: Schedule) -> None:
        """Refuse a weighting that does not go with prediction and schedule, or no weight at all."""
        check_weighting(self.weighting, prediction, schedule)
        if self.region_weight is not None and not 0 < self.region_weight < math.inf:
            raise InputError(
                f"model.region_weight={self.region_weight!r} must be a number above 0; 2 counts "
                "errors inside the mask twice, null looks at no mask"
            )

    def timesteps(
        self, u: Float[Tensor, " b"], schedule: Schedule, tokens: int
    ) -> Real[Tensor, " b"]:
        """Turn uniform numbers in [0, 1) into times, for latents of so many cells."""
        if self.logit_normal is not None:
            u = self.logit_normal.of(u)
        return schedule.draw(shift_to_noise(u, self.timestep_shift), tokens)

    def region(
        self,
        mask: Bool[Tensor, "b *frames mh mw"],
        has_mask: Bool[Tensor, " b"],
        *,
        like: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b 1 h w"] | None:
        """Return the weight of each cell of the latents `like`; None if all are equal.

        Rows of `mask` whose `has_mask` is False mean nothing; it is 0x0 in a batch of a cache whose
        pairs have none.
        """
        if self.region_weight is None or mask.numel() == 0:
            return None
        return region_weights(mask, has_mask, (like.shape[-2], like.shape[-1]), self.region_weight)

    def errors(
        self,
        denoiser: Predict,
        z_0: Float[Tensor, "b c h w"],
        z_source: Float[Tensor, "b c h w"],
        *,
        eps: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        schedule: Schedule,
        prediction: Prediction,
        region: Float[Tensor, "b 1 h w"] | None = None,
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return each sample's error, by `region` if there is one, and by how much it counts.

        The training loss is the mean of their product.
        """
        error = denoising_error(
            with_source(denoiser, z_source, prediction),
            z_0,
            eps,
            t,
            schedule=schedule,
            prediction=prediction,
            region=region,
            huber_c=self.huber_c,
        )
        with torch.no_grad():
            balance = change_balance(z_0, z_source, self.balance)
            return error, loss_weight(self.weighting, t, schedule, prediction) * balance


def _read_logit_normal(values: object, where: str) -> LogitNormal | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a JSON object, got {values!r}; export the model again")
    mean, std = (number(values, name, where) for name in ("mean", "std"))
    try:
        return LogitNormal(mean, std)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _number_or_none(values: dict, name: str, where: str) -> float | None:
    return None if values.get(name) is None else number(values, name, where)
