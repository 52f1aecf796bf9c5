"""`emu-edit shards convert`: pairs of your own or of a public set become shards."""

import argparse
import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import ArgumentParser, positive_int
from emu_edit.errors import ExitStatus, InputError, closest
from emu_edit.files import read_regular
from emu_edit.terminal import aligned

if TYPE_CHECKING:
    from datamodules.convert.cutting import Cutting
    from datamodules.convert.gates import Gates
    from datamodules.convert.pair import FieldMap
    from datamodules.convert.run import ConvertSettings

GATES = {
    "min_side": "pixels both sides need (off)",
    "resize": "a target of another size is resampled to its source's if the ratios of their sides "
    "differ by at most this share, 0.02 say (off: other sizes are refused)",
    "near_identical": "levels of 255 by which some 8x8 block has to differ (2)",
    "blank": "levels within which a picture counts as one colour: black, white (8)",
    "captions": "refuse equal captions of source and target (on)",
    "duplicates": "refuse the pictures and instruction of an earlier pair (on)",
    "mask_fit": "refuse pairs that change outside their mask, and empty masks (on)",
    "similarity": "least correlation of thumbnails, -1 to 1; finds rows whose pictures do not "
    "belong together, but also bold styles (off)",
    "likeness": "refuse pairs whose edit leaves less of the picture than the converter knows such "
    "edits to leave; finds misaligned rows (on)",
}
_SWITCH = {"on": True, "off": False}
_WHOLE = {"min_side", "blank"}  # gates that count


def convert_parser() -> ArgumentParser:
    """Build the parser of `shards convert`."""
    from datamodules.convert.registry import KINDS

    kinds = (f"  {name:<18}{kind.summary}" for name, kind in KINDS.items())
    gates = (
        textwrap.fill(text, 80, initial_indent=f"  {name:<16}", subsequent_indent=" " * 18)
        for name, text in GATES.items()
    )
    made = ArgumentParser(
        prog="emu-edit shards convert",
        description="Turn pairs into shards; what is broken or no good is left out, counted and "
        "listed in OUT/quarantine.jsonl, as is every file that is passed by. Exit status 65 when "
        "nothing is left, or something was not followed (a link to a folder, a pipe).",
        epilog="kinds:\n" + "\n".join(kinds) + "\n\ngates, with their defaults, for --gate "
        "NAME=VALUE, NAME=on or NAME=off:\n" + "\n".join(gates),
    )
    made.add_argument("kind", metavar="KIND", help="layout or data set, see below")
    made.add_argument("source", type=Path, metavar="SRC", help="where the pairs are")
    made.add_argument("output", type=Path, metavar="OUT", help="folder of shards to write")
    _add_fields(made)
    _add_tasks(made)
    _add_choice(made)
    _add_clips(made)
    return made


def _add_fields(made: ArgumentParser) -> None:
    fields = made.add_argument_group(
        "fields of webdataset (jpg; jpg,png; json:COLUMN) and columns of imagefolder"
    )
    fields.add_argument("--source", dest="source_field", metavar="FIELD", help="picture before")
    fields.add_argument("--target", dest="target_field", metavar="FIELD", help="picture after")
    fields.add_argument("--instruction", dest="instruction_field", metavar="FIELD", help="the text")
    fields.add_argument("--mask", dest="mask_field", metavar="FIELD", help="white may change")
    fields.add_argument("--task-field", metavar="FIELD", help="name of the task (see --map)")


def _add_tasks(made: ArgumentParser) -> None:
    made.add_argument("--task", metavar="TASK", help="task of the pairs that name none")
    made.add_argument(
        "--task-by-words",
        action="store_true",
        help="guess the task from the instruction where none is named, before --task",
    )
    made.add_argument(
        "--map",
        metavar="RAW=TASK",
        type=_assignment,
        action="append",
        default=[],
        help="task for a task name of the data; RAW=none leaves its pairs out",
    )


def _add_choice(made: ArgumentParser) -> None:
    made.add_argument(
        "--gate", metavar="NAME=VALUE", type=_assignment, action="append", default=[], help="below"
    )
    made.add_argument(
        "--min-score",
        metavar="NAME=VALUE",
        type=_assignment,
        action="append",
        default=[],
        help="least value of a score that the data bring along, e.g. clip_sim_dir=0.2",
    )
    made.add_argument(
        "--skip-names", type=Path, metavar="FILE", help="names or keys to leave out, one a line"
    )
    made.add_argument(
        "--exclude",
        type=Path,
        metavar="PATH",
        action="append",
        default=[],
        help="leave out what looks like a picture in this folder, shards or parquet file: a "
        "benchmark (repeatable)",
    )
    made.add_argument(
        "--per-group", type=positive_int, metavar="N", help="at most N pairs of a prompt or session"
    )
    made.add_argument(
        "--part",
        choices=("train", "heldout"),
        help="one part only; a source picture or session is never in both",
    )
    made.add_argument(
        "--held-out", type=float, metavar="SHARE", help="share of the held-out part (default 0.02)"
    )
    made.add_argument(
        "--by-shape",
        action="store_true",
        help="sort by the shape of the pictures, as data.buckets needs (else squares are cut)",
    )


