"""Verbs that consist of commands, `emu-edit shards world` say: finds the command and runs it."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from emu_edit.errors import InputError, closest


@dataclass(frozen=True)
class Command:
    """What runs a command on its arguments and returns the exit status, and one line of help."""

    run: Callable[[list[str]], int]
    summary: str


def run_command(
    verb: str, commands: Mapping[str, Command], arguments: list[str], *, about: str = ""
) -> int:
    """Run the command that `arguments` begin with; without one, show the verb's help.

    Args:
        verb: what stands before the command.
        commands: the known ones, by name.
        arguments: the command and its own arguments.
        about: what the verb is for, in one line of help.

    Raises:
        InputError: for an unknown command, or what the command cannot use.
    """
    first = arguments[0] if arguments else "--help"
    if first in {"--help", "-h"}:
        sys.stdout.write(overview(verb, commands, about))
        return 0
    if first not in commands:
        hint = closest(first, list(commands))
        raise InputError(f"unknown command '{verb} {first}'; known: {', '.join(commands)}.{hint}")
    return commands[first].run(arguments[1:])


def overview(verb: str, commands: Mapping[str, Command], about: str) -> str:
    """Return the help of the verb."""
    return "\n".join([
        f"usage: emu-edit {verb} COMMAND [ARGUMENTS]",
        "",
        *([about, ""] if about else []),
        *(f"  {name:<10}{command.summary}" for name, command in commands.items()),
        "",
        f"emu-edit {verb} COMMAND --help tells more.",
        "",
    ])
