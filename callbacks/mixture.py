"""The mixture steers itself: what is behind on held-out pairs is shown more often.

After a validation, each group of pairs (a task, or a kind of edit of it) has its error relative to
that of copying the source. At the end of the epoch the shares of the draws are changed by it, and
hold for the next epoch: when is stated, so that neither workers that read ahead nor a restart can
shift it. The state is one small vector for shares, one for the best errors seen.

Source: multiplicative weights on excess errors, smoothed with a fixed mixture, as in DoReMi (Xie et
al. 2023, arXiv:2305.10429, algorithm 1; the smoothing is the fixed share of Herbster & Warmuth
1998). There the reference is another model; here it is what this one could do before: ours.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torchmetrics import Metric

from callbacks.durable import is_epoch_done
from callbacks.task_loss import log
from emu_edit.diffusion.prediction import Prediction
from emu_edit.errors import InputError
from emu_edit.training.draws import DrawnBatch
from emu_edit.training.module import EditModule

DIGITS = 4  # of an error; those behind depend on the order in which ranks are added up

Shares = dict[str, float]


@runtime_checkable
class SteerableData(Protocol):
    """What the callback asks of a data module; groups are named `task` or `task:kind`."""

    def wanted_shares(self) -> dict[str, float]:
        """Return the share of the draws of each group, as configured; their sum is 1."""
        ...

    def held_out_groups(self) -> tuple[tuple[str, ...], Int64[Tensor, " n"]]:
        """Return the groups in validation, and which of them each of its positions is of."""
        ...

    def steer(self, shares: Mapping[str, float]) -> None:
        """Let the groups have these shares from the next epoch on."""
        ...


def steered(
    shares: Mapping[str, float],
    errors: Mapping[str, float],
    best: Mapping[str, float],
    *,
    wanted: Mapping[str, float],
    rate: float,
    floor: float,
) -> Shares:
    """Return the next shares of the draws.

    w_i ∝ share_i exp(rate excess_i),  excess_i = error_i + (error_i - best_i)
    share_i = (1 - floor) w_i + floor wanted_i

    The first term of the excess is how far a group is behind one that is done; the second, what it
    could do once and has lost. What is not measured has the excess of the average draw. No share
    falls below floor wanted_i, and the past fades: without excess, the shares go back to `wanted`.

    Args:
        shares: now; they sum to 1.
        errors: relative to copying, 0 to 1, of the groups that were measured.
        best: the smallest such errors, these included.
        wanted: as configured; they sum to 1.
        rate: above 0.
        floor: in 0..1; 1 leaves everything as configured.

    Source: see above; the excess is ours.
    """
    excess = {name: 2 * error - best[name] for name, error in errors.items()}
    seen = sum(shares[name] for name in excess)
    usual = sum(shares[name] * value for name, value in excess.items()) / seen
    raised = {
        name: share * math.exp(rate * (excess.get(name, usual) - usual))
        for name, share in shares.items()
    }
    total = sum(raised.values())
    return {
        name: (1 - floor) * weight / total + floor * wanted[name] for name, weight in raised.items()
    }


class CopyingTable(Metric):
    """Errors of each group beside those of copying the source, summed on the device."""

    sums: Tensor

    def __init__(self, names: tuple[str, ...], groups: Int64[Tensor, " n"]) -> None:
        super().__init__()
        self.names = names
        self.groups: Tensor
        self.register_buffer("groups", groups, persistent=False)
        self.add_state("sums", torch.zeros(2, len(names)), dist_reduce_fx="sum")

    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        position: Int64[Tensor, " b"],
        error: Float[Tensor, " b"],
        copying: Float[Tensor, " b"],
    ) -> None:
        """Count the samples of one batch."""
        both = torch.stack([error, copying]).float()
        self.sums.index_add_(1, self.groups[position], both)

    def compute(self) -> Shares:
        """Return each group's error relative to copying, at most 1; waits for the other ranks.

        Groups that ask for nothing, or have no samples, are left out: copying makes no error there.
        """
        errors, copying = self.sums.tolist()
        return {
            name: round(min(error / copied, 1.0), DIGITS)
            for name, error, copied in zip(self.names, errors, copying, strict=True)
            if copied > 0
        }


class SteeredMixture(Callback):
    """Change how often each task, or kind of edit, is drawn, by its error on held-out pairs.

    The shares change at the end of an epoch in which there was a validation, see `steered`; so
    `trainer.check_val_every_n_epoch` says how often. Logged are `mixture/share/<group>`, for the
    epochs to come, and `mixture/error/<group>`.

    Args:
        rate: how strongly an error pulls; 1 lets a group that has learnt nothing grow e times as
            much as one that is done.
        floor: the part of its configured share that a group always keeps.

    Raises:
        InputError: if a number is out of its range.
    """

    def __init__(self, rate: float = 1.0, floor: float = 0.25) -> None:
        if not rate > 0 or not 0 < floor <= 1:
            raise InputError(
                f"SteeredMixture needs rate above 0 and floor in 0..1, got {rate} and {floor}"
            )
        self.rate = rate
        self.floor = floor
        self.shares: Shares = {}
        self.best: Shares = {}
        self._errors: Shares = {}  # measured, and not yet acted upon
        self._wanted: Shares = {}
        self._table: CopyingTable | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the data; go on with the shares of a checkpoint.

        Raises:
            InputError: if the data cannot be steered, or nothing of them is held out; for flow.
        """
        if not isinstance(pl_module, EditModule):
            raise TypeError(f"SteeredMixture watches an EditModule, got {type(pl_module).__name__}")
        if pl_module.prediction is Prediction.flow:
            # copying's error grows as 1 / sigma², so the cleanest sample would decide the shares
            raise InputError(
                "callbacks.mixture.SteeredMixture compares errors of flow with copying's, which a "
                "few nearly clean samples make up; set model.prediction: change, or leave it out"
            )
        data = _data_of(trainer)
        self._wanted = data.wanted_shares()
        names, groups = data.held_out_groups()
        if not self._wanted.keys() & set(names):
            raise InputError(
                "callbacks.mixture.SteeredMixture needs held-out pairs of what is trained on "
                f"({', '.join(self._wanted)}), data.val has {', '.join(names) or 'none'}; give "
                "data.val, or leave the callback out"
            )
        self._table = CopyingTable(names, groups).to(pl_module.device)
        known = {name: self.shares.get(name, share) for name, share in self._wanted.items()}
        total = sum(known.values())
        self.shares = {name: share / total for name, share in known.items()}
        if trainer.global_step == 0:
            log(trainer, named("share", self.shares))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with an empty table."""
        if self._table is not None:
            self._table.reset()

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
        if self._table is not None and isinstance(outputs, Mapping):
            self._table.update(batch.batch.position, outputs["error"], outputs["copying"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what was measured until the epoch is over; the same on all ranks."""
        if self._table is None or trainer.sanity_checking:
            return
        measured = trainer.strategy.broadcast(self._table.compute())
        self._errors = {name: measured[name] for name in self._wanted if name in measured}
        log(trainer, named("error", self._errors))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the shares, before a checkpoint is written of this step."""
        if not self._errors or not is_epoch_done(trainer):
            return
        for name, error in self._errors.items():
            self.best[name] = min(error, self.best.get(name, 1.0))
        self.shares = steered(
            self.shares,
            self._errors,
            self.best,
            wanted=self._wanted,
            rate=self.rate,
            floor=self.floor,
        )
        self._errors = {}
        _data_of(trainer).steer(self.shares)
        log(trainer, named("share", self.shares))

    def state_dict(self) -> dict[str, Any]:
        """Return the shares, the best errors, and those not yet acted upon."""
        return {"shares": self.shares, "best": self.best, "errors": self._errors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a checkpoint's."""
        self.shares = dict(state_dict["shares"])
        self.best = dict(state_dict["best"])
        self._errors = dict(state_dict["errors"])


def _data_of(trainer: Trainer) -> SteerableData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, SteerableData):
        raise InputError(
            "callbacks.mixture.SteeredMixture steers data of shards (EditDataModule and its kind), "
            f"data is {type(data).__name__}; leave the callback out"
        )
    return data


def named(what: str, values: Shares) -> dict[str, float]:
    """Return values of groups by the names they are logged under."""
    return {f"mixture/{what}/{name}": value for name, value in values.items()}
