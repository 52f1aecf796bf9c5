"""`emu-edit edit IMAGE "turn 1" ["turn 2" …] -o OUT`: edit pictures by instruction.

Reads the command line into an `EditRequest` and checks what needs neither torch nor a model, so
that a slip is answered in an instant. `edit_places.py` finds sources and results, `edit_run.py`
does the work, `edit_files.py` writes it down.
"""

import argparse
import sys
from collections.abc import Sequence
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
from emu_edit.cli.edit_places import (
    READ,
    STREAM,
    check_session_folder,
    find_sources,
    is_many,
    place_for_one,
    places_for_many,
)
from emu_edit.editing.find import RELEASED_NAME, find_model, has_predictor
from emu_edit.errors import InputError
from emu_edit.runs.learned_tasks import check_task_files, is_task_file
from emu_edit.tasks import TASKS
from emu_edit.text_rules import clean_instruction

if TYPE_CHECKING:
    from emu_edit.editing.session import TurnSettings

EPILOG = """\
IMAGE is a picture (JPEG, PNG, WebP, TIFF ...), '-' for standard input, or, to edit many alike, a
folder or a quoted pattern such as 'photos/*.jpg'. The turns are made one after the other, each on
the result of the one before; from the second turn on, pixels that hardly changed are kept bit for
bit (see --threshold).

OUT with a picture's suffix is the final picture, '-' the final picture as PNG on standard output.
Any other OUT is a folder, made if it is missing: turn-01.png, turn-02.png, ..., original.png,
sheet.png (all side by side) and manifest.json, which makes the same pixels again:
  emu-edit edit OUT/original.png --replay OUT/manifest.json -o AGAIN
Many pictures need a folder: OUT/NAME.png for one turn, a folder OUT/NAME for several. Files that
exist are replaced, never a picture that is being edited. PNG files carry instructions, tasks, seed,
settings, the model's name and the program's version, nothing else.

exit status: 0 done; 1 some of many pictures could not be read (each is named); 2 nothing could be
done, or not all of it (a full disk, say); standard error says why in one line.
"""


