"""How fast training is, how long it waits for data, and how much memory it takes.

Measured on the host, with no extra synchronisation: over many steps the host cannot run ahead of
the device, so the rate is right; validation and pictures are not counted.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import resource
import sys
import time
from collections.abc import Sized

import torch
from lightning import Callback, LightningModule, Trainer

from callbacks.task_loss import log
from emu_edit.errors import InputError

GIB = 2**30


class Throughput(Callback):
    """Log samples per second (all ranks), the share of time waiting for data, and peak GiB.

    Args:
        every: optimizer steps between two values.

    Raises:
        InputError: if `every` is below 1.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise InputError(f"Throughput.every must be at least 1, got {every}")
        self.every = every
        self._samples = 0
        self._busy = 0.0
        self._waited = 0.0
        self._left: float | None = None  # when the last batch was done; None right after a pause
        self._entered = 0.0
        self._logged_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._logged_step = trainer.global_step
        self._restart()

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Count the time since the last batch as waiting."""
        self._entered = time.perf_counter()
        if self._left is not None:
            self._waited += self._entered - self._left

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Sized,
        batch_idx: int,
    ) -> None:
        """Count the batch; every so many optimizer steps, log."""
        self._left = time.perf_counter()
        self._busy += self._left - self._entered
        self._samples += len(batch) * trainer.world_size
        if trainer.global_step - self._logged_step < self.every:
            return
        self._logged_step = trainer.global_step
        log(trainer, self.measured(pl_module.device))
        self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Don't count validation as waiting."""
        self._left = None

    def measured(self, device: torch.device) -> dict[str, float]:
        """Return the values since the last restart."""
        total = self._busy + self._waited
        return {
            "throughput/samples_per_s": self._samples / total if total > 0 else 0.0,
            "throughput/data_wait": self._waited / total if total > 0 else 0.0,
            "throughput/peak_memory_gib": peak_memory(device) / GIB,
        }

    def _restart(self) -> None:
        self._samples, self._busy, self._waited, self._left = 0, 0.0, 0.0, None


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far: by torch on a GPU, by the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS
