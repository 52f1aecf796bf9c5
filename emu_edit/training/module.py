"""The training module: one step is encode, drop some conditions, noise, predict, compare, weigh.

It joins networks (which know no schedule) and maths (which knows no network) under Lightning. Its
constructor is the schema of `model:` in a config. All randomness is keyed by the sample's position
in the stream (`draws.py`); the step waits for nothing on the device. Per-sample errors and
timesteps go out with the loss, so that callbacks can split them by task and noise level.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from emu_edit.batch import Batch, ClipBatch, EditBatch, EncodedBatch
from emu_edit.diffusion.flow import FlowSchedule
from emu_edit.diffusion.prediction import Predict, Prediction, TrainedAs, check, copying
from emu_edit.diffusion.schedule import LogitNormal, tokens_of
from emu_edit.diffusion.weighting import Weighting
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.conditioning import DropoutRates, drop, refuse_withheld
from emu_edit.models.interfaces import Conditioning, Denoiser, ImageCodec, TextEncoder
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.surgery import channels_last, freeze, learns
from emu_edit.randomness import check_seed
from emu_edit.tasks import SIXTEEN, TaskTable
from emu_edit.training.checkpoint_parts import check_optimizer, check_tasks
from emu_edit.training.draws import DrawnBatch, Phase, draw
from emu_edit.training.encoder import BatchEncoder
from emu_edit.training.objective import Objective
from emu_edit.training.optim import OptimizerSettings, make_optimizer, warmup_cosine_schedule
from emu_edit.training.sharding import clip_by_norm, shard, total_norm

StepOutput = dict[str, Tensor]
"""What a step gives to Lightning and the callbacks: `loss`, and per sample `error` and `t`; where
nothing was dropped also `copying`, the error of returning the source."""


class StepWatcher(Callback):
    """A callback that sees what each training step of an `EditModule` gives before its gradient is.

    Lightning hands a step's output to callbacks only after the optimizer step it is part of.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Refuse to watch what shows nothing."""
        if not isinstance(pl_module, EditModule):
            raise TypeError(f"{type(self).__name__} watches an EditModule, got {type(pl_module)}")

    def on_training_step(self, drawn: DrawnBatch, output: StepOutput) -> None:
        """Look at a micro-batch and its output; reading values would wait for the device."""
        raise NotImplementedError


