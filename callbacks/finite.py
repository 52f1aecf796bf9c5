"""Stop before a broken loss or gradient reaches the weights, and say which samples broke it.

Lightning goes on with a loss that is not a number until every weight is one. The check costs one
flag per optimizer step: the flag is computed on the device, agreed by all ranks in one reduction,
and read once. What the report says is gathered from all ranks when the flag is set.
"""

# the arguments of hooks are Lightning's, used or not

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, Real
from lightning import LightningModule, Trainer
from torch import Tensor

from emu_edit.diffusion.schedule import Time
from emu_edit.errors import InputError, NonFiniteError
from emu_edit.files import write_json
from emu_edit.training.draws import DrawnBatch
from emu_edit.training.module import EditModule, StepOutput, StepWatcher
from emu_edit.training.optim import EMA_STATE_KEY
from emu_edit.training.sharding import local

FILE = "nonfinite.json"
NUM_NAMED = 8  # samples or tensors named; the rest is counted

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass(frozen=True)
class MicroBatch:
    """What is remembered of a micro-batch until its optimizer step is made."""

    key: tuple[str, ...]
    task: Int64[Tensor, " b"]
    position: Int64[Tensor, " b"]
    t: Real[Tensor, " b"]
    error: Float[Tensor, " b"]


@dataclass(frozen=True)
class StepSample:
    """One sample of a step that went wrong; `error` is a word where it is no number."""

    rank: int
    position: int
    key: str
    task: str
    t: Time
    error: float | str

    def __str__(self) -> str:
        error = self.error if isinstance(self.error, str) else f"{self.error:g}"
        told = f"task {self.task}, t={self.t:g}, error {error}, position {self.position}"
        return f"{self.key} ({told})"


