"""What the diffusers pipelines of pictures and of videos share.

Loading, saving and moving the one editor that they hold, progress and callbacks, and the reading of
arguments that both have.
Source of the argument names: diffusers, StableDiffusionInstructPix2PixPipeline.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.samplers import Sampler, StepEnd
from emu_edit.diffusion.schedule import Time
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import choose_device
from emu_edit.editing.task_mix import TaskChoice, parse_task
from emu_edit.errors import InputError, closest
from emu_edit.images import from_any, resize, to_float, to_pil

OUTPUT_TYPES = ("pil", "np", "pt")
LATENTS = "latents"  # diffusers' name of z_t
# called with the pipeline, the step, its timestep and {"latents": z_t}
Callback = Callable[[Any, int, Time, dict[str, Tensor]], dict[str, Tensor] | None]
StackedVideos = list[list[Image.Image]] | np.ndarray | Tensor
Item = TypeVar("Item")
Source = TypeVar("Source")
Own = TypeVar("Own", bound="EditorPipeline")


def _not_meant(name: str, why: str) -> Callable[..., NoReturn]:
    """Make a method that refuses what diffusers' own would pass over without a word."""

    def refuse(self: DiffusionPipeline, *_args: object, **_options: object) -> NoReturn:
        raise InputError(f"{name} is not for {type(self).__name__}: {why}")

    return refuse


TO_ONE_DEVICE = "the denoiser is most of the model, so all is on one device; call pipe.to('cuda')"
ATTENTION = (
    "attention is torch's own, which needs little memory; edit smaller pictures to need less"
)


