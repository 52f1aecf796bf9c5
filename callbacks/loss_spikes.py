"""Warn when the error of an optimizer step is far above what it was lately, and name its samples.

A spike is most often a sample that is not what its instruction says, or a learning rate that is too
high; `callbacks.finite` only sees those that end in a number that is none. The rule is ours: a step
counts as a spike when its mean error is `factor` times the median of the last `window` steps. Every
rank looks at its own samples, so ranks need not talk. The mean is read before the optimizer step,
where `callbacks.finite`, listed before, has waited for the device already.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import logging
import math
from collections import deque
from statistics import median

import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from emu_edit.errors import InputError
from emu_edit.training.draws import DrawnBatch
from emu_edit.training.module import StepOutput, StepWatcher

NUM_NAMED = 4  # samples, the worst first

logger = logging.getLogger(__name__)


class LossSpikes(StepWatcher):
    """Log a warning for each optimizer step whose error stands out; training goes on.

    Args:
        factor: how many times the median of the last steps is a spike; above 1.
        window: how many steps those are; nothing is said before so many were made.

    Raises:
        InputError: if a number cannot be meant.
    """

    def __init__(self, factor: float = 5.0, window: int = 100) -> None:
        if not factor > 1 or window < 2:
            raise InputError(
                "LossSpikes needs a factor above 1 and a window of at least 2 steps, got "
                f"{factor} and {window}"
            )
        self.factor = factor
        self._latest: deque[float] = deque(maxlen=window)
        self._keys: list[str] = []
        self._errors: list[Float[Tensor, " b"]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty step."""
        super().on_train_start(trainer, pl_module)
        self._keys, self._errors = [], []

    def on_training_step(self, drawn: DrawnBatch, output: StepOutput) -> None:
        """Keep the errors of the micro-batch; nothing is read from the device."""
        self._keys += drawn.batch.key
        self._errors.append(output["error"])

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Compare the step's mean error with those before, and warn."""
        keys, errors = self._keys, torch.cat(self._errors)
        self._keys, self._errors = [], []
        error = errors.mean().item()
        if len(self._latest) == self._latest.maxlen:
            usual = median(self._latest)
            if error > self.factor * usual > 0:
                worst = errors.argsort(descending=True)[:NUM_NAMED].tolist()
                named = ", ".join(f"{keys[i]} (error {errors[i]:.3g})" for i in worst)
                logger.warning(
                    "the error of optimizer step %d is %.3g, %.1f times that of the steps before "
                    "(%.3g); its samples on rank %d with the largest are %s: look at them, or "
                    "lower model.optimizer.lr",
                    *(trainer.global_step, error, error / usual, usual),
                    *(trainer.global_rank, named),
                )
        if math.isfinite(error):
            self._latest.append(error)

    def state_dict(self) -> dict[str, list[float]]:
        """Return the errors of the last steps."""
        return {"latest": list(self._latest)}

    def load_state_dict(self, state_dict: dict[str, list[float]]) -> None:
        """Go on comparing with them."""
        self._latest.extend(state_dict["latest"])
