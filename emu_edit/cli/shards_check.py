"""`emu-edit shards check`: read every byte of some folders of shards and list what is wrong."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import ArgumentParser
from emu_edit.cli.columns import aligned
from emu_edit.errors import ExitStatus, InputError

if TYPE_CHECKING:
    from datamodules.check_report import CheckReport, Problem
    from datamodules.leaks import LeakGuard

PROBLEMS = "problems.jsonl"


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
        help=f"list all problems there, as lines of JSON (default {PROBLEMS} in each DIR)",
    )
    made.add_argument(
        "--against",
        type=Path,
        action="append",
        metavar="PATH",
        help="evaluation pictures, shards or parquet files: any of them in DIR is an error "
        "(repeatable)",
    )
    return made


def run_check(arguments: list[str]) -> int:
    """Check folders of shards; list what is wrong.

    Raises:
        InputError: if there is no such folder, or the list cannot be written.
    """
    options = check_parser().parse(arguments)
    from datamodules.check import check_folders, summarize
    from datamodules.remote_address import parse_place
    from emu_edit.progress import step_bar

    guard = None if options.against is None else read_guard(options.against)
    folders = list(dict.fromkeys(options.folders))
    elsewhere = [place for place in folders if not isinstance(parse_place(place), Path)]
    if elsewhere and options.list is None:
        raise InputError(
            "a folder elsewhere cannot take a list of problems; say where: --list FILE"
        )
    with step_bar("checking", "pairs") as on_step:
        report = check_folders(folders, on_step, guard=guard)
    listings = write_lists(report, options.list)
    lines = [*aligned(report.rows()), "", *summarize(report.problems)]
    if report.problems:
        counted = f"{len(report.errors)} errors, {len(report.warnings)} warnings"
        lines += ["", f"{counted}: {', '.join(map(str, listings))}"]
    else:
        lines.append("nothing is wrong")
    sys.stdout.write("\n".join(lines) + "\n")
    return ExitStatus.done if report.is_good else ExitStatus.bad_data


def read_guard(paths: Sequence[Path]) -> "LeakGuard":
    """Read the evaluation pictures, with a bar.

    Raises:
        InputError: if there are none, or one cannot be read.
    """
    from datamodules.leaks import LeakGuard
    from emu_edit.progress import step_bar

    with step_bar("reading evaluation pictures", "pictures") as on_step:
        return LeakGuard.of(paths, lambda count: on_step(count, None))


def write_lists(report: "CheckReport", file: Path | None) -> list[Path]:
    """Write all problems to one file, or those of each folder into it; return the files.

    Without a file, the list of an earlier check goes when there is nothing left to list.

    Raises:
        InputError: if a list cannot be written.
    """
    if file is not None:
        _write(file, report.problems)
        return [file]
    written = []
    for folder in report.folders:
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
