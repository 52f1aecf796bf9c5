"""The editor under diffusers' names: arguments and results of its InstructPix2Pix pipeline.

A thin coat over `Editor`: it brings pictures of any of diffusers' kinds to bytes, pairs them with
prompts, tasks and generators, and hands the result back as it was asked for. All editing is the
editor's, so the same seed gives the same pixels here, there and on the command line.
Source of the argument names: diffusers, StableDiffusionInstructPix2PixPipeline.
"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from emu_edit.editing.large import Large, parse_large
from emu_edit.editing.pipeline_base import (
    LATENTS,
    Callback,
    EditorPipeline,
    Rows,
    as_asked,
    check_call,
    generators,
    read_pictures,
    rows,
    sampler_of,
    tensor_inputs,
)
from emu_edit.editing.settings import Sampling
from emu_edit.editing.task_mix import TaskChoice

Picture = Image.Image | np.ndarray | Tensor
Pictures = Picture | Sequence[Picture]


class EmuEditPipeline(EditorPipeline):
    """Edit pictures by instruction, called like diffusers' InstructPix2Pix pipeline."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Pictures,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        *,
        height: int | None = None,
        width: int | None = None,
        task: TaskChoice | Sequence[TaskChoice] | None = None,
        large: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Edit pictures; `images` of the result are in the order of the prompts.

        Steps and scales that are None are the model's own.

        Args:
            prompt: one instruction for all pictures, or one for each.
            image: one picture for all prompts, or one for each, all of one size unless height and
                width are given: PIL of any mode; arrays "h w 3" or tensors "3 h w" of uint8 or
                floats in [0, 1], stacked or not.
            num_inference_steps: sampler steps.
            guidance_scale: strength of the text.
            image_guidance_scale: strength of the source picture.
            negative_prompt: what no picture should show, or one for each prompt.
            num_images_per_prompt: results for each prompt, next to each other.
            eta: DDIM's; 0 takes the model's sampler, 1 `euler_ancestral`, which is DDIM with eta 1.
            height: pixels to resize the pictures to before they are edited; None leaves them.
            width: the same.
            task: name or mix of tasks for all pictures, or one for each; None asks the model's task
                predictor.
            large: how pictures larger than the model's are edited, "guided", "tiles" or "whole",
                the first two also with a size, "tiles:128"; None chooses.
            generator: a CPU generator that all results draw from in turn, or one for each; None
                means torch's global one. `torch.Generator().manual_seed(7)` gives the pixels of
                `Editor.edit(..., seed=7)`.
            output_type: "pil", or floats in [0, 1]: "np" ("b h w 3"), "pt" ("b 3 h w", on the CPU).
            return_dict: False returns a tuple of one instead.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": z_t}) after each
                step, from 0; "latents" in what it returns replace z_t. A row of z_t is a result.
            callback_on_step_end_tensor_inputs: what the dictionary holds; only latents can be had.

        Raises:
            InputError: if the counts of prompts, pictures, tasks and generators do not fit, or one
                of them cannot be used.
        """
        names = tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        counts = {
            "num_images_per_prompt": num_images_per_prompt,
            "height": height,
            "width": width,
        }
        check_call(output_type, counts)
        pictures = read_pictures(image, height, width)
        made = rows(prompt, ("image", pictures), task, negative_prompt, num_images_per_prompt)
        sampler = sampler_of(eta, self.editor.settings.sampler)
        way = None if large is None else parse_large(large)
        sampling = Sampling(num_inference_steps, guidance_scale, image_guidance_scale, sampler)
        drawn = generators(generator, len(made.prompts))
        images = as_asked(
            self._edit(made, drawn, sampling, way, callback_on_step_end, names), output_type
        )
        # diffusers annotates no tensors here, yet every one of its pipelines returns them for "pt"
        return ImagePipelineOutput(images) if return_dict else (images,)  # type: ignore[arg-type]

    def _edit(
        self,
        made: Rows[UInt8[Tensor, "3 h w"]],
        generators: Sequence[torch.Generator],
        sampling: Sampling,
        large: Large | None,
        callback: Callback | None,
        names: Sequence[str],
    ) -> UInt8[Tensor, "b 3 h w"]:
        settings, sources = sampling.applied(self.editor.settings), torch.stack(made.sources)
        # torch.compiler.disable hides the arguments of diffusers' method
        with self.progress_bar(total=settings.num_steps) as bar:  # pyright: ignore[reportCallIssue]
            return self.editor.edit_batch(
                sources,
                made.prompts,
                made.tasks,
                generators,
                negative=made.negatives,
                settings=settings,
                large=large,
                on_step=self.step_end(callback, names, bar.update),
            )
