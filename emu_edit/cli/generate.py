"""`emu-edit generate "caption" ["…"] -o OUT`: draw pictures, or a video, from captions."""

import argparse
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
from emu_edit.errors import InputError, StorageError
from emu_edit.text_rules import clean_instruction

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from emu_edit.editing.editor import Editor
    from emu_edit.editing.settings import Sampling

AT_ONCE = 8  # pictures
EPILOG = """\
OUT is a .png for one picture. For several it is a folder, made if it is missing: 0001.png and so on
in the order of captions, captions.jsonl, and sheet.png with all of them. For a video of one caption
it is .mp4, .mov, .mkv, .webm, .avi or an animated .gif or .webp: a picture is drawn first, or taken
from --image, and the video begins with it.

The model is one that was trained on captions (emu-edit fit --config text_to_image), or a Stable
Diffusion 1.x or 2.x directory in diffusers' layout; for videos one of --config emu_video.

exit status: 0 done; 2 nothing could be done, standard error says why in one line.
"""


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit generate",
        description="Draw pictures, or a video, from captions.",
        epilog=f"{EPILOG}\nexamples:\n"
        '  emu-edit generate "a red circle on a plain white backdrop" -o circle.png\n'
        '  emu-edit generate "a red circle" "a blue star" --count 4 -o drawn --model runs/mine\n'
        '  emu-edit generate "a red star; the star moves to the left" -o out.mp4 --model runs/v',
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
    video = made.add_argument_group("videos")
    video.add_argument("--image", type=Path, help="animate this picture, drawing none")
    video.add_argument("--frames", type=positive_int, help="how many (default: as trained)")
    video.add_argument("--rate", type=positive_int, help="frames a second (default: as trained)")
    made.add_argument("--json", action="store_true", help="print one JSON object per picture")
    return made


def run(arguments: list[str]) -> int:
    """Draw; return the exit status.

    Raises:
        InputError: if captions, model or output cannot be used.
    """
    options = parser().parse(arguments)
    is_video = options.output.suffix.lower() not in {"", ".png"}
    _refuse_of_videos(options, is_video=is_video)
    captions = [clean_instruction(text, what="caption") for text in options.captions]
    wanted = [(text, options.seed + n) for text in captions for n in range(options.count)]
    _check_output(options.output, len(wanted), is_video=is_video)
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
    if is_video:
        return _animate(options, editor, model, sampling)
    editor.settings = sampling.applied(editor.settings)
    pictures = _drawn(editor, wanted, options.size, options.negative)
    names = _write(options.output, pictures, wanted)
    for name, (caption, seed) in zip(names, wanted, strict=True):
        line = {"output": str(name), "caption": caption, "seed": seed}
        sys.stdout.write(
            json.dumps(line, ensure_ascii=False) + "\n" if options.json else f"{name}: {caption}\n"
        )
    return 0


def _refuse_of_videos(options: argparse.Namespace, *, is_video: bool) -> None:
    if options.guidance_image is not None and not is_video:
        raise InputError("--guidance-image is of a source picture, and there is none; leave it out")
    for name in ("image", "frames", "rate"):
        if getattr(options, name) is not None and not is_video:
            raise InputError(f"--{name} is of videos and -o {options.output} is none; give OUT.mp4")


def _check_output(output: Path, count: int, *, is_video: bool) -> None:
    if is_video:
        from emu_edit.video.coding import CONTAINERS

        if output.suffix.lower() not in CONTAINERS:
            raise InputError(
                f"-o {output}: pictures are written as .png and videos as .mp4 and others; give "
                "OUT.png, OUT.mp4, or a folder"
            )
    if count > 1 and output.suffix:
        raise InputError(
            f"-o {output}: {count} of them need a folder of pictures; give a name without "
            f"{output.suffix}"
        )
    if not output.parent.is_dir():
        raise InputError(f"-o {output}: there is no folder {output.parent}; make it first")


def _animate(
    options: argparse.Namespace, drawer: "Editor", model: Path, sampling: "Sampling"
) -> int:
    """Draw a picture unless one is given, and the video that begins with it."""
    from fractions import Fraction

    from emu_edit.editing.animate import animate, load_animator
    from emu_edit.terminal import step_bar
    from emu_edit.video.write import write_clip

    animator = load_animator(drawer, model)
    frames = animator.frames if options.frames is None else options.frames
    animator.windows(frames)  # refuses before a picture is drawn
    settings = sampling.applied(animator.video.settings)
    caption = clean_instruction(options.captions[0], what="caption")
    if options.image is None:
        (picture,) = _drawn(drawer, [(caption, options.seed)], options.size, options.negative)
    else:
        picture = _given(options.image, options.size, drawer.settings.image_size)
    with step_bar("drawing the video", "steps") as on_step:
        video = animate(
            animator,
            picture,
            caption,
            seed=options.seed,
            frames=frames,
            negative=options.negative,
            settings=settings,
            on_step=on_step,
        )
    rate = animator.rate if options.rate is None else options.rate
    try:
        write_clip(options.output, video, Fraction(rate))
    except StorageError as error:
        raise InputError(str(error)) from error
    line = {"output": str(options.output), "caption": caption, "seed": options.seed}
    line |= {"frames": frames, "rate": rate}
    told = json.dumps(line, ensure_ascii=False) if options.json else f"{options.output}: {caption}"
    sys.stdout.write(f"{told}\n")
    return 0


def _given(path: Path, size: int | None, trained: int) -> "UInt8[Tensor, '3 h w']":
    """Read the picture to animate, resized if that is asked for; say if it is of another size."""
    from emu_edit.images import read_image, resize, with_shorter_side

    picture = read_image(path)
    height, width = picture.shape[-2:]
    if size is not None:
        return resize(picture, with_shorter_side(size, height=height, width=width))
    if (height, width) != (trained, trained):
        sys.stderr.write(
            f"{path} is {width}x{height}, the model was trained at {trained}x{trained}; to resize "
            f"it: --size {trained}\n"
        )
    return picture


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