class EditModule(LightningModule):
    """Train an instruction-based editor.

    The codec is frozen; the text encoder is trained unless it comes frozen. Frozen parts stay out
    of checkpoints, and the stored config builds them again.

    Args:
        denoiser: the denoising network.
        text_encoder: strings to features.
        codec: pixels to latents and back.
        tasks: names of the tasks, in the order of the embedding; none means the sixteen of Emu
            Edit.
        prediction: what the denoiser's output means.
        weighting: how much each noise level counts.
        flow: the linear path in place of the table of steps, and its shifts; none means the table,
            except with `prediction: flow`: then the path of a pretrained denoiser's scheduler
            config, without one unshifted.
        logit_normal: how often each noise level is trained, before shifts; none means equally.
        timestep_shift: at least 1; above it, more of the training happens at high noise.
        balance: 0 to 1; above 0, pairs that change little count more (see `change_balance`).
        huber_c: errors above it, in units of the latents, count as their size and no longer as its
            square (pseudo-Huber): sharper, and steadier where nothing may change; none means
            squared everywhere.
        region_weight: errors inside a pair's mask count so many times those outside, pairs without
            a mask as ever; none looks at no mask. Logged errors are then means with these weights.
        dropout: how often conditions are withheld; none means 5 % each.
        zero_terminal_snr: whether the last step of the table is pure noise; the betas are those of
            a pretrained denoiser's scheduler config.
        optimizer: which, learning rate, decay and warm-up; none means the defaults.
        editor: how pictures are made from the model: size, guidance, steps; none means the
            defaults.
        seed: key of all random numbers of training.
        compile: compile the denoiser with `torch.compile` (minutes at the start, faster steps on a
            GPU; on a CPU it needs a C++ compiler).

    Raises:
        InputError: if the parts do not fit together, or the prediction does not go with the
            schedule.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        text_encoder: TextEncoder,
        codec: ImageCodec,
        tasks: list[str] | None = None,
        prediction: Prediction = Prediction.v,
        weighting: Weighting = Weighting.uniform,
        flow: FlowSchedule | None = None,
        logit_normal: LogitNormal | None = None,
        timestep_shift: float = 1.0,
        balance: float = 0.0,
        huber_c: float | None = None,
        region_weight: float | None = None,
        dropout: DropoutRates | None = None,
        zero_terminal_snr: bool = True,
        optimizer: OptimizerSettings | None = None,
        editor: EditorSettings | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # only when built from a config, which is what gets stored: arguments would be networks
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters(logger=False)  # loggers get the whole config
        table = SIXTEEN if tasks is None else TaskTable(tuple(tasks))
        base = denoiser.trained_as
        betas = TrainedAs("", {}) if base is None else base
        self.schedule = betas.schedule(prediction, flow, zero_terminal_snr=zero_terminal_snr)
        self.objective = Objective(
            weighting, timestep_shift, balance, huber_c, region_weight, logit_normal
        )
        check(prediction, self.schedule)
        self.objective.check(prediction, self.schedule)
        self.prediction = prediction
        # how the first weights are read otherwise than they were trained, in one line
        self.contradiction = None if base is None else base.contradiction(prediction, self.schedule)
        self.dropout = DropoutRates() if dropout is None else dropout
        self.optimizer_settings = OptimizerSettings() if optimizer is None else optimizer
        self.editor_settings = EditorSettings() if editor is None else editor
        check_seed(seed, "model.seed")
        self.seed = seed
        if text_encoder.sees_pictures:
            refuse_withheld(self.editor_settings.guidance.image, self.dropout)
        self.networks = EditNetworks(
            # train: pretrained networks arrive in eval mode, where gradient checkpointing is off;
            # channels-last: convolutions are faster so on CPUs and GPUs alike, and the numbers
            # agree up to rounding
            denoiser=channels_last(denoiser.train()),
            # eval even when it learns: dropout inside it would not be keyed by the sample
            text_encoder=text_encoder.eval() if learns(text_encoder) else freeze(text_encoder),
            codec=channels_last(freeze(codec)),
            task_embedding=TaskEmbedding(len(table), denoiser.task_dim),
            tasks=table,
        )
        self.encoder = BatchEncoder(self.networks)
        self._gradient_norm: Tensor | None = None
        self.strict_loading = (
            False  # frozen parts are absent by design; `on_load_checkpoint` checks the rest
        )
        if compile:
            self.networks.denoiser.compile()

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Keep a trainer of precision bf16-true from converting batches, which are frozen records.

        The networks convert what they are given to the precision of their weights.
        """
        self.trainer.precision_plugin.convert_input = _as_it_is

    def configure_model(self) -> None:
        """Leave each rank its part of the denoiser's network where the strategy is fsdp2."""
        if self.device_mesh is not None:
            shard(self.networks.denoiser, self.trainer)

    def on_train_start(self) -> None:
        """Say once, and before the first step, what is contradicted, and what a licence forbids."""
        if not self.trainer.is_global_zero or self.trainer.global_step != 0:
            return
        for line in filter(None, (self.contradiction, self.networks.denoiser.licence)):
            sys.stderr.write(f"emu-edit: {line}\n")

    def drawn(self, batch: Batch, phase: Phase) -> DrawnBatch:
        """Return the batch, still on the CPU, with its random numbers.

        Raises:
            InputError: if a pair lacks the picture that the text encoder sees.
        """
        codec = self.networks.codec
        sees = self.networks.text_encoder.sees_pictures
        if sees and isinstance(batch, EditBatch) and not bool(batch.has_source.all()):
            raise InputError(
                "model.text_encoder sees the source picture, and data.train has pairs without one; "
                "leave out the tasks that draw from a caption"
            )
        pixels = 1 if isinstance(batch, EncodedBatch) else codec.factor
        height, width = (side // pixels for side in batch.target.shape[-2:])
        frames = batch.target.shape[1] if isinstance(batch, ClipBatch) else 1
        shape = (frames * codec.latent_channels, height, width)
        return draw(batch, seed=self.seed, phase=phase, latent_shape=shape)

    def transfer_batch_to_device(
        self,
        batch: Batch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> DrawnBatch:
        """Draw a batch's random numbers while it is on the CPU, then move it without waiting."""
        return self.drawn(batch, self._phase()).to(device, non_blocking=True)

    def step(self, drawn: DrawnBatch, *, dropout: DropoutRates | None) -> StepOutput:
        """Return the weighted loss, and each sample's unweighted error and timestep (detached).

        Where nothing is dropped, also the error that copying the source would make.
        """
        z_0, cond, null_text = self.encoder(drawn)
        if dropout is not None:
            cond = drop(cond, null_text, dropout, drawn.u[:, 1:])
        t = self.objective.timesteps(drawn.u[:, 0], self.schedule, tokens_of(z_0))
        region = self.objective.region(drawn.batch.mask, drawn.batch.has_mask, like=z_0)
        # after dropping: where the source is withheld everything is change; taken for a small edit,
        # such a pair would weigh most and teach nothing
        errors = partial(
            self.objective.errors,
            z_0=z_0,
            z_source=cond.z_source,
            eps=drawn.eps,
            t=t,
            schedule=self.schedule,
            prediction=self.prediction,
            region=region,
        )
        predict, beside = self.told(z_0, cond)
        error, weight = errors(predict)
        output = {"loss": (weight * error).mean(), "error": error.detach(), "t": t}
        if dropout is None:
            output["copying"], _ = errors(copying(cond.z_source, self.schedule, self.prediction))
        else:
            output["loss"] = output["loss"] + beside
        return output

    def told(
        self,
        z_0: Float[Tensor, "b c h w"],  # noqa: ARG002
        cond: Conditioning,
    ) -> tuple[Predict, Tensor | float]:
        """Bind the conditions; and return what else training makes small: nothing."""
        return self.networks.denoiser.told(cond), 0.0

    def training_step(self, batch: DrawnBatch, batch_idx: int) -> StepOutput:  # noqa: ARG002
        """Average the weighted denoising error of a batch."""
        output = self.step(batch, dropout=self.dropout)
        callbacks: list[Callback] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        for callback in callbacks:
            if isinstance(callback, StepWatcher):
                callback.on_training_step(batch, output)
        self.log("train/loss", output["loss"].detach(), prog_bar=True, batch_size=len(batch))
        return output

    def validation_step(self, batch: DrawnBatch, batch_idx: int) -> StepOutput:  # noqa: ARG002
        """Measure the same error on held-out pairs: nothing dropped, the same noise each time."""
        output = self.step(batch, dropout=None)
        self.log("val/loss", output["loss"], prog_bar=True, batch_size=len(batch), sync_dist=True)
        return output

    def test_step(self, batch: DrawnBatch, batch_idx: int) -> StepOutput:  # noqa: ARG002
        """Measure the error on test pairs."""
        output = self.step(batch, dropout=None)
        self.log("test/loss", output["loss"], batch_size=len(batch), sync_dist=True)
        return output

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer with warm-up and cosine over the steps this training will make."""
        settings = self.optimizer_settings
        optimizer = make_optimizer(self, settings)
        schedule = warmup_cosine_schedule(
            optimizer,
            warmup_steps=settings.warmup_steps,
            total_steps=self.trainer.estimated_stepping_batches,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says, also with a fused optimizer in bf16, by the norm known already.

        Lightning 2.6 refuses fused optimizers under any mixed precision, because with fp16 they
        unscale gradients themselves; bf16 has no scaler, so there the clipping of full precision is
        right. Plugins that clip in ways of their own do so.
        """
        plugin, value = self.trainer.precision_plugin, gradient_clip_val
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        is_full = type(plugin).clip_gradients is Precision.clip_gradients
        if value is None or not (is_full or self.trainer.precision == "bf16-mixed"):
            self.clip_gradients(optimizer, value, gradient_clip_algorithm)
        elif algorithm is GradClipAlgorithmType.NORM and value > 0 and _clips_by_norm(plugin):
            clip_by_norm(plugin.main_params(optimizer), value, self.gradient_norm(optimizer))
        else:
            Precision.clip_gradients(plugin, optimizer, value, algorithm)

    def on_after_backward(self) -> None:
        """Forget the norm of the gradients before."""
        self._gradient_norm = None

    def gradient_norm(self, optimizer: Optimizer) -> Float[Tensor, ""]:
        """Return the norm of all gradients of an optimizer step, on the device.

        It is computed once: what asks for it before the step (`callbacks.finite`) and the clipping
        share it. So whatever changes gradients after the backward pass has to come before both.
        """
        if self._gradient_norm is None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradients = [p.grad for p in parameters if p.grad is not None]
            self._gradient_norm = total_norm(gradients)
        return self._gradient_norm

    def make_editor(self) -> Editor:
        """Return an editor that shares these networks; put them in eval mode while it is used."""
        return Editor(
            self.networks,
            schedule=self.schedule,
            prediction=self.prediction,
            settings=self.editor_settings,
        )

    def save_model(self, path: Path | str, *, trained_on: str | None = None) -> None:
        """Write a model directory from the weights as they are; `export_model` checks them."""
        editor = self.make_editor()
        editor.objective, editor.trained_on = self.objective.to_dict(), trained_on
        editor.save_pretrained(path)

    def frozen_prefixes(self) -> tuple[str, ...]:
        """Return the name prefixes of the parts that never learn, with the dot."""
        parts = {
            "networks.codec.": self.networks.codec,
            "networks.text_encoder.": self.networks.text_encoder,
        }
        return tuple(prefix for prefix, part in parts.items() if not learns(part))

    def state_dict(self, *args, **kwargs) -> dict:  # type: ignore[override]
        """Return the weights that learn; frozen parts go, buffers included, and frozen weights."""
        prefix = kwargs.get("prefix", "")
        frozen = tuple(prefix + name for name in self.frozen_prefixes())
        alone = {prefix + n for n, p in self.named_parameters() if not p.requires_grad}
        tables = tuple(f"{name}." for name in alone)  # of weights in 4 bits
        state = super().state_dict(*args, **kwargs)
        for name in [name for name in state if name.startswith(frozen + tables) or name in alone]:
            del state[name]
        return state

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Write down which tasks the embedding's rows are, and whose memory an optimizer's is."""
        checkpoint["tasks"] = list(self.networks.tasks.names)
        if self.optimizer_settings.kind is not None:
            checkpoint["optimizer"] = self.optimizer_settings.kind

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse a checkpoint of another task table, optimizer or of other networks.

        Raises:
            InputError: naming the first difference.
        """
        check_tasks(checkpoint, self.networks.tasks)
        check_optimizer(checkpoint, self.optimizer_settings.kind)
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
        for name in sorted(own.keys() | given.keys()):
            if own.get(name) != given.get(name):
                raise InputError(
                    f"the checkpoint is of another model: {name} is {given.get(name, 'absent')} "
                    f"in it, {own.get(name, 'absent or frozen')} in the config; use the config "
                    "it was trained with"
                )

    def _phase(self) -> Phase:
        if self.trainer.training:
            return Phase.train
        return Phase.test if self.trainer.testing else Phase.validate


def _as_it_is(data: Any) -> Any:
    return data


def _clips_by_norm(plugin: Precision) -> bool:
    """Whether a plugin's norm is that of gradients that lie whole on this device."""
    return type(plugin).clip_grad_by_norm is Precision.clip_grad_by_norm
