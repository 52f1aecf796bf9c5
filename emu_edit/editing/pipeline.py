"""The editor under diffusers' names: arguments and results of its InstructPix2Pix pipeline.

A thin coat over `Editor`: it brings pictures of any of diffusers' kinds to bytes, pairs them with
prompts, tasks and generators, and hands the result back as it was asked for. All editing is the
editor's, so the same seed gives the same pixels here, there and on the command line.
Source of the argument names: diffusers, StableDiffusionInstructPix2PixPipeline.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn, TypeVar

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.samplers import Sampler, StepEnd
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import choose_device
from emu_edit.editing.settings import Sampling
from emu_edit.editing.task_mix import TaskChoice, parse_task
from emu_edit.errors import InputError, closest
from emu_edit.images import from_any, resize, to_float, to_pil

Picture = Image.Image | np.ndarray | Tensor
Pictures = Picture | Sequence[Picture]
OUTPUT_TYPES = ("pil", "np", "pt")
LATENTS = "latents"  # diffusers' name of z_t
Callback = Callable[["EmuEditPipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]
Item = TypeVar("Item")


def _not_meant(name: str, why: str) -> Callable[..., NoReturn]:
    """Make a method that refuses what diffusers' own would pass over without a word."""

    def refuse(_self: DiffusionPipeline, *_args: object, **_options: object) -> NoReturn:
        raise InputError(f"{name} is not for EmuEditPipeline: {why}")

    return refuse


TO_ONE_DEVICE = "the denoiser is most of the model, so all is on one device; call pipe.to('cuda')"
ATTENTION = (
    "attention is torch's own, which needs little memory; edit smaller pictures to need less"
)


