"""`emu-edit generate "caption" ["…"] -o OUT`: draw pictures from captions."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import (
    ArgumentParser,
    add_sampling,
    positive_int,
    sampling_of,
    seed_int,
)
from emu_edit.errors import InputError
from emu_edit.text_rules import clean_instruction

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from emu_edit.editing.editor import Editor

AT_ONCE = 8  # pictures
EPILOG = """\
OUT is a .png for one picture. For several it is a folder, made if it is missing: 0001.png and so on
in the order of captions, captions.jsonl, and sheet.png with all of them.

The model is one that was trained on captions (emu-edit fit --config text_to_image), or a Stable
Diffusion 1.x or 2.x directory in diffusers' layout.

exit status: 0 done; 2 nothing could be done, standard error says why in one line.
"""


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit generate",
        description="Draw pictures from captions.",
        epilog=f"{EPILOG}\nexamples:\n"
        '  emu-edit generate "a red circle on a plain white backdrop" -o circle.png\n'
        '  emu-edit generate "a red circle" "a blue star" --count 4 -o drawn --model runs/mine',
    )
    made.add_argument("captions", nargs="+", metavar="CAPTION", help="what a picture shows")
    made.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="the result")
    made.add_argument("--model", type=Path, help="model directory or run folder")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    made.add_argument("--count", type=positive_int, default=1, help="pictures of each caption")
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same result (default 0)")
    made.add_argument("--negative", default="", help="what the pictures should not show")
    made.add_argument("--size", type=positive_int, help="side in pixels (default: as trained)")
    add_sampling(made)
    made.add_argument("--json", action="store_true", help="print one JSON object per picture")
    return made


def run(arguments: list[str]) -> int:
    """Draw; return the exit status.

    Raises:
        InputError: if captions, model or output cannot be used.
    """
    options = parser().parse(arguments)
    if options.guidance_image is not None:
        raise InputError("--guidance-image is of a source picture, and there is none; leave it out")
    captions = [clean_instruction(text, what="caption") for text in options.captions]
    wanted = [(text, options.seed + n) for text in captions for n in range(options.count)]
    _check_output(options.output, len(wanted))
    sampling = sampling_of(options)
    from emu_edit.editing.find import find_model
    from emu_edit.editing.generate import CAPTION, load_generator

    model = options.model
    if model is None or not (model / "unet").is_dir():
        model = find_model(model)
    editor = load_generator(model, options.device)
    if CAPTION not in editor.networks.tasks.names:
        raise InputError(
            f"{model} edits pictures and was not trained to draw; train one with 'emu-edit fit "
            "--config text_to_image', or give --model a Stable Diffusion directory"
        )
    editor.settings = sampling.applied(editor.settings)
    pictures = _drawn(editor, wanted, options.size, options.negative)
    names = _write(options.output, pictures, wanted)
    for name, (caption, seed) in zip(names, wanted, strict=True):
        line = {"output": str(name), "caption": caption, "seed": seed}
        sys.stdout.write(
            json.dumps(line, ensure_ascii=False) + "\n" if options.json else f"{name}: {caption}\n"
        )
    return 0


def _check_output(output: Path, count: int) -> None:
    is_picture = output.suffix.lower() == ".png"
    if output.suffix and not is_picture:
        raise InputError(f"-o {output}: pictures are written as .png; give OUT.png, or a folder")
    if count > 1 and is_picture:
        raise InputError(f"-o {output}: {count} pictures need a folder; give a name without .png")
    if not output.parent.is_dir():
        raise InputError(f"-o {output}: there is no folder {output.parent}; make it first")


def _drawn(
    editor: "Editor", wanted: list[tuple[str, int]], size: int | None, negative: str
) -> "list[UInt8[Tensor, '3 h w']]":
    from emu_edit.editing.generate import draw_pictures
    from emu_edit.terminal import step_bar

    pictures: list[UInt8[Tensor, "3 h w"]] = []
    with step_bar("drawing", "pictures") as on_step:
        for start in range(0, len(wanted), AT_ONCE):
            texts, seeds = zip(*wanted[start : start + AT_ONCE], strict=True)
            side = None if size is None else (size, size)
            pictures += draw_pictures(editor, texts, seeds, size=side, negative=negative)
            on_step(len(pictures), len(wanted))
    return pictures


def _write(
    output: Path, pictures: "list[UInt8[Tensor, '3 h w']]", wanted: list[tuple[str, int]]
) -> list[Path]:
    """Write one picture, or a folder of them; return their places."""
    from emu_edit.files import write_text
    from emu_edit.images import save_png

    if output.suffix:
        save_png(output, pictures[0])
        return [output]
    output.mkdir(exist_ok=True)
    names = [output / f"{number:04d}.png" for number in range(1, len(pictures) + 1)]
    for name, picture in zip(names, pictures, strict=True):
        save_png(name, picture)
    lines = [
        json.dumps({"file_name": name.name, "caption": text, "seed": seed}, ensure_ascii=False)
        for name, (text, seed) in zip(names, wanted, strict=True)
    ]
    write_text(output / "captions.jsonl", "\n".join(lines))
    save_png(output / "sheet.png", sheet(pictures))
    return names


def sheet(pictures: "list[UInt8[Tensor, '3 h w']]") -> "UInt8[Tensor, '3 _ _']":
    """Lay pictures out in a nearly square grid, small ones enlarged."""
    import torch

    times = max(1, 128 // pictures[0].shape[-1])
    large = [one.repeat_interleave(times, 1).repeat_interleave(times, 2) for one in pictures]
    columns = max(1, round(len(large) ** 0.5))
    large += [torch.full_like(large[0], 255)] * (-len(large) % columns)
    rows = [torch.cat(large[i : i + columns], dim=2) for i in range(0, len(large), columns)]
    return torch.cat(rows, dim=1)
