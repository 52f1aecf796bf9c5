"""Save a checkpoint over another again and again, each time killed -9 at the next moment.

A moment is just before or after any call that changes the disk. Prints how many writers were killed
and how many came to their end; leaves a folder for each.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from emu_edit.training.checkpoint_io import DurableCheckpointIO, _Hashing


def counted(call: Callable, count: Callable[[], None]) -> Callable:
    """Return `call` with a moment before and after it."""

    def wrapped(*arguments: object, **named: object) -> object:
        count()
        result = call(*arguments, **named)
        count()
        return result

    return wrapped


def save_until(moment: int, path: Path) -> None:
    """Save step 2 over step 1, and die at a moment."""
    passed = 0

    def count() -> None:
        nonlocal passed
        passed += 1
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = counted(os.fsync, count)
    for name in ("replace", "unlink", "open"):
        setattr(Path, name, counted(getattr(Path, name), count))
    _Hashing.write = counted(_Hashing.write, count)
    DurableCheckpointIO().save_checkpoint(checkpoint(2), path)


def checkpoint(step: int) -> dict:
    """Return a checkpoint larger than the buffer of a file."""
    return {"state_dict": {"w": torch.full((20_000,), float(step))}, "global_step": step}


def main() -> None:
    """Fork one writer for each moment until one comes to its end."""
    base = Path(sys.argv[1])
    killed = 0
    while True:
        folder = base / f"{killed:03}"
        folder.mkdir()
        DurableCheckpointIO().save_checkpoint(checkpoint(1), folder / "a.ckpt")
        if (writer := os.fork()) == 0:
            save_until(killed + 1, folder / "a.ckpt")
            os._exit(0)
        _, status = os.waitpid(writer, 0)
        if not os.WIFSIGNALED(status):
            break
        killed += 1
    sys.stdout.write(json.dumps({"killed": killed, "complete": int(status == 0)}))


if __name__ == "__main__":
    main()
