"""The training that `kill_test.py` interrupts, and how two such trainings are compared.

The model is a map of four numbers, so that a training takes a second; data module, callbacks,
checkpoint files, resuming and exit statuses are those of `emu-edit fit`. Every micro-batch is
written to a diary with the keys it was trained on; diaries and last checkpoints are compared.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from callbacks.durable import Checkpoints, is_accumulating
from callbacks.ema import Ema
from callbacks.preemption import Preemption, stopped
from datamodules.edit import EditDataModule
from datamodules.shards.manifest import write_manifest
from datamodules.shards.writer import PairRecord, write_task_shards
from emu_edit.batch import EditBatch
from emu_edit.errors import ExitStatus
from emu_edit.runs.failures import closing_connections
from emu_edit.runs.lock import RunLock
from emu_edit.runs.resume import begin
from emu_edit.runs.status import StatusWriter
from emu_edit.training.checkpoint_io import DurableCheckpointIO, read_checkpoint
from emu_edit.training.draws import DrawnBatch

GLOBAL_BATCH, STEPS_PER_EPOCH, EPOCHS, SAVE_EVERY = 8, 10, 4, 4
TASKS = {"local": 13, "add": 9, "depth": 3}  # pairs of each, so that epochs of tasks end in between
SIZE = 8  # pixels
DIARY = "diary"
# what must be equal in the last checkpoints of two trainings
COMPARED = (
    "state_dict",
    "optimizer_states",
    "callbacks",
    "global_step",
    "epoch",
    "EditDataModule",
)
MOST_LISTED = 3  # differences of one kind that are written out


@dataclass(frozen=True)
class Layout:
    """How an optimizer step is split.

    Attributes:
        ranks: processes that train.
        workers: loader processes of each.
        accumulate: micro-batches per optimizer step.
    """

    ranks: int
    workers: int
    accumulate: int

    def __str__(self) -> str:
        return "-".join(f"{name}{value}" for name, value in asdict(self).items())


class Diary(Callback):
    """Write the keys of every micro-batch where it enters the step, and again once it is done.

    The first line is what a rank trains on. The second one cannot prove that it was not trained on:
    a rank may be killed when its gradients are already in the others' weights, and saved by them.

    Args:
        folder: where each rank has its own file.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: EditBatch | DrawnBatch,
        batch_idx: int,
    ) -> None:
        """Note what the step gets."""
        self._write(trainer, trainer.global_step, batch, batch_idx, is_done=False)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: EditBatch | DrawnBatch,
        batch_idx: int,
    ) -> None:
        """Note that it was trained on."""
        step = trainer.global_step - (0 if is_accumulating(trainer) else 1)
        self._write(trainer, step, batch, batch_idx, is_done=True)

    def _write(
        self,
        trainer: Trainer,
        step: int,
        batch: EditBatch | DrawnBatch,
        batch_idx: int,
        *,
        is_done: bool,
    ) -> None:
        """Append one line; one write, so that a kill leaves the whole line or none of it."""
        if isinstance(batch, DrawnBatch):  # of `emu-edit fit`
            batch = batch.batch
        micro = batch_idx % trainer.accumulate_grad_batches
        place = [trainer.world_size, trainer.global_rank, micro]
        line = {"step": step, "place": place, "keys": list(batch.key), "done": is_done}
        file = os.open(
            self.folder / f"{DIARY}-{trainer.global_rank}.jsonl",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
        )
        os.write(file, (json.dumps(line) + "\n").encode())
        os.close(file)


class FourNumbers(LightningModule):
    """A map whose weights depend on every sample and on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 1, dtype=torch.float64)
        nn.init.constant_(self.map.weight, 0.5)
        nn.init.zeros_(self.map.bias)

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Average the squared error of guessing the target's brightest value."""
        x = batch.source.double().mean((2, 3)).div(255)
        y = batch.target.double().amax((1, 2, 3)).div(255)[:, None] + batch.task[:, None]
        return (self.map(x) - y).square().mean()

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Have validation take place."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer with a memory."""
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def write_data(folder: Path) -> None:
    """Write the training and validation shards."""
    for name, counts in (("train", TASKS), ("val", {"local": 3, "add": 2})):
        entries = []
        for task, count in counts.items():
            pairs = (_pair(task, i) for i in range(count))
            entries += write_task_shards(folder / name, task, pairs, pairs_per_shard=4)
        write_manifest(folder / name, entries, made_by={"program": "kill_test"})


def _pair(task: str, i: int) -> PairRecord:
    rng = np.random.default_rng([list(TASKS).index(task), i])
    source = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return PairRecord(
        key=f"{task}-{i:03}",
        source=source,
        target=255 - source // 2,
        instruction=f"{task} {i}",
        task=task,
    )


def train(folder: Path, data: Path, layout: Layout, *watching: Callback) -> ExitStatus:
    """Train to the end, or go on with it, as `emu-edit fit --resume auto --run FOLDER` does."""
    trainer = make_trainer(folder, layout, *watching)
    module = EditDataModule(
        train=str(data / "train"),
        val=str(data / "val"),
        global_batch=GLOBAL_BATCH,
        micro_batch=GLOBAL_BATCH // (layout.ranks * layout.accumulate),
        steps_per_epoch=STEPS_PER_EPOCH,
        image_size=SIZE,
        window=2,
        num_workers=layout.workers,
    )
    status = StatusWriter(folder)
    # connections go last: their end is what other ranks notice
    with closing_connections(), RunLock(folder) as lock, status.noting_errors():
        resumed = begin(trainer, lock, "auto")
        status.follow(trainer)
        path = None if resumed is None else str(resumed)
        trainer.fit(FourNumbers(), datamodule=module, ckpt_path=path, weights_only=True)
        return status.ended(stopped(trainer))


