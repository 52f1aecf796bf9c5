"""The program `emu-edit` (and `python -m emu_edit`): finds the verb, runs it, words its errors.

Nothing heavy is imported here: a verb's module is imported when the verb is used, and imports torch
only when it runs, so that every `--help` is instant. This is the one place where an error becomes a
line: what the user can cause is one line on stderr and an exit status; anything else is a defect of
the program and keeps its traceback.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from emu_edit.cli.arguments import Command, summaries
from emu_edit.errors import ExitStatus, InputError, closest, installed_version, status_of
from emu_edit.terminal import speak_plainly

# errors of the machine rather than of a path: full disk, quota, read-only disk, no memory
MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def _of(module: str, function: str = "run") -> Callable[[list[str]], int]:
    """Return what imports a verb's module and runs its function."""
    return lambda arguments: getattr(import_module(f"emu_edit.cli.{module}"), function)(arguments)


VERBS = {
    "fit": Command(
        _of("fit", "run_fit"), "train; without arguments the tiny editor on a built-in world"
    ),
    "validate": Command(
        _of("fit", "run_validate"), "measure a checkpoint's loss on the validation set"
    ),
    "test": Command(_of("fit", "run_test"), "measure a checkpoint's loss on the test set"),
    "edit": Command(_of("edit"), "edit a picture by instruction"),
    "video": Command(_of("video"), "edit a video by instruction, its sound kept"),
    "generate": Command(_of("generate"), "draw pictures, or a video, from captions"),
    "interpolate": Command(_of("interpolate"), "draw frames between the frames of a video"),
    "shards": Command(_of("shards"), "write, convert and check training data"),
    "evaluate": Command(_of("evaluate"), "score a model against exact ground truth, per task"),
    "rate": Command(_of("rate"), "let people choose between two sets of videos, and count"),
    "predictor": Command(
        _of("predictor"), "train and measure what tells the task from the instruction"
    ),
    "invert": Command(_of("invert"), "teach a model a new task from 1 to 100 pairs"),
    "tune": Command(_of("tune"), "tune a picture model on one video, to edit it by captions"),
    "tasks": Command(_of("tasks"), "list, add, remove and rename the tasks a model knows"),
    "app": Command(_of("app"), "serve a web page for editing in turns, on this computer"),
    "export": Command(_of("export"), "turn a checkpoint into a model directory"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `emu-edit` with `arguments` (default: the command line's); return the exit status.

    `EMU_EDIT_TRACEBACK=1` in the environment shows the traceback of errors that are otherwise one
    line.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    speak_plainly()
    try:
        return dispatch(arguments)
    except KeyboardInterrupt:
        return ExitStatus.interrupted
    except BrokenPipeError:
        # the reader of our output, `head` say, has gone; python must not write to it when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.output_closed
    except (InputError, OSError) as error:
        line = describe(error)
        if line is None or os.environ.get("EMU_EDIT_TRACEBACK") == "1":
            raise
        sys.stderr.write(f"emu-edit: error: {line}\n")
        return status_of(error, verb=arguments[0] if arguments else "")


def dispatch(arguments: list[str]) -> int:
    """Run the verb that `arguments` begin with."""
    first = arguments[0] if arguments else "--help"
    if first in {"--help", "-h", "help"}:
        sys.stdout.write(overview())
        return 0
    if first == "--version":
        sys.stdout.write(f"emu-edit {installed_version()}\n")
        return 0
    if first not in VERBS:
        hint = closest(first, list(VERBS))
        raise InputError(f"unknown command {first!r}; known: {', '.join(VERBS)}.{hint}")
    return VERBS[first].run(arguments[1:])


def describe(error: InputError | OSError) -> str | None:
    """Word an error in one line; None for an OSError no user can act on."""
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if error.errno in MACHINE_ERRORS:
        return f"cannot write: {error.strerror}; free some space or write elsewhere"
    return None


def overview() -> str:
    """Return the help of the program."""
    return "\n".join([
        "usage: emu-edit COMMAND [ARGUMENTS]",
        "",
        "Edit images by instruction over sixteen tasks, and train models that do.",
        "",
        *summaries(VERBS),
        "",
        "emu-edit COMMAND --help tells more; emu-edit --version prints the version.",
        "",
    ])
