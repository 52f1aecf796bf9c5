"""The error that training makes small, kept in a model's directory for whoever trains on it later.

A vector learnt with another weighting, or at other noise levels, than its base would be judged by
an error the base was never good at. So export writes these choices into `model_index.json`, and
task inversion reads them back.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emu_edit.diffusion.prediction import Predict, Prediction, with_source
from emu_edit.diffusion.schedule import NoiseSchedule, shift_to_noise, uniform_timesteps
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
    """

    weighting: Weighting = Weighting.uniform
    timestep_shift: float = 1.0
    balance: float = 0.0
    huber_c: float | None = None
    region_weight: float | None = None

    @staticmethod
    def usual(prediction: Prediction) -> "Objective":
        """Return what the packaged recipes train a prediction with.

        For model directories that do not say it.
        """
        match prediction:
            case Prediction.change:
                return Objective(Weighting.one_plus_min_snr, timestep_shift=50.0, balance=1.0)
            case Prediction.v | Prediction.z0:
                return Objective(Weighting.one_plus_min_snr)
            case Prediction.eps:
                return Objective(Weighting.uniform)

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
        )
        c = objective.huber_c
        if objective.timestep_shift < 1 or (c is not None and c <= 0):
            raise InputError(
                f"{where}: timestep_shift must be at least 1 and huber_c above 0, got "
                f"{objective.timestep_shift!r} and {c!r}; export the model again"
            )
        return objective

    def check(self, prediction: Prediction, schedule: NoiseSchedule) -> None:
        """Refuse a weighting that does not go with prediction and schedule, or no weight at all."""
        check_weighting(self.weighting, prediction, schedule)
        if self.region_weight is not None and not 0 < self.region_weight < math.inf:
            raise InputError(
                f"model.region_weight={self.region_weight!r} must be a number above 0; 2 counts "
                "errors inside the mask twice, null looks at no mask"
            )

    def timesteps(self, u: Float[Tensor, " b"], schedule: NoiseSchedule) -> Int64[Tensor, " b"]:
        """Turn uniform numbers in [0, 1) into training steps."""
        return uniform_timesteps(shift_to_noise(u, self.timestep_shift), schedule.num_steps)

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
        t: Int64[Tensor, " b"],
        schedule: NoiseSchedule,
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


def _number_or_none(values: dict, name: str, where: str) -> float | None:
    return None if values.get(name) is None else number(values, name, where)
