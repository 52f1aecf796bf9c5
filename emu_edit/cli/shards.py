"""`emu-edit shards world | convert | cache | check`: make, encode and check training data."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import (
    ArgumentParser,
    Command,
    positive_int,
    positive_or_zero,
    run_command,
    seed_int,
)
from emu_edit.cli.shards_convert import run_convert
from emu_edit.editing.find import choose_device
from emu_edit.errors import ExitStatus, InputError
from emu_edit.terminal import aligned, plural, step_bar

if TYPE_CHECKING:
    from datamodules.checks.report import CheckReport, Problem
    from emu_edit.models.networks import EditNetworks

DTYPES = ("float32", "bfloat16", "float16")
PROBLEMS = "problems.jsonl"
# of a recipe only the networks are wanted, whatever it trains on
NO_TRAINER = (
    "--trainer.logger=false",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
)


def run(arguments: list[str]) -> int:
    """Run one of the commands.

    Raises:
        InputError: for an unknown command, or what the command cannot use.
    """
    commands = {
        "world": Command(
            run_world, "write pairs or clips of the built-in world: all tasks, exact ground truth"
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
        description="Write pairs of the procedural world, or clips of it, as WebDataset shards.",
        epilog="new tasks:\n"
        "  superres   a picture from a quarter of its resolution\n"
        "  contour    one thick outline around whatever touches\n"
        "  inpaint    what a grey rectangle hides\n"
        "  count      as many dots as there are objects\n"
        "  add_detect insert a thing and draw a box around it\n"
        "No model is trained for them; teach one with emu-edit invert.",
    )
    made.add_argument("folder", type=Path, metavar="DIR", help="folder to write")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", type=positive_int, metavar="N", help="pairs in all")
    what.add_argument("--clips", type=positive_int, metavar="N", help="in their place, moving ones")
    made.add_argument("--seed", type=seed_int, default=0, help="another seed, another world")
    made.add_argument("--size", type=positive_int, default=64, help="side in pixels (default 64)")
    made.add_argument(
        "--photos",
        action="append",
        metavar="PLACE",
        help="photographs for backgrounds, and to edit: a folder, or installed for those of "
        "packages (repeatable); one in five is only in --split heldout",
    )
    made.add_argument(
        "--photo-share",
        type=float,
        metavar="S",
        help="share of the scenes that are before a photograph (default 0.5)",
    )
    made.add_argument(
        "--split",
        choices=("train", "heldout"),
        default="train",
        help="heldout: phrasings and colour/shape pairs that train has not",
    )
    made.add_argument(
        "--new-task", metavar="NAME", help="pairs of a task that is none of the sixteen, see below"
    )
    clips = made.add_argument_group("clips")
    clips.add_argument("--frames", type=positive_int, help="of a clip (default 16)")
    clips.add_argument("--rate", type=positive_int, help="frames a second (default 8)")
    clips.add_argument(
        "--movie", action="store_true", default=None, help="mp4s in place of film strips in PNG"
    )
    clips.add_argument(
        "--plain",
        action="store_true",
        default=None,
        help="no shards but a folder: source/*.mp4, target/*.mp4, captions, instructions.jsonl",
    )
    clips.add_argument(
        "--captions",
        action="store_true",
        default=None,
        help="no edits: clips of one shot with their captions, to learn to draw videos",
    )
    clips.add_argument(
        "--flat",
        action="store_true",
        default=None,
        help="with --captions: one or two plain things that stand still or move along an axis",
    )
    clips.add_argument(
        "--crf", type=positive_int, help="quality of mp4s, 1 (best) to 51 (default: nothing lost)"
    )
    return made


def run_world(arguments: list[str]) -> int:
    """Write a world.

    Raises:
        InputError: if folder, size, photographs or new task cannot be used.
    """
    options = world_parser().parse(arguments)
    _refuse_of_the_other_kind(options)
    if options.clips is not None:
        return _write_clips(options)
    from datamodules.world.photographs import Photos
    from datamodules.world.write import write_new_task, write_world

    photos = None
    if options.photos is not None:
        share = 0.5 if options.photo_share is None else options.photo_share
        photos = Photos(options.photos, share).of_split(options.split)
        photos = photos if options.new_task is None else photos.always
    elif options.photo_share is not None:
        raise InputError(
            "--photo-share says nothing without --photos; add --photos or leave it out"
        )
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
        f"wrote {plural(manifest.num_samples, 'pair')} of {plural(len(manifest.tasks), 'task')} "
        f"to {options.folder}; look at {options.folder}/contact_sheet.png\n"
    )
    if photos is not None and photos.bad:
        sys.stdout.write(
            f"{len(photos.bad)} of {plural(len(photos), 'photograph')} cannot be read, others took "
            f"their place: {options.folder}/skipped.jsonl\n"
        )
    return 0


def _refuse_of_the_other_kind(options: argparse.Namespace) -> None:
    of_clips, of_pairs = (
        ("frames", "rate", "movie", "plain", "captions", "flat", "crf"),
        ("photos", "photo_share", "new_task"),
    )
    kind, others = ("clips", of_pairs) if options.pairs is None else ("pairs", of_clips)
    for name in others:
        if getattr(options, name) is not None:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} says nothing to --{kind}; leave it out")


def _write_clips(options: argparse.Namespace) -> int:
    if options.captions and options.plain:
        raise InputError("--captions says nothing to --plain, which has all captions; leave it out")
    from datamodules.world.clips.write import ClipWorld, write_clips, write_movies

    given = ("clips", "seed", "size", "split", "frames", "rate", "crf", "captions", "flat")
    values = {name: getattr(options, name) for name in given}
    world = ClipWorld(
        **{name: value for name, value in values.items() if value is not None},
        movie=bool(options.movie or options.plain),
    )
    with step_bar("writing the world", "clips") as on_step:
        if options.plain:
            write_movies(options.folder, world, progress=on_step)
            shown = "source/ and target/"
        else:
            write_clips(options.folder, world, progress=on_step)
            shown = "contact_sheet.png"
    sys.stdout.write(
        f"wrote {plural(world.clips, 'clip')} to {options.folder}; look at "
        f"{options.folder}/{shown}\n"
    )
    return 0


def cache_parser() -> ArgumentParser:
    """Build the parser of `shards cache`."""
    made = ArgumentParser(
        prog="emu-edit shards cache",
        description="Write shards of latents (the posterior's mean and deviation, so that its "
        "sampling stays fresh) and, where the text encoder is frozen and sees no picture, of "
        "text features. Train on them with --data.train OUT: order, dropout and noise are those of "
        "the pictures, and in float32 the loss is the same to 1e-5. Started again, it completes "
        "what was interrupted.",
        epilog="What is kept of a picture is its centre square, not mirrored: random crops of wide "
        "pictures\nand data.flip need the pictures. Validate (--data.val) on pictures.",
    )
    made.add_argument("folder", metavar="FOLDER", help="shards of pictures: a folder or an address")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    whose = made.add_mutually_exclusive_group(required=True)
    whose.add_argument("--model", type=Path, metavar="DIR", help="the networks of a model or run")
    whose.add_argument("--config", metavar="RECIPE", help="the networks a recipe starts from")
    made.add_argument(
        "--image-size",
        type=positive_int,
        metavar="N",
        help="side of the pictures, as data.image_size (default: the model's editor.image_size)",
    )
    made.add_argument(
        "--dtype", default="float32", choices=DTYPES, help="precision on disk (default float32)"
    )
    made.add_argument("--batch", type=positive_int, default=16, help="pairs at a time (default 16)")
    made.add_argument(
        "--workers", type=positive_or_zero, default=0, help="processes that decode (default 0)"
    )
    made.add_argument(
        "--long-texts",
        default="truncate",
        choices=("truncate", "skip", "refuse"),
        help="instructions longer than the text encoder takes: keep the words that fit and count, "
        "mark as bad, or stop (default truncate)",
    )
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    return made


def run_cache(arguments: list[str]) -> int:
    """Write an encoder cache.

    Raises:
        InputError: if folder, output, networks or sizes do not go together.
    """
    options = cache_parser().parse(arguments)
    from datamodules.encoded.writer import EncodingSettings, write_cache
    from datamodules.remote.folder import open_folder
    from datamodules.stream.limits import LongTexts

    device = choose_device(options.device)
    folder = open_folder(options.folder)
    networks, usual_size = _networks(options)
    settings = EncodingSettings(
        options.image_size or usual_size,
        dtype=options.dtype,
        batch_size=options.batch,
        num_workers=options.workers,
        long_texts=LongTexts[options.long_texts],
    )
    with step_bar("caching", "pairs") as on_step:
        report = write_cache(folder, options.output, networks.eval().to(device), settings, on_step)
    sys.stdout.write(f"{report.summary()}\ntrain on it with --data.train {options.output}\n")
    return 0


def _networks(options: argparse.Namespace) -> "tuple[EditNetworks, int]":
    """Return the networks and the size of the pictures they are usually trained on."""
    if options.model is not None:
        from emu_edit.editing.editor import Editor

        editor = Editor.from_pretrained(options.model, "cpu")
        return editor.networks, editor.settings.image_size
    from emu_edit.runs.trainer_cli import untrained_module

    module = untrained_module(options.config)
    return module.networks, module.editor_settings.image_size


def check_parser() -> ArgumentParser:
    """Build the parser of `shards check`."""
    made = ArgumentParser(
        prog="emu-edit shards check",
        description="Read every byte of folders of shards that are trained on together; exit "
        f"status 0 when all is well, {ExitStatus.bad_data:d} when something is wrong. Errors stop "
        "training or would corrupt it; warnings (the same pair twice, target and source "
        "identical, black pictures, empty masks) are for you to judge.",
    )
    made.add_argument(
        "folders", nargs="+", metavar="DIR", help="folder with a manifest.json, or its address"
    )
    made.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help=f"list all problems there, as lines of JSON (default {PROBLEMS} in each DIR, and here "
        "for addresses)",
    )
    made.add_argument(
        "--against",
        type=Path,
        action="append",
        metavar="PATH",
        help="evaluation pictures, shards or parquet files: any of them in DIR is an error "
        "(repeatable)",
    )
    whose = made.add_mutually_exclusive_group()
    whose.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="name instructions longer than the text encoder of this model or run takes",
    )
    whose.add_argument("--config", metavar="RECIPE", help="the same, for what a recipe starts from")
    return made


def run_check(arguments: list[str]) -> int:
    """Check folders of shards; list what is wrong.

    Raises:
        InputError: if there is no such folder or model, or the list cannot be written.
    """
    options = check_parser().parse(arguments)
    from datamodules.checks.folders import check_folders
    from datamodules.checks.leaks import LeakGuard
    from datamodules.checks.report import summarize

    guard = None
    if options.against is not None:
        with step_bar("reading evaluation pictures", "pictures") as on_step:
            guard = LeakGuard.of(options.against, lambda count: on_step(count, None))
    folders = list(dict.fromkeys(options.folders))
    limit = None
    if options.model is not None or options.config is not None:
        limit = _networks(options)[0].text_encoder.limit
    with step_bar("checking", "pairs") as on_step:
        report = check_folders(folders, on_step, guard=guard, limit=limit)
    listings = write_lists(report, options.list)
    lines = [*aligned(report.rows()), "", *summarize(report.problems)]
    if report.problems:
        counted = f"{len(report.errors)} errors, {len(report.warnings)} warnings"
        lines += ["", f"{counted}: {', '.join(map(str, listings))}"]
    else:
        lines.append("nothing is wrong")
    sys.stdout.write("\n".join(lines) + "\n")
    return ExitStatus.done if report.is_good else ExitStatus.bad_data


def write_lists(report: "CheckReport", file: Path | None) -> list[Path]:
    """Write all problems to one file, or those of each folder into it; return the files.

    Folders elsewhere cannot be written to, so theirs share a file in the working directory. Without
    a file, the list of an earlier check goes when there is nothing left to list; not the one in the
    working directory, which may be of other folders.
    """
    from datamodules.remote.address import parse_place

    if file is not None:
        _write(file, report.problems)
        return [file]
    here = {folder for folder in report.folders if isinstance(parse_place(folder), Path)}
    written = []
    if elsewhere := [problem for problem in report.problems if problem.folder not in here]:
        _write(Path(PROBLEMS), elsewhere)
        written.append(Path(PROBLEMS))
    for folder in (folder for folder in report.folders if folder in here):
        own = [problem for problem in report.problems if problem.folder == folder]
        listing = Path(folder) / PROBLEMS
        if own:
            _write(listing, own)
            written.append(listing)
        else:
            listing.unlink(missing_ok=True)
    return written


def _write(file: Path, problems: "Sequence[Problem]") -> None:
    rows = [json.dumps(asdict(problem), ensure_ascii=False) for problem in problems]
    try:
        file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the list of problems cannot be written to {file} ({error.strerror}); name another "
            "file with --list"
        ) from error
