"""The report of a conversion: what was written, what was left out and why, where that is listed.

Every pair left out is a line of `quarantine.jsonl` beside the shards, written as it happens, and so
is every other entry of the folder that no pair was made of: nothing is lost without a count. The
counts are printed as a table and kept in the manifest.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TextIO

from datamodules.convert.pair import Reason, SkippedPair
from datamodules.listing import list_entries, same_form
from emu_edit.pictures import EXTENSIONS
from emu_edit.terminal import plural

QUARANTINE = "quarantine.jsonl"
_LONGEST_EXAMPLE = 90  # characters of a finding in the table


@dataclass(frozen=True)
class ConvertReport:
    """Counts of a conversion.

    Attributes:
        listed: how many entries the data have; a video counts as often as its clips.
        written: pairs of each task.
        skipped: pairs left out, by reason.
        examples: the first finding of each reason.
        other_part: pairs that belong to the other part of the data.
        quarantine: lists every pair left out, one JSON object a line; None if there was none.
        unit: what is written: pairs, or clips.
        motion: motion scores of all clips that were judged, those left out among them, ascending.
    """

    listed: int
    written: dict[str, int]
    skipped: dict[str, int]
    examples: dict[str, str]
    other_part: int
    quarantine: Path | None
    unit: str = "pair"
    motion: tuple[float, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether everything there was looked at: what is not followed may hold any number."""
        return Reason.not_followed.value not in self.skipped

    def summary(self) -> str:
        """Return the report as one line."""
        tasks = ", ".join(f"{task} {count}" for task, count in self.written.items())
        line = f"{plural(sum(self.written.values()), self.unit)} written ({tasks})"
        if self.other_part:
            line += f"; {self.other_part} are of the other part"
        if self.skipped:
            line += f"; {counted(self.skipped)} (listed in {self.quarantine})"
        return line

    def motion_line(self) -> str:
        """Return the quantiles of motion, by which --min-motion is chosen; "" without clips."""
        if not self.motion:
            return ""
        last = len(self.motion) - 1
        shown = [f"{self.motion[round(last * part / 4)]:.3g}" for part in range(5)]
        return (
            f"motion of {plural(len(self.motion), self.unit)}: least {shown[0]}, a quarter below "
            f"{shown[1]}, half {shown[2]}, three quarters {shown[3]}, most {shown[4]}"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table as text: a header and a row for each reason; empty if there is none."""
        if not self.skipped:
            return []
        rows = [
            (reason, str(count), f"{count / self.listed:.2%}", self.examples[reason])
            for reason, count in sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        ]
        return [("left out because", "entries", "share", "the first of them"), *rows]


def counted(skipped: dict[str, int]) -> str:
    """Return how many were left out, by reason, on one line."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"{sum(skipped.values())} left out: {reasons}"


def passed_by(path: Path, has_place: Callable[[PurePosixPath], bool]) -> Iterator[SkippedPair]:
    """Yield what a converter of the folder does not look at, so that all of it is counted.

    Args:
        path: the folder; a file has nothing beside it that was meant.
        has_place: tells of a name below the folder whether the layout has a place for such a file.
    """
    if not path.is_dir():
        return
    for entry in list_entries(path):
        if entry.why:
            detail = f"{entry.path}: {entry.why}; give what it stands for as another SRC"
            yield SkippedPair(entry.name, Reason.not_followed, detail)
        elif entry.is_hidden:
            yield SkippedPair(entry.name, Reason.hidden_file, f"{entry.name}: a hidden name")
        elif not has_place(PurePosixPath(entry.name)):
            yield SkippedPair(entry.name, Reason.other_file, f"{entry.name}: not read here")


def unnamed_in(
    path: Path, named: Collection[int], suffixes: Collection[str] = EXTENSIONS
) -> Iterator[SkippedPair]:
    """Yield the pictures below a folder that none of its lines names.

    Args:
        path: the folder.
        named: `hash` of the paths that lines name, in the form of `same_form`: of a million pairs
            the paths themselves would fill the memory.
        suffixes: of the files that lines name.
    """
    for entry in list_entries(path):
        is_meant = entry.is_file and entry.path.suffix.lower() in suffixes
        if is_meant and hash(same_form(str(entry.path))) not in named:
            detail = f"{entry.name}: no line names it; to take a list's pairs alone, give its file"
            yield SkippedPair(entry.name, Reason.unnamed, detail)


@dataclass
class Tally:
    """The counters of a run and its open list of pairs left out."""

    file: TextIO
    total: int
    on_step: Callable[[int, int], None] | None
    done: int = 0
    other_part: int = 0
    written: Counter[str] = field(default_factory=Counter)
    raw_tasks: Counter[str] = field(default_factory=Counter)  # of the pairs written
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    motion: list[float] = field(default_factory=list)

    def step(self) -> None:
        """Count an entry as done, whatever became of it."""
        self.done += 1
        if self.on_step is not None:
            self.on_step(self.done, self.total)

    def skip(self, item: SkippedPair) -> None:
        """Count and list a pair that is left out."""
        reason = item.reason.value
        self.skipped[reason] += 1
        self.examples.setdefault(reason, _example(item))
        row = {"name": item.name, "reason": reason, "detail": item.detail}
        self.file.write(json.dumps(row) + "\n")


def _example(item: SkippedPair) -> str:
    detail = item.detail if item.name in item.detail else f"{item.name}: {item.detail}"
    return detail if len(detail) <= _LONGEST_EXAMPLE else f"{detail[: _LONGEST_EXAMPLE - 1]}…"
