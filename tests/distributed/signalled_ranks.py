"""What each rank of the signal tests does: train, and at a step send a signal or fail.

    signalled_ranks.py FOLDER RANKS EVENT WHERE STEP

EVENT is the name of a signal or of an error, or `nothing`; `validation-` before a signal's name
sends it in the first batch of a validation instead, whatever the step. WHERE is `rank0`, `rank1`,
`all` (each rank for itself) or `group` (rank 0 signals every process of the job, launchers
included). A rank has four samples at a time, whatever their number.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from benchmarks.kill_test_process import answered
from benchmarks.kill_test_run import Layout, train
from emu_edit.errors import BadDataError, NonFiniteError

VALIDATION = "validation-"
ERRORS = {"bad_data": BadDataError, "non_finite": NonFiniteError, "defect": RuntimeError}


class Event(Callback):
    """Let something happen in the middle of a step."""

    def __init__(self, event: str, where: str, step: int) -> None:
        self.event = event.removeprefix(VALIDATION)
        self.is_in_validation = event.startswith(VALIDATION)
        self.where = where
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Do it in the given step on the given ranks."""
        if trainer.global_step == self.step - 1 and not self.is_in_validation:
            self._happen(trainer)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Do it in the first batch on the given ranks."""
        if batch_idx == 0 and self.is_in_validation:
            self._happen(trainer)

    def _happen(self, trainer: Trainer) -> None:
        is_here = self.where in {f"rank{trainer.global_rank}", "all"}
        is_group = self.where == "group" and trainer.global_rank == 0
        if not (is_here or is_group):
            return
        if self.event in ERRORS:
            raise ERRORS[self.event](f"broken on rank {trainer.global_rank}")
        if is_group:
            os.killpg(os.getpgrp(), signal.Signals[self.event])
        else:
            os.kill(os.getpid(), signal.Signals[self.event])


def main() -> int:
    """Train."""
    folder, ranks, event, where, step = sys.argv[1:]
    warnings.simplefilter("ignore")
    watching = () if event == "nothing" else (Event(event, where, int(step)),)
    layout = Layout(ranks=int(ranks), workers=0, accumulate=2 // int(ranks))
    place = Path(folder)
    return answered(lambda: train(place / "run", place / "data", layout, *watching))


if __name__ == "__main__":
    sys.exit(main())
