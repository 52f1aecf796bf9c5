"""`emu-edit shards world | convert | cache | check`: make, encode and check training data."""

import sys
from functools import partial
from pathlib import Path

from emu_edit.cli.arguments import ArgumentParser, positive_int, seed_int
from emu_edit.cli.shards_cache import run_cache
from emu_edit.cli.shards_check import run_check
from emu_edit.cli.shards_convert import run_convert
from emu_edit.cli.subcommands import Command, run_command


def run(arguments: list[str]) -> int:
    """Run one of the commands.

    Raises:
        InputError: for an unknown command, or what the command cannot use.
    """
    commands = {
        "world": Command(
            run_world, "write pairs of the built-in world: all tasks, exact ground truth"
        ),
        "convert": Command(run_convert, "turn your own pairs, or a public set, into shards"),
        "cache": Command(run_cache, "run the frozen networks over a folder once, to train faster"),
        "check": Command(run_check, "read every byte of folders of shards and list what is wrong"),
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
