"""The editor of videos under diffusers' names: arguments and results of its video pipelines.

A thin coat over `VideoEditor`, as `EmuEditPipeline` is over `Editor`: the same seed gives the same
frames here, there and on the command line. All frames are in memory, which is the layout that
diffusers hands on; `emu-edit video` and `VideoEditor` itself edit any length.
Source of the argument names and of the layout of `frames`: diffusers, pipelines of InstructPix2Pix
and AnimateDiffVideoToVideo.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from emu_edit.editing.pipeline_base import (
    LATENTS,
    Callback,
    EditorPipeline,
    StackedVideos,
    as_list,
    check_call,
    read_pictures,
    rows,
    sampler_of,
    seeds_of,
    stacked,
    tensor_inputs,
)
from emu_edit.editing.settings import Sampling
from emu_edit.editing.task_mix import TaskChoice
from emu_edit.errors import InputError
from emu_edit.images import from_any
from emu_edit.video.cuts import GivenCuts, scene_starts
from emu_edit.video.editor import VideoEditor, VideoSettings, VideoTurn
from emu_edit.video.io import open_video
from emu_edit.video.windows import Shot

PICTURE = 3  # dimensions of one frame
VIDEO = 4

Frames = str | os.PathLike[str] | Sequence[Image.Image | np.ndarray | Tensor] | np.ndarray | Tensor


@dataclass
class EmuEditVideoPipelineOutput(BaseOutput):
    """What diffusers' video pipelines return.

    Attributes:
        frames: a list of PIL pictures for each video, or floats in [0, 1]: an array "b f h w 3" or
            a tensor "b f 3 h w".
    """

    frames: StackedVideos


class EmuEditVideoPipeline(EditorPipeline):
    """Edit videos by instruction, called like diffusers' pipelines from video to video."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        video: Frames | Sequence[Frames],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        *,
        height: int | None = None,
        width: int | None = None,
        task: TaskChoice | Sequence[TaskChoice] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        cuts: Sequence[int] | None = None,
        settings: VideoSettings = VideoSettings(),
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
    ) -> EmuEditVideoPipelineOutput | tuple[StackedVideos]:
        """Edit videos; `frames` of the result are in the order of the prompts.

        Steps and scales that are None are the model's own.

        Args:
            prompt: one instruction for all videos, or one for each.
            video: one video for all prompts, or a list with one for each: the name of a file that
                `open_video` reads, a list of pictures of one size, an array "f h w 3" or a tensor
                "f 3 h w" of uint8 or floats in [0, 1].
            num_inference_steps: sampler steps.
            guidance_scale: strength of the text.
            image_guidance_scale: strength of the source frames.
            negative_prompt: what no video should show, or one for each prompt.
            num_videos_per_prompt: results for each prompt, next to each other.
            eta: DDIM's; 0 takes the model's sampler, 1 `euler_ancestral`, which is DDIM with eta 1.
            height: pixels to resize the frames to before they are edited; None leaves them.
            width: the same.
            task: name or mix of tasks for all videos, or one for each; None asks the model's task
                predictor.
            generator: a CPU generator from which the seeds of all results are drawn in turn, or one
                for each; None means torch's global one.
            seed: in place of a generator the seed itself, for all or for each; 7 gives the frames
                of `VideoTurn(..., seed=7)` and of `emu-edit video --seed 7`.
            cuts: frames that scenes begin with, the same of all videos; () for none, None detects.
            settings: what ties frames together.
            output_type: "pil", "np" or "pt", see `EmuEditVideoPipelineOutput`.
            return_dict: False returns a tuple of one instead.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": z_t}) after each
                step of each window, from 0; "latents" in what it returns replace z_t. A row of z_t
                is a frame of the window; a last one that is short is filled up with its last frame.
            callback_on_step_end_tensor_inputs: what the dictionary holds; only latents can be had.

        Raises:
            InputError: if counts or sizes do not fit, or something given cannot be used.
        """
        names = tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        counts = {"num_videos_per_prompt": num_videos_per_prompt, "height": height, "width": width}
        check_call(output_type, counts)
        videos = [_shots(one, (height, width), cuts) for one in _as_videos(video)]
        if output_type != "pil":
            _check_alike(videos, output_type)
        made = rows(prompt, ("video", videos), task, negative_prompt, num_videos_per_prompt)
        seeds = seeds_of(seed, generator, len(made.prompts))
        sampler = sampler_of(eta, self.editor.settings.sampler)
        sampling = Sampling(num_inference_steps, guidance_scale, image_guidance_scale, sampler)
        turns = [
            VideoTurn(*asked)
            for asked in zip(
                made.prompts,
                made.tasks,
                made.negatives,
                [sampling] * len(seeds),
                seeds,
                strict=True,
            )
        ]
        on_step = self.step_end(callback_on_step_end, names, lambda: None)
        editors = [VideoEditor(self.editor, [turn], settings, on_step) for turn in turns]
        frames = stacked(self._edit(editors, made.sources), output_type)
        return EmuEditVideoPipelineOutput(frames) if return_dict else (frames,)

    def _edit(
        self, editors: list[VideoEditor], videos: list[list[Shot]]
    ) -> Iterator[UInt8[Tensor, "f 3 h w"]]:
        # torch.compiler.disable hides the arguments of diffusers' method
        with self.progress_bar(total=sum(map(len, videos))) as bar:  # pyright: ignore[reportCallIssue]
            for editor, shots in zip(editors, videos, strict=True):
                edited = []
                for shot in editor.edit(shots):
                    edited.append(shot.pixels)
                    bar.update()
                yield torch.stack(edited)


def _as_videos(video: object) -> list[object]:
    """Make a list of videos; pictures in a list are one video."""
    if isinstance(video, np.ndarray | Tensor) and video.ndim > VIDEO:
        return list(video)
    if not isinstance(video, Sequence) or isinstance(video, str):
        return [video]
    are_pictures = [
        isinstance(one, Image.Image)
        or (isinstance(one, np.ndarray | Tensor) and one.ndim == PICTURE)
        for one in video
    ]
    return [video] if all(are_pictures) else list(video)


def _shots(
    video: object, size: tuple[int | None, int | None], cuts: Sequence[int] | None
) -> list[Shot]:
    """Bring a video's frames to bytes of one size, each with whether a scene begins there."""
    if isinstance(video, str | os.PathLike):
        frames = [frame.pixels for frame in open_video(Path(video)).frames()]
    else:
        frames = [pixels for one in as_list(video) for pixels in from_any(one)]
    if not frames:
        raise InputError("got a video without frames; give at least one")
    given = None if cuts is None else GivenCuts.of(cuts, len(frames))
    starts = [is_start for _, is_start in scene_starts(iter(frames), given)]
    pictures = read_pictures(frames, *size)
    return [Shot(pixels, number, starts[number]) for number, pixels in enumerate(pictures)]


def _check_alike(videos: list[list[Shot]], output_type: str) -> None:
    shapes = {(len(shots), *shots[0].pixels.shape[1:]) for shots in videos}
    if len(shapes) > 1:
        named = ", ".join(f"{f} frames of {w}x{h}" for f, h, w in sorted(shapes))
        raise InputError(
            f"videos become one {output_type} stack only if they are alike, got {named}; give "
            "output_type='pil', or make a call for each"
        )
