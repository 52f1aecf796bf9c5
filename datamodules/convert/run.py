"""The run of a conversion: list, check, stream into shards task by task, report.

Memory holds one pair and the current shard's index. The listing is read once to count and to refuse
unknown tasks before anything is written, and once more for each task that occurs.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from datamodules.convert import control, folder
from datamodules.convert.pair import PairFiles, Skipped, read_pair
from datamodules.writer import PairRecord, ShardEntry, write_manifest, write_task_shards
from emu_edit.errors import InputError, closest
from emu_edit.tasks import SIXTEEN, TaskTable

KINDS = {
    "folder": folder.list_pairs,
    "jsonl": folder.list_pairs,
    "control": control.list_pairs,
}
SKIPPED_FILE = "skipped.jsonl"


@dataclass(frozen=True)
class ConvertReport:
    """What became of the pairs: how many of each task were written, how many were left out and why.

    `skipped_file` lists every pair left out, one JSON object a line; None if there was none.
    """

    written: dict[str, int]
    skipped: dict[str, int]
    skipped_file: Path | None

    def summary(self) -> str:
        """Return the report as one line."""
        tasks = ", ".join(f"{task} {count}" for task, count in self.written.items())
        line = f"{sum(self.written.values())} pairs written ({tasks})"
        if self.skipped:
            line += f"; {_counted(self.skipped)} (listed in {self.skipped_file})"
        return line


@dataclass
class _Progress:
    """The counters of a run and the open report file."""

    file: TextIO
    total: int
    on_step: Callable[[int, int], None] | None
    done: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def step(self) -> None:
        self.done += 1
        if self.on_step is not None:
            self.on_step(self.done, self.total)

    def skip(self, item: Skipped) -> None:
        self.skipped[item.reason.value] += 1
        row = {"name": item.name, "reason": item.reason.value, "detail": item.detail}
        self.file.write(json.dumps(row) + "\n")


def convert(
    kind: str,
    source: Path,
    out: Path,
    *,
    task: str | None = None,
    pairs_per_shard: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
    tasks: TaskTable = SIXTEEN,
) -> ConvertReport:
    """Turn the pairs in `source` into shards in `out`.

    Args:
        kind: one of `KINDS`.
        source: a folder of the kind's layout; for "jsonl" also the file itself.
        out: a new folder, or one without shards.
        task: the task of pairs that name none.
        pairs_per_shard: how many pairs a shard holds at most.
        on_progress: called as (pairs done, pairs in all).
        tasks: the known tasks.

    Raises:
        InputError: if the layout is not there, a task is unknown or missing, `out` has shards
            already, or no pair is left. A broken pair raises nothing: it is counted and listed in
            `out`/skipped.jsonl.
    """
    if kind not in KINDS:
        hint = closest(kind, [*KINDS])
        raise InputError(f"unknown kind {kind!r}; known kinds: {', '.join(KINDS)}.{hint}")
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    _check_out(out)

    def listing() -> Iterator[PairFiles | Skipped]:
        return KINDS[kind](source, task, tasks)

    try:
        counts = Counter(item.task for item in listing() if isinstance(item, PairFiles))
        out.mkdir(parents=True, exist_ok=True)
        with (out / SKIPPED_FILE).open("w", encoding="utf-8") as file:
            progress = _Progress(file, counts.total(), on_progress)
            entries = _write(listing, out, _in_order(counts, tasks), pairs_per_shard, progress)
        return _finish(entries, progress, out, {"convert": kind, "source": source.name})
    except OSError as error:
        raise InputError(
            f"{error.filename or out}: {error.strerror}; nothing usable was written"
        ) from error


def _in_order(counts: Counter[str], tasks: TaskTable) -> list[str]:
    return [name for name in tasks.names if name in counts]


def _write(
    listing: Callable[[], Iterator[PairFiles | Skipped]],
    out: Path,
    names: list[str],
    pairs_per_shard: int,
    progress: _Progress,
) -> list[ShardEntry]:
    for item in listing():
        if isinstance(item, Skipped):
            progress.skip(item)
    entries = []
    for name in names:
        pairs = (pair for pair in listing() if isinstance(pair, PairFiles) and pair.task == name)
        records = _records(pairs, progress)
        if first := list(islice(records, 1)):  # the writer refuses a task without any pair
            stream = chain(first, records)
            entries += write_task_shards(out, name, stream, pairs_per_shard=pairs_per_shard)
    return entries


def _finish(
    entries: list[ShardEntry], progress: _Progress, out: Path, made_by: dict[str, object]
) -> ConvertReport:
    skipped = dict(sorted(progress.skipped.items()))
    path = out / SKIPPED_FILE if skipped else None
    if path is None:
        (out / SKIPPED_FILE).unlink()
    if not entries:
        why = f"{_counted(skipped)}; see {path}" if skipped else "nothing was listed"
        raise InputError(f"{made_by['source']}: no pair is left to write: {why}")
    write_manifest(out, entries, made_by={**made_by, "skipped": skipped})
    written = Counter[str]()
    for entry in entries:
        written[entry.task] += entry.samples
    return ConvertReport(dict(written), skipped, path)


def _records(pairs: Iterable[PairFiles], progress: _Progress) -> Iterator[PairRecord]:
    for pair in pairs:
        record = read_pair(pair)
        progress.step()
        if isinstance(record, Skipped):
            progress.skip(record)
        else:
            yield record


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, needs a folder for the shards")
    if any(out.glob("*.tar")) or (out / "manifest.json").exists():
        raise InputError(f"{out}: has shards already; give a new folder or delete this one first")


def _counted(skipped: dict[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"{sum(skipped.values())} left out: {reasons}"
