"""Every command of README, docs and recipes: taken by our parsers; run as written, but short."""

import argparse
import ast
import re
import runpy
import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest

from emu_edit.cli.arguments import ArgumentParser
from emu_edit.cli.edit import TurnParser
from emu_edit.cli.main import VERBS, main
from emu_edit.runs.trainer_cli import TrainerCLI
from tests.end_to_end.documented import (
    PAGES,
    PLACEHOLDERS,
    RECIPES,
    ROOT,
    Shown,
    blocks,
    commands,
    files_of,
    inline_commands,
)

# programs of others, by what their commands begin with; ours are never among them
OTHERS = (
    ("python3", "-m", "venv"),
    ("pip", "install"),
    ("python", "-m", "pytest"),
    ("python", "-c"),
    ("wandb", "login"),
    ("wandb", "sync"),
    ("wandb", "sweep"),
    ("hf", "download"),
    ("xdg-open",),
    ("scontrol", "requeue"),
    ("rm", "-f"),
    ("exit",),
)
ALL = [
    shown
    for page in (*PAGES, *RECIPES)
    for shown in (*commands(page), *(() if page in RECIPES else inline_commands(page)))
]


class Parsed(Exception):  # noqa: N818
    """The command line was taken; what it asks for is not done."""


def own_arguments(shown: Shown) -> list[str] | None:
    """Return the arguments of our program; lines of options alone belong behind `fit`."""
    words = shown.arguments
    if words is None and shown.words[0].startswith("--"):
        words = ("fit", "--config", "sd15", *shown.words)
    return None if words is None else [PLACEHOLDERS.get(word, word) for word in words]


def benchmark(words: Sequence[str]) -> Path | None:
    """Return the file of a command that runs one of our benchmarks."""
    match words:
        case ("python", "-m", module, *_) if module.startswith("benchmarks."):
            path = ROOT / module.replace(".", "/")
            return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        case ("python", file, *_) if file.startswith("benchmarks/"):
            return ROOT / file
    return None


def is_of_others(words: Sequence[str]) -> bool:
    first = words[0].removeprefix(".venv/bin/")
    return any((first, *words[1:])[: len(known)] == known for known in OTHERS)


def relaxed(parser: ArgumentParser) -> None:
    """Let a fragment in a sentence (`evaluate --drift`) leave out what a whole command needs."""
    for action in parser._actions:
        action.required = False
        if action.option_strings and action.nargs is None:
            action.nargs = "?"
    for group in parser._mutually_exclusive_groups:
        group.required = False


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Shown]:
    """Make every parser of ours stop with `Parsed` when it has taken its command line.

    The last of the list is the command at hand.
    """
    shown: list[Shown] = []
    training = TrainerCLI.parse_arguments

    def stopping(parse: Any) -> Any:
        def parse_and_stop(self: ArgumentParser, arguments: Sequence[str]) -> NoReturn:
            if shown[-1].is_inline:
                relaxed(self)
            parse(self, arguments)
            raise Parsed

        return parse_and_stop

    def parse_training(self: TrainerCLI, *given: Any) -> NoReturn:
        training(self, *given)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse", stopping(ArgumentParser.parse))
    monkeypatch.setattr(TurnParser, "parse", stopping(TurnParser.parse))
    monkeypatch.setattr(TrainerCLI, "parse_arguments", parse_training)
    return shown


@pytest.fixture
def desk(workplace: Path) -> Path:
    """A folder with the configs that pages tell to write, and runs that are nothing but a name."""
    configs = ROOT / "configs"
    (workplace / "full.yaml").write_text(
        f"model: {configs}/model/sd15.yaml\ndata: {configs}/data/large.yaml\n"
    )
    for page in PAGES:
        for name, content in files_of(page):
            (workplace / name).write_text(content)
    return workplace


def name_run(folder: Path) -> None:
    """Make a run's folder of which only the names are there."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").write_text(Path("full.yaml").read_text())


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Say what our program has against a command line; nothing if its parsers take it."""
    if len(arguments) == 1 and arguments[0] in VERBS:  # said of the verb, as "see `emu-edit test`"
        return ""
    for option in ("--ckpt_path", "--start_from"):
        if option in arguments:
            run = Path(arguments[arguments.index(option) + 1])
            if not run.exists():
                name_run(run)
    try:
        main(arguments)
    except Parsed:
        return ""
    except SystemExit as end:  # of --print_config
        return "" if end.code == 0 else f"it ended with {end.code}"
    return capsys.readouterr().err or "it was not parsed but run"


def together(lines: Iterable[Shown]) -> dict[Shown, list[str]]:
    """Return the command lines to parse; trainings by the same configs are one, as each is slow.

    Options of all of them follow each other then, and each one's value is judged when it is read.
    """
    found: dict[Shown, list[str]] = {}
    trainings: dict[tuple[str, ...], list[str]] = {}
    for shown in lines:
        arguments = own_arguments(shown)
        if arguments is None or arguments in found.values():
            continue
        configs = re.findall(r"(?<=--config )(?:(?!--)\S+ ?)*", " ".join(arguments))
        if arguments[0] == "fit" and "--print_config" not in arguments and len(arguments) > 1:
            first = trainings.setdefault(tuple(configs), ["fit"])
            if first == ["fit"]:
                found[shown] = first
            first += arguments[1:]
        else:
            found[shown] = arguments
    return found


def test_every_command_of_ours_is_taken_by_its_parser(
    asked: list[Shown], desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del desk
    refused = {}
    lines = together(ALL)
    for shown, arguments in lines.items():
        asked.append(shown)
        if why := refusal(arguments, capsys):
            refused[str(shown)] = why
    assert not refused
    assert len(lines) > 80


@pytest.mark.parametrize("line", ["edit --colour red x.png", "fit --data.trian x", "shards chek x"])
@pytest.mark.usefixtures("desk")
def test_a_command_with_an_option_we_have_not_is_seen(
    line: str, asked: list[Shown], capsys: pytest.CaptureFixture[str]
) -> None:
    asked.append(Shown("README.md", ("emu-edit", *line.split())))
    assert refusal(line.split(), capsys)


def test_benchmarks_take_the_options_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    take = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(self: argparse.ArgumentParser, *given: Any) -> NoReturn:
        assert take(self, *given)[1] == []
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    monkeypatch.syspath_prepend(ROOT)
    lines = {shown.words for shown in ALL if benchmark(shown.words)}
    assert len(lines) > 4
    for words in lines:
        file = benchmark(words)
        assert file is not None
        own = words[3:] if words[1] == "-m" else words[2:]
        monkeypatch.setattr(sys, "argv", [str(file), *own])
        with pytest.raises(Parsed):
            runpy.run_path(str(file), run_name="__main__")


def test_every_other_command_is_of_a_program_we_know() -> None:
    rest = [s for s in ALL if own_arguments(s) is None and benchmark(s.words) is None]
    assert [str(shown) for shown in rest if not is_of_others(shown.words)] == []
    used = [first for first in OTHERS if any(is_of_others(shown.words) for shown in rest)]
    assert len(used) == len(OTHERS)


def test_what_pip_and_pytest_are_told_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for shown in ALL:
        if "pip" in shown.words[0]:
            for extra in re.findall(r"\[(\w+)\]", " ".join(shown.words)):
                assert extra in project["optional-dependencies"]
        if "pytest" in shown.words:
            for path in (word for word in shown.words if word.startswith("tests/")):
                assert (ROOT / path).is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_python_on_a_page_imports_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []
