"""`emu-edit generate "caption" ["…"] -o OUT`: draw pictures, or a video, from captions.

What it has in common with `emu-edit interpolate`, that videos are drawn, is here, too.
"""

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import (
    ArgumentParser,
    add_sampling,
    importing,
    positive_int,
    sampling_of,
    seed_int,
)
from emu_edit.cli.video import check_places
from emu_edit.errors import InputError, StorageError
from emu_edit.text_rules import clean_instruction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import UInt8
    from torch import Tensor

    from emu_edit.diffusion.samplers import StepEnd
    from emu_edit.editing.animate import Animator
    from emu_edit.editing.editor import Editor
    from emu_edit.editing.settings import EditorSettings, Sampling
    from emu_edit.video.clip import Frame, VideoInfo
    from emu_edit.video.generation import Footage

AT_ONCE = 8  # pictures
EPILOG = """\
OUT is a .png for one picture. For several it is a folder, made if it is missing: 0001.png and so on
in the order of captions, captions.jsonl, and sheet.png with all of them. For a video of one caption
it is .mp4, .mov, .mkv, .webm, .avi or an animated .gif or .webp: a picture is drawn first, or taken
from --image, and the video begins with it. With --extend OUT is the video IN followed by --frames
new ones, at its rate, with its sound.

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
    video.add_argument("--extend", type=Path, metavar="IN", help="go on from this video's end")
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
    with importing():
        from emu_edit.editing.animate import find_drawer
        from emu_edit.editing.generate import load_generator

    sampling = sampling_of(options)
    footage = None if options.extend is None else footage_of(options.extend, options.size)
    model = find_drawer(options.model)
    editor = load_generator(model, options.device)
    if is_video:
        from emu_edit.editing.animate import load_animator

        animator = load_animator(editor, model)
        if footage is not None:
            return _extend(options, animator, footage, sampling)
        return _animate(options, animator, sampling)
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
    for name in ("image", "extend", "frames", "rate"):
        if getattr(options, name) is not None and not is_video:
            raise InputError(f"--{name} is of videos and -o {options.output} is none; give OUT.mp4")
    for name in ("image", "rate"):  # a video has its own
        if options.extend is not None and getattr(options, name) is not None:
            raise InputError(f"--extend and --{name} exclude each other; leave one out")
    if options.extend is not None:
        check_places(options.extend, options.output)


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


def _animate(options: argparse.Namespace, animator: "Animator", sampling: "Sampling") -> int:
    """Draw a picture unless one is given, and the video that begins with it."""
    from fractions import Fraction

    from emu_edit.editing.animate import Drawing, animation
    from emu_edit.video.clip import VideoInfo
    from emu_edit.video.generation import timed

    frames = animator.frames if options.frames is None else options.frames
    windows = animator.windows(frames)  # refuses before a picture is drawn
    caption = clean_instruction(options.captions[0], what="caption")
    drawer = animator.drawer
    if options.image is None:
        (picture,) = _drawn(drawer, [(caption, options.seed)], options.size, options.negative)
    else:
        picture = _given(options.image, options.size, drawer.settings.image_size)
    settings = sampling.applied(animator.video.settings)
    rate = Fraction(animator.rate if options.rate is None else options.rate)
    size = (picture.shape[-2], picture.shape[-1])
    info = VideoInfo(options.output, size, time_base=1 / rate, times=range(frames), rate=rate)
    with drawing_steps(windows, settings) as on_step:
        drawing = Drawing(caption, options.seed, options.negative, settings, on_step)
        pieces = animation(animator, picture, drawing, frames)
        drawn = (pixels for piece in pieces for pixels in piece)
        write_video(options.output, info, timed(drawn, [*range(frames + 1)]))
    return report_video(options, info, caption)


def _extend(
    options: argparse.Namespace, animator: "Animator", footage: "Footage", sampling: "Sampling"
) -> int:
    """Write the given video and what comes after it."""
    from emu_edit.editing.animate import Drawing
    from emu_edit.video.generation import extended

    each = animator.check_extends(f"--extend {options.extend}")
    new = each if options.frames is None else options.frames
    say_size(footage, animator)
    caption = clean_instruction(options.captions[0], what="caption")
    settings = sampling.applied(animator.video.settings)
    with drawing_steps(-(-new // each), settings) as on_step:
        drawing = Drawing(caption, options.seed, options.negative, settings, on_step)
        info, frames = extended(animator, footage, drawing, new)
        write_video(options.output, info, frames, source=footage.info)
    return report_video(options, info, caption)


def footage_of(path: Path, size: int | None) -> "Footage":
    """Look at a video that is to be read, before a model is loaded; say what is done to it.

    Raises:
        InputError: if it cannot be read.
    """
    from emu_edit.video.generation import Footage
    from emu_edit.video.io import open_video

    footage = Footage(open_video(path), size)
    for note in footage.info.notes:
        sys.stderr.write(f"{path}: {note}\n")
    return footage


def say_size(footage: "Footage", animator: "Animator") -> None:
    """Say if the frames are of another size than those of training."""
    if footage.size is None:
        _say_size(footage.info.path, footage.info.size, animator.drawer.settings.image_size)


@contextmanager
def drawing_steps(windows: int, settings: "EditorSettings") -> "Iterator[StepEnd | None]":
    """Show a bar, and yield what moves it by the steps of all windows."""
    from emu_edit.editing.animate import counted_steps
    from emu_edit.terminal import step_bar

    with step_bar("drawing the video", "steps") as on_step:
        yield counted_steps(on_step, windows, settings.num_steps)


def write_video(
    output: Path,
    info: "VideoInfo",
    frames: "Iterator[Frame]",
    *,
    source: "VideoInfo | None" = None,
) -> None:
    """Write a video as it is drawn, with the sound of `source`; say what is not copied.

    Raises:
        InputError: if it cannot be drawn or written.
    """
    from emu_edit.video.write import write_frames

    try:
        notes = write_frames(output, frames, info, source=source)
    except StorageError as error:
        raise InputError(str(error)) from error
    for note in notes:
        sys.stderr.write(f"{output}: {note}\n")


def report_video(options: argparse.Namespace, info: "VideoInfo", caption: str) -> int:
    """Print what was written; return the exit status."""
    rate = round(float(info.rate), 3)
    line = {"output": str(options.output), "caption": caption, "seed": options.seed}
    line |= {"frames": info.frames, "rate": int(rate) if rate == int(rate) else rate}
    told = f"{options.output}: {caption or f'{info.frames} frames'}"
    told = json.dumps(line, ensure_ascii=False) if options.json else told
    sys.stdout.write(f"{told}\n")
    return 0


def _given(path: Path, size: int | None, trained: int) -> "UInt8[Tensor, '3 h w']":
    """Read the picture to animate, resized if that is asked for; say if it is of another size."""
    from emu_edit.images import read_image, resize, with_shorter_side

    picture = read_image(path)
    height, width = picture.shape[-2:]
    if size is not None:
        return resize(picture, with_shorter_side(size, height=height, width=width))
    _say_size(path, (height, width), trained)
    return picture


def _say_size(path: Path, size: tuple[int, int], trained: int) -> None:
    height, width = size
    if size != (trained, trained):
        sys.stderr.write(
            f"{path} is {width}x{height}, the model was trained at {trained}x{trained}; to resize "
            f"it: --size {trained}\n"
        )


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
