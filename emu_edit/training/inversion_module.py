"""Task inversion under Lightning, for batch jobs: loggers, checkpoints, early stopping, resume.

It drives the same `Learner` as `inversion.invert`. Only the vector is trained, so only it is in
optimizer, average and checkpoint; the base is read from its directory again.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from emu_edit.batch import EditBatch
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import BEST, SHOWN, check_new_name
from emu_edit.models.surgery import channels_last, freeze
from emu_edit.randomness import check_seed
from emu_edit.training.draws import DrawnBatch, Phase
from emu_edit.training.few_shot import views
from emu_edit.training.inversion import (
    WARMUP_STEPS,
    Check,
    InversionResult,
    Learner,
    optimizer_settings,
)
from emu_edit.training.module import StepOutput
from emu_edit.training.new_task import check_init
from emu_edit.training.optim import adamw, warmup_cosine_schedule


class InversionModule(LightningModule):
    """Learn the vector of a new task for a model that stays as it is.

    The data module needs `train_samples`, `train_pairs` and `held_out_pairs`, as `FewShotData` has.

    Args:
        model: model directory of the base.
        task: name of the new task.
        description: what it does, in a line.
        init: where the vector begins: "best", "mean", "nearest", "none" or a task's name.
        lr: peak learning rate of the vector.
        seed: key of all random numbers of training.

    Raises:
        InputError: if the model cannot be loaded, the name is taken or odd, or `init` is unknown.
    """

    def __init__(
        self,
        model: str,
        task: str,
        description: str = "",
        init: str = BEST,
        lr: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_new_name(task)
        check_seed(seed, "model.seed")
        self.optimizer_settings = optimizer_settings(lr)
        self.editor = Editor.from_pretrained(model, "cpu")  # Lightning moves it
        if task in self.editor.networks.tasks.names:
            raise InputError(f"model.task={task!r}: {model} has a task of that name; give another")
        check_init(init, self.editor)
        self.name, self.description = task, description
        self.model, self.init, self.seed = Path(model), init, seed
        self.networks = freeze(self.editor.networks)  # a part of this module, so that it is moved
        self.base = model_hash(self.networks)
        channels_last(self.networks.denoiser)
        self.learner = Learner(self.editor, seed=seed)
        self.new_task = self.learner.task  # a part of this module, whose vector is what is saved
        self.strict_loading = False  # the base is not in checkpoints
        self._held_out: list[Tensor] = []  # weighted errors of the validation that runs

    def setup(self, stage: str) -> None:
        """Find where to begin and measure it, unless a checkpoint says where to go on.

        Not later: an average of the vector starts with the training.
        """
        if stage != "fit":
            return
        self.to(self.trainer.strategy.root_device)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.learner.set_checks(data.train_samples, views(data.held_out_pairs))
        if self.trainer.ckpt_path is None:
            self.learner.begin(self.init)

    def transfer_batch_to_device(
        self,
        batch: EditBatch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> DrawnBatch:
        """Draw a batch's random numbers while it is on the CPU, then move it without waiting."""
        phase = Phase.train if self.trainer.training else Phase.validate
        return self.new_task.drawn(batch, seed=self.seed, phase=phase).to(device, non_blocking=True)

    def training_step(self, batch: DrawnBatch, batch_idx: int) -> StepOutput:  # noqa: ARG002
        """Average the weighted denoising error of a batch."""
        output = self.new_task.step(batch)
        self.log("train/loss", output["loss"].detach(), prog_bar=True, batch_size=len(batch))
        return output

    def validation_step(self, batch: DrawnBatch, batch_idx: int) -> StepOutput:  # noqa: ARG002
        """Measure the same error on the held-out pairs, with the same noise each time."""
        error, weight, t = self.new_task.errors(batch, self.new_task.vector)
        self._held_out.append(error * weight)
        loss = (error * weight).mean()
        self.log("val/loss", loss, prog_bar=True, batch_size=len(batch))
        return {"loss": loss, "error": error, "t": t}

    def on_validation_epoch_end(self) -> None:
        """Keep the vector that was just measured (the average, under `Ema`) if it is the best."""
        if self.trainer.state.fn is TrainerFn.FITTING and not self.trainer.sanity_checking:
            held_out = float(torch.cat(self._held_out).mean())
            self.learner.check(self.trainer.global_step, self.new_task.vector, held_out)
        self._held_out.clear()

    def result(self, average: Float[Tensor, " k"] | None) -> InversionResult:
        """Return what was learnt: the best vector on held-out pairs, or else the last one."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        last = self.new_task.vector if average is None else average
        if self.learner.best is None:
            self.learner.check(self.trainer.global_step, last)
        pairs = (data.train_pairs, data.held_out_pairs)
        return self.learner.result(last, pairs, stopped_early=self.trainer.should_stop)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build fused AdamW over the vector, with warm-up and cosine."""
        optimizer = adamw(self.new_task, self.optimizer_settings)
        steps = self.trainer.estimated_stepping_batches
        schedule = warmup_cosine_schedule(optimizer, warmup_steps=WARMUP_STEPS, total_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def state_dict(self, *args, **kwargs) -> dict:  # type: ignore[override]
        """Return the vector; the base has its own directory."""
        prefix = kwargs.get("prefix", "")
        state = super().state_dict(*args, **kwargs)
        for name in [name for name in state if name.startswith(f"{prefix}networks.")]:
            del state[name]
        return state

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Write down which base the vector is for, and what was found so far."""
        checkpoint["inversion"] = {
            "base": self.base,
            "began_at": self.learner.began_at,
            "history": [[c.step, c.train, c.held_out] for c in self.learner.history],
            "best": self.learner.best,
            "best_step": self.learner.best_step,
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on with what was found so far.

        Raises:
            InputError: if the checkpoint is of something else, or its vector for another base.
        """
        state = checkpoint.get("inversion")
        if not isinstance(state, dict):
            raise InputError(
                "the checkpoint is not of a task inversion; give one of "
                "'emu-edit fit --config inversion'"
            )
        if state["base"] != self.base:
            raise InputError(
                f"the checkpoint's vector is for the model {state['base'][:SHOWN]}, model.model is "
                f"{self.base[:SHOWN]}; give the model it was begun with"
            )
        self.learner.began_at = state["began_at"]
        self.learner.history = [Check(*check) for check in state["history"]]
        self.learner.best, self.learner.best_step = state["best"], state["best_step"]
