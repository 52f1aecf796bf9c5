"""What a checkpoint knows about the data: one integer, and what the order was made of.

`StreamState` is the whole state of the data plane. `changes` says how the data of now differ from
those of the checkpoint; `continued` starts a new order at the checkpoint's position after an
allowed change. `rescale_progress` and `FollowTraining` keep Lightning's counters, which count
micro-batches and not optimizer steps, in step with it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.shards.manifest import ShardEntry
from datamodules.stream.order import IN_BUCKET, ORDER_VERSION, LaneOrder, Order, OrderSpec
from emu_edit.errors import InputError

STATE_VERSION = 1

# a change of these cannot be continued: the optimizer's steps would no longer line up
FIXED_FIELDS = ("order_version", "global_batch")
BUCKETS = "buckets"  # absent without, as in checkpoints of versions that had none
ORDER_FIELDS = ("seed", "window", "quotas", "data", BUCKETS)

Fingerprint = dict[str, Any]


@dataclass(frozen=True)
class StreamState:
    """Where training is in the stream.

    Args:
        consumed: samples trained on so far, always a multiple of the global batch.
        accumulate: micro-batches per optimizer step in the run that wrote this.
        start: the position from which the current order holds; 0 unless the data were changed.
        drawn: draws of each lane before `start`.
        fingerprint: what the order and the pictures were made of, quotas as configured.
        steered: the quota of each lane since `start`, where training has been steered.
    """

    consumed: int
    accumulate: int
    start: int
    drawn: dict[str, int]
    fingerprint: Fingerprint
    steered: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return primitives only, so that a checkpoint loads with `weights_only=True`."""
        fields = dict(self.__dict__)
        if not self.steered:  # as in checkpoints of versions that did not know it
            del fields["steered"]
        return {"version": STATE_VERSION, **fields}

    @staticmethod
    def from_dict(state: dict[str, Any]) -> "StreamState":
        """Read what `to_dict` wrote.

        Raises:
            InputError: if it is of another version.
        """
        fields = dict(state)
        version = fields.pop("version", None)
        if version != STATE_VERSION:
            raise InputError(
                f"the checkpoint's data state has version {version}, this program reads "
                f"{STATE_VERSION}; continue with the program that wrote it"
            )
        return StreamState(**fields)


def data_hash(entries: tuple[ShardEntry, ...]) -> str:
    """Return a hash of the shards of one lane, in their order."""
    rows = [[entry.file, entry.bytes, entry.sha256, entry.samples] for entry in entries]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def changes(old: Fingerprint, new: Fingerprint) -> dict[str, str]:
    """Return the differing fields, each with what it was and what it is."""
    found = {}
    for field in sorted(old.keys() | new.keys()):
        was, now = old.get(field), new.get(field)
        if was == now and field != "quotas":
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            tasks = [t for t in sorted(was.keys() | now.keys()) if was.get(t) != now.get(t)]
            if tasks:
                found[field] = f"{field} of {', '.join(tasks)}"
            elif list(was) != list(now):  # equal as dicts; the order function's pattern differs
                found[field] = f"the order of tasks was {', '.join(was)}, is {', '.join(now)}"
        else:
            found[field] = f"{field} was {was!r}, is {now!r}"
    return found