class TurnParser(ArgumentParser):
    """Takes options before, between and after the instructions."""

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all of `arguments`; an unknown option is refused with the nearest known one."""
        parsed, unknown = self.parse_known_intermixed_args(arguments)
        # only options can be unknown, the instructions take all the rest; the usual way names them
        return super().parse([parsed.image, "-o", parsed.output, *unknown]) if unknown else parsed


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    tasks = "\n".join(f"  {task.name:<12}{task.definition}" for task in TASKS)
    made = TurnParser(
        prog="emu-edit edit",
        description="Edit pictures by instruction, in one turn or several; a result has the size "
        "of its picture.",
        epilog=f"{EPILOG}\ntasks:\n{tasks}\n\nexamples:\n"
        '  emu-edit edit photo.jpg "paint the chair red" -o red.png\n'
        '  emu-edit edit photo.jpg "remove the dog" "make it evening" -o session\n'
        "  emu-edit edit 'photos/*.jpg' \"add a hat\" --task add -o hats --json",
    )
    made.add_argument("image", metavar="IMAGE", help="picture, folder, 'pattern' or -")
    made.add_argument(
        "instructions", nargs="*", metavar="INSTRUCTION", help="what to change, a text per turn"
    )
    made.add_argument("-o", "--output", required=True, metavar="OUT", help="picture, folder or -")
    made.add_argument(
        "--task",
        action="append",
        default=[],
        help="kind of edit, see below, a mix like style+global:0.3, or the file of a learned task "
        "(NAME.safetensors), also in a mix; once for all turns or once per turn (default: the "
        "model's predictor decides)",
    )
    made.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="take a learned task's file even if it was learnt with another model",
    )
    made.add_argument(
        "--model", type=Path, help="model directory or run folder (default: newest in ./runs)"
    )
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same result (default 0)")
    _add_editing(made)
    made.add_argument(
        "--sheet", action="store_true", help="beside OUT.png: OUT.sheet.png, all side by side"
    )
    made.add_argument(
        "--manifest", action="store_true", help="beside OUT.png: OUT.manifest.json, for --replay"
    )
    made.add_argument("--replay", type=Path, metavar="MANIFEST", help="make a session again")
    made.add_argument("--json", action="store_true", help="print one JSON object per picture")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    return made


def _add_editing(made: ArgumentParser) -> None:
    add_sampling(made)
    made.add_argument("--negative", default="", help="what the picture should not show")
    made.add_argument(
        "--size", type=positive_int, help="first resize, shorter side to this many pixels"
    )
    made.add_argument(
        "--large",
        metavar="WAY",
        help="how to edit a picture larger than the model's: guided (as a small copy, whose change "
        "is put on the picture; the default from 1.25 times on), tiles (at its own size in "
        "overlapping parts) or whole; guided and tiles also with a size in pixels, tiles:128",
    )
    made.add_argument(
        "--threshold",
        type=float,
        metavar="ALPHA",
        help="keep pixels whose mean change, summed over RGB in 0..1, is below this, in every turn "
        "(default: 0.03 from the second turn, off for tasks that repaint the whole picture)",
    )
    made.add_argument(
        "--no-threshold", action="store_true", help="take every result as it comes, in every turn"
    )
    made.add_argument(
        "--chain-latents",
        action="store_true",
        help="give each turn the latents of the one before, not its picture encoded again: what an "
        "autoencoder loses is lost once",
    )


def run(arguments: list[str]) -> int:
    """Edit and write the results; return the exit status.

    Raises:
        InputError: if picture, instruction, task, manifest, model or output cannot be used.
    """
    options = parser().parse(arguments)
    instructions, tasks = asked_turns(options)
    sources, passed_over = find_sources(options.image)
    extras = {"sheet": options.sheet, "manifest": options.manifest}
    if is_many(options.image):
        places = places_for_many(options.output, sources, turns=len(instructions), **extras)
    else:
        places = [place_for_one(options.output, sources[0], **extras)]
        if places[0].folder is not None and options.replay is None:
            check_session_folder(places[0].folder, len(instructions))
    model = find_model(options.model, predicting=None in tasks)
    if None in tasks and not has_predictor(model):
        raise InputError(
            f"the model {model} has no task predictor; name the task with --task, or train one "
            f"with 'emu-edit predictor fit {model}', or take --model {RELEASED_NAME}"
        )
    # everything above answers in an instant; only now is torch needed
    with importing():
        from emu_edit.cli.edit_run import EditRequest, edit_many, edit_one, replay_one
        from emu_edit.editing.large import parse_large

    request = EditRequest(
        model=model,
        device=options.device,
        instructions=instructions,
        tasks=tasks,
        settings=settings_of(options),
        seed=options.seed,
        chain_latents=options.chain_latents,
        size=options.size,
        large=None if options.large is None else parse_large(options.large),
        allow_mismatch=options.allow_mismatch,
        is_json=options.json,
    )
    if options.replay is not None:
        return replay_one(request, options.replay, sources[0], places[0])
    if is_many(options.image):
        if passed_over:
            sys.stderr.write(f"left alone: {', '.join(passed_over)}\n")
        return edit_many(request, sources, places)
    return edit_one(request, sources[0], places[0])


def settings_of(options: argparse.Namespace) -> "TurnSettings":
    """Read what all turns have in common.

    Raises:
        InputError: for an unknown sampler, or a scale or threshold that is out of range.
    """
    from emu_edit.editing.session import TurnSettings
    from emu_edit.editing.threshold import Threshold

    threshold = Threshold.default if options.threshold is None else options.threshold
    return TurnSettings(
        negative=options.negative,
        sampling=sampling_of(options),
        threshold=None if options.no_threshold else threshold,
    )


def asked_turns(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Read the instruction and the `--task` of each turn; None lets the predictor decide.

    A replay has no instructions, and only tasks that are files.

    Raises:
        InputError: if an instruction is missing, empty, too long, not text or the name of a
            picture, if tasks and turns do not match, or if options exclude each other.
    """
    check_combination(options)
    for text in options.instructions:
        if Path(text).suffix.lower() in READ and Path(text).is_file():
            raise InputError(
                f"the instruction {text!r} is a picture; to edit many, quote the pattern, so that "
                "the shell leaves it alone: 'photos/*.jpg'"
            )
    count, tasks = len(options.instructions), options.task
    check_task_files(tasks, allow_mismatch=options.allow_mismatch)
    if options.replay is None:
        if len(tasks) not in {0, 1, count}:
            raise InputError(
                f"{count} turns with {len(tasks)} tasks; give --task once, once per turn, or not "
                "at all"
            )
        tasks = tasks if len(tasks) == count else (tasks or [None]) * count
    where = "turn {}" if count > 1 else ""
    instructions = [
        clean_instruction(text, where.format(number))
        for number, text in enumerate(options.instructions, start=1)
    ]
    return tuple(instructions), tuple(tasks)


def check_combination(options: argparse.Namespace) -> None:
    """Refuse options that exclude each other, naming the two."""
    if not options.image or not options.output:
        raise InputError("IMAGE and OUT must not be empty; an unset variable in a script, perhaps?")
    if options.threshold is not None and options.no_threshold:
        raise InputError("--threshold and --no-threshold exclude each other; give one")
    if options.json and options.output == STREAM:
        raise InputError("--json and -o - both need standard output; write the picture to a file")
    if options.replay is None:
        if not options.instructions:
            raise InputError('say what to change: emu-edit edit IMAGE "make the sky red" -o OUT')
        return
    usual = vars(parser().parse([options.image, "-o", options.output]))
    kept = {"image", "output", "model", "size", "device", "json", "sheet", "manifest", "replay"}
    if all(map(is_task_file, options.task)):  # the manifest says which task, a file is the task
        kept |= {"task", "allow_mismatch"}
    for name, value in vars(options).items():
        if name not in kept and value != usual[name]:
            raise InputError(
                f"--replay takes the turns from the manifest; leave {name.replace('_', '-')} out"
            )
    if is_many(options.image):
        raise InputError("--replay needs the one picture that its manifest is of")
