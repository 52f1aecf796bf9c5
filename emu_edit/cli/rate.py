"""`emu-edit rate page | count`: a blind page for human raters, and what their answers say."""

import sys
from pathlib import Path

from emu_edit.cli.arguments import ArgumentParser, Command, run_command, seed_int
from emu_edit.errors import InputError

RESULT = "votes.json"


def run(arguments: list[str]) -> int:
    """Run one of the commands.

    Raises:
        InputError: for an unknown command, or what the command cannot use.
    """
    commands = {
        "page": Command(run_page, "write a page that shows two sets side by side, blind"),
        "count": Command(run_count, "count the answers of several raters"),
    }
    return run_command("rate", commands, arguments)


def page_parser() -> ArgumentParser:
    """Build the parser of `rate page`."""
    made = ArgumentParser(
        prog="emu-edit rate page",
        description="Show two sets of videos (.mp4, .webm, .gif) or pictures of the same captions "
        "side by side. Raters open PAGE/index.html, choose by quality and faithfulness, say why "
        "and download their answers. Which set is which stands in PAGE.key.json: keep it.",
        epilog="Files of both folders belong together by name. Captions are in captions.jsonl "
        "(file_name, caption), as emu-edit generate writes it, or in NAME.txt.",
    )
    made.add_argument("first", type=Path, metavar="A", help="folder of videos or pictures")
    made.add_argument("second", type=Path, metavar="B", help="folder of the others")
    made.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE", help="new folder")
    made.add_argument("--seed", type=seed_int, default=0, help="of order and sides (default 0)")
    return made


def run_page(arguments: list[str]) -> int:
    """Write the page.

    Raises:
        InputError: if a folder or the output cannot be used.
    """
    options = page_parser().parse(arguments)
    from emu_edit.evaluation.rater_page import key_of, write_page
    from emu_edit.terminal import plural

    key = write_page(options.first, options.second, options.output, seed=options.seed)
    sys.stdout.write(
        f"{plural(len(key.items), 'item')}: give raters the folder {options.output}, keep "
        f"{key_of(options.output)}\n"
    )
    return 0


def count_parser() -> ArgumentParser:
    """Build the parser of `rate count`."""
    made = ArgumentParser(
        prog="emu-edit rate count",
        description="Count answers: the majority decides an item (the paper has five raters), ties "
        "are told apart; the share of decided items that A wins has its 95 % Wilson interval, "
        "kappa is Fleiss'. Writes votes.json, or what -o says.",
    )
    made.add_argument("page", type=Path, metavar="PAGE", help="the page, whose key lies beside it")
    made.add_argument("answers", nargs="+", type=Path, metavar="ANSWERS", help="raters' files")
    made.add_argument("-o", "--output", type=Path, default=Path(RESULT), metavar="FILE")
    return made


def run_count(arguments: list[str]) -> int:
    """Count the votes, print a table and write it.

    Raises:
        InputError: if the key or a file of answers cannot be used.
    """
    options = count_parser().parse(arguments)
    from emu_edit.evaluation.rater_page import key_of
    from emu_edit.evaluation.raters import Key, outcome_rows, read_votes, result_of
    from emu_edit.files import write_json
    from emu_edit.terminal import aligned

    key = Key.read(key_of(options.page))
    votes = {}
    for path in options.answers:
        name, given = read_votes(path, key)
        if name in votes:
            raise InputError(f"{path}: rater {name!r} has answered already; give each rater once")
        votes[name] = given
    outcomes, told = result_of(key, votes)
    sys.stdout.write("\n".join(aligned(outcome_rows(outcomes, key.names))) + "\n")
    for each in outcomes:
        for name, reasons in zip(key.names, each.reasons, strict=True):
            if reasons:
                most = ", ".join(f"{reason} ({n})" for reason, n in [*reasons.items()][:3])
                sys.stdout.write(f"{each.question}, for {name}: {most}\n")
    write_json(options.output, told)
    sys.stdout.write(f"written to {options.output}\n")
    return 0
