"""`emu-edit interpolate IN --factor N -o OUT`: draw frames between the frames of a video."""

import sys
from pathlib import Path

from emu_edit.cli.arguments import (
    ArgumentParser,
    add_sampling,
    importing,
    positive_int,
    sampling_of,
    seed_int,
)
from emu_edit.cli.generate import (
    drawing_steps,
    footage_of,
    report_video,
    say_size,
    write_video,
)
from emu_edit.cli.video import check_places

EPILOG = """\
IN is a video, an animation, or a folder of pictures; OUT is .mp4, .mov, .mkv, .webm or .avi, an
animated .gif, .png or .webp, or a name without extension: a folder of pictures.

OUT has N times the frames a second. N - 1 come between two frames of IN, N before the first and N
after the last: n frames become N (n + 1) + 1, without sound. With --same-length those of the ends
are left out, and sound and subtitles are copied. Frames of IN are kept as they are.

The model is one of emu-edit fit --config emu_video_interpolation; N is its factor or divides it.

exit status: 0 done; 2 nothing could be done, standard error says why in one line.
"""


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit interpolate",
        description="Draw frames between the frames of a video, of any length.",
        epilog=f"{EPILOG}\nexamples:\n"
        "  emu-edit interpolate clip.mp4 -o smooth.mp4 --model runs/between\n"
        "  emu-edit interpolate clip.mp4 --factor 2 -o out.mp4 --same-length --size 32\n"
        '  emu-edit interpolate drawn.gif -o out.mp4 --caption "a red star falls" --redraw',
    )
    made.add_argument("video", metavar="IN", type=Path, help="video, animation or folder")
    made.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="the result")
    made.add_argument("--factor", type=positive_int, metavar="N", help="default: the model's")
    made.add_argument("--caption", default="", help="what the video shows")
    made.add_argument(
        "--same-length", action="store_true", help="begin and end with IN; keep sound"
    )
    made.add_argument(
        "--redraw", action="store_true", help="draw the frames of IN, too: mends them"
    )
    made.add_argument("--model", type=Path, help="model directory or run folder")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same result (default 0)")
    made.add_argument("--negative", default="", help="what the video should not show")
    made.add_argument("--size", type=positive_int, help="first resize, shorter side in pixels")
    add_sampling(made)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def run(arguments: list[str]) -> int:
    """Draw; return the exit status.

    Raises:
        InputError: if video, model or output cannot be used.
    """
    options = parser().parse(arguments)
    check_places(options.video, options.output)
    with importing():
        from emu_edit.editing.animate import Animator, Drawing
        from emu_edit.video.coding import Coding
        from emu_edit.video.generation import interpolated

    sampling = sampling_of(options)
    footage = footage_of(options.video, options.size)
    Coding().settled(options.output, footage.info.size)
    animator = Animator.from_pretrained(options.model, options.device)
    say_size(footage, animator)
    settings = sampling.applied(animator.video.settings)
    keeps_sound = options.same_length and footage.info.has_others
    if footage.info.has_others and not keeps_sound:
        sys.stderr.write(f"{options.video}: sound left out; to keep it: --same-length\n")
    # as `windows_of` has them, with a frame in common
    windows = max(1, -(-(footage.info.frames - 1) // max(1, len(animator.places) - 1)))
    with drawing_steps(windows, settings) as on_step:
        drawing = Drawing(options.caption, options.seed, options.negative, settings, on_step)
        info, frames = interpolated(
            animator,
            footage,
            drawing,
            factor=options.factor or animator.given.factor,
            redraw=options.redraw,
            same_length=options.same_length,
        )
        source = footage.info if keeps_sound else None
        write_video(options.output, info, frames, source=source)
    return report_video(options, info, drawing.caption)
