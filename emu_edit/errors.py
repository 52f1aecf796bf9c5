"""The errors a user can cause, in one place so that the command line can catch exactly them.

Everything here is reported as one line and an exit status by `emu_edit.cli.main`; any other
exception is a defect of this program and keeps its traceback. A message says what came, what was
needed, where, and what to do. A class says with which status the program ends, so that a job script
can tell what trying again would help.
"""

from difflib import get_close_matches
from enum import IntEnum
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar


class ExitStatus(IntEnum):
    """What the program's exit status means; 65 and up are those of BSD's sysexits.h."""

    done = 0
    usage = 2  # also argparse's and jsonargparse's
    bad_data = 65  # EX_DATAERR
    non_finite = 70  # EX_SOFTWARE
    out_of_memory = 71  # EX_OSERR
    storage = 74  # EX_IOERR
    preempted = 75  # EX_TEMPFAIL: go on later
    config = 78  # EX_CONFIG
    interrupted = 130  # 128 + SIGINT, as shells report it
    output_closed = 141  # 128 + SIGPIPE


class InputError(ValueError):
    """Something the user gave (a file, a flag, a config) cannot be used; the message says why."""

    status: ClassVar[ExitStatus] = ExitStatus.usage


class BadImageError(InputError):
    """A picture cannot be read safely: missing, not an image, too large, or of a refused kind."""


class BadDataError(InputError):
    """The training data are broken: a sample, a shard, or too many of them."""

    status: ClassVar[ExitStatus] = ExitStatus.bad_data


class BadSampleError(BadDataError):
    """One sample of a data set is broken; the message names shard and key.

    `kind` says in a word what is wrong with it, e.g. "sizes_differ"; training counts by it.
    """

    def __init__(self, message: str, kind: str = "unusable") -> None:
        super().__init__(message)
        self.kind = kind


class ShardError(BadDataError):
    """A whole shard or manifest cannot be trusted."""


class NonFiniteError(InputError):
    """A loss or gradient is not a number; the weights are those of the step before."""

    status: ClassVar[ExitStatus] = ExitStatus.non_finite


class StorageError(InputError):
    """A disk, network or checkpoint cannot be read or written."""

    status: ClassVar[ExitStatus] = ExitStatus.storage


class BrokenCheckpointError(StorageError):
    """A checkpoint is truncated, changed since it was written, or none; an older one may do."""


def closest(name: str, known: list[str]) -> str:
    """Return " Did you mean 'x'?" for the most similar known name, or "" when none is similar."""
    match = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


TRAINING = {"fit", "validate", "test"}  # run by job scripts, which ask what went wrong


def status_of(error: InputError | OSError, verb: str) -> ExitStatus:
    """Return the exit status for an error of `verb`.

    A training tells wrong options from a broken disk, because a job script may try again; any other
    verb has 2 for both.
    """
    status = error.status if isinstance(error, InputError) else ExitStatus.usage
    if verb not in TRAINING or status is not ExitStatus.usage:
        return status
    return ExitStatus.storage if isinstance(error, OSError) else ExitStatus.config


def installed_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("emu-edit")
    except PackageNotFoundError:
        return "(not installed: run from its source folder)"
