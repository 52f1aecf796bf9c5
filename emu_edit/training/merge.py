"""One task of a model as a plain pipeline of diffusers, for programs that know nothing of tasks.

Only a U-Net takes it in: what the task adds to the timestep is a bias, and what its tokens add to
cross-attention is one too (`UNetDenoiser.merged`). In a transformer the task is told by the text's
own last tokens, which differ with every text; of those models `export` itself writes what a stock
pipeline reads, without a task. The bias of the tokens is ours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from emu_edit.diffusion.prediction import Prediction, scheduler_config
from emu_edit.diffusion.samplers import Sampler
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.editing.task_mix import TaskChoice, task_vectors
from emu_edit.errors import InputError
from emu_edit.models.codec import KLCodec
from emu_edit.models.directory import INDEX, new_directory
from emu_edit.models.interfaces import NUM_TASK_TOKENS, Conditioning
from emu_edit.models.pooled_text import SDXLText
from emu_edit.models.sources import quiet_transformers
from emu_edit.models.task_files import refuse_to_lose
from emu_edit.models.text import ModelText
from emu_edit.models.unet import UNetDenoiser


@dataclass(frozen=True)
class Merged:
    """What is to be known of a model of one task.

    Attributes:
        deviation: how far its U-Net's output is from the model's own, root mean square over that of
            the output, for random latents at three noise levels; about 1e-7 where the task tokens
            are alike.
        settings: how the model is sampled, which diffusers stores nowhere.
        pipeline: the class of diffusers that reads it.
    """

    deviation: float
    settings: EditorSettings
    pipeline: str


@torch.no_grad()
def export_merged(model: Path, path: Path, task: TaskChoice) -> Merged:
    """Write a model that does one task as diffusers' pipeline of InstructPix2Pix, or of its XL.

    The scheduler is the counterpart of the model's sampler.

    Args:
        model: a model directory whose networks began as Stable Diffusion 1.x, 2.x or XL.
        path: the directory to write.
        task: by name, a learned one's too, or a mix of two.

    Raises:
        InputError: if the model has what that pipeline has not, or does not know the task, or the
            folder cannot be written.
    """
    editor = Editor.from_pretrained(model, device="cpu")
    denoiser, text, codec = _parts_of_stable_diffusion(editor)
    v_task = task_vectors(editor.networks, [task])[0]
    unet = denoiser.merged(v_task)
    deviation = _deviation(editor, denoiser, unet, v_task)
    if codec.scale_condition:  # the pipeline gives source latents in the autoencoder's own units
        unet.conv_in.weight[:, codec.latent_channels :] *= codec.scale
    others = {"vae": codec.vae, "unet": unet, "scheduler": _scheduler(editor)}
    merged = _pipeline_xl(text, others) if isinstance(text, SDXLText) else _pipeline(text, others)
    refuse_to_lose(path)
    with new_directory(path, INDEX, what="model directory") as part, quiet_transformers():
        merged.save_pretrained(part, safe_serialization=True)
    return Merged(deviation, editor.settings, type(merged).__name__)


def _pipeline(text: ModelText, others: dict[str, Any]) -> DiffusionPipeline:
    # here, because no other work needs this part of diffusers
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
        StableDiffusionInstructPix2PixPipeline,
    )

    text.tokenizer.model_max_length = text.max_tokens
    return StableDiffusionInstructPix2PixPipeline(
        text_encoder=cast("CLIPTextModel", text.model),
        tokenizer=cast("CLIPTokenizer", text.tokenizer),
        safety_checker=None,  # type: ignore[arg-type]  as diffusers' own examples give it
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
        **others,
    )


def _pipeline_xl(text: SDXLText, others: dict[str, Any]) -> DiffusionPipeline:
    from diffusers.pipelines.stable_diffusion_xl import (
        pipeline_stable_diffusion_xl_instruct_pix2pix as xl,
    )

    for tokenizer in (text.tokenizer, text.tokenizer_2):
        tokenizer.model_max_length = text.max_tokens
    return xl.StableDiffusionXLInstructPix2PixPipeline(
        **text.parts,
        **others,
        force_zeros_for_empty_prompt=False,  # the null text is the encoding of ""
        add_watermarker=False,
    )


def _parts_of_stable_diffusion(
    editor: Editor,
) -> tuple[UNetDenoiser, ModelText | SDXLText, KLCodec]:
    """Return the networks, if diffusers' pipeline would use them as the editor does."""
    networks, prediction = editor.networks, editor.prediction
    denoiser, text, codec = networks.denoiser, networks.text_encoder, networks.codec
    if not isinstance(denoiser, UNetDenoiser):
        network = type(getattr(denoiser, denoiser.part)).__name__
        wrong = f"its network is a {network}, where a task is told by the text's own tokens"
    elif not isinstance(codec, KLCodec) or codec.shift != 0:
        wrong = "its autoencoder is not an AutoencoderKL without shift_factor"
    elif not isinstance(text, SDXLText | ModelText) or (
        isinstance(text, ModelText) and not isinstance(text.model, CLIPTextModel)
    ):
        wrong = "its text encoder is not CLIP's"
    elif isinstance(text, ModelText) and not text.attend_padding:
        wrong = "its text encoder hides the padding, which the pipeline attends to"
    elif not isinstance(editor.schedule, NoiseSchedule):
        wrong = f"it predicts {prediction.name} on the linear path, the pipeline walks a table"
    elif prediction is Prediction.change:
        wrong = f"it predicts {prediction.name}, the pipeline eps, v or z0"
    else:
        return denoiser, text, codec
    raise InputError(
        f"cannot merge a task of this model: {wrong}; edit with 'emu-edit edit' or EmuEditPipeline"
    )


def _deviation(
    editor: Editor, denoiser: UNetDenoiser, unet: UNet2DConditionModel, v_task: Tensor
) -> float:
    """Compare a merged U-Net with the model's own on random latents of its picture size."""
    networks, generator = editor.networks, torch.Generator().manual_seed(0)
    side = -(-editor.settings.image_size // networks.codec.factor)
    text = networks.encode_text(["make it red"])[0]
    shape = (1, networks.codec.latent_channels, side, side)
    errors, sizes = [], []
    for t in torch.tensor([0, editor.schedule.num_steps // 2, editor.schedule.num_steps - 1]):
        z_t, z_source = (torch.randn(shape, generator=generator) for _ in range(2))
        cond = Conditioning(text, z_source, v_task[None])
        own, told = denoiser(z_t, t[None], cond), denoiser.unet_told(z_t, cond)
        plain = unet(
            torch.cat([z_t, z_source], 1),
            t,
            told.tokens[:, :-NUM_TASK_TOKENS],
            added_cond_kwargs=told.added,
            return_dict=False,
        )[0]
        errors.append((plain - own).square().mean())
        sizes.append(own.square().mean())
    return float((torch.stack(errors).sum() / torch.stack(sizes).sum()).sqrt())


def _scheduler(editor: Editor) -> Any:
    """Return diffusers' counterpart of the model's sampler."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
        EulerAncestralDiscreteScheduler,
    )

    kinds = {
        Sampler.ddim: DDIMScheduler,
        Sampler.euler_ancestral: EulerAncestralDiscreteScheduler,
        Sampler.dpm_solver_pp_2m: DPMSolverMultistepScheduler,
    }
    config = scheduler_config(editor.prediction, editor.schedule)
    return kinds[editor.settings.sampler].from_config(config)
