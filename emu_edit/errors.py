"""The errors a user can cause, in one place so that the command line can catch exactly them.

Everything here is reported as one line and exit status 2 by `emu_edit.cli.main`; any other
exception is a defect of this program and keeps its traceback. A message says what came, what was
needed, where, and what to do.
"""

from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave (a file, a flag, a config) cannot be used; the message says why."""


class BadImageError(InputError):
    """A picture cannot be read safely: missing, not an image, too large, or of a refused kind."""


class BadSampleError(InputError):
    """One sample of a data set is broken; the message names shard and key."""


class ShardError(InputError):
    """A whole shard or manifest cannot be trusted."""


def closest(name: str, known: list[str]) -> str:
    """Return " Did you mean 'x'?" for the most similar known name, or "" when none is similar."""
    match = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
