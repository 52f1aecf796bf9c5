"""The generator of videos under diffusers' names: arguments and results of its video pipelines.

A thin coat over `animate`, as `EmuEditPipeline` is over `Editor`: the same seed gives the same
frames here, there and on the command line. All frames are in memory, which is the layout that
diffusers hands on; `emu-edit generate` writes videos of any length.
Source of the argument names and of the layout of `frames`: diffusers, pipelines of InstructPix2Pix
(scales), AnimateDiff and StableVideoDiffusion (frames).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils.outputs import BaseOutput
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.editing.animate import Animator, Drawing, animation
from emu_edit.editing.generate import draw_pictures
from emu_edit.editing.pipeline import Pictures
from emu_edit.editing.pipeline_base import (
    LATENTS,
    Callback,
    EditorPipeline,
    StackedVideos,
    check_call,
    read_pictures,
    rows,
    seeds_of,
    stacked,
    tensor_inputs,
)
from emu_edit.editing.settings import Sampling
from emu_edit.text_rules import clean_instruction


@dataclass
class EmuVideoPipelineOutput(BaseOutput):
    """What diffusers' video pipelines return.

    Attributes:
        frames: a list of PIL pictures for each video, or floats in [0, 1]: an array "b f h w 3" or
            a tensor "b f 3 h w".
        fps: frames a second at which they are to be shown.
    """

    frames: StackedVideos
    fps: int


class EmuVideoPipeline(EditorPipeline):
    """Draw videos from captions, or from pictures and captions: first a picture, then the video.

    Load one with `from_pretrained`, from a model of `emu-edit fit --config emu_video`.
    """

    def __init__(self, animator: Animator) -> None:
        super().__init__(animator.drawer)
        self.animator = animator

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # no hub, no pickles
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        torch_dtype: torch.dtype = torch.float32,
    ) -> "EmuVideoPipeline":
        """Load a model directory or run folder that has temporal layers.

        Raises:
            InputError: if it is not such a directory, or `torch_dtype` is not that of its weights.
        """
        animator = Animator.from_pretrained(Path(pretrained_model_name_or_path), device)
        return cls(animator).to(torch_dtype)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # safetensors, whole
        self, save_directory: str | os.PathLike[str]
    ) -> None:
        """Write the model directory, the same that a training exports."""
        self.animator.save_pretrained(Path(save_directory))

    def _move(self, device: str) -> None:
        super()._move(device)
        self.animator.video.networks.to(device)

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Pictures | None = None,
        num_frames: int | None = None,
        fps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_videos_per_prompt: int = 1,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
    ) -> EmuVideoPipelineOutput | tuple[StackedVideos]:
        """Draw videos; `frames` of the result are in the order of the prompts.

        Frames, steps and scales that are None are the model's own.

        Args:
            prompt: one caption for all pictures, or one for each.
            image: one picture for all prompts, or one for each, all of one size unless height and
                width are given: PIL of any mode; arrays "h w 3" or tensors "3 h w" of uint8 or
                floats in [0, 1], stacked or not. None draws one of each caption.
            num_frames: of a video; more than in training come in several windows.
            fps: how fast the result is to be shown, which its `fps` says; the frames are the same.
            height: pixels of what is drawn, or to resize the pictures to; None is as trained, or
                leaves them.
            width: the same.
            num_inference_steps: sampler steps of the video.
            guidance_scale: w_p, strength of the text.
            image_guidance_scale: w_i, strength of the picture.
            negative_prompt: what no video should show, or one for each prompt.
            num_videos_per_prompt: results for each prompt, next to each other.
            generator: a CPU generator from which the seeds of all results are drawn in turn, or one
                for each; None means torch's global one.
            seed: in place of a generator the seed itself, for all or for each; 7 gives the frames
                of `animate(..., seed=7)` and of `emu-edit generate --seed 7`.
            output_type: "pil", "np" or "pt", see `EmuVideoPipelineOutput`.
            return_dict: False returns a tuple of the frames instead.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": z_t}) after each
                step of each window, from 0; "latents" in what it returns replace z_t, which is
                1 x (frames times channels) x h x w.
            callback_on_step_end_tensor_inputs: what the dictionary holds; only latents can be had.

        Raises:
            InputError: if counts or sizes do not fit, something given cannot be used, or the model
                begins with no picture.
        """
        names = tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        counts = {"num_videos_per_prompt": num_videos_per_prompt, "num_frames": num_frames}
        check_call(output_type, {**counts, "fps": fps, "height": height, "width": width})
        pictures = [None] if image is None else read_pictures(image, height, width)
        made = rows(prompt, ("image", [*pictures]), None, negative_prompt, num_videos_per_prompt)
        seeds = seeds_of(seed, generator, len(made.prompts))
        sampling = Sampling(num_inference_steps, guidance_scale, image_guidance_scale)
        frames = self.animator.frames if num_frames is None else num_frames
        settings = sampling.applied(self.animator.video.settings)
        total = len(seeds) * self.animator.windows(frames) * settings.num_steps
        # torch.compiler.disable hides the arguments of diffusers' method
        with self.progress_bar(total=total) as bar:  # pyright: ignore[reportCallIssue]
            on_step = self.step_end(callback_on_step_end, names, bar.update)
            drawings = [
                Drawing(clean_instruction(text, what="prompt"), number, negative, settings, on_step)
                for text, number, negative in zip(made.prompts, seeds, made.negatives, strict=True)
            ]
            videos = self._drawn(drawings, made.sources, (height, width), frames)
            result = stacked(videos, output_type)
        rate = self.animator.rate if fps is None else fps
        return EmuVideoPipelineOutput(result, rate) if return_dict else (result,)

    def _drawn(
        self,
        drawings: list[Drawing],
        pictures: Sequence[UInt8[Tensor, "3 h w"] | None],
        size: tuple[int | None, int | None],
        frames: int,
    ) -> Iterator[UInt8[Tensor, "f 3 h w"]]:
        """Yield the videos; what has no picture begins with one that is drawn of its caption."""
        usual = self.editor.settings.image_size
        for drawing, given in zip(drawings, pictures, strict=True):
            picture = given
            if picture is None:
                (picture,) = draw_pictures(
                    self.editor,
                    [drawing.caption],
                    [drawing.seed],
                    size=(size[0] or usual, size[1] or usual),
                    negative=drawing.negative,
                )
            yield torch.cat(list(animation(self.animator, picture, drawing, frames)))
