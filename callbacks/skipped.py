"""Count and list the samples that could not be used, and stop when there are too many.

Instructions that were cut to what the text encoder takes are counted beside them.

The data module puts another sample of the same task in the place of one it cannot use, and each
batch says which those were. Here they are written to `skipped.jsonl` in the run's folder, a line
each, counted per task and kind over all ranks, and held against limits, by all ranks together.

Only what was trained on counts: samples move from a window to the counters when its optimizer step
is made, and the counters are part of the checkpoint, so a resumed training counts on exactly.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from callbacks.finite import from_all_ranks
from callbacks.skip_counts import SkipCounts, SkipLimits, TooManySkippedError
from emu_edit.batch import BadSample, Batch, CutText
from emu_edit.errors import InputError
from emu_edit.files import atomic_file
from emu_edit.training.draws import DrawnBatch

FILE = "skipped.jsonl"
logger = logging.getLogger(__name__)


@dataclass
class _Part:
    """What one rank has met."""

    seen: int = 0
    bad: list[BadSample] = field(default_factory=list)
    cut: list[CutText] = field(default_factory=list)

    def take(self, other: "_Part") -> None:
        self.seen += other.seen
        self.bad += other.bad
        self.cut += other.cut


class Skipped(Callback):
    """Log `data/skipped/<task>`, write `skipped.jsonl`, and stop above the limits.

    Args:
        every: optimizer steps between two looks at the limits.
        max_fraction: bad samples allowed per sample trained on.
        after: samples to train on before `max_fraction` counts.
        max_shard_fraction: bad samples allowed per sample of one shard; three always are.

    Raises:
        InputError: if `every` is below 1, or a fraction is none.
    """

    def __init__(
        self,
        every: int = 50,
        max_fraction: float = 0.001,
        after: int = 10_000,
        max_shard_fraction: float = 0.05,
    ) -> None:
        if every < 1:
            raise InputError(f"Skipped.every must be at least 1, got {every}")
        for name, value in (
            ("max_fraction", max_fraction),
            ("max_shard_fraction", max_shard_fraction),
        ):
            if not 0 <= value <= 1:
                raise InputError(f"Skipped.{name}={value} must be a share from 0 to 1")
        self.every = every
        self.limits = SkipLimits(max_fraction, after, max_shard_fraction)
        self.counts = SkipCounts()
        self._file = Path(FILE)
        self._writes = False  # rank 0 only
        self._window = _Part()  # since the last optimizer step
        self._pending = _Part()  # trained on, not summed over ranks yet
        self._summed_step = 0
        self._is_first = True
        self._named: set[tuple[str, int]] = set()  # bad samples of the validation data

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty window: what was read before was not trained on."""
        self._file = Path(trainer.default_root_dir) / FILE
        self._writes = trainer.is_global_zero
        self._window, self._pending = _Part(), _Part()
        self._summed_step = trainer.global_step
        self._is_first = True

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch | DrawnBatch,
        batch_idx: int,
    ) -> None:
        """Take note of a batch; at the first one, forget lines from here on."""
        if isinstance(batch, DrawnBatch):
            batch = batch.batch
        if self._is_first and self._writes:
            # the positions of rank 0 come first; lines behind them are of a training that ended
            # after its last checkpoint, and will come again
            _keep_before(self._file, int(batch.position[0]))
        self._is_first = False
        self._window.take(_Part(len(batch), list(batch.bad), list(batch.cut)))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Count the batches of this step: before anything can save a checkpoint behind it."""
        self._pending.take(self._window)
        self._window = _Part()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Every so many optimizer steps, sum over ranks, log, and look at the limits.

        Raises:
            TooManySkippedError: on all ranks together.
        """
        if trainer.global_step - self._summed_step < self.every:
            return
        self._summed_step = trainer.global_step
        self._sum(trainer)
        try:
            self.counts.refuse_too_many(self.limits, str(self._file))
        except TooManySkippedError:
            if self._writes:
                logger.warning("%s", self.counts.table())
            raise

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch | DrawnBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Name each bad sample of the validation data once: another was measured in its place."""
        pairs = batch.batch if isinstance(batch, DrawnBatch) else batch
        for sample in pairs.bad:
            if (place := (sample.shard, sample.index)) not in self._named:
                self._named.add(place)
                logger.warning(
                    "%s: sample %r cannot be used (%s); validation measures another in its place",
                    *(sample.shard, sample.key, sample.reason),
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last lines and values."""
        self._sum(trainer)
        if self.counts.skipped and self._writes:
            logger.warning(
                "%d of %d samples could not be used, see %s",
                self.counts.skipped,
                self.counts.seen,
                self._file,
            )
        if self.counts.cut and self._writes:
            logger.warning(
                "%d of %d instructions were longer than the text encoder takes and were cut",
                sum(self.counts.cut.values()),
                self.counts.seen,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the counters of all ranks; they are summed here, so every rank must call it."""
        self._gather()
        return self.counts.to_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.counts = SkipCounts.from_dict(state_dict)

    def _sum(self, trainer: Trainer) -> None:
        self._gather()
        values = self.counts.scalars()
        for log in trainer.loggers if values else ():
            log.log_metrics(values, step=trainer.global_step)

    def _gather(self) -> None:
        """Add what all ranks have pending to the counters, and write it down."""
        whole = _Part()
        for part in from_all_ranks(self._pending):
            whole.take(part)
        self._pending = _Part()
        bad = sorted(whole.bad, key=lambda sample: sample.position)
        if bad and self._writes:
            if not self.counts.skipped:
                self._announce(bad[0])
            _append(self._file, bad)
        if whole.cut and self._writes and not self.counts.cut:
            self._announce_cut(whole.cut[0])
        self.counts.add(whole.seen, bad, whole.cut)

    def _announce(self, first: BadSample) -> None:
        logger.warning(
            "%s: sample %r cannot be used (%s); another takes its place. This one and any others "
            "are listed in %s",
            first.shard,
            first.key,
            first.reason,
            self._file,
        )

    def _announce_cut(self, first: CutText) -> None:
        logger.warning(
            "%s: sample %r: %s; the words that fit are read, and all such are counted "
            "(data/cut/%s); data.long_texts: skip or refuse does otherwise",
            first.shard,
            first.key,
            first.reason,
            first.task,
        )


def _append(path: Path, bad: list[BadSample]) -> None:
    lines = [json.dumps(asdict(sample)) + "\n" for sample in bad]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.writelines(lines)
    except OSError as error:  # on this rank only: an error would leave the others waiting
        logger.warning("%s: cannot be written (%s), it lacks %d lines", path, error, len(lines))


def _keep_before(path: Path, position: int) -> None:
    """Drop the lines from `position` of the stream on, and what a killed training left half."""
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _is_before(line, position)]
        if kept != lines:
            with atomic_file(path) as stream:
                stream.write("".join(kept).encode())
    except OSError as error:
        logger.warning("%s: cannot be shortened (%s), lines come twice", path, error)


def _is_before(line: str, position: int) -> bool:
    """Tell whether a line is whole and of a sample before `position`."""
    try:
        return line.endswith("\n") and json.loads(line)["position"] < position
    except ValueError:
        return False
