"""`run_status.json` in a run's folder: the state of a training, for scripts and schedulers.

Exit statuses are not enough: launchers change them (torchrun makes every one of them 1), and a
process that is killed reports nothing. Rank 0 writes the file, and so does a rank that fails by
itself, since the others only notice that it is gone. No rank communicates with another here.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy

from callbacks.durable import Checkpoints
from callbacks.preemption import Stop
from callbacks.progress import time_limit
from datamodules.edit import EditDataModule
from emu_edit.errors import ExitStatus, InputError, status_of
from emu_edit.files import read_regular, write_json
from emu_edit.runs.failures import LostRankError
from emu_edit.training.loggers import redact

FILE = "run_status.json"
GRACE = 6.0  # seconds a failed rank waits for the one that started it
POLL = 0.05  # seconds
DEFECT = 1  # Python's status for an exception nobody caught

State = Literal["running", "done", "time_limit", "preempted", "interrupted", "failed", "diverged"]
OF_STOP: dict[Stop, State] = {
    Stop.no: "done",
    Stop.interrupted: "interrupted",
    Stop.preempted: "preempted",
}


@dataclass(frozen=True)
class RunStatus:
    """The content of the file.

    Attributes:
        status: "running" (or killed without a word), "done", "time_limit" (trainer.max_time is
            over, steps are left; exit status 0), "preempted" (go on later), "interrupted" (by
            Ctrl-C), "diverged" (numbers are not finite) or "failed".
        exit: the exit status the program ends with; None while it runs.
        step: optimizer steps made.
        consumed: samples trained on; None if the data module does not count them.
        resume: the newest checkpoint that was read back, None before there is one.
        message: what went wrong or ended it early, in one line; empty if nothing did.
        rank: which process wrote this.
        pid: its number.
        host: its machine.
        time: when, with the time zone.
    """

    status: State
    exit: int | None
    step: int
    consumed: int | None
    resume: str | None
    message: str
    rank: int
    pid: int
    host: str
    time: str

    def write(self, folder: Path) -> None:
        """Replace the file in a run's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, redact(asdict(self)))

    @staticmethod
    def read(folder: Path) -> "RunStatus | None":
        """Return what the file of a run's folder says, None if there is none that is whole."""
        try:
            return RunStatus(**json.loads(read_regular(folder / FILE)))
        except (OSError, ValueError, TypeError):
            return None


class OtherRankError(InputError):
    """Another rank has failed; this one only lost its connection to it, and has its exit status."""

    def __init__(self, cause: RunStatus) -> None:
        super().__init__(f"rank {cause.rank} stopped: {cause.message}")
        self.status = ExitStatus(cause.exit)  # type: ignore[misc]


class StatusWriter(Callback):
    """Keep the file of a run up to date, from the beginning of training.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trainer: Trainer | None = None

    def follow(self, trainer: Trainer) -> None:
        """Begin to write into the folder, which is this run's from now on."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  a trial writes nothing
            return
        self._trainer = trainer
        trainer.callbacks.append(self)  # type: ignore[attr-defined]
        self._write_running()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the step training goes on from."""
        self._write_running()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the step reached."""
        self._write_running()

    def _write_running(self) -> None:
        if self._trainer is not None and self._trainer.is_global_zero:
            self._write("running")

    def ended(self, stop: Stop) -> ExitStatus:
        """Write how the run has ended without an error; return this process's exit status.

        Only the first rank's says how: launchers kill all ranks at once when one of them ends with
        anything but 0, so the others end with 0.
        """
        if self._trainer is None:
            return stop.status
        if not self._trainer.is_global_zero:
            return ExitStatus.done
        limit = time_limit(self._trainer) if stop is Stop.no else None
        status = OF_STOP[stop] if limit is None else "time_limit"
        self._write(status, exit_status=stop.status, message=limit or "")
        return stop.status

    @contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Write what went wrong when an error leaves the block.

        Raises:
            OtherRankError: in place of the error, if it comes after another rank has failed.
        """
        try:
            yield
        except BaseException as error:
            if self._trainer is None:
                raise
            noted = RunStatus.read(self.folder)
            if noted is None or noted.status == "running":
                self._write_error(error)
                noted = None
            if is_child(self._trainer):
                _leave_to_parent()
            is_own = isinstance(error, InputError) and not isinstance(error, LostRankError)
            if noted is None or is_own or noted.exit == DEFECT:
                raise
            raise OtherRankError(noted) from error

    def _write_error(self, error: BaseException) -> None:
        message = " ".join(str(error).split()) or type(error).__name__
        match error:
            case KeyboardInterrupt():
                self._write("interrupted", exit_status=ExitStatus.interrupted)
            case InputError() | OSError():
                status = status_of(error, verb="fit")
                has_diverged = status is ExitStatus.non_finite
                state = "diverged" if has_diverged else "failed"
                self._write(state, exit_status=status, message=message)
            case _:
                named = f"{type(error).__name__}: {message}"
                self._write("failed", exit_status=DEFECT, message=named)

    def _write(self, status: State, exit_status: int | None = None, message: str = "") -> None:
        trainer = self._trainer
        if trainer is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        files = [c.latest for c in trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
        newest = files[0] if files else None
        # a full disk is what may have ended the run; the exit status tells, too
        with suppress(OSError):
            RunStatus(
                status=status,
                exit=None if exit_status is None else int(exit_status),
                step=trainer.global_step,
                consumed=data.consumed if isinstance(data, EditDataModule) else None,
                resume=None if newest is None else str(newest),
                message=message,
                rank=trainer.global_rank,
                pid=os.getpid(),
                host=socket.gethostname(),
                time=datetime.now().astimezone().isoformat(timespec="seconds"),
            ).write(self.folder)


def _leave_to_parent() -> None:
    """Wait a little for the first rank to end by itself, before this failed process ends.

    Lightning's launcher kills the first rank as soon as a process it started has failed, in the
    middle of its report, and its exit status then says nothing. The connections closed here end a
    collective in which it may be waiting for this process.
    """
    with suppress(OSError):  # no /proc but on Linux
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(OSError), _socket_of(int(entry.name)) as connection:
                connection.getpeername()  # not all of them are sockets, and connected
                connection.shutdown(socket.SHUT_RDWR)
    parent, end = os.getppid(), time.monotonic() + GRACE
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(POLL)


def _socket_of(descriptor: int) -> socket.socket:
    return socket.socket(fileno=os.dup(descriptor))


def is_child(trainer: Trainer) -> bool:
    """Whether Lightning's launcher in another process has started this one."""
    strategy = trainer.strategy
    if not isinstance(strategy, ParallelStrategy) or trainer.local_rank == 0:
        return False
    return isinstance(strategy.cluster_environment, LightningEnvironment)