def make_trainer(folder: Path, layout: Layout, *watching: Callback) -> Trainer:
    """Return the trainer of one rank; others may watch it."""
    callbacks: list[Any] = [
        *watching,
        Ema(),
        Diary(str(folder)),
        Checkpoints(str(folder / "checkpoints"), every_steps=SAVE_EVERY),
        Preemption(),
    ]
    return Trainer(
        accelerator="cpu",
        devices=layout.ranks,
        strategy="ddp" if layout.ranks > 1 else "auto",
        max_epochs=EPOCHS,
        check_val_every_n_epoch=2,
        plugins=[DurableCheckpointIO()],
        callbacks=callbacks,
        logger=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def diary(folder: Path, rank: int, *, done: bool = True) -> list[dict[str, Any]]:
    """Read the micro-batches a rank is done with, or those that it began; oldest first."""
    file = folder / f"{DIARY}-{rank}.jsonl"
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["done"] is done]


def differences(folder: Path, alone: Path) -> list[str]:
    """List how a training differs from one left alone with the same layout."""
    return [*_different_keys(folder, alone), *_different_numbers(folder, alone)]


def steps_of(folder: Path) -> dict[int, list[str]]:
    """Return the sorted sample keys of each optimizer step, over all ranks and micro-batches.

    Raises:
        ValueError: if a step was made twice with different keys.
    """
    found: dict[int, dict[tuple[int, ...], list[str]]] = {}
    for file in sorted(folder.glob(f"{DIARY}-*.jsonl")):
        for line in diary(folder, int(file.stem.rpartition("-")[2])):
            place = tuple(line["place"])
            known = found.setdefault(line["step"], {}).setdefault(place, line["keys"])
            if known != line["keys"]:
                raise ValueError(f"step {line['step']} had {known}, then {line['keys']}")
    keys: dict[int, list[str]] = {}
    for step, places in found.items():
        of_world: dict[int, list[str]] = {}
        for (world, *_), part in places.items():
            of_world[world] = sorted([*of_world.get(world, []), *part])
        first, *others = of_world.values()
        if any(other != first for other in others):
            raise ValueError(f"step {step} differs between numbers of ranks: {of_world}")
        keys[step] = first
    return dict(sorted(keys.items()))


def gaps(steps: Sequence[int], ends: Sequence[int], saved: Sequence[bool]) -> list[str]:
    """List where a stop that said it saved was not followed by the very next step.

    Args:
        steps: the optimizer step of each micro-batch of rank 0, over all attempts.
        ends: the length of `steps` after each attempt.
        saved: whether the attempt's exit status said that everything was saved.
    """
    found = []
    for attempt in range(len(ends) - 1):
        begin, end, after = ends[attempt - 1] if attempt else 0, ends[attempt], ends[attempt + 1]
        if not saved[attempt] or begin == end or end == after:
            continue
        if steps[end] != steps[end - 1] + 1:
            found.append(f"saved after step {steps[end - 1]}, went on with step {steps[end]}")
    return found


def _different_keys(folder: Path, alone: Path) -> list[str]:
    """List micro-batches with other keys, and those never begun by their rank or done by none.

    One rank's word is enough for the end: it has averaged its gradients with all others' by then.
    """
    ranks = sorted(int(file.stem.rpartition("-")[2]) for file in alone.glob(f"{DIARY}-*.jsonl"))
    done = {_moment(line) for rank in ranks for line in diary(folder, rank)}
    found = []
    for rank in ranks:
        expected = {_place(line): line for line in diary(alone, rank)}
        begun = diary(folder, rank, done=False)
        missing = expected.keys() - {_place(line) for line in begun}
        undone = [p for p in sorted(expected.keys() - missing) if _moment(expected[p]) not in done]
        keys = {place: line["keys"] for place, line in expected.items()}
        seen = [(_place(line), line["keys"]) for line in [*begun, *diary(folder, rank)]]
        wrong = [(place, other) for place, other in seen if keys.get(place) != other]
        found += [
            *(f"rank {rank} never trained on {place}" for place in sorted(missing)[:MOST_LISTED]),
            *(f"rank {rank} began {place}, but none was done" for place in undone[:MOST_LISTED]),
            *(
                f"rank {rank} at {place} had {other}, not {keys.get(place)}"
                for place, other in wrong[:MOST_LISTED]
            ),
        ]
    return found


def _place(line: dict[str, Any]) -> tuple[int, ...]:
    """Return where in a training a line belongs: step, number of ranks, rank, micro-batch."""
    return line["step"], *line["place"]


def _moment(line: dict[str, Any]) -> tuple[int, int, int]:
    """Return when in a training all ranks were at this line: step, their number, micro-batch."""
    world, _, micro = line["place"]
    return line["step"], world, micro


def _different_numbers(folder: Path, alone: Path) -> list[str]:
    ours, theirs = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (folder, alone))
    parts = [name for name in COMPARED if not is_equal(ours.get(name), theirs.get(name))]
    return [f"the last checkpoint differs in {name}" for name in parts]


def is_equal(first: Any, second: Any) -> bool:
    """Compare two parts of checkpoints to the last bit; paths of the run's folder do not count."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            is_equal(value, second[name]) for name, value in first.items()
        )
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(
            is_equal(*pair) for pair in zip(first, second, strict=True)
        )
    return first == second
