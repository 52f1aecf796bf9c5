"""The error of each task at each noise level: where the editor learns, and where it does not.

Sums are kept on the device and read only when they are logged. The values are the unweighted errors
in the space the model predicts, so they can be compared between weightings, not between
predictions.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int64, Real
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torchmetrics import Metric

from emu_edit.errors import InputError
from emu_edit.files import write_json
from emu_edit.training.draws import DrawnBatch
from emu_edit.training.module import EditModule

NUM_LEVELS = 4

Rows = dict[str, dict[str, dict[str, float]]]
"""{task: {"t0-250": {"mean", "count"}, …, "all": …}}, without empty cells."""


class ErrorTable(Metric):
    """Mean errors by task and noise level, accumulated on the device, computed over all ranks.

    Level k holds the timesteps from k T / 4 up to (k + 1) T / 4.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, tasks: tuple[str, ...], num_steps: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.num_steps = num_steps
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(len(tasks), NUM_LEVELS), dist_reduce_fx="sum")

    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, task: Int64[Tensor, " b"], t: Real[Tensor, " b"], error: Float[Tensor, " b"]
    ) -> None:
        """Count the samples of one batch."""
        level = (t * NUM_LEVELS).div(self.num_steps, rounding_mode="floor").long()
        # on the linear path noise alone is T itself
        cell = task * NUM_LEVELS + level.clamp(max=NUM_LEVELS - 1)
        self.sums.view(-1).index_add_(0, cell, error.float())
        self.counts.view(-1).index_add_(0, cell, torch.ones_like(error, dtype=torch.float32))

    def compute(self) -> Rows:
        """Return the means and counts; waits for the device, and for the other ranks."""
        sums, counts = torch.stack([self.sums, self.counts]).tolist()
        edges = [k * self.num_steps // NUM_LEVELS for k in range(NUM_LEVELS + 1)]
        names = [f"t{low}-{high}" for low, high in pairwise(edges)]
        table = {}
        for task, row_sums, row_counts in zip(self.tasks, sums, counts, strict=True):
            cells = [
                *zip(names, row_sums, row_counts, strict=True),
                ("all", sum(row_sums), sum(row_counts)),
            ]
            row = {
                name: {"mean": total / count, "count": count}
                for name, total, count in cells
                if count > 0
            }
            if row:
                table[task] = row
        return table

    def scalars(self, prefix: str) -> dict[str, float]:
        """Return `prefix/task/t0-250` and so on for every cell that has samples."""
        return {
            f"{prefix}/{task}/{level}": cell["mean"]
            for task, levels in self.compute().items()
            for level, cell in levels.items()
            if level != "all"
        }

    def task_means(self, prefix: str) -> dict[str, float]:
        """Return `prefix/task` for every task that has samples."""
        return {f"{prefix}/{task}": row["all"]["mean"] for task, row in self.compute().items()}


class TaskLoss(Callback):
    """Log `loss/<task>/t0-250` and so on while training, and `val/<task>` after validation.

    Both are written at the end. The table is `task_loss.json` in the trainer's root folder; its
    training half covers the last logged interval.

    Args:
        every: optimizer steps between two values.

    Raises:
        InputError: if `every` is below 1.
    """

    def __init__(self, every: int = 200) -> None:
        if every < 1:
            raise InputError(f"TaskLoss.every must be at least 1, got {every}")
        self.every = every
        self._logged_step = 0
        self._train: ErrorTable | None = None
        self._val: ErrorTable | None = None
        self._rows: dict[str, Rows] = {"train": {}, "val": {}}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with an empty table."""
        self._logged_step = trainer.global_step
        self._train = _empty_table(pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: DrawnBatch,
        batch_idx: int,
    ) -> None:
        """Count a batch; every so many optimizer steps, log."""
        if self._train is None:
            return
        self._train.update(batch.batch.task, *t_and_error(outputs))
        if trainer.global_step - self._logged_step >= self.every:
            self._logged_step = trainer.global_step
            self._log_training(trainer, self._train)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with an empty table."""
        self._val = _empty_table(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: DrawnBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        if self._val is not None:
            self._val.update(batch.batch.task, *t_and_error(outputs))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the mean error of each task."""
        if self._val is None or trainer.sanity_checking:
            return
        log(trainer, self._val.task_means("val"))
        self._rows["val"] = self._val.compute()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the tables."""
        if self._train is not None and self._train.update_called and not self._rows["train"]:
            self._log_training(trainer, self._train)
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "task_loss.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"step": trainer.global_step, **self._rows})

    def _log_training(self, trainer: Trainer, table: ErrorTable) -> None:
        log(trainer, table.scalars("loss"))
        self._rows["train"] = table.compute()
        table.reset()


def t_and_error(outputs: STEP_OUTPUT) -> tuple[Real[Tensor, " b"], Float[Tensor, " b"]]:
    """Return what an EditModule's step says about each sample: its timestep and its error."""
    if not isinstance(outputs, Mapping):
        raise TypeError(f"a step of EditModule gives a dictionary, got {type(outputs).__name__}")
    return outputs["t"], outputs["error"]


def _empty_table(module: LightningModule) -> ErrorTable:
    if not isinstance(module, EditModule):
        raise TypeError(f"the TaskLoss callback watches an EditModule, got {type(module).__name__}")
    return ErrorTable(module.networks.tasks.names, module.schedule.num_steps).to(module.device)


def log(trainer: Trainer, values: dict[str, float]) -> None:
    """Give values to all loggers, at the present optimizer step."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
