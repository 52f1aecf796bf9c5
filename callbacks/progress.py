"""One progress bar for the whole run: how far, how fast, how long still.

Lightning's bar starts anew with every epoch, and our epochs are only bookkeeping. On a terminal
this is a live bar; elsewhere (a log file, a batch job) one line about every half minute. What keeps
a training waiting between two steps, validation and drawings, has a bar of its own below it.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import math
import time
from collections.abc import Iterator, Sized
from contextlib import ExitStack, contextmanager

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import Progress as RichProgress

from emu_edit.errors import InputError
from emu_edit.terminal import LINE_EVERY, OnStep, live_bar, progress_line, shown_work

LIVE_PERIOD = 0.5  # seconds between two redraws; reading the loss waits for the device


class Progress(ProgressBar):
    """Show steps, samples per second, time left and loss, on standard error.

    Args:
        line_every: seconds between two lines where there is no terminal.

    Raises:
        InputError: if `line_every` is not above 0.
    """

    def __init__(self, line_every: float = LINE_EVERY) -> None:
        super().__init__()
        if not line_every > 0:
            raise InputError(f"Progress.line_every must be above 0, got {line_every!r}")
        self.line_every = line_every
        self.console = Console(stderr=True, highlight=False)
        self._bar: RichProgress | None = None
        self._is_enabled = True
        self._started = 0.0
        self._start_step = 0
        self._shown = 0.0
        self._samples = 0
        self._between = ExitStack()  # of validation inside training
        self._validated: OnStep | None = None

    def enable(self) -> None:
        """Show progress (Lightning calls this on the main process)."""
        self._is_enabled = True

    def disable(self) -> None:
        """Show nothing (Lightning calls this on the other processes)."""
        self._is_enabled = False

    def print(self, *args: object, **kwargs: object) -> None:
        """Print a line above the bar."""
        if self._is_enabled:
            self.console.print(*args)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step the run starts or resumes from."""
        total = float(trainer.estimated_stepping_batches)
        self._open("training", total if math.isfinite(total) else None, trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Sized,
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        self._samples += len(batch) * trainer.world_size
        self._move(trainer, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last state and close the bar."""
        self._move(trainer, trainer.global_step, is_last=True)
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar: the one there is when validation is all, else one below that of training."""
        if trainer.state.fn is TrainerFn.VALIDATING:
            self._open("validating", _finite_sum(trainer.num_val_batches), 0)
        else:
            self._validated = self._between.enter_context(self.beside("validating", "batches"))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Sized,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar of validation."""
        if trainer.state.fn is TrainerFn.VALIDATING:
            self._samples += len(batch) * trainer.world_size
            self._move(trainer, batch_idx + 1)
        elif self._validated is not None:
            total = _finite_sum(trainer.num_val_batches)
            self._validated(batch_idx + 1, None if total is None else round(total))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar of validation."""
        self._between.close()
        if trainer.state.fn is TrainerFn.VALIDATING:
            self._close()

    @contextmanager
    def beside(self, what: str, unit: str) -> Iterator[OnStep]:
        """Show other work than steps until the block ends, and yield what moves its bar."""
        if not self._is_enabled:
            yield lambda _done, _total: None
            return
        bar = live_bar(self.console) if self._bar is None else self._bar
        with shown_work(bar, what, unit, self.line_every) as on_step:
            yield on_step

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._open("testing", _finite_sum(trainer.num_test_batches), 0)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Sized,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar."""
        self._samples += len(batch) * trainer.world_size
        self._move(trainer, batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        exception: BaseException,
    ) -> None:
        """Close the bar, so that the error is printed below it."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        self._close()

    def _open(self, what: str, total: float | None, done: int) -> None:
        self._close()
        self._what, self._total = what, total
        self._started = self._shown = time.monotonic()
        self._start_step, self._samples = done, 0
        if self._is_enabled and self.console.is_terminal:
            self._bar = live_bar(self.console)
            self._bar.add_task(what, total=total, completed=done, status="")
            self._bar.start()

    def _move(self, trainer: Trainer, done: int, *, is_last: bool = False) -> None:
        now = time.monotonic()
        period = LIVE_PERIOD if self._bar is not None else self.line_every
        if not self._is_enabled or (now - self._shown < period and not is_last):
            return
        self._shown = now
        elapsed = max(now - self._started, 1e-9)
        metrics = self.get_metrics(trainer, trainer.lightning_module).items()
        status = f"{self._samples / elapsed:.1f} samples/s" + "".join(
            f" · {name} {value:.4g}"
            for name, value in metrics
            if name != "v_num" and isinstance(value, float)
        )
        limit = time_left(trainer) if trainer.training else None
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, status=status, limit=limit)
        else:
            known, made = [] if limit is None else [limit], done - self._start_step
            if self._total is not None and made > 0:
                known.append(elapsed * (self._total - done) / made)
            left = min(known, default=None)
            line = progress_line(f"{self._what} step", done, self._total, left, status)
            self.console.print(line, soft_wrap=True)

    def _close(self) -> None:
        self._between.close()
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


@contextmanager
def showing(trainer: Trainer, what: str, unit: str = "steps") -> Iterator[OnStep]:
    """Show work that keeps a training waiting, where the trainer has a `Progress`."""
    bars = [each for each in trainer.callbacks if isinstance(each, Progress)]  # type: ignore[attr-defined]
    with ExitStack() as stack:
        works = [stack.enter_context(bar.beside(what, unit)) for bar in bars]

        def on_step(done: int, total: int | None) -> None:
            for move in works:
                move(done, total)

        yield on_step


def time_left(trainer: Trainer) -> float | None:
    """Return the seconds until `trainer.max_time`, None where there is no such limit."""
    left = [timer.time_remaining() for timer in _timers(trainer)]
    return min((seconds for seconds in left if seconds is not None), default=None)


def time_limit(trainer: Trainer) -> str | None:
    """Say that a training stopped at its time limit with steps left; None if it did not."""
    left = time_left(trainer)
    if left is None or left > 0 or trainer.global_step >= trainer.estimated_stepping_batches:
        return None
    total = trainer.estimated_stepping_batches
    of = f" of {total:.0f}" if math.isfinite(total) else ""
    return f"stopped at its time limit (trainer.max_time), {trainer.global_step}{of} steps"


def _timers(trainer: Trainer) -> list[Timer]:
    return [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]


def _finite_sum(counts: list) -> float | None:
    total = float(sum(counts))
    return total if math.isfinite(total) else None
