"""Training an edit adapter beside a picture model that stays as it is: `EditModule`'s step.

The picture model is told the caption of the result, the adapter source, instruction and task; only
the adapter and the table of tasks learn. What comes out is an editor like any other, for the
predictor, task inversion and all verbs.
Source: Emu Video Edit, Singer et al. 2024, arXiv:2403.09334, section 3.1.
"""

from dataclasses import replace

from emu_edit.batch import Batch, EditBatch
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.diffusion.weighting import Weighting
from emu_edit.editing.animate import find_drawer
from emu_edit.editing.generate import load_generator
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.captioned_text import CaptionedText
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.edit_adapter import EditAdapterDenoiser, EditControl
from emu_edit.models.fingerprints import base_fingerprint
from emu_edit.models.video import drawing_base
from emu_edit.randomness import uniforms
from emu_edit.text_rules import with_caption
from emu_edit.training.based import BasedModule
from emu_edit.training.draws import DrawnBatch, Phase
from emu_edit.training.objective import Objective
from emu_edit.training.optim import OptimizerSettings


class EditAdapterModule(BasedModule):
    """Make a picture model that draws one that edits.

    Args:
        model: what draws: a model directory or run of `fit --config text_to_image`, or a Stable
            Diffusion 1.x or 2.x directory.
        tasks: as of `EditModule`.
        task_dim: width of the task vector.
        captioned: how often the picture model is told the caption of the result, where the pair has
            one, 0 to 1; else "", as by an instruction alone. Ours; the paper always tells it.
        prediction: what the output means; none keeps what the picture model was trained for.
        weighting: how much each noise level counts; none keeps the picture model's.
        timestep_shift: as of `EditModule`; none keeps the picture model's.
        balance: as of `EditModule`.
        region_weight: as of `EditModule`.
        zero_terminal_snr: whether the last timestep is pure noise; none keeps the picture model's.
        dropout: how often conditions are withheld; none means 5 % each.
        optimizer: learning rate, decay and warm-up; none means the defaults.
        editor: how pictures are edited; none means as they are drawn, with Emu Edit's guidance.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a
            third more time.
        seed: key of all random numbers of training.

    Raises:
        InputError: if the model does not draw, or the parts do not fit together.
    """

    def __init__(
        self,
        model: str,
        tasks: list[str] | None = None,
        task_dim: int = 64,
        captioned: float = 0.5,
        prediction: Prediction | None = None,
        weighting: Weighting | None = None,
        timestep_shift: float | None = None,
        balance: float = 0.0,
        region_weight: float | None = None,
        zero_terminal_snr: bool | None = None,
        dropout: DropoutRates | None = None,
        optimizer: OptimizerSettings | None = None,
        editor: EditorSettings | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        if not 0 <= captioned <= 1:
            raise InputError(f"model.captioned={captioned!r} is a share; give a number from 0 to 1")
        drawer = load_generator(model, "cpu")  # Lightning moves it
        if not isinstance(drawer.schedule, NoiseSchedule):
            raise InputError(
                "edit adapters are trained on a table of steps, and model.model on the linear "
                "path; give a model that was trained for eps, v or z0"
            )
        networks, usual = drawer.networks, Objective.of_editor(drawer)
        base = drawing_base(networks.denoiser, model)
        if prediction is None:  # without a source its change is all there is
            of_base = drawer.prediction
            prediction = Prediction.z0 if of_base is Prediction.change else of_base
        control = EditControl.beside(base, task_dim)
        if gradient_checkpointing:
            for net in (control.net, base.unet):
                net.enable_gradient_checkpointing()
        super().__init__(
            denoiser=EditAdapterDenoiser(networks, control, find_drawer(model)),
            text_encoder=CaptionedText(networks.text_encoder),
            codec=networks.codec,
            tasks=tasks,
            prediction=prediction,
            weighting=usual.weighting if weighting is None else weighting,
            logit_normal=usual.logit_normal,
            timestep_shift=usual.timestep_shift if timestep_shift is None else timestep_shift,
            balance=balance,
            region_weight=region_weight,
            dropout=dropout,
            zero_terminal_snr=(
                drawer.schedule.has_zero_terminal_snr
                if zero_terminal_snr is None
                else zero_terminal_snr
            ),
            optimizer=optimizer,
            editor=replace(drawer.settings, guidance=Guidance()) if editor is None else editor,
            seed=seed,
        )
        self.adapter_base, self.captioned = base_fingerprint(base), captioned

    def drawn(self, batch: Batch, phase: Phase) -> DrawnBatch:
        """Return the pairs, still on the CPU, with their random numbers and some captions.

        Raises:
            InputError: if they are clips, or were encoded.
        """
        if not isinstance(batch, EditBatch):
            raise InputError(
                "an edit adapter trains on pairs of pictures, whose instruction and caption it "
                "encodes apart; give data.train as pictures, neither as clips nor from a cache"
            )
        u = uniforms(self.seed, f"{phase.name}/caption", batch.position.cpu(), 1)[:, 0]
        limit = self.networks.text_encoder.limit
        texts = tuple(
            with_caption(text, limit.cut(caption) if is_told else "")
            for text, caption, is_told in zip(
                batch.instruction, batch.target_caption, (u < self.captioned).tolist(), strict=True
            )
        )
        return super().drawn(replace(batch, instruction=texts), phase)

    def frozen_prefixes(self) -> tuple[str, ...]:
        """Return the name prefixes of the parts that never learn: the picture model's, too."""
        return (*super().frozen_prefixes(), "networks.denoiser.base.")
