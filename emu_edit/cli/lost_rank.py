"""What a user reads when another process of a training has died: which, how, and how to go on.

A process that is killed says nothing; its partners learn of it by a connection that breaks, which
torch words as an error of the network.
"""

import re
import signal
import time

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from emu_edit.errors import ExitStatus, InputError

# the first two are gloo's words, the last NCCL's for ncclRemoteError
_WORDS = re.compile(
    r"Connection reset by peer|Connection closed by peer|remote process exited or there was a"
)
_PATIENCE = 2.0  # seconds until the system tells how a child has ended; the line breaks first


class LostRankError(InputError):
    """Another process of the training has ended without a word, or cannot be reached."""

    status = ExitStatus.storage


def lost_rank(error: Exception, trainer: Trainer) -> LostRankError | None:
    """Word an error of training or measuring; None if it is about something else.

    Args:
        error: that has left the trainer.
        trainer: whose step it was.
    """
    if not isinstance(error, RuntimeError) or trainer.world_size == 1:
        return None
    if (found := _WORDS.search(str(error))) is None:
        return None
    ended = _how_children_ended(trainer) or (
        "another rank has ended or cannot be reached; its own output, above or on its machine, "
        "may tell why"
    )
    return LostRankError(
        f"rank {trainer.global_rank} lost its partners at optimizer step {trainer.global_step} "
        f"({found[0]}): {ended}; start again with --resume auto to go on from the last checkpoint"
    )


def _how_children_ended(trainer: Trainer) -> str | None:
    """Return how a rank ended that this process has started; None if it started none that did."""
    launcher = trainer.strategy.launcher
    children = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
    end = time.monotonic() + _PATIENCE
    while children:
        for local_rank, child in enumerate(children, start=1):
            if (status := child.poll()) is not None and status != 0:
                return f"rank {trainer.global_rank + local_rank} {_in_words(status)}"
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return None


def _in_words(status: int) -> str:
    """Word what `Popen.poll` gives."""
    if status > 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    hint = " (the system does this to a process when memory is short)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
