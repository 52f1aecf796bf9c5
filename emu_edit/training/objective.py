"""What a model was trained to make small, kept in its directory for whoever trains on it later.

A vector learnt with another weighting, or at other noise levels, than its base would be judged by
an error the base was never good at. So export writes these choices into `model_index.json`, and
task inversion reads them back.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emu_edit.diffusion.loss import denoising_error
from emu_edit.diffusion.prediction import Predict, Prediction, with_source
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.diffusion.timesteps import shift_to_noise, uniform_timesteps
from emu_edit.diffusion.weighting import Weighting, change_balance, check_weighting, loss_weight
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import choice, number
from emu_edit.errors import InputError
from emu_edit.training.module import EditModule


@dataclass(frozen=True)
class Objective:
    """The weighted error of training, without network and data; the names are `EditModule`'s.

    Attributes:
        weighting: how much each noise level counts.
        timestep_shift: at least 1; above it, more of the training happens at high noise.
        balance: 0 to 1; above 0, pairs that change little count more.
        huber_c: above it errors count as their size, no longer as its square; None squares all.
    """

    weighting: Weighting = Weighting.uniform
    timestep_shift: float = 1.0
    balance: float = 0.0
    huber_c: float | None = None

    @staticmethod
    def of(module: EditModule) -> "Objective":
        """Return what a module is trained with."""
        return Objective(
            module.weighting, module.timestep_shift, balance=module.balance, huber_c=module.huber_c
        )

    @staticmethod
    def usual(prediction: Prediction) -> "Objective":
        """Return what the packaged recipes train a prediction with.

        For model directories of before the objective was written into them.
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
        """Return what an editor's networks were trained with, or the usual where nobody wrote it.

        Raises:
            InputError: if the model's directory says something else than `to_dict` writes.
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
            huber_c=None if values.get("huber_c") is None else number(values, "huber_c", where),
        )
        c = objective.huber_c
        if objective.timestep_shift < 1 or (c is not None and c <= 0):
            raise InputError(
                f"{where}: timestep_shift must be at least 1 and huber_c above 0, got "
                f"{objective.timestep_shift!r} and {c!r}; export the model again"
            )
        return objective

    def check(self, prediction: Prediction, schedule: NoiseSchedule) -> None:
        """Refuse a weighting that does not go with prediction and schedule.

        Raises:
            InputError: saying why.
        """
        check_weighting(self.weighting, prediction, schedule)

    def timesteps(self, u: Float[Tensor, " b"], schedule: NoiseSchedule) -> Int64[Tensor, " b"]:
        """Turn uniform numbers in [0, 1) into training steps."""
        return uniform_timesteps(shift_to_noise(u, self.timestep_shift), schedule.num_steps)

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
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return each sample's error, and by how much it counts.

        The training loss is the mean of their product.
        """
        error = denoising_error(
            with_source(denoiser, z_source, prediction),
            z_0,
            eps,
            t,
            schedule=schedule,
            prediction=prediction,
            huber_c=self.huber_c,
        )
        with torch.no_grad():
            balance = change_balance(z_0, z_source, self.balance)
            return error, loss_weight(self.weighting, t, schedule, prediction) * balance
