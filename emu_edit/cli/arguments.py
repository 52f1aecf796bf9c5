"""What all verbs share: parsing arguments, commands of a verb (`emu-edit shards world`), imports.

Complaints look like all errors of the program: one line, exit status 2.
"""

import argparse
import gc
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NoReturn

from emu_edit.errors import InputError, closest

if TYPE_CHECKING:
    from emu_edit.editing.settings import Sampling


CLOCK = re.compile(
    r"(?:(?:(\d+):(?=[0-5]\d:))?(\d+):(?=[0-5]\d(?:\.|$)))?(\d+(?:\.\d+)?)", re.ASCII
)


class ArgumentParser(argparse.ArgumentParser):
    """argparse that raises InputError, takes no abbreviations and suggests the nearest option."""

    def __init__(
        self, prog: str, description: str, epilog: str = "", *, add_help: bool = True
    ) -> None:
        super().__init__(
            prog=prog,
            description=textwrap.fill(description, 80),
            epilog=epilog,
            add_help=add_help,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise InputError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all of `arguments`; an unknown option is refused with the nearest known one."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            options = [name for action in self._actions for name in action.option_strings]
            hint = closest(unknown[0].partition("=")[0], options)
            raise InputError(f"unknown argument {unknown[0]!r}.{hint} See {self.prog} --help")
        return parsed


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1 (an argparse type)."""
    return _whole_number(text, 1)


def positive_or_zero(text: str) -> int:
    """Parse a whole number of at least 0 (an argparse type)."""
    return _whole_number(text, 0)


def seed_int(text: str) -> int:
    """Parse a seed, 0 to 2**63 - 1 (an argparse type)."""
    value = _whole_number(text, 0)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"needs a whole number below 2^63, got {text!r}")
    return value


def clock(text: str) -> Fraction:
    """Parse a time in seconds, "7.5", "2:07.5" or "1:02:07.5" (an argparse type)."""
    match = CLOCK.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"needs a time in seconds, or as h:mm:ss, e.g. 7.5 or 1:02:07.5, got {text!r}"
        )
    hours, minutes, seconds = match.groups("0")
    return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)


def add_sampling(made: argparse.ArgumentParser) -> None:
    """Add the options that say how a model is sampled; those left out keep the model's."""
    made.add_argument("--steps", type=positive_int, help="sampler steps (default: the model's)")
    made.add_argument("--guidance-text", type=float, help="how strongly to follow the instruction")
    made.add_argument("--guidance-image", type=float, help="how strongly to keep the picture")
    made.add_argument("--sampler", help="ddim, euler_ancestral or dpm_solver_pp_2m")


def sampling_of(options: argparse.Namespace) -> "Sampling":
    """Read the options of `add_sampling`.

    Raises:
        InputError: for an unknown sampler, or a scale that is out of range.
    """
    from emu_edit.editing.settings import Sampling, sampler_named

    return Sampling(
        num_steps=options.steps,
        guidance_text=options.guidance_text,
        guidance_image=options.guidance_image,
        sampler=None if options.sampler is None else sampler_named(options.sampler),
    )


def _whole_number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least {least}, got {text!r}")
    return value


@contextmanager
def importing() -> Iterator[None]:
    """Import what is heavy without looking for garbage in it, neither meanwhile nor at exit.

    Python's collector goes through all that is alive, again and again as modules pile up and once
    more at exit: a third of the processor time of `edit`, and modules are never garbage. They are
    set aside for good, once in a process. Source: `gc.freeze`, documented for what lives on.
    """
    if "diffusers" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()


@dataclass(frozen=True)
class Command:
    """What runs a command on its arguments and returns the exit status, and one line of help."""

    run: Callable[[list[str]], int]
    summary: str


def run_command(
    verb: str, commands: Mapping[str, Command], arguments: list[str], *, about: str = ""
) -> int:
    """Run the command that `arguments` begin with; without one, show the verb's help."""
    first = arguments[0] if arguments else "--help"
    if first in {"--help", "-h"}:
        sys.stdout.write(overview(verb, commands, about))
        return 0
    if first not in commands:
        hint = closest(first, list(commands))
        raise InputError(f"unknown command '{verb} {first}'; known: {', '.join(commands)}.{hint}")
    return commands[first].run(arguments[1:])


def summaries(commands: Mapping[str, Command]) -> list[str]:
    """Return a line of help for each command."""
    width = max(10, 1 + max(map(len, commands)))
    return [f"  {name:<{width}}{command.summary}" for name, command in commands.items()]


def overview(verb: str, commands: Mapping[str, Command], about: str) -> str:
    """List the commands of a verb."""
    return "\n".join([
        f"usage: emu-edit {verb} COMMAND [ARGUMENTS]",
        "",
        *([about, ""] if about else []),
        *summaries(commands),
        "",
        f"emu-edit {verb} COMMAND --help tells more.",
        "",
    ])
