"""`emu-edit video IN "instruction" ["…"] -o OUT`: edit a video by instruction, in constant memory.

Reads the command line into records and checks what needs no model; `emu_edit.video` does the work.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import (
    ArgumentParser,
    add_sampling,
    clock,
    importing,
    positive_int,
    positive_or_zero,
    sampling_of,
    seed_int,
)
from emu_edit.editing.find import RELEASED_NAME, find_model, has_predictor, shown_path
from emu_edit.errors import InputError, StorageError
from emu_edit.tasks import CAPTION
from emu_edit.text_rules import clean_instruction

if TYPE_CHECKING:
    from emu_edit.video.editor import VideoSettings, VideoTurn
    from emu_edit.video.job import Done, Job

TUNED = "tuned.json"  # of `emu_edit.editing.tuned`, which is slow to import
EPILOG = """\
IN is a video, an animated GIF, PNG or WebP, or a folder of pictures. OUT is .mp4, .mov, .mkv, .webm
or .avi with the source's sound and subtitles, an animated .gif, .png or .webp, or a name without
extension: a folder of pictures. Frames keep their times, whatever the rate. Several instructions
are made in one pass, each on the result of the one before.

--start and --end take the frames with start <= time < end, seconds from the first frame; sound and
subtitles are cut with them. Frames keep the numbers that they have in IN: noise and --cuts are as
of the whole video.

What an edit remembers ends at a cut. An interrupted job keeps what it has in a hidden folder beside
OUT and goes on with --resume, to the same frames. Several processes (torchrun) share the scenes.

exit status: 0 done; 2 nothing could be done, standard error says why in one line; 130 interrupted.
"""


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit video",
        description="Edit a video by instruction, in one turn or several.",
        epilog=f"{EPILOG}\nexamples:\n"
        '  emu-edit video clip.mp4 "make it snow" -o snow.mp4\n'
        '  emu-edit video clip.mov "paint the car red" "make it night" -o out.mp4 --size 64\n'
        '  emu-edit video clip.mp4 "make it a sketch" -o both.mp4 --side-by-side --json',
    )
    made.add_argument("video", metavar="IN", help="video, animation, or folder of pictures")
    made.add_argument("instructions", nargs="+", metavar="INSTRUCTION", help="what to change")
    made.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="the result")
    made.add_argument(
        "--task", action="append", default=[], help="kind of edit; once, or once per instruction"
    )
    made.add_argument("--model", type=Path, help="model directory or run folder")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same result (default 0)")
    made.add_argument("--negative", default="", help="what the frames should not show")
    made.add_argument("--size", type=positive_int, help="first resize, shorter side in pixels")
    made.add_argument("--start", type=clock, metavar="TIME", help="from here; 7.5 or 1:02:03.5")
    made.add_argument("--end", type=clock, metavar="TIME", help="up to here, not included")
    add_sampling(made)
    _add_ties(made)
    _add_output(made)
    return made


def _add_ties(made: ArgumentParser) -> None:
    ties = made.add_argument_group("what ties frames together")
    ties.add_argument(
        "--noise",
        choices=["shared", "independent", "mixed", "progressive"],
        default="shared",
        help="how the first noise of frames is related (default shared)",
    )
    ties.add_argument(
        "--look",
        choices=["own", "anchor", "previous", "both", "coarse"],
        default="own",
        help="where self-attention looks besides its frame: the scene's first frame, the one "
        "before, both, or all of the window averaged (default own: nowhere)",
    )
    ties.add_argument("--window", type=positive_int, default=8, help="frames that look (default 8)")
    ties.add_argument(
        "--overlap", type=positive_or_zero, default=0, help="frames that two windows share"
    )
    ties.add_argument(
        "--threshold",
        type=float,
        metavar="ALPHA",
        help="take pixels that change less from the source (default: 0.03, off for tasks that "
        "repaint the whole picture)",
    )
    ties.add_argument("--no-threshold", action="store_true", help="take every result as it comes")
    ties.add_argument(
        "--hold-colour", action="store_true", help="keep the scene's first shift of colours"
    )
    cuts = ties.add_mutually_exclusive_group()
    cuts.add_argument("--no-cuts", action="store_true", help="the video is one scene")
    cuts.add_argument(
        "--cuts", metavar="N,N,…", help="scenes begin at these frames, counted from 0 in IN"
    )


def _add_output(made: ArgumentParser) -> None:
    output = made.add_argument_group("the result")
    output.add_argument("--codec", help="e.g. libx264, libx265, libvpx-vp9, ffv1")
    output.add_argument("--crf", type=positive_or_zero, help="quality, lower is better")
    output.add_argument("--preset", help="of the encoder, e.g. medium")
    output.add_argument("--pixel-format", help="e.g. yuv420p, yuv444p")
    output.add_argument("--side-by-side", action="store_true", help="the source on the left")
    output.add_argument(
        "--strip", type=Path, metavar="PNG", help="eight frames, source over result"
    )
    output.add_argument("--resume", action="store_true", help="go on with a half-done job")
    output.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: list[str]) -> int:
    """Edit a video; return the exit status.

    Raises:
        InputError: if video, instructions, options, model or output cannot be used.
    """
    options = parser().parse(arguments)
    texts = [clean_instruction(text) for text in options.instructions]
    tasks: list[str | None] = _tasks(options.task, len(texts))
    check_places(Path(options.video), options.output)
    _check_strip(options)
    model = find_model(options.model, predicting=None in tasks)
    if (model / TUNED).is_file():  # which knows no tasks
        tasks = [CAPTION for _ in texts]
    if None in tasks and not has_predictor(model):
        raise InputError(
            f"the model {model} has no task predictor; name the task with --task, or take --model "
            f"{RELEASED_NAME}"
        )
    os.environ.setdefault("SVT_LOG", "1")  # its encoder says only what went wrong
    with importing():
        from emu_edit.video.job import run as run_job
        from emu_edit.video.stacked import editor_of, load_video_model, video_editor

    job, settings, turns = _request(options, texts, tasks, shown_path(model))
    resized = _resizing(options.size)
    for note in job.video.info.notes if job.rank == 0 else ():
        sys.stderr.write(f"{options.video}: {note}\n")
    loaded = load_video_model(model, options.device)
    editor = editor_of(loaded)
    size = (
        job.video.info.size if resized is None else resized(_blank(job.video.info.size)).shape[1:]
    )
    editor.announce(size, editor.settings)
    frames = video_editor(loaded, turns, settings)
    from emu_edit.terminal import step_bar

    try:
        with step_bar("editing", "frames") as on_frame:
            done = run_job(job, frames, on_frame, resized)
    except KeyboardInterrupt:
        if job.folder.exists():
            sys.stderr.write("stopped; go on with the same command and --resume\n")
        raise
    except StorageError as error:  # 2 as in every verb but a training, whose script may try again
        raise InputError(str(error)) from error
    if job.rank == 0:
        _report(options, job, done, [str(turn.task) for turn in frames.turns])
    return 0


def _request(
    options: argparse.Namespace, texts: list[str], tasks: list[str | None], model: str
) -> "tuple[Job, VideoSettings, list[VideoTurn]]":
    from emu_edit.editing.task_mix import parse_task
    from emu_edit.editing.threshold import Threshold
    from emu_edit.models.frame_attention import Look
    from emu_edit.video.clip import Stretch
    from emu_edit.video.coding import Coding
    from emu_edit.video.cuts import GivenCuts
    from emu_edit.video.editor import VideoSettings, VideoTurn
    from emu_edit.video.io import open_video
    from emu_edit.video.job import Job
    from emu_edit.video.noise import NoiseMode

    if options.no_threshold and options.threshold is not None:
        raise InputError("--threshold and --no-threshold exclude each other; give one")
    threshold = Threshold.default if options.threshold is None else options.threshold
    settings = VideoSettings(
        noise=NoiseMode(options.noise),
        look=Look(options.look),
        window=options.window,
        overlap=options.overlap,
        threshold=None if options.no_threshold else threshold,
        hold_colour=options.hold_colour,
    )
    sampling = sampling_of(options)
    turns = [
        VideoTurn(
            text,
            None if task is None else parse_task(task),
            options.negative,
            sampling,
            options.seed,
        )
        for text, task in zip(texts, tasks, strict=True)
    ]
    coding = Coding(options.codec, options.crf, options.preset, options.pixel_format)
    whole = open_video(options.video)
    is_whole = options.start is None and options.end is None
    video = whole if is_whole else Stretch(whole, options.start, options.end)
    coding.settled(options.output, video.info.size)
    starts = [0] if options.no_cuts else _numbers(options.cuts)
    cuts = None if starts is None else GivenCuts.of(starts, whole.info.frames)
    name = {"model": model, "size": options.size, "turns": [asdict(turn) for turn in turns]}
    name |= {"settings": asdict(settings), "cuts": starts}
    rank, world = (
        int(os.environ.get(key, usual)) for key, usual in (("RANK", "0"), ("WORLD_SIZE", "1"))
    )
    job = Job(
        video, options.output, name, coding, cuts, options.resume, options.side_by_side, rank, world
    )
    return job, settings, turns


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--cuts takes frame numbers, e.g. 0,120,340, got {text!r}") from error


def _tasks(given: list[str], count: int) -> list[str | None]:
    if len(given) not in {0, 1, count}:
        raise InputError(
            f"{count} instructions with {len(given)} tasks; give --task once, once per "
            "instruction, or not at all"
        )
    return list(given) if len(given) == count else [*(given or [None])] * count


def check_places(source: Path, output: Path) -> None:
    """Refuse (InputError) an output that cannot be written, or is the source."""
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}; make it first")
    if source.exists() and output.exists() and output.samefile(source):
        raise InputError(f"{output}: is the source itself; give another name")
    if output.is_dir() and output.suffix:
        raise InputError(f"{output}: is a folder; give another name")
    if output.is_dir() and any(
        each.suffix.lower() != ".png" for each in output.iterdir() if not each.name.startswith(".")
    ):
        raise InputError(f"{output}: is a folder with other files than pictures; give another name")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{output}: the folder {output.parent} cannot be written")


def _check_strip(options: argparse.Namespace) -> None:
    strip = options.strip
    if strip is None:
        return
    if not strip.parent.is_dir():
        raise InputError(f"{strip}: there is no folder {strip.parent}; make it first")
    if strip.is_dir() or strip.resolve() in {
        Path(options.video).resolve(),
        options.output.resolve(),
    }:
        raise InputError(f"{strip}: is a folder, the source or the output; give another name")


def _resizing(size: int | None) -> Callable | None:
    if size is None:
        return None
    from emu_edit.images import resize, with_shorter_side

    def resized(pixels):
        height, width = pixels.shape[-2:]
        return resize(pixels, with_shorter_side(size, height=height, width=width))

    return resized


def _blank(size: tuple[int, int]):
    import torch

    return torch.zeros(3, *size, dtype=torch.uint8)


def _report(options: argparse.Namespace, job: "Job", done: "Done", tasks: list[str]) -> None:
    from emu_edit.video.strip import write_strip

    if options.strip is not None:
        write_strip(options.strip, job.video, options.output, halves=options.side_by_side)
    rate = done.edited / done.seconds if done.seconds else 0.0
    if options.json:
        known = {
            "output": str(options.output),
            "frames": done.frames,
            "scenes": list(done.scenes),
            "tasks": tasks,
            "seconds": round(done.seconds, 3),
            "frames_per_second": round(rate, 3),
            "notes": [*job.video.info.notes, *done.notes],
        }
        sys.stdout.write(json.dumps(known) + "\n")
        return
    for note in done.notes:
        sys.stderr.write(f"{options.output}: {note}\n")
    sys.stdout.write(
        f"{options.output}: {done.frames} frames, {len(done.scenes)} scenes, task "
        f"{', '.join(tasks)}, {rate:.1f} frames/s\n"
    )