def _add_clips(made: ArgumentParser) -> None:
    clips = made.add_argument_group("clips, cut out of videos where scenes change")
    clips.add_argument("--frames", type=positive_int, metavar="N", help="of a clip (default 16)")
    clips.add_argument(
        "--least",
        type=positive_int,
        metavar="N",
        help="keep what is left of a shot from so many frames on (default: whole clips only)",
    )
    clips.add_argument(
        "--rate", type=positive_int, metavar="N", help="frames a second (default: all there are)"
    )
    clips.add_argument(
        "--size",
        type=positive_int,
        metavar="N",
        help="make the shorter side of larger frames so many pixels (default 256)",
    )
    clips.add_argument(
        "--square", action="store_true", default=None, help="cut out the middle square"
    )
    clips.add_argument(
        "--no-cuts",
        action="store_false",
        default=None,
        dest="find_cuts",
        help="take each video as one shot",
    )
    clips.add_argument(
        "--min-motion",
        type=float,
        metavar="X",
        help="leave out clips whose motion score is below; the report says how scores lie",
    )
    clips.add_argument(
        "--crf",
        type=positive_int,
        metavar="N",
        help="quality of the mp4s, 1 (best) to 51 (default: nothing lost)",
    )


def run_convert(arguments: list[str]) -> int:
    """Convert pairs.

    Raises:
        InputError: if layout, task, an option or the output cannot be used.
        BadDataError: if no pair is left.
    """
    options = convert_parser().parse(arguments)
    from datamodules.convert.run import convert
    from emu_edit.terminal import step_bar

    settings = _settings(options)
    with step_bar("converting", "pairs") as on_step:
        report = convert(
            options.kind,
            options.source,
            options.output,
            settings,
            on_listed=lambda count: on_step(count, None),
            on_progress=on_step,
        )
    if rows := report.rows():
        sys.stdout.write("\n".join(aligned(rows)) + "\n\n")
    sys.stdout.write(f"{report.summary()}\n")
    if line := report.motion_line():
        sys.stdout.write(f"{line}\n")
    if "sizes differ" in report.skipped and settings.gates.resize is None:
        sys.stdout.write("targets of another size can be resampled: --gate resize=0.02\n")
    if not report.is_whole:
        sys.stdout.write(
            "what was not followed may hold pairs: exit status "
            f"{ExitStatus.bad_data:d}, though the shards are whole\n"
        )
        return ExitStatus.bad_data
    return ExitStatus.done


def _settings(options: argparse.Namespace) -> "ConvertSettings":
    from datamodules.checks.leaks import LeakGuard
    from datamodules.convert.naming import NO_TASK, TaskNaming
    from datamodules.convert.run import ConvertSettings, Part

    if options.held_out is not None and options.part is None:
        raise InputError("--held-out says how to part the data; say which part: --part train")
    given = {raw: None if task == NO_TASK else task for raw, task in options.map}
    held_out = 0.02 if options.held_out is None else options.held_out
    return ConvertSettings(
        naming=TaskNaming(options.task, by_words=options.task_by_words, given=given),
        gates=_gates(options),
        part=None if options.part is None else Part(options.part, held_out),
        per_group=options.per_group,
        by_shape=options.by_shape,
        guard=LeakGuard.of(options.exclude) if options.exclude else None,
        fields=_fields(options),
        cutting=_cutting(options),
    )


def _cutting(options: argparse.Namespace) -> "Cutting | None":
    from datamodules.convert.cutting import Cutting

    names = (field.name for field in dataclasses.fields(Cutting))
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return Cutting(**given) if given else None


def _fields(options: argparse.Namespace) -> "FieldMap | None":
    from datamodules.convert.pair import FieldMap

    needed = {
        name: getattr(options, f"{name}_field") for name in ("source", "target", "instruction")
    }
    given = [*needed.values(), options.mask_field, options.task_field]
    if not any(given):
        return None
    if missing := [f"--{name}" for name, field in needed.items() if not field]:
        raise InputError(
            f"{' and '.join(missing)} is missing: a pair needs --source, --target and --instruction"
        )
    return FieldMap(*needed.values(), mask=options.mask_field or "", task=options.task_field or "")


def _gates(options: argparse.Namespace) -> "Gates":
    from datamodules.convert.gates import Gates

    if options.min_motion is not None and not options.min_motion >= 0:
        raise InputError(f"--min-motion {options.min_motion:g} must be at least 0")
    gates = Gates(
        min_motion=options.min_motion,
        scores={name: _number("--min-score", name, text) for name, text in options.min_score},
        excluded=frozenset() if options.skip_names is None else _lines(options.skip_names),
    )
    for name, text in options.gate:
        if name not in GATES:
            hint = closest(name, list(GATES))
            raise InputError(f"unknown gate {name!r}; known gates: {', '.join(GATES)}.{hint}")
        if isinstance(getattr(Gates, name), bool):
            if text not in _SWITCH:
                raise InputError(f"--gate {name} must be on or off, got {text!r}")
            value: object = _SWITCH[text]
        else:
            number = None if text == "off" else _number("--gate", name, text)
            value = int(number) if number is not None and name in _WHOLE else number
        gates = dataclasses.replace(gates, **{name: value})
    return gates


def _number(option: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value:
        raise InputError(f"{option} {name} needs a number, got {text!r}")
    return value


def _lines(path: Path) -> frozenset[str]:
    from datamodules.listing import decode_text

    try:
        data = read_regular(path)
    except OSError as error:
        raise InputError(
            f"--skip-names {path}: cannot be read ({error.strerror}); give a text file"
        ) from error
    lines = decode_text(data, f"--skip-names {path}").splitlines()
    return frozenset(line.strip() for line in lines if line.strip())


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"needs NAME=VALUE, got {text!r}")
    return name, value
