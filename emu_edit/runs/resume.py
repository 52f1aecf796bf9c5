"""`fit --resume`: the newest whole checkpoint of a run, the same one for all ranks.

Files are read fully and compared with their sidecars, newest first. A broken one gets another name,
so that nothing takes it again, and the one before is tried. Only rank 0 looks; its choice reaches
children of Lightning's launcher by the environment, other ranks through the process group.
"""

import os
import re
import sys
from pathlib import Path
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ParallelStrategy

from callbacks.durable import point_last_to, step_in
from emu_edit.errors import BrokenCheckpointError, InputError, StorageError
from emu_edit.runs.folder import CHECKPOINTS, LAST
from emu_edit.runs.lock import RunLock
from emu_edit.training.checkpoint_io import SUFFIX, read_checkpoint, read_sidecar, sweep, verify

How = Literal["auto", "strict"]

CORRUPT = ".corrupt"
FROM_PARENT = "EMU_EDIT_RESUME"  # how the processes that Lightning starts learn the checkpoint
IN_NAME = re.compile(r"step[-=](\d+)")  # our names and those of Lightning's ModelCheckpoint


def begin(trainer: Trainer, lock: RunLock, how: How | None) -> Path | None:
    """Take the run's folder; return the checkpoint to go on from, None to begin anew.

    Called on every rank before training; all return or raise the same.

    Args:
        trainer: about to train; its processes may not be connected yet.
        lock: of the run's folder, taken by rank 0.
        how: whether broken checkpoints are put aside (auto) or stop the program (strict); None does
            not look for checkpoints.

    Raises:
        InputError: if another training has the folder.
        StorageError: if checkpoints cannot be read, or none of them is whole.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  a trial writes nothing
        return None
    if os.environ.get("LOCAL_RANK", "0") != "0" and FROM_PARENT in os.environ:
        chosen = os.environ[FROM_PARENT]
        return Path(chosen) if chosen else None
    strategy = trainer.strategy
    if not isinstance(strategy, ParallelStrategy) or trainer.world_size == 1:
        return _raised(_begun(lock, how))
    environment = strategy.cluster_environment
    if environment is None or not environment.creates_processes_externally:
        if trainer.num_nodes > 1 and how is not None:
            raise InputError(
                "--resume on several machines needs processes that can ask each other; start them "
                "by torchrun or srun"
            )
        if not trainer.is_global_zero:
            return None
        chosen = _raised(_begun(lock, how))
        os.environ[FROM_PARENT] = "" if chosen is None else str(chosen.absolute())
        return chosen
    # Lightning would connect the processes a little later; connecting them twice does nothing
    strategy.setup_environment()
    return _raised(strategy.broadcast(_begun(lock, how) if trainer.is_global_zero else None))


def newest_whole(folder: Path, how: How) -> tuple[Path | None, str]:
    """Return the newest checkpoint of a run that is whole, and a line that says what was found.

    Raises:
        StorageError: if there are checkpoints and none is whole, one cannot be read at all, or one
            is broken and `how` is strict.
    """
    checkpoints = folder / CHECKPOINTS
    names = [IN_NAME.search(name) for name in sweep(checkpoints)]
    ignored = [f"step {int(found[1])} incomplete, ignored" for found in names if found is not None]
    for file in candidates(checkpoints):
        try:
            verify(file)
        except BrokenCheckpointError as error:
            if how == "strict":
                raise StorageError(
                    f"{error}; --resume auto would put it aside and take the one before"
                ) from error
            put_aside(file)
            ignored.append(f"{file.name} is broken, now {file.name}{CORRUPT}")
            continue
        if step_in(file.name) is not None:
            point_last_to(file)
        return file, f"resume: last valid step {step_of(file)}{_in_brackets(ignored)}"
    if any(checkpoints.glob(f"*{CORRUPT}")):
        raise StorageError(
            f"no whole checkpoint is left in {checkpoints}{_in_brackets(ignored)}; delete the "
            f"*{CORRUPT} files to begin anew there, or choose another --run folder"
        )
    return None, f"resume: no checkpoint in {folder} yet, begins anew{_in_brackets(ignored)}"


def candidates(checkpoints: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first; links and other files are left out."""
    steps = {file: step_of(file) for file in checkpoints.glob("*.ckpt") if not file.is_symlink()}
    known = {file: step for file, step in steps.items() if step is not None}
    return sorted(known, key=lambda file: (known[file], file.name), reverse=True)


def step_of(file: Path) -> int | float | None:
    """Return the optimizer step of a checkpoint, None for a file that is none of a run.

    That is what its sidecar says, else its name. `last.ckpt` of an older version has neither and
    must be opened; where that fails it counts as the newest, so that it is looked at first.
    """
    try:
        known = read_sidecar(file)
    except BrokenCheckpointError:
        known = None
    if known is not None:
        return known.step
    if (named := IN_NAME.search(file.name)) is not None:
        return int(named[1])
    if file.name != LAST:
        return None
    try:
        return read_checkpoint(file).get("global_step")
    except BrokenCheckpointError:
        return float("inf")


def put_aside(file: Path) -> None:
    """Rename a broken checkpoint and its sidecar, so that they can still be looked at."""
    sidecar = file.with_name(file.name + SUFFIX)
    file.replace(file.with_name(file.name + CORRUPT))
    if sidecar.exists():
        sidecar.replace(file.with_name(file.name + CORRUPT + SUFFIX))


def _begun(lock: RunLock, how: How | None) -> Path | InputError | None:
    """Lock the folder and choose; an error is returned, since other ranks wait for the outcome."""
    try:
        lock.acquire()
        if how is None:
            return None
        chosen, words = newest_whole(lock.folder, how)
    except InputError as error:
        return error
    except OSError as error:
        return StorageError(f"{lock.folder / CHECKPOINTS}: {error.strerror}; try again")
    sys.stderr.write(words + "\n")
    return chosen


def _raised(outcome: Path | InputError | None) -> Path | None:
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def _in_brackets(words: list[str]) -> str:
    return f" ({'; '.join(words)})" if words else ""
