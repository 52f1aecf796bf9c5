"""`emu-edit shards world | convert | check`: write, convert and check training data."""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from emu_edit.cli.arguments import ArgumentParser, positive_int, seed_int
from emu_edit.cli.subcommands import Command, run_command

BAD_DATA = 65  # exit status of `check` when something is wrong (sysexits' EX_DATAERR)
PROBLEMS = "problems.jsonl"


def run(arguments: list[str]) -> int:
    """Run one of the three commands.

    Raises:
        InputError: for an unknown command, or what the command cannot use.
    """
    commands = {
        "world": Command(
            run_world, "write pairs of the built-in world: all tasks, exact ground truth"
        ),
        "convert": Command(run_convert, "turn your own pairs into shards"),
        "check": Command(run_check, "read every byte of a folder of shards and list what is wrong"),
    }
    return run_command("shards", commands, arguments)


def world_parser() -> ArgumentParser:
    """Build the parser of `shards world`."""
    made = ArgumentParser(
        prog="emu-edit shards world",
        description="Write pairs of the procedural world as WebDataset shards.",
        epilog="new tasks:\n"
        "  superres   a picture from a quarter of its resolution\n"
        "  contour    one thick outline around whatever touches\n"
        "  inpaint    what a grey rectangle hides\n"
        "  count      as many dots as there are objects\n"
        "  add_detect insert a thing and draw a box around it\n"
        "No model is trained for them; teach one with emu-edit invert.",
    )
    made.add_argument("folder", type=Path, metavar="DIR", help="folder to write")
    made.add_argument("--pairs", type=positive_int, required=True, help="pairs in all")
    made.add_argument("--seed", type=seed_int, default=0, help="another seed, another world")
    made.add_argument("--size", type=positive_int, default=64, help="side in pixels (default 64)")
    made.add_argument("--photos", type=Path, metavar="DIR", help="photographs for backgrounds")
    made.add_argument(
        "--split",
        choices=("train", "heldout"),
        default="train",
        help="heldout: phrasings and colour/shape pairs that train has not",
    )
    made.add_argument(
        "--new-task", metavar="NAME", help="pairs of a task that is none of the sixteen, see below"
    )
    return made


def run_world(arguments: list[str]) -> int:
    """Write a world.

    Raises:
        InputError: if folder, size, photographs or new task cannot be used.
    """
    options = world_parser().parse(arguments)
    from datamodules.world.photos import Photos
    from datamodules.world.write import write_new_task, write_world
    from emu_edit.progress import step_bar

    photos = None if options.photos is None else Photos(options.photos)
    write = write_world if options.new_task is None else partial(write_new_task, options.new_task)
    with step_bar("writing the world", "pairs") as on_step:
        manifest = write(
            options.folder,
            options.pairs,
            seed=options.seed,
            size=options.size,
            split=options.split,
            photos=photos,
            progress=on_step,
        )
    sys.stdout.write(
        f"wrote {manifest.num_samples} pairs of {len(manifest.tasks)} tasks to {options.folder}; "
        f"look at {options.folder}/contact_sheet.png\n"
    )
    return 0


def convert_parser() -> ArgumentParser:
    """Build the parser of `shards convert`."""
    made = ArgumentParser(
        prog="emu-edit shards convert",
        description="Turn your own pairs into shards; broken pairs are left out and listed.",
        epilog="kinds:\n"
        "  folder     source/ and target/ with pictures of equal names, and instructions.jsonl\n"
        "  jsonl      as folder; SRC is the .jsonl file, whose lines name the pictures\n"
        "  control    images/ (targets), control/ (sources) and one .txt per pair",
    )
    made.add_argument("kind", metavar="KIND", help="folder, jsonl or control")
    made.add_argument("source", type=Path, metavar="SRC", help="where the pairs are")
    made.add_argument("output", type=Path, metavar="OUT", help="folder of shards to write")
    made.add_argument("--task", help="task of the pairs that name none")
    return made


def run_convert(arguments: list[str]) -> int:
    """Convert a user's pairs.

    Raises:
        InputError: if layout, task or output cannot be used, or no pair is left.
    """
    options = convert_parser().parse(arguments)
    from datamodules.convert.run import convert
    from emu_edit.progress import step_bar

    with step_bar("converting", "pairs") as on_step:
        report = convert(
            options.kind,
            options.source,
            options.output,
            task=options.task,
            on_progress=on_step,
        )
    sys.stdout.write(f"{report.summary()}\n")
    return 0


def check_parser() -> ArgumentParser:
    """Build the parser of `shards check`."""
    made = ArgumentParser(
        prog="emu-edit shards check",
        description="Read every byte of a folder of shards; exit status 0 when all is well, "
        f"{BAD_DATA} when something is wrong.",
    )
    made.add_argument("folder", type=Path, metavar="DIR", help="folder with a manifest.json")
    made.add_argument(
        "--list", type=Path, metavar="FILE", help=f"where to list problems (default DIR/{PROBLEMS})"
    )
    return made


def run_check(arguments: list[str]) -> int:
    """Check a folder of shards; list what is wrong.

    Raises:
        InputError: if there is no such folder.
    """
    options = check_parser().parse(arguments)
    from datamodules.check import check_folder, summarize
    from emu_edit.progress import step_bar

    with step_bar("checking", "pairs") as on_step:
        report = check_folder(options.folder, on_step)
    lines = [*_aligned(report.rows()), "", *summarize(report.problems)]
    if report.problems:
        listing = options.list or options.folder / PROBLEMS
        rows = [json.dumps(asdict(problem)) for problem in report.problems]
        listing.write_text("\n".join(rows) + "\n", encoding="utf-8")
        lines += ["", f"{len(report.errors)} errors, {len(report.warnings)} warnings: {listing}"]
    else:
        lines.append("nothing is wrong")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if report.is_good else BAD_DATA


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the rows of a table with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