def continued(old: StreamState, new: Fingerprint, *, allow_change: bool) -> StreamState:
    """Return the state with which to go on from a checkpoint.

    Unchanged data go on with the order they had, steered or not. After an allowed change of the
    order, a new one starts at the checkpoint's position, with the quotas as configured; every lane
    goes on where its own draws ended, so a change of weights neither repeats nor skips a sample.
    (If a lane's shards changed, its current epoch is permuted anew.)

    Raises:
        InputError: naming the fields, if something changed and may not.
    """
    found = changes(old.fingerprint, new)
    if not found:
        return old
    fixed = [text for field, text in found.items() if field in FIXED_FIELDS]
    if fixed:
        raise InputError(
            f"the checkpoint was trained with another {'; '.join(fixed)}; put it back, or start a "
            "new run from the weights"
        )
    if not allow_change:
        raise InputError(
            f"the checkpoint was trained with other data: {'; '.join(found.values())}; put it "
            "back, or set data.allow_change: true to go on with the new"
        )
    if not found.keys() & set(ORDER_FIELDS):
        return old
    has_buckets = BUCKETS in old.fingerprint
    lanes = tuple(
        # how often a lane is drawn does not depend on its shards
        LaneOrder(
            name,
            quota,
            shard_sizes=(1,),
            drawn=old.drawn.get(name, 0),
            bucket=name.rpartition(IN_BUCKET)[2] if has_buckets else "",
        )
        for name, quota in (old.steered or old.fingerprint["quotas"]).items()
    )
    step = old.fingerprint["global_batch"] if has_buckets else 1
    spec = OrderSpec(old.fingerprint["seed"], lanes, start=old.start, step=step)
    drawn = old.drawn | Order(spec).drawn_before(old.consumed)
    return replace(old, start=old.consumed, drawn=drawn, steered={})


def rescale_progress(checkpoint: dict[str, Any], old: int, new: int) -> None:
    """Change Lightning's counters of micro-batches from `old` to `new` per optimizer step.

    A checkpoint written inside an accumulation window has lost the window's gradients, so its
    counters go back to the window's start, from where the data will come, too.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        ready = counters["ready"]
        is_inside = ready % old != 0
        behind = {name: 0 if is_inside else ready - count for name, count in counters.items()}
        counters.update({name: ready // old * new - lag for name, lag in behind.items()})
        progress["is_last_batch"] = progress["is_last_batch"] and not is_inside


def restore_progress(
    checkpoint: dict[str, Any], state: Mapping[str, Any], accumulate: int, steps_per_epoch: int
) -> None:
    """Fit Lightning's counters to the present accumulation, as `rescale_progress` does.

    Raises:
        InputError: if the virtual epoch has become shorter than what was trained of it.
    """
    rescale_progress(checkpoint, state["accumulate"], accumulate)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    done = progress["current"]["ready"] // accumulate
    if done > steps_per_epoch:
        raise InputError(
            f"data.steps_per_epoch={steps_per_epoch} is less than the {done} steps of its epoch "
            "the checkpoint has; raise it, or take a checkpoint from an epoch's end"
        )


@runtime_checkable
class FollowedData(Protocol):
    """What `FollowTraining` tells a data module."""

    def restored(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """A checkpoint's data state has been loaded; its loop counters have not."""

    def started(self, trainer: Trainer, module: LightningModule) -> None:
        """Everything has been restored; training begins."""

    def trained(self, trainer: Trainer, module: LightningModule) -> None:
        """One micro-batch has been trained on."""

    def epoch_ended(self, trainer: Trainer) -> None:
        """A virtual epoch has been trained on."""

    def ended(self, trainer: Trainer) -> None:
        """Training has come to its end."""


class FollowTraining(Callback):
    """Pass on the events for which a LightningDataModule has no hook of its own.

    The data module puts this first in `trainer.callbacks`, so that whatever saves a checkpoint at
    the end of a batch saves the position after it.
    """

    def __init__(self, data: FollowedData) -> None:
        self._data = data

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Pass on the checkpoint."""
        del pl_module
        self._data.restored(trainer, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on the start."""
        self._data.started(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Pass on that a micro-batch was trained on."""
        del outputs, batch, batch_idx
        self._data.trained(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on the end of a virtual epoch."""
        del pl_module
        self._data.epoch_ended(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on the end."""
        del pl_module
        self._data.ended(trainer)


def fingerprint_of(
    spec: OrderSpec, data: dict[str, str], settings: Mapping[str, Any]
) -> Fingerprint:
    """Collect what decides which pictures a step sees: the order's parts and other settings."""
    return {
        "order_version": ORDER_VERSION,
        "seed": spec.seed,
        "window": spec.window,
        "quotas": {lane.name: lane.quota for lane in spec.lanes},
        "data": data,
        **settings,
    }
