"""Aligning an edit adapter with temporal layers, without a video that anybody edited.

A student, all together with a LoRA, edits clips from noise in a few steps. What comes out is shown
to two frozen teachers, one of edits and one of videos, who say where they would go (score
distillation); later two judges learn to tell it from what the teachers draw. Only the LoRA is kept.
The step, its losses and its callbacks are those of every other training: the student's optimizer is
Lightning's, and the judges have one of their own beside it, stepped before the student's loss is
taken, so that steps are counted, clipped, averaged and resumed as everywhere.
Source: factorised diffusion distillation, Emu Video Edit (EVE), Singer et al. 2024,
arXiv:2403.09334, section 3.2.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from emu_edit.batch import Batch, ClipBatch, ClipSample
from emu_edit.diffusion.distillation import (
    judged_drawn,
    judged_real,
    k_bin_times,
    score_distillation,
)
from emu_edit.diffusion.prediction import add_noise, estimates
from emu_edit.diffusion.samplers import sample
from emu_edit.diffusion.schedule import Time, tokens_of
from emu_edit.editing.animate import find_drawer
from emu_edit.editing.editor import Editor
from emu_edit.editing.eve import VideoStack
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.captioned_text import apart
from emu_edit.models.conditioning import DropoutRates, drop
from emu_edit.models.directory import TEMPORAL
from emu_edit.models.edit_adapter import EditAdapterDenoiser
from emu_edit.models.eve import RANK, TARGETS, EveDenoiser, Mode, placed
from emu_edit.models.fingerprints import base_fingerprint
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.judges import BaseFeatures, DinoFeatures, Judges
from emu_edit.models.surgery import freeze
from emu_edit.randomness import normals, uniforms
from emu_edit.text_rules import with_caption
from emu_edit.training.based import ClipModule
from emu_edit.training.draws import DrawnBatch, Phase
from emu_edit.training.encoder import SourceClipEncoder
from emu_edit.training.module import StepOutput
from emu_edit.training.objective import Objective
from emu_edit.training.optim import OptimizerSettings, make_optimizer, warmup_cosine_schedule
from emu_edit.training.teachers import PLAIN, Distillation, Teachers

JUDGES = "judges"  # in checkpoints: their optimizer


class EveModule(ClipModule):
    """Align an edit adapter with temporal layers.

    Args:
        model: the edit adapter: a model directory or run of `fit --config edit_adapter`.
        video: the temporal layers: a model directory or run of `fit --config emu_video` on the same
            picture model.
        rank: of the LoRA on the picture model.
        targets: names, or ends of names, of the linear layers that get it.
        distillation: how the student is told; none means the paper's numbers.
        dropout: how often conditions are withheld; none means never.
        optimizer: learning rate, decay and warm-up; none means 1e-5 without decay and warm-up, as
            in the paper (constant there, a cosine here).
        editor: how videos are edited; none means as pictures, without guidance.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a
            third more time.
        seed: key of all random numbers of training.

    Raises:
        InputError: if the parts are of different picture models, or do not fit together.
    """

    def __init__(
        self,
        model: str,
        video: str,
        rank: int = RANK,
        targets: list[str] | None = None,
        distillation: Distillation | None = None,
        dropout: DropoutRates | None = None,
        optimizer: OptimizerSettings | None = None,
        editor: EditorSettings | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        edits = Editor.from_pretrained(model, "cpu")  # Lightning moves it
        stack = VideoStack.join(edits, find_drawer(video) / TEMPORAL, model)
        adapter, networks = stack.denoiser.editor, edits.networks
        assert isinstance(adapter, EditAdapterDenoiser)
        base, usual = base_fingerprint(adapter.base), Objective.of_editor(edits)
        stack.denoiser.align(rank, targets=TARGETS if targets is None else targets)
        if gradient_checkpointing:
            for net in (adapter.controlnet, adapter.base.unet):
                net.enable_gradient_checkpointing()
        own = OptimizerSettings(lr=1e-5, weight_decay=0.0, warmup_steps=0)
        super().__init__(
            denoiser=stack.denoiser,
            text_encoder=networks.text_encoder,
            codec=networks.codec,
            tasks=list(networks.tasks.names),
            prediction=edits.prediction,
            weighting=usual.weighting,
            logit_normal=usual.logit_normal,
            dropout=DropoutRates(0.0, 0.0, 0.0, 0.0) if dropout is None else dropout,
            zero_terminal_snr=edits.schedule.has_zero_terminal_snr,
            optimizer=own if optimizer is None else optimizer,
            editor=replace(edits.settings, guidance=PLAIN) if editor is None else editor,
            seed=seed,
        )
        self.networks.task_embedding = freeze(networks.task_embedding)
        self.encoder = SourceClipEncoder(self.networks)
        self.stack, self.adapter_base = stack, base
        self.distillation = Distillation() if distillation is None else distillation
        self.judges = self._judges()
        # Lightning's wrapper of several processes would wait for gradients of theirs in each step
        names = [f"judges.{name}" for name, _ in self.judges.named_parameters()]
        self._ddp_params_and_buffers_to_ignore = names
        self.teachers = Teachers(
            stack.denoiser, self.schedule, self.prediction, self.distillation, seed
        )
        self._judge_state: dict | None = None

    def _judges(self) -> Judges:
        networks, denoiser = self.networks, self.stack.denoiser
        if self.distillation.dino is not None:
            features = DinoFeatures(self.distillation.dino, networks.codec)
        else:
            with torch.no_grad():
                nothing = apart(networks.text_encoder([""]))[1]
            drawing = denoiser.editor.drawing[None]
            no_source = torch.zeros(1, denoiser.latent_channels, 1, 1)
            features = BaseFeatures(denoiser.editor.base, Conditioning(nothing, no_source, drawing))
        return Judges(features, denoiser.text_dim)

    def drawn(self, batch: Batch, phase: Phase) -> DrawnBatch:
        """Return the clips, still on the CPU, with their random numbers and captions.

        Raises:
            InputError: if they are pictures, of another length, or nobody says what comes out.
        """
        if not isinstance(batch, ClipBatch):
            raise InputError(
                "this module trains on clips with an instruction and the caption of the result; "
                "give shards of 'emu-edit shards world --clips N' or 'shards convert clips'"
            )
        frames = batch.target.shape[1]
        if frames != self.stack.frames:
            raise InputError(
                f"data.frames={frames}, and the temporal layers were trained on {self.stack.frames}"
                " frames; give as many"
            )
        silent = [
            key for key, caption in zip(batch.key, batch.target_caption, strict=True) if not caption
        ]
        if silent:
            raise InputError(
                f"{silent[0]} has no caption of what comes out (target_caption), which the teacher "
                "of videos is told; write it, for real videos with a language model"
            )
        limit = self.networks.text_encoder.limit
        texts = tuple(
            with_caption(text, limit.cut(caption))
            for text, caption in zip(batch.instruction, batch.target_caption, strict=True)
        )
        # a clip that nobody edited is what is to be edited
        is_edit = batch.has_source[:, None, None, None, None]
        source = torch.where(is_edit, batch.source, batch.target)
        return super().drawn(replace(batch, instruction=texts, source=source), phase)

    def step(self, drawn: DrawnBatch, *, dropout: DropoutRates | None) -> StepOutput:
        """Return what the student makes small, and each sample's score error and time."""
        asked = self.distillation
        z, cond, null_text = self.encoder(drawn)
        source = self._frames(z)
        batch = drawn.batch
        edited = cond.z_source
        known = Conditioning(cond.text, placed(source[:, :0], self._frames(edited)), cond.v_task)
        first = self._teachers(batch, Mode.edit_teacher, known, null_text)[:, :1]
        known = replace(known, z_source=placed(first, self._frames(edited)))
        told = known if dropout is None else drop(known, null_text, dropout, drawn.u[:, 1:])
        times = self._times()
        made = self._generated(told, drawn.eps, times)
        t = self.objective.timesteps(drawn.u[:, 0], self.schedule, tokens_of(z))
        level = self.schedule.at(t)
        z_t = add_noise(made.detach(), drawn.eps_posterior, level)
        error = torch.zeros_like(t, dtype=made.dtype)
        for mode, weight in self._weights():
            with torch.no_grad():
                output = self.teachers.told(known, null_text, mode)(z_t, t)
                says, _ = estimates(output, z_t, level, self.prediction)
            error = error + weight * score_distillation(made, says)
        loss = asked.scores * error.mean()
        if dropout is not None and self.trainer.global_step >= asked.judged_from:
            loss = loss + self._judged(batch, known, null_text, made)
        return {"loss": loss, "error": error.detach(), "t": t}

    def _weights(self) -> list[tuple[Mode, float]]:
        asked = self.distillation
        both = [(Mode.edit_teacher, asked.edit), (Mode.video_teacher, asked.video)]
        return [(mode, weight) for mode, weight in both if weight]

    def _times(self) -> list[Time]:
        """Return the times of a generation, alike in all ranks and micro-batches of a step."""
        asked, phase = self.distillation, self._phase()
        if asked.uniform:
            return self.schedule.times(asked.steps, 1)
        step = torch.tensor([self.trainer.global_step if phase is Phase.train else 0])
        u = uniforms(self.seed, f"{phase.name}/bins", step, asked.steps)[0]
        return [*k_bin_times(u.tolist(), self.schedule.num_steps)]

    def _generated(
        self, cond: Conditioning, noise: Float[Tensor, "b fc h w"], times: list[Time]
    ) -> Float[Tensor, "b fc h w"]:
        """Let the student edit from noise; gradients flow through every step."""
        denoiser = self.networks.denoiser
        assert isinstance(denoiser, EveDenoiser)
        return sample(
            denoiser.told(cond, Mode.student),
            noise,
            schedule=self.schedule,
            prediction=self.prediction,
            times=times,
        )

    def _teachers(
        self, batch: Batch, mode: Mode, cond: Conditioning, null_text: TextFeatures
    ) -> Float[Tensor, "b f c h w"]:
        drawn = self.teachers.samples(batch.key, self.trainer.current_epoch, mode, cond, null_text)
        return self._frames(drawn)

    def _judged(
        self,
        batch: Batch,
        cond: Conditioning,
        null_text: TextFeatures,
        made: Float[Tensor, "b fc h w"],
    ) -> Float[Tensor, ""]:
        """Let the judges learn a step; return what they say of what the student made."""
        instruction, caption = apart(cond.text)
        videos, source = self._frames(made), self._frames(cond.z_source.chunk(2, dim=1)[1])
        flat, frames = source.flatten(0, 1), videos.shape[1]
        each = Conditioning(instruction, source[:, 0], cond.v_task).for_frames(frames).text
        edits = self._teachers(batch, Mode.edit_teacher, cond, null_text)
        moves = self._teachers(batch, Mode.video_teacher, cond, null_text)
        judges, (alpha, beta) = self.judges, (self.distillation.edit, self.distillation.video)
        learning = [p for p in judges.parameters() if p.requires_grad]
        shown = videos.detach()
        said = alpha * judged_real(
            judges.of_edits(flat, each, edits.flatten(0, 1)),
            judges.of_edits(flat, each, shown.flatten(0, 1)),
        ) + beta * judged_real(judges.of_videos(moves, caption), judges.of_videos(shown, caption))
        gradients = torch.autograd.grad(said, learning)
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.grad = _mean_over_ranks(gradient)
        self.judge_optimizer.step()
        self.judge_optimizer.zero_grad()
        self.log("train/judges", said.detach(), batch_size=len(batch))
        judges.requires_grad_(False)
        try:
            return alpha * judged_drawn(
                judges.of_edits(flat, each, videos.flatten(0, 1))
            ) + beta * judged_drawn(judges.of_videos(videos, caption))
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the student's optimizer for Lightning, and the judges' beside it."""
        settings = self.optimizer_settings
        optimizer = make_optimizer(self.networks, settings)
        learning = [p for p in self.judges.parameters() if p.requires_grad]
        self.judge_optimizer = torch.optim.AdamW(learning, lr=self.distillation.judge_lr)
        if self._judge_state is not None:
            self.judge_optimizer.load_state_dict(self._judge_state)
            self._judge_state = None
        schedule = warmup_cosine_schedule(
            optimizer,
            warmup_steps=settings.warmup_steps,
            total_steps=self.trainer.estimated_stepping_batches,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def on_fit_start(self) -> None:
        """Begin with the same judges on all ranks."""
        if dist.is_available() and dist.is_initialized():
            for parameter in self.judges.parameters():
                dist.broadcast(parameter.data, 0)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep what the judges' optimizer remembers, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[JUDGES] = self.judge_optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on with what the judges' optimizer remembered.

        Raises:
            InputError: if the checkpoint is of other networks.
        """
        super().on_load_checkpoint(checkpoint)
        self._judge_state = checkpoint.get(JUDGES)

    @torch.no_grad()
    def draw_clip(self, clip: ClipSample, seed: int) -> UInt8[Tensor, "f 3 h w"]:
        """Edit a clip as `emu-edit video` does."""
        source = clip.target if clip.source is None else clip.source
        latents = self.stack.editor.encode(source)
        v_task = self.networks.task_embedding(torch.tensor([clip.task], device=self.device))
        caption = self.networks.text_encoder.limit.cut(clip.target_caption)
        text = with_caption(clip.instruction, caption)
        noise = normals(seed, "eve", torch.arange(len(latents)), latents.shape[1:])
        edit = partial(self.stack.window, text=text, v_task=v_task, settings=self.editor_settings)
        first = edit(latents[:1], latents[:0], noise=noise[:1], mode=Mode.edit_teacher)
        edited = edit(latents, first, noise=noise)
        return self.stack.editor.decode(edited, source.shape[-2:])

    def save_model(self, path: Path | str, *, trained_on: str | None = None) -> None:  # noqa: ARG002
        """Write the edit adapter's directory, temporal layers and LoRA in it."""
        self.stack.save_pretrained(path)

    def frozen_prefixes(self) -> tuple[str, ...]:
        """Return the name prefixes of what never learns, buffers among it."""
        own = (
            "networks.denoiser.adapter.",
            "networks.denoiser.editor.control.",
            "judges.features.",
        )
        return (*super().frozen_prefixes(), *own)

    def _frames(self, z: Float[Tensor, "b fc h w"]) -> Float[Tensor, "b f c h w"]:
        return z.unflatten(1, (-1, self.networks.denoiser.latent_channels))


def _mean_over_ranks(gradient: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradient)
        gradient = gradient / dist.get_world_size()
    return gradient
