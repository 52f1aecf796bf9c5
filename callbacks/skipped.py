"""Count and list the samples that could not be used, and stop when there are too many.

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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from callbacks.finite import from_all_ranks
from emu_edit.batch import BadSample, Batch
from emu_edit.errors import BadDataError, InputError
from emu_edit.files import atomic_file
from emu_edit.terminal import aligned
from emu_edit.training.draws import DrawnBatch

FILE = "skipped.jsonl"
STATE_VERSION = 1
# the last shard of a task may hold a handful: one bad sample of three is no broken shard
FEW = 3
NUM_SHARDS_SHOWN = 10

HOW_TO_REPAIR = "`emu-edit shards check FOLDER` lists all bad samples of a folder"

logger = logging.getLogger(__name__)


class TooManySkippedError(BadDataError):
    """More samples than allowed could not be used."""


@dataclass(frozen=True)
class SkipLimits:
    """How much may be bad.

    Attributes:
        fraction: bad samples per sample trained on.
        after: samples to train on before `fraction` counts.
        shard_fraction: bad samples per sample of one shard; `FEW` in a shard are always allowed.
    """

    fraction: float
    after: int
    shard_fraction: float


@dataclass
class SkipCounts:
    """The counters of a training, over all ranks.

    Attributes:
        seen: samples trained on.
        kinds: by task, how often each kind of fault was met; a sample counts in every epoch.
        shards: by shard, how many samples it has.
        bad: by shard, which of its samples are bad, each once.
    """

    seen: int = 0
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    bad: dict[str, set[int]] = field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """How often a sample could not be used."""
        return sum(sum(kinds.values()) for kinds in self.kinds.values())

    def add(self, seen: int, bad: Iterable[BadSample]) -> None:
        """Count `seen` more samples, and those in whose place others came."""
        self.seen += seen
        for sample in bad:
            kinds = self.kinds.setdefault(sample.task, {})
            kinds[sample.kind] = kinds.get(sample.kind, 0) + 1
            self.shards[sample.shard] = sample.samples
            self.bad.setdefault(sample.shard, set()).add(sample.index)

    def scalars(self) -> dict[str, float]:
        """Return `data/skipped/<task>` and `data/skipped/<task>/<kind>`; none while all is well."""
        values: dict[str, float] = {}
        for task, kinds in sorted(self.kinds.items()):
            values[f"data/skipped/{task}"] = float(sum(kinds.values()))
            values |= {f"data/skipped/{task}/{kind}": float(n) for kind, n in sorted(kinds.items())}
        return values

    def refuse_too_many(self, limits: SkipLimits, listed_in: str) -> None:
        """Do nothing within the limits.

        Raises:
            TooManySkippedError: with the numbers, in one line.
        """
        where = f"they are listed in {listed_in}; {HOW_TO_REPAIR}"
        if self.seen >= limits.after and self.skipped > limits.fraction * self.seen:
            raise TooManySkippedError(
                f"{self.skipped} of {self.seen} samples ({self.skipped / self.seen:.2%}) could not "
                f"be used, allowed are {limits.fraction:.2%} after {limits.after}: "
                f"{self._by_task()}; {where}; to go on all the same, raise max_fraction of the "
                "callback Skipped"
            )
        for shard, bad in sorted(self.bad.items()):
            if len(bad) > max(FEW, limits.shard_fraction * self.shards[shard]):
                raise TooManySkippedError(
                    f"{shard}: {len(bad)} of its {self.shards[shard]} samples cannot be used, "
                    f"allowed are {limits.shard_fraction:.2%}; fetch or write the shard again; "
                    f"{where}"
                )

    def table(self) -> str:
        """Return counts per task and kind, then the worst shards, as lines of text."""
        rows = [
            (task, kind, str(n))
            for task, kinds in sorted(self.kinds.items())
            for kind, n in sorted(kinds.items())
        ]
        worst = sorted(self.bad, key=lambda shard: -len(self.bad[shard]) / self.shards[shard])
        shards = [
            (shard, f"{len(self.bad[shard])} of {self.shards[shard]}", "")
            for shard in worst[:NUM_SHARDS_SHOWN]
        ]
        return "\n".join([
            *aligned([("task", "what is wrong", "samples"), *rows]),
            *aligned([("shard", "bad samples", ""), *shards]),
        ])

    def to_dict(self) -> dict[str, Any]:
        """Return primitives only, so that a checkpoint loads with `weights_only=True`."""
        return {
            "version": STATE_VERSION,
            "seen": self.seen,
            "kinds": {task: dict(kinds) for task, kinds in self.kinds.items()},
            "shards": dict(self.shards),
            "bad": {shard: sorted(indices) for shard, indices in self.bad.items()},
        }

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> "SkipCounts":
        """Read what `to_dict` wrote.

        Raises:
            BadDataError: if it is of another version.
        """
        if state["version"] != STATE_VERSION:
            raise BadDataError(
                f"the checkpoint counts skipped samples in version {state['version']}, this "
                f"program in {STATE_VERSION}; continue with the program that wrote it"
            )
        return SkipCounts(
            seen=state["seen"],
            kinds={task: dict(kinds) for task, kinds in state["kinds"].items()},
            shards=dict(state["shards"]),
            bad={shard: set(indices) for shard, indices in state["bad"].items()},
        )

    def _by_task(self) -> str:
        totals = {
            task: sum(kinds.values())
            for task, kinds in sorted(self.kinds.items(), key=lambda item: -sum(item[1].values()))
        }
        kinds = {
            task: ", ".join(f"{kind} {n}" for kind, n in sorted(self.kinds[task].items()))
            for task in totals
        }
        return ", ".join(f"{task} {n} ({kinds[task]})" for task, n in totals.items())


@dataclass
class _Part:
    """What one rank has met."""

    seen: int = 0
    bad: list[BadSample] = field(default_factory=list)


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
        self._window.seen += len(batch)
        self._window.bad += batch.bad

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Count the batches of this step: before anything can save a checkpoint behind it."""
        self._pending.seen += self._window.seen
        self._pending.bad += self._window.bad
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
        parts = from_all_ranks(self._pending)
        self._pending = _Part()
        bad = sorted(
            (sample for part in parts for sample in part.bad), key=lambda sample: sample.position
        )
        if bad and self._writes:
            if not self.counts.skipped:
                self._announce(bad[0])
            _append(self._file, bad)
        self.counts.add(sum(part.seen for part in parts), bad)

    def _announce(self, first: BadSample) -> None:
        logger.warning(
            "%s: sample %r cannot be used (%s); another takes its place. This one and any others "
            "are listed in %s",
            first.shard,
            first.key,
            first.reason,
            self._file,
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
