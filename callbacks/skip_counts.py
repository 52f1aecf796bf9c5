"""The counters of samples that could not be used, the limits they are held against, their table.

Damage is bounded; what is left out by choice (`data.long_texts: skip`) is counted and is not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emu_edit.batch import TEXT_TOO_LONG, BadSample, CutText
from emu_edit.errors import BadDataError
from emu_edit.terminal import aligned

STATE_VERSION = 1
# the last shard of a task may hold a handful: one bad sample of three is no broken shard
FEW = 3
NUM_SHARDS_SHOWN = 10

HOW_TO_REPAIR = "`emu-edit shards check FOLDER` lists all bad samples of a folder"


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
        cut: by task, how many instructions were cut.
    """

    seen: int = 0
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    bad: dict[str, set[int]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)

    @property
    def damaged(self) -> int:
        """How often a sample could not be used that was not left out by choice."""
        return self.skipped - sum(kinds.get(TEXT_TOO_LONG, 0) for kinds in self.kinds.values())

    @property
    def skipped(self) -> int:
        """How often a sample could not be used."""
        return sum(sum(kinds.values()) for kinds in self.kinds.values())

    def add(self, seen: int, bad: Iterable[BadSample], cut: Iterable[CutText] = ()) -> None:
        """Count `seen` more samples, those in whose place others came, and cut instructions."""
        self.seen += seen
        for sample in bad:
            kinds = self.kinds.setdefault(sample.task, {})
            kinds[sample.kind] = kinds.get(sample.kind, 0) + 1
            if sample.kind == TEXT_TOO_LONG:
                continue  # no sign of a broken shard
            self.shards[sample.shard] = sample.samples
            self.bad.setdefault(sample.shard, set()).add(sample.index)
        for text in cut:
            self.cut[text.task] = self.cut.get(text.task, 0) + 1

    def scalars(self) -> dict[str, float]:
        """Return `data/skipped/<task>`, `data/skipped/<task>/<kind>` and `data/cut/<task>`.

        None while all is well.
        """
        values = {f"data/cut/{task}": float(n) for task, n in sorted(self.cut.items())}
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
        if self.seen >= limits.after and self.damaged > limits.fraction * self.seen:
            raise TooManySkippedError(
                f"{self.damaged} of {self.seen} samples ({self.damaged / self.seen:.2%}) could not "
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
            "cut": dict(self.cut),
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
            cut=dict(state.get("cut", {})),  # absent in checkpoints of before texts were cut
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
