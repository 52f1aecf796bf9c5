"""Training a picture model's temporal layers on clips with captions: `EditModule`'s step on videos.

The picture model stays as it is, in memory and in its directory; only the layers that mix frames
learn, and only they are in checkpoints. Text and given frames are withheld in some steps, for the
two scales of guidance. Which frames are given makes a model that animates a picture, one that goes
on from a video, or one that draws frames between others.
Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 3.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from emu_edit.batch import Batch, ClipBatch, ClipSample
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Predict, Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.diffusion.weighting import Weighting
from emu_edit.editing.animate import IMAGE_GUIDANCE, TEXT_GUIDANCE, Animator, Drawing
from emu_edit.editing.generate import load_generator
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.fingerprints import base_fingerprint
from emu_edit.models.given import GivenFrames
from emu_edit.models.inflate import inflate, train_temporal
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.surgery import freeze
from emu_edit.models.temporal import TemporalSpec
from emu_edit.models.video import VideoDenoiser, codec_of_frames, drawing_base
from emu_edit.training.based import ClipModule
from emu_edit.training.draws import DrawnBatch, Phase, with_given_noise
from emu_edit.training.encoder import ClipEncoder
from emu_edit.training.objective import Objective
from emu_edit.training.optim import OptimizerSettings

GIVEN = "given"  # in checkpoints: which frames of a clip the layers are told


class VideoModule(ClipModule):
    """Make a picture model that draws one that draws videos.

    Args:
        model: what draws: a model directory or run of `fit --config text_to_image`, or a Stable
            Diffusion 1.x or 2.x directory.
        temporal: which layers; none means the defaults. Without `picture_condition` videos come
            from the caption alone.
        given: which frames of a clip are given, and with how much noise; none means the first,
            clean.
        frames: of a clip; as `data.frames`.
        rate: frames a second of what is drawn later, unless a call says otherwise.
        prediction: what the output means; none keeps what the picture model was trained for.
        weighting: how much each noise level counts; none keeps the picture model's.
        timestep_shift: as of `EditModule`; none keeps the picture model's.
        zero_terminal_snr: whether the last timestep is pure noise; none keeps the picture model's.
        dropout: how often text, given frames, both and the task are withheld; none means 5 % of
            each of the first three.
        optimizer: learning rate, decay and warm-up; none means the defaults.
        editor: how videos are sampled; none means as pictures, with Emu Video's guidance.
        spatial: let the picture model's own U-Net learn, too; what is exported is then another
            picture model with its layers. Emu Video keeps it frozen.
        seed: key of all random numbers of training.

    Raises:
        InputError: if the model does not draw, or the parts do not fit together.
    """

    def __init__(
        self,
        model: str,
        temporal: TemporalSpec | None = None,
        given: GivenFrames | None = None,
        frames: int = 8,
        rate: int = 8,
        prediction: Prediction | None = None,
        weighting: Weighting | None = None,
        timestep_shift: float | None = None,
        zero_terminal_snr: bool | None = None,
        dropout: DropoutRates | None = None,
        optimizer: OptimizerSettings | None = None,
        editor: EditorSettings | None = None,
        spatial: bool = False,
        seed: int = 0,
    ) -> None:
        if frames < 1 or rate < 1:
            raise InputError(f"model.frames={frames} and model.rate={rate} must be at least 1")
        drawer = load_generator(model, "cpu")  # Lightning moves it
        if prediction is Prediction.flow or not isinstance(drawer.schedule, NoiseSchedule):
            raise InputError(
                "videos are trained on a table of steps, not on the linear path; give a "
                "model.model and a model.prediction of eps, v or z0"
            )
        networks = freeze(drawer.networks)
        usual = Objective.of_editor(drawer)
        spec, given = temporal or TemporalSpec(), given or GivenFrames()
        if given != GivenFrames() and not spec.picture_condition:
            raise InputError(
                f"model.given.kind={given.kind.name} and temporal.picture_condition=false exclude "
                "each other; leave one of them out"
            )
        adapter = inflate(drawing_base(networks.denoiser, model), spec)
        if prediction is None:  # without a source its change is all there is
            of_base = drawer.prediction
            prediction = Prediction.z0 if of_base is Prediction.change else of_base
        if adapter.spec.still and prediction is not Prediction.z0:
            raise InputError(
                f"model.temporal.still is for models of z0, this one is trained for "
                f"{prediction.name}; give --model.temporal.still false "
                "--model.temporal.motion 0"
            )
        if zero_terminal_snr is None:
            zero_terminal_snr = drawer.schedule.has_zero_terminal_snr
        guidance = Guidance(text=TEXT_GUIDANCE, image=IMAGE_GUIDANCE)
        super().__init__(
            denoiser=VideoDenoiser(adapter),
            text_encoder=networks.text_encoder,
            codec=codec_of_frames(networks.codec),
            tasks=list(networks.tasks.names),
            prediction=prediction,
            weighting=usual.weighting if weighting is None else weighting,
            logit_normal=usual.logit_normal,
            timestep_shift=usual.timestep_shift if timestep_shift is None else timestep_shift,
            dropout=DropoutRates(task=0.0) if dropout is None else dropout,
            zero_terminal_snr=zero_terminal_snr,
            optimizer=optimizer,
            editor=replace(drawer.settings, guidance=guidance) if editor is None else editor,
            seed=seed,
        )
        self.networks.task_embedding = networks.task_embedding
        train_temporal(adapter, spatial=spatial)
        given.check(frames, self.schedule.num_steps)
        self.encoder = ClipEncoder(self.networks, given, self.schedule)
        self.drawer, self.adapter_base = drawer, base_fingerprint(networks.denoiser)
        self.frames, self.rate, self.given, self.spatial = frames, rate, given, spatial

    def drawn(self, batch: Batch, phase: Phase) -> DrawnBatch:
        """Return the clips, still on the CPU, with their random numbers.

        Raises:
            InputError: if they are pictures or edits, or have another number of frames.
        """
        if not isinstance(batch, ClipBatch) or bool(batch.has_source.any()):
            raise InputError(
                "this module trains on clips with captions; give shards of 'emu-edit shards world "
                "--clips N --captions' or 'shards convert clips', and data.tasks: [caption]"
            )
        if batch.target.shape[1] != self.frames:
            raise InputError(
                f"data.frames={batch.target.shape[1]} and model.frames={self.frames} must be equal"
            )
        drawn = super().drawn(batch, phase)
        if not self.given.train_noise:
            return drawn
        told = len(self.given.places(self.frames))
        return with_given_noise(drawn, seed=self.seed, phase=phase, frames=told)

    def told(
        self, z_0: Float[Tensor, "b fc h w"], cond: Conditioning
    ) -> tuple[Predict, Tensor | float]:
        """Bind the conditions; the motion reader learns from every clip, however little noise."""
        denoiser = self.networks.denoiser
        assert isinstance(denoiser, VideoDenoiser)
        call = denoiser.call_of(cond)
        return partial(denoiser, cond=cond, call=call), denoiser.expectation_error(call, z_0)

    def animator(self) -> Animator:
        """Return what draws videos with these networks; put them in eval mode while it is used."""
        return Animator(self.drawer, self.make_editor(), self.frames, self.rate, self.given)

    @torch.no_grad()
    def draw_clip(self, clip: ClipSample, seed: int) -> UInt8[Tensor, "f 3 h w"]:
        """Draw a video from a clip's caption and the frames that are given of it."""
        animator = self.animator()
        known = animator.video.encode(clip.target[list(animator.places)])
        drawing = Drawing(clip.instruction, seed)
        latents = drawing.window(animator, known, first=0, frames=animator.frames)
        return animator.video.decode(latents, clip.target.shape[-2:])

    def save_model(self, path: Path | str, *, trained_on: str | None = None) -> None:  # noqa: ARG002
        """Write the picture model as it came, and the temporal layers beside it."""
        self.animator().save_pretrained(path)

    def frozen_prefixes(self) -> tuple[str, ...]:
        """Return the name prefixes of the parts that never learn: the picture model, usually."""
        own = ("networks.task_embedding.",)
        if not self.spatial:
            own = ("networks.denoiser.base.", *own)
        return (*super().frozen_prefixes(), *own)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Write down which frames the layers are told, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[GIVEN] = self.given.to_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse layers of another picture model, or of other given frames.

        Raises:
            InputError: naming both, or the first other difference.
        """
        if (given := checkpoint.get(GIVEN)) != self.given.to_dict():
            raise InputError(
                f"the checkpoint was trained with model.given {given}, this is "
                f"{self.given.to_dict()}; go on with its own, or begin another training with its "
                "weights (--start_from)"
            )
        super().on_load_checkpoint(checkpoint)
