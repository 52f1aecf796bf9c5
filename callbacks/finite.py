"""Stop before a broken loss or gradient reaches the weights, and say which samples broke it.

Lightning goes on with a loss that is not a number until every weight is one. The check costs one
flag per optimizer
step: the flag is computed on the device, agreed by all ranks in one reduction, and read once.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from emu_edit.batch import EditBatch
from emu_edit.errors import InputError
from emu_edit.training.module import EditModule

NUM_NAMED = 8  # samples named in the message; the rest is counted


class NonFiniteError(InputError):
    """A loss or gradient is not a number; the weights are those of the step before."""


@dataclass(frozen=True)
class MicroBatch:
    """What is remembered of a micro-batch until its optimizer step is made."""

    key: tuple[str, ...]
    task: Int64[Tensor, " b"]
    t: Int64[Tensor, " b"]
    error: Float[Tensor, " b"]


class Finite(Callback):
    """Stop training, on all ranks together, when a sample's error or the gradient is not finite."""

    def __init__(self) -> None:
        self._batch: EditBatch | None = None
        self._window: list[MicroBatch] = []

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: EditBatch,
        batch_idx: int,
    ) -> None:
        """Remember which samples the next step is made of."""
        self._batch = batch

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Keep the errors of the micro-batch; nothing is read from the device."""
        if not isinstance(pl_module, EditModule) or self._batch is None:
            raise TypeError("the Finite callback watches an EditModule in training")
        latest, batch = pl_module.latest, self._batch
        self._window.append(MicroBatch(batch.key, batch.task, latest["t"], latest["error"]))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Agree on one flag; when it is set, name the samples and stop.

        Raises:
            NonFiniteError: on every rank, before the weights change.
        """
        window, self._window = self._window, []
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if _all_finite(window, gradients, pl_module.device):
            return
        samples = _named(window, pl_module)
        broken = [name for name, error in samples if not math.isfinite(error)]
        # when only the gradient is broken, every sample of the step is suspect
        report = _gathered(broken) or _gathered([name for name, _ in samples])
        raise NonFiniteError(
            f"the loss or gradient of optimizer step {trainer.global_step} is not finite, "
            f"the weights are still those of the step before; samples: {report}; look at these "
            "samples, or lower model.optimizer.lr"
        )


def _all_finite(window: list[MicroBatch], gradients: list[Tensor], device: torch.device) -> bool:
    """Tell whether errors and gradients are finite on every rank; the one wait for the device."""
    errors = torch.cat([micro.error for micro in window])
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    is_bad = ~(errors.isfinite().all() & norm.isfinite().to(device))
    flag = is_bad.float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return flag.item() == 0


def _named(window: list[MicroBatch], module: LightningModule) -> list[tuple[str, float]]:
    """Describe each sample of a step, with its error."""
    names = module.networks.tasks.names if isinstance(module, EditModule) else ()
    return [
        (f"{key} (task {names[task]}, t={t}, error {error:g})", error)
        for micro in window
        for key, task, t, error in zip(
            micro.key, micro.task.tolist(), micro.t.tolist(), micro.error.tolist(), strict=True
        )
    ]


def _gathered(descriptions: list[str]) -> str:
    """Join what all ranks have to say, the first few in words."""
    everyone = [descriptions]
    if dist.is_available() and dist.is_initialized():
        everyone = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, descriptions)
    said = [text for rank in everyone for text in rank]
    more = [f"and {len(said) - NUM_NAMED} more"] if len(said) > NUM_NAMED else []
    return ", ".join(said[:NUM_NAMED] + more)
