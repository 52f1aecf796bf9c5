"""`emu-edit edit IMAGE "instruction" --task T -o OUT`: edit one picture."""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import ArgumentParser, positive_int, seed_int
from emu_edit.cli.find_model import find_model
from emu_edit.errors import InputError, closest
from emu_edit.tasks import TASKS

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from emu_edit.editing.editor import Editor, EditorSettings

# a side this many times the training pictures' shows the network nothing it knows, and takes
# minutes
MOST_TIMES_LARGER = 16


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    tasks = "\n".join(f"  {task.name:<12}{task.definition}" for task in TASKS)
    made = ArgumentParser(
        prog="emu-edit edit",
        description="Edit a picture by instruction; the result has the size of the picture.",
        epilog=f"tasks:\n{tasks}\n\nexample:\n"
        '  emu-edit edit photo.jpg "paint the chair red" --task local -o red.png',
    )
    made.add_argument("image", type=Path, help="the picture: JPEG, PNG or WebP")
    made.add_argument("instruction", help="what to change, in words")
    made.add_argument("--task", required=True, help="kind of edit, one of the tasks below")
    made.add_argument("-o", "--output", type=Path, required=True, help="picture to write")
    made.add_argument(
        "--model", type=Path, help="model directory or run folder (default: newest in ./runs)"
    )
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same result (default 0)")
    made.add_argument("--steps", type=positive_int, help="sampler steps (default: the model's)")
    made.add_argument("--guidance-text", type=float, help="how strongly to follow the instruction")
    made.add_argument("--guidance-image", type=float, help="how strongly to keep the picture")
    made.add_argument("--sampler", help="ddim, euler_ancestral or dpm_solver_pp_2m")
    made.add_argument(
        "--size", type=positive_int, help="first resize, shorter side to this many pixels"
    )
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    return made


def run(arguments: list[str]) -> int:
    """Edit the picture and write the result.

    Raises:
        InputError: if picture, instruction, task, model or output cannot be used.
    """
    options = parser().parse(arguments)
    check_output(options.output)
    model = find_model(options.model)
    # everything above answers in an instant; only now is torch needed
    from emu_edit.cli.devices import choose_device
    from emu_edit.cli.progress import step_bar
    from emu_edit.editing.editor import Editor
    from emu_edit.images import read_image, write_image
    from emu_edit.text_rules import clean_instruction

    instruction = clean_instruction(options.instruction)
    image = read_image(options.image)
    editor = Editor.from_pretrained(model, device=choose_device(options.device))
    editor.networks.tasks.index(options.task)
    image = fit_size(image, options.size, editor, options.image)
    settings = settings_from(options, editor)
    start = time.monotonic()
    with step_bar("editing") as on_step:
        edited = editor.edit(
            image,
            instruction,
            task=options.task,
            seed=options.seed,
            guidance=settings.guidance,
            num_steps=settings.num_steps,
            sampler=settings.sampler,
            on_step=on_step,
        )
    write_image(options.output, edited)
    height, width = edited.shape[-2:]
    sys.stdout.write(
        f"wrote {options.output} ({width}x{height}, task {options.task}, seed {options.seed}, "
        f"model {model}, {time.monotonic() - start:.1f} s)\n"
    )
    return 0


def check_output(path: Path) -> None:
    """Refuse, before any work is done, an output that could not be written at the end.

    Raises:
        InputError: if `path` is a folder, or its folder is missing or read-only.
    """
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path} is a folder, the output must be a file name, e.g. {path}/out.png")
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {folder}; create it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"{path} cannot be written: no permission; choose another output")


def fit_size(
    image: "UInt8[Tensor, '3 h w']", size: int | None, editor: "Editor", path: Path
) -> "UInt8[Tensor, '3 H W']":
    """Resize as asked, or refuse pictures far larger than the model ever saw.

    Raises:
        InputError: if no size was asked for and the picture is far larger than training pictures.
    """
    from emu_edit.images import resize

    height, width = image.shape[-2:]
    if size is not None:
        scale = size / min(height, width)
        return resize(image, (round(height * scale), round(width * scale)))
    trained = editor.settings.image_size
    if max(height, width) > MOST_TIMES_LARGER * trained:
        raise InputError(
            f"{path} is {width}x{height}, more than {MOST_TIMES_LARGER} times the {trained} px "
            f"this model was trained at; edit a smaller copy with --size {trained}"
        )
    return image


def settings_from(options: argparse.Namespace, editor: "Editor") -> "EditorSettings":
    """Return the model's settings, overridden by what the command line says.

    Raises:
        InputError: for an unknown sampler, with the nearest name.
    """
    from emu_edit.diffusion.guidance import Guidance
    from emu_edit.diffusion.samplers import Sampler

    settings = editor.settings
    guidance = Guidance(
        text=settings.guidance.text if options.guidance_text is None else options.guidance_text,
        image=settings.guidance.image if options.guidance_image is None else options.guidance_image,
    )
    names = [sampler.name for sampler in Sampler]
    if options.sampler is not None and options.sampler not in names:
        raise InputError(
            f"unknown sampler {options.sampler!r}; known samplers: {', '.join(names)}."
            f"{closest(options.sampler, names)}"
        )
    return replace(
        settings,
        guidance=guidance,
        num_steps=settings.num_steps if options.steps is None else options.steps,
        sampler=settings.sampler if options.sampler is None else Sampler[options.sampler],
    )