class EditorPipeline(DiffusionPipeline):
    """A diffusers pipeline whose one component is the editor.

    There is no diffusers scheduler to swap: the sampler is the model's (`pipe.editor.settings`).
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
        cls: type[Own],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        torch_dtype: torch.dtype | None = None,
    ) -> Own:
        """Load a model directory written by `save_pretrained` or `emu-edit export`.

        Weights keep the precision that the directory says; `torch_dtype` may only agree with it.

        Raises:
            InputError: if it is not such a directory, or `torch_dtype` is not that of its weights.
        """
        editor = Editor.from_pretrained(Path(pretrained_model_name_or_path), device=device)
        return cls(editor).to(dtype=torch_dtype)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # safetensors, whole
        self, save_directory: str | os.PathLike[str]
    ) -> None:
        """Write the model directory, the same that `Editor.save_pretrained` writes."""
        self.editor.save_pretrained(Path(save_directory))

    def to(  # pyright: ignore[reportIncompatibleMethodOverride]
        self: Own,
        *places: str | int | torch.device | torch.dtype,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Own:
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

    def step_end(
        self, callback: Callback | None, names: Sequence[str], advance: Callable[[], object]
    ) -> StepEnd:
        """Ask the callback for other latents and move the progress bar, at each step."""

        def on_step(step: int, timestep: Time, latents: Tensor) -> Tensor | None:
            answer = None
            if callback is not None:
                answer = callback(self, step, timestep, dict.fromkeys(names, latents))
            advance()
            return None if answer is None else _replacement(answer, latents)

        return on_step


def sampler_of(eta: float, usual: Sampler) -> Sampler | None:
    """Name the sampler that DDIM with `eta` is; None keeps the usual one."""
    if eta == 0:
        return None
    if eta != 1 or usual is Sampler.dpm_solver_pp_2m:
        raise InputError(
            f"eta {eta:g} cannot be had with the sampler {usual.name}; give 0, or 1 with ddim or "
            "euler_ancestral"
        )
    return Sampler.euler_ancestral


def tensor_inputs(callback: Callback | None, names: Sequence[str]) -> Sequence[str]:
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


def as_list(value: Item | Sequence[Item]) -> list[Item]:
    """Make a list of a sequence, and a list of one of anything else (a string, too)."""
    is_many = isinstance(value, Sequence) and not isinstance(value, str)
    return list(value) if is_many else [value]  # type: ignore[arg-type]


def spread(name: str, items: list[Item], count: int, times: int) -> list[Item]:
    """Give each result its item: one for all or one for each, every one `times` in a row."""
    if len(items) not in {1, count}:
        raise InputError(
            f"got {len(items)} of {name} for {count} results; give one for all, or one for each"
        )
    spread = items if len(items) == count else items * count
    return [item for item in spread for _ in range(times)]


def read_pictures(
    image: object, height: int | None = None, width: int | None = None
) -> list[UInt8[Tensor, "3 h w"]]:
    """Bring pictures of all kinds the pipeline takes to bytes; they must be of one size.

    A height or width given is theirs afterwards, by Lanczos filtering as in diffusers.

    Raises:
        InputError: if there is none, or one is of another kind, shape, range or size.
    """
    pictures = [pixels for one in as_list(image) for pixels in from_any(one)]
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


@dataclass(frozen=True)
class Rows(Generic[Source]):
    """What makes each result, in their order."""

    prompts: list[str]
    sources: list[Source]
    tasks: list[TaskChoice | None]
    negatives: list[str]


def rows(
    prompt: str | Sequence[str],
    sources: tuple[str, list[Source]],
    task: TaskChoice | Sequence[TaskChoice] | None,
    negative: str | Sequence[str] | None,
    times: int,
) -> Rows[Source]:
    """Pair up what makes every result, each prompt's `times` results in a row.

    Args:
        prompt: one for all, or one for each; tasks and negative texts, too.
        sources: what they are called, and what is edited.
        task: names or mixes.
        negative: what should not be shown.
        times: results for each prompt.

    Raises:
        InputError: if the counts do not fit.
    """
    prompts, negatives = as_list(prompt), as_list("" if negative is None else negative)
    tasks = [parse_task(one) if isinstance(one, str) else one for one in as_list(task)]
    name, given = sources
    count = max(len(prompts), len(given))
    return Rows(
        spread("prompt", prompts, count, times),
        spread(name, given, count, times),
        spread("task", tasks, count, times),
        spread("negative_prompt", negatives, count, times),
    )


def check_call(output_type: str, counts: Mapping[str, int | None]) -> None:
    """Refuse (InputError) an unknown output type, and counts below 1 that are given."""
    if output_type not in OUTPUT_TYPES:
        raise InputError(
            f"unknown output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}."
            f"{closest(output_type, list(OUTPUT_TYPES))}"
        )
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")


def generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[torch.Generator]:
    """Return a generator for each of so many results; None is torch's global one.

    Raises:
        InputError: if the counts do not fit, or one is not on the CPU.
    """
    match generator:
        case None:
            generators = [torch.default_generator] * count
        case torch.Generator():
            generators = [generator] * count
        case _:
            generators = list(generator)
    if len(generators) != count:
        raise InputError(
            f"got {len(generators)} generators for {count} results; give one for all, or "
            "one for each"
        )
    for one in generators:
        if one.device.type != "cpu":
            raise InputError(
                f"the generator is on {one.device}, noise is drawn on the CPU so that a seed gives "
                "the same result on every device; give torch.Generator().manual_seed(SEED)"
            )
    return generators


def seeds_of(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
) -> list[int]:
    """Return a seed for each of so many videos, whose noise is keyed by seed and frame.

    Raises:
        InputError: if the counts do not fit, or both are given.
    """
    if seed is None:
        drawn = generators(generator, count)
        return [int(torch.randint(2**62, (), generator=each)) for each in drawn]
    if generator is not None:
        raise InputError("seed and generator exclude each other; give one")
    return spread("seed", as_list(seed), count, 1)


def as_asked(
    edited: UInt8[Tensor, "b 3 h w"], output_type: str
) -> list[Image.Image] | Float[np.ndarray, "b h w 3"] | Float[Tensor, "b 3 h w"]:
    """Return pictures as asked for: PIL, or floats in [0, 1] as an array or a tensor."""
    if output_type == "pil":
        return [to_pil(picture) for picture in edited]
    shares = (to_float(edited) + 1) / 2
    return shares if output_type == "pt" else shares.permute(0, 2, 3, 1).contiguous().numpy()


def stacked(videos: Iterable[UInt8[Tensor, "f 3 h w"]], output_type: str) -> StackedVideos:
    """Return videos as asked for: lists of PIL pictures, or a stack of floats in [0, 1]."""
    asked = [as_asked(frames, output_type) for frames in videos]
    match output_type:
        case "np":
            return np.stack(asked)  # pyright: ignore[reportArgumentType, reportCallIssue]
        case "pt":
            return torch.stack(asked)  # pyright: ignore[reportArgumentType]
        case _:
            return asked  # pyright: ignore[reportReturnType]