class EmuEditPipeline(DiffusionPipeline):
    """Edit pictures by instruction, called like diffusers' InstructPix2Pix pipeline.

    Its one component is the editor. There is no diffusers scheduler to swap: the sampler is the
    model's (`pipe.editor.settings`).
    """

    editor: Editor
    enable_model_cpu_offload = _not_meant("enable_model_cpu_offload", TO_ONE_DEVICE)
    enable_sequential_cpu_offload = _not_meant("enable_sequential_cpu_offload", TO_ONE_DEVICE)
    enable_group_offload = _not_meant("enable_group_offload", TO_ONE_DEVICE)
    enable_attention_slicing = _not_meant("enable_attention_slicing", ATTENTION)
    enable_xformers_memory_efficient_attention = _not_meant(
        "enable_xformers_memory_efficient_attention", ATTENTION
    )
    _callback_tensor_inputs: ClassVar = [LATENTS]  # where diffusers' users look for the names

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self.register_modules(editor=editor)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # no hub, no pickles
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        torch_dtype: torch.dtype = torch.float32,
    ) -> "EmuEditPipeline":
        """Load a model directory written by `save_pretrained` or `emu-edit export`.

        Raises:
            InputError: if it is not such a directory, or `torch_dtype` is not that of its weights.
        """
        editor = Editor.from_pretrained(Path(pretrained_model_name_or_path), device=device)
        return cls(editor).to(torch_dtype)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # safetensors, whole
        self, save_directory: str | os.PathLike[str]
    ) -> None:
        """Write the model directory, the same that `Editor.save_pretrained` writes."""
        self.editor.save_pretrained(Path(save_directory))

    def to(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *places: str | int | torch.device | torch.dtype,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "EmuEditPipeline":
        """Move all networks to a device; they keep their precision, which may be given, too.

        Raises:
            InputError: if there is no such device here, or another precision is given.
        """
        for place in (*places, device, dtype):
            if isinstance(place, torch.dtype):
                if place != self.dtype:
                    raise InputError(
                        f"the pipeline edits in the precision of its weights, {self.dtype}, got "
                        f"{place}; give a device only, e.g. pipe.to('cuda')"
                    )
            elif place is not None:
                self._move(choose_device(f"cuda:{place}" if isinstance(place, int) else str(place)))
        return self

    def _move(self, device: str) -> None:
        self.editor.networks.to(device)
        if self.editor.predictor is not None:
            self.editor.predictor.to(device)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.editor.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the denoiser's weights."""
        return next(self.editor.networks.denoiser.parameters()).dtype

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
        names = _tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        _check_call(output_type, num_images_per_prompt, height, width)
        pictures = read_pictures(image, height, width)
        rows = _rows(prompt, pictures, task, negative_prompt, num_images_per_prompt)
        sampler = _sampler_of(eta, self.editor.settings.sampler)
        sampling = Sampling(num_inference_steps, guidance_scale, image_guidance_scale, sampler)
        generators = _generators(generator, len(rows.prompts))
        images = _as_asked(
            self._edit(rows, generators, sampling, callback_on_step_end, names), output_type
        )
        # diffusers annotates no tensors here, yet every one of its pipelines returns them for "pt"
        return ImagePipelineOutput(images) if return_dict else (images,)  # type: ignore[arg-type]

    def _edit(
        self,
        rows: "_Rows",
        generators: Sequence[torch.Generator],
        sampling: Sampling,
        callback: Callback | None,
        names: Sequence[str],
    ) -> UInt8[Tensor, "b 3 h w"]:
        settings = sampling.applied(self.editor.settings)
        # torch.compiler.disable hides the arguments of diffusers' method
        with self.progress_bar(total=settings.num_steps) as bar:  # pyright: ignore[reportCallIssue]
            return self.editor.edit_batch(
                torch.stack(rows.pictures),
                rows.prompts,
                rows.tasks,
                generators,
                negative=rows.negatives,
                settings=settings,
                on_step=self._step_end(callback, names, bar.update),
            )

    def _step_end(
        self, callback: Callback | None, names: Sequence[str], advance: Callable[[], object]
    ) -> StepEnd:
        """Ask the callback for other latents and move the progress bar, at each step."""

        def on_step(step: int, timestep: int, latents: Tensor) -> Tensor | None:
            answer = None
            if callback is not None:
                answer = callback(self, step, timestep, dict.fromkeys(names, latents))
            advance()
            return None if answer is None else _replacement(answer, latents)

        return on_step


@dataclass(frozen=True)
class _Rows:
    """What makes each result, in their order."""

    prompts: list[str]
    pictures: list[UInt8[Tensor, "3 h w"]]
    tasks: list[TaskChoice | None]
    negatives: list[str]


def _check_call(output_type: str, num_images: int, height: int | None, width: int | None) -> None:
    if output_type not in OUTPUT_TYPES:
        raise InputError(
            f"unknown output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}."
            f"{closest(output_type, list(OUTPUT_TYPES))}"
        )
    counts = {"num_images_per_prompt": num_images, "height": height, "width": width}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")


def _sampler_of(eta: float, usual: Sampler) -> Sampler | None:
    """Name the sampler that DDIM with `eta` is; None keeps the usual one."""
    if eta == 0:
        return None
    if eta != 1 or usual is Sampler.dpm_solver_pp_2m:
        raise InputError(
            f"eta {eta:g} cannot be had with the sampler {usual.name}; give 0, or 1 with ddim or "
            "euler_ancestral"
        )
    return Sampler.euler_ancestral


def _tensor_inputs(callback: Callback | None, names: Sequence[str]) -> Sequence[str]:
    """List the tensors that the callback asks for; only latents can be had."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):  # they bring their own
        names = callback.tensor_inputs
    _refuse_others("callback_on_step_end_tensor_inputs has", names)
    return names


def _refuse_others(what: str, names: Iterable[str]) -> None:
    if others := [repr(name) for name in names if name != LATENTS]:
        raise InputError(
            f"{what} {', '.join(others)}; this pipeline gives and takes {LATENTS!r} only"
        )


def _replacement(answer: Mapping[str, object], latents: Tensor) -> Tensor | None:
    """Find the latents in a callback's answer, None if it has none."""
    _refuse_others("callback_on_step_end returned", answer)
    if LATENTS not in answer:
        return None
    given = answer[LATENTS]
    if not isinstance(given, Tensor) or given.shape != latents.shape:
        came = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise InputError(
            f"callback_on_step_end returned latents of {came}, needs a tensor of "
            f"{tuple(latents.shape)}, the shape of those it was given"
        )
    return given.to(latents)


def _rows(
    prompt: str | Sequence[str],
    pictures: list[UInt8[Tensor, "3 h w"]],
    task: TaskChoice | Sequence[TaskChoice] | None,
    negative: str | Sequence[str] | None,
    num_images: int,
) -> _Rows:
    """Pair up what makes every result, each prompt's results in a row."""
    prompts, negatives = _as_list(prompt), _as_list("" if negative is None else negative)
    tasks = [parse_task(one) if isinstance(one, str) else one for one in _as_list(task)]
    count = max(len(prompts), len(pictures))
    return _Rows(
        _spread("prompt", prompts, count, num_images),
        _spread("image", pictures, count, num_images),
        _spread("task", tasks, count, num_images),
        _spread("negative_prompt", negatives, count, num_images),
    )


def _as_list(value: Item | Sequence[Item]) -> list[Item]:
    """Make a list of a sequence, and a list of one of anything else (a string, too)."""
    is_many = isinstance(value, Sequence) and not isinstance(value, str)
    return list(value) if is_many else [value]  # type: ignore[arg-type]


def _spread(name: str, items: list[Item], count: int, times: int) -> list[Item]:
    """Give each result its item: one for all or one for each, every one `times` in a row."""
    if len(items) not in {1, count}:
        raise InputError(
            f"got {len(items)} of {name} for {count} pictures to make; give one for all, or one "
            "for each"
        )
    spread = items if len(items) == count else items * count
    return [item for item in spread for _ in range(times)]


def _generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[torch.Generator]:
    match generator:
        case None:
            generators = [torch.default_generator] * count
        case torch.Generator():
            generators = [generator] * count
        case _:
            generators = list(generator)
    if len(generators) != count:
        raise InputError(
            f"got {len(generators)} generators for {count} pictures to make; give one for all, or "
            "one for each"
        )
    for one in generators:
        if one.device.type != "cpu":
            raise InputError(
                f"the generator is on {one.device}, noise is drawn on the CPU so that a seed gives "
                "the same picture on every device; give torch.Generator().manual_seed(SEED)"
            )
    return generators


def read_pictures(
    image: object, height: int | None = None, width: int | None = None
) -> list[UInt8[Tensor, "3 h w"]]:
    """Bring pictures of all kinds the pipeline takes to bytes; they must be of one size.

    A height or width given is theirs afterwards, by Lanczos filtering as in diffusers.

    Raises:
        InputError: if there is none, or one is of another kind, shape, range or size.
    """
    pictures = [pixels for one in _as_list(image) for pixels in from_any(one)]
    if not pictures:
        raise InputError("got no image; give at least one picture")
    pictures = [resize(one, (height or one.shape[1], width or one.shape[2])) for one in pictures]
    sizes = {(picture.shape[2], picture.shape[1]) for picture in pictures}
    if len(sizes) > 1:
        named = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise InputError(
            f"pictures of one call need one size, got {named}; make a call "
            "for each, or give height and width"
        )
    return pictures


def _as_asked(
    edited: UInt8[Tensor, "b 3 h w"], output_type: str
) -> list[Image.Image] | Float[np.ndarray, "b h w 3"] | Float[Tensor, "b 3 h w"]:
    if output_type == "pil":
        return [to_pil(picture) for picture in edited]
    shares = (to_float(edited) + 1) / 2
    return shares if output_type == "pt" else shares.permute(0, 2, 3, 1).contiguous().numpy()