class Finite(StepWatcher):
    """Keep what is not finite out of the weights, on all ranks together.

    A step whose errors or gradients are not finite is described in `nonfinite.json` in the run's
    folder; then training stops, or, up to `max_skips` times, leaves out the step: no gradient, so
    neither weights nor the optimizer's memory change, while learning rate and data go on. Weights
    that are not finite are never written into a checkpoint.

    Args:
        max_skips: optimizer steps a training may leave out; at the next one it stops.

    Raises:
        InputError: if `max_skips` is negative.
    """

    def __init__(self, max_skips: int = 0) -> None:
        if max_skips < 0:
            raise InputError(f"Finite.max_skips must be at least 0, got {max_skips}")
        self.max_skips = max_skips
        self.num_skipped = 0
        self._window: list[MicroBatch] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty window."""
        super().on_train_start(trainer, pl_module)
        self._window = []

    def on_training_step(self, drawn: DrawnBatch, output: StepOutput) -> None:
        """Keep the errors of the micro-batch; nothing is read from the device."""
        batch = drawn.batch
        self._window.append(
            MicroBatch(batch.key, batch.task, batch.position, output["t"], output["error"])
        )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Agree on one flag; when it is set, name the samples, and leave out the step or stop.

        Raises:
            NonFiniteError: on every rank, before the weights change.
        """
        window, self._window = self._window, []
        assert isinstance(pl_module, EditModule)  # see on_train_start
        if _all_finite(window, pl_module.gradient_norm(optimizer), pl_module.device):
            return
        samples = from_all_ranks(_described(window, pl_module, trainer.global_rank))
        everyone = [sample for rank in samples for sample in rank]
        is_last = self.num_skipped >= self.max_skips
        self._report(trainer, pl_module, everyone, is_last=is_last)
        # when only the gradient is broken, every sample of the step is suspect
        broken = [sample for sample in everyone if isinstance(sample.error, str)] or everyone
        what = f"the loss or gradient of optimizer step {trainer.global_step} is not finite"
        if is_last:
            allowed = f" after {self.num_skipped} steps left out" if self.max_skips else ""
            raise NonFiniteError(
                f"{what}{allowed}, the weights are still those of the step before; samples: "
                f"{_listed([str(sample) for sample in broken])}; look at these samples, or lower "
                f"model.optimizer.lr; all of the step are in {_file(trainer)}"
            )
        self.num_skipped += 1
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            # none, and not zero: momentum and weight decay would still move the weights
            parameter.grad = None
        if trainer.is_global_zero:
            logger.warning("%s; left out, %d of %d", what, self.num_skipped, self.max_skips)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save weights, averages of them or an optimizer that are not finite.

        What other callbacks keep is theirs: several begin with an infinite best score.

        Raises:
            NonFiniteError: on every rank, before anything is written.
        """
        parts = {
            "weights": checkpoint["state_dict"],
            "optimizer": checkpoint.get("optimizer_states", []),
            "averages": checkpoint.get("callbacks", {}).get(EMA_STATE_KEY, {}),
        }
        tensors = dict(_tensors(parts, ""))
        # gathered on the device, so that there is one wait for all
        flags = [tensor.isfinite().all().to(pl_module.device) for tensor in tensors.values()]
        is_finite = torch.stack(flags).tolist() if flags else []
        own = [name for name, good in zip(tensors, is_finite, strict=True) if not good]
        # of a sharded training rank 0 alone has them
        names = _of_any_rank(own)
        if not names:
            return
        raise NonFiniteError(
            f"after optimizer step {trainer.global_step}, {_listed(names)} are not finite, so the "
            "checkpoint is not written; go on from the one before, with a lower model.optimizer.lr"
        )

    def state_dict(self) -> dict[str, int]:
        """Return how many steps were left out."""
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.num_skipped = state_dict["num_skipped"]

    def _report(
        self, trainer: Trainer, module: LightningModule, samples: list[StepSample], *, is_last: bool
    ) -> None:
        """Add the step to the file; steps from here on are of a training that was resumed."""
        broken = _of_any_rank([
            name
            for name, parameter in module.named_parameters()
            if parameter.grad is not None and not local(parameter.grad).isfinite().all()
        ])
        if not trainer.is_global_zero:
            return
        path, step = _file(trainer), trainer.global_step
        event = {
            "step": step,
            "action": "stopped" if is_last else "left out",
            "num_parameters": len(broken),
            "parameters": broken[:NUM_NAMED],
            "samples": [asdict(sample) for sample in samples],
        }
        try:
            events = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
            events = [*(old for old in events if old["step"] < step), event]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, events)
        except (OSError, ValueError) as error:  # on this rank only; the others would wait
            logger.warning("%s: cannot be written (%s)", path, error)


def from_all_ranks(value: Value) -> list[Value]:
    """Return the value each rank gave, rank 0 first; every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def _of_any_rank(names: list[str]) -> list[str]:
    """Return the names that any rank has, each once; every rank must call it."""
    return list(dict.fromkeys(name for rank in from_all_ranks(names) for name in rank))


def _file(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / FILE


def _all_finite(window: list[MicroBatch], norm: Tensor, device: torch.device) -> bool:
    """Tell whether errors and gradients are finite on every rank; the one wait for the device."""
    errors = torch.cat([micro.error for micro in window])
    is_bad = ~(errors.isfinite().all() & norm.isfinite().to(device))
    flag = is_bad.float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return flag.item() == 0


def _described(window: list[MicroBatch], module: LightningModule, rank: int) -> list[StepSample]:
    """Describe each sample of a step on this rank."""
    assert isinstance(module, EditModule)  # or there would be no window
    names = module.networks.tasks.names
    return [
        StepSample(rank, g, key, names[task], t, error if math.isfinite(error) else str(error))
        for micro in window
        for key, task, g, t, error in zip(
            micro.key,
            micro.task.tolist(),
            micro.position.tolist(),
            micro.t.tolist(),
            micro.error.tolist(),
            strict=True,
        )
    ]


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors of nested dictionaries and lists, with their place."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _tensors(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from _tensors(entry, f"{name}.{i}")


def _listed(descriptions: list[str]) -> str:
    """Join the first few in words, and count the rest."""
    more = [f"and {len(descriptions) - NUM_NAMED} more"] if len(descriptions) > NUM_NAMED else []
    return ", ".join(descriptions[:NUM_NAMED] + more)
