"""Stop in time when the machine is wanted back: save at the next optimizer step, then end.

A signal handler may run in the middle of anything, and ranks get signals at different moments, so
the handler only takes a note. At the end of every optimizer step the ranks compare their notes in
one reduction and, if one of them has a note, save and stop together. Lightning's own handler
broadcasts from within the signal instead, which hangs when the ranks are at different places.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import os
import signal
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from callbacks.durable import Checkpoints, is_accumulating, is_epoch_done
from emu_edit.errors import ExitStatus, InputError
from emu_edit.training.sharding import ShardedStrategy

ECHO = 0.25  # seconds; a launcher passes on a signal that its processes got themselves
AGAIN = 10.0  # seconds within which a second signal means: at once
NOTICE = b"stopping after this optimizer step; once more within 10 s stops at once\n"


class Stop(IntEnum):
    """Why training ends early; where ranks were told different things, the larger holds."""

    no = 0
    interrupted = 1  # Ctrl-C: a person is there
    preempted = 2  # the machine is wanted back; going on later is expected

    @property
    def status(self) -> ExitStatus:
        """The exit status of a program that was stopped so."""
        return {
            Stop.no: ExitStatus.done,
            Stop.interrupted: ExitStatus.interrupted,
            Stop.preempted: ExitStatus.preempted,
        }[self]


MEANING = {
    signal.SIGTERM: Stop.preempted,
    signal.SIGUSR1: Stop.preempted,  # what SLURM sends before its time limit, if asked to
    signal.SIGINT: Stop.interrupted,
}


class SignalNotes:
    """Handlers that note which signal came; a second one soon after ends the process.

    Args:
        notice: bytes to write to standard error at the first signal.
        before_exit: called before the process ends at the second.
    """

    def __init__(self, notice: bytes, before_exit: Callable[[], object]) -> None:
        self.stop = Stop.no
        self._notice = notice
        self._before_exit = before_exit
        self._came = -AGAIN
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take over from the present handlers; outside the main thread Python has no handlers."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in MEANING}

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        since, is_first = now - self._came, self.stop is Stop.no
        if not is_first and since < ECHO:
            return
        self._came = now
        self.stop = max(self.stop, MEANING[signal.Signals(number)])
        if is_first:
            # print could meet itself: the signal may have come in the middle of one
            os.write(2, self._notice)
        elif since < AGAIN:
            self._before_exit()
            # nothing is flushed or closed: a file that is being written keeps its old content
            os._exit(128 + number)


class Preemption(Checkpoint):
    """Turn SIGTERM, SIGUSR1 and Ctrl-C into a checkpoint and an early end, on all ranks together.

    Needs the Checkpoints callback, which writes the file. Validation, grids and whatever else would
    follow are left out, because the time until the machine is gone is short. Being a `Checkpoint`
    puts it behind all others, so that what is saved is the state after the step.

    Attributes:
        stopped: why training was ended early, the same on all ranks.
    """

    def __init__(self) -> None:
        self.stopped = Stop.no
        self._notes: SignalNotes | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take notes of signals from now on, and keep Lightning from acting on them.

        Raises:
            InputError: if nothing writes checkpoints.
        """
        if stage != "fit":
            return
        checkpoints_of(trainer)
        # Lightning 2.6 has no public way to keep its handlers out
        trainer._signal_connector.register_signal_handlers = _nothing
        self.stopped = Stop.no
        notice = NOTICE if trainer.is_global_zero else b""
        self._notes = SignalNotes(notice, before_exit=lambda: _kill_children(trainer))
        self._notes.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not begin when a signal has come meanwhile; there is nothing new to save."""
        if (stop := self._agreed(trainer)) is not Stop.no:
            self._end(trainer, stop)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After an optimizer step: agree, and if it must be, save and stop.

        Not after an epoch's last one, where Lightning 2.6 would save counters with which the run
        after the next trains an epoch too many; the end of the epoch follows at once.
        """
        if is_accumulating(trainer) or self.stopped is not Stop.no:
            return
        if (stop := self._agreed(trainer)) is Stop.no:
            return
        self._end(trainer, stop)
        if not is_epoch_done(trainer):
            checkpoints_of(trainer).save(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave a validation of `fit`; what it logs is then the mean of the batches until here.

        Every rank by its own note: one reduction a batch would hang where ranks have unequally many
        batches. A rank that got no signal validates to the end, where the others wait for it.
        Of a sharded training all leave together, since none of them can compute alone.
        """
        if self._notes is None:
            return
        is_sharded = isinstance(trainer.strategy, ShardedStrategy)
        if (self._agreed(trainer) if is_sharded else self._notes.stop) is Stop.no:
            return
        # Lightning 2.6 would count the next validation of this run from here on
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset_on_run()
        raise StopIteration  # how a step may end Lightning's evaluation loop

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same after an epoch's last step, and for signals that came during validation."""
        if not is_epoch_done(trainer):  # stopped within the epoch, and saved there
            return
        if self.stopped is Stop.no and (stop := self._agreed(trainer)) is not Stop.no:
            self._end(trainer, stop)
        if self.stopped is not Stop.no:
            checkpoints_of(trainer).save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a signal that came after the last step as one, too: what follows may take long."""
        if self.stopped is Stop.no:
            self.stopped = self._agreed(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the handlers back."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the handlers back; a rank that fails asks the others nothing."""
        self._restore()

    def _agreed(self, trainer: Trainer) -> Stop:
        """Return the gravest note any rank has; one reduction."""
        own = Stop.no if self._notes is None else self._notes.stop
        if trainer.world_size == 1:
            return own
        note = torch.tensor(int(own), device=trainer.strategy.root_device)
        return Stop(int(trainer.strategy.reduce(note, reduce_op="max").item()))  # type: ignore[union-attr]

    def _end(self, trainer: Trainer, stop: Stop) -> None:
        self.stopped = stop
        trainer.limit_val_batches = 0
        # these would keep training going whatever should_stop says
        trainer.fit_loop.min_epochs = 0
        trainer.fit_loop.epoch_loop.min_steps = None
        trainer.should_stop = True

    def _restore(self) -> None:
        if self._notes is not None:
            self._notes.restore()


def checkpoints_of(trainer: Trainer) -> Checkpoints:
    """Return the callback that writes checkpoints.

    Raises:
        InputError: if there is none.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, Checkpoints):
            return callback
    raise InputError(
        "trainer.callbacks has Preemption but nothing that could save then; add "
        "callbacks.durable.Checkpoints, as configs/callbacks/checkpoint.yaml does"
    )


def stopped(trainer: Trainer) -> Stop:
    """Return why a training ended early, `Stop.no` if it did not."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return max((c.stopped for c in callbacks if isinstance(c, Preemption)), default=Stop.no)


def _nothing() -> None:
    """Install no handlers."""


def _kill_children(trainer: Trainer) -> None:
    """End the ranks this process has started; they would wait for it."""
    launcher = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(signal.SIGKILL)
