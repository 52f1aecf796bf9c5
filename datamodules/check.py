"""Verify a shard folder from its manifest down to every pixel, and say all that is wrong with it.

Indexing reads bytes and texts; here every picture is decoded as training will decode it, and what
no reader refuses but no training wants is looked for, too: the same pair twice, a target equal to
its source, black pictures. One finding does not hide the next.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from datamodules.index import ROLES, index_shard, load_index
from datamodules.manifest import Manifest, ShardEntry, load_manifest, verify_hash, verify_size
from datamodules.reader import OpenShard, decode_pair
from emu_edit.errors import InputError, ShardError, closest
from emu_edit.tasks import SIXTEEN, TaskTable

_BLACKEST = 8  # of 255; JPEG leaves a black picture a little above 0


@dataclass(frozen=True)
class Problem:
    """One finding. An error stops training or would corrupt it; a warning may be meant so."""

    is_error: bool
    file: str
    key: str
    message: str


@dataclass
class TaskSummary:
    """The numbers of one task: what there is, and how many findings of each kind."""

    task: str
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    masks: int = 0
    errors: int = 0
    warnings: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None


@dataclass
class CheckReport:
    """All findings of a folder and a row for each task; sizes are (height, width)."""

    folder: Path
    problems: list[Problem] = field(default_factory=list)
    tasks: dict[str, TaskSummary] = field(default_factory=dict)

    @property
    def errors(self) -> list[Problem]:
        """The findings with which the folder should not be used."""
        return [problem for problem in self.problems if problem.is_error]

    @property
    def warnings(self) -> list[Problem]:
        """The findings to look at."""
        return [problem for problem in self.problems if not problem.is_error]

    @property
    def is_good(self) -> bool:
        """Whether training can use the folder."""
        return not self.errors

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table as text: a header and a row for each task."""
        header = ("task", "shards", "samples", "MiB", "masks", "sizes", "errors", "warnings")
        return [header, *(_row(summary) for summary in self.tasks.values())]


def _row(summary: TaskSummary) -> tuple[str, ...]:
    sizes = [size for size in (summary.smallest, summary.largest) if size is not None]
    return (
        summary.task,
        str(summary.shards),
        str(summary.samples),
        f"{summary.bytes / 2**20:.1f}",
        str(summary.masks),
        " to ".join(dict.fromkeys(f"{height}x{width}" for height, width in sizes)) or "-",
        str(summary.errors),
        str(summary.warnings),
    )


def check_folder(
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    table: TaskTable = SIXTEEN,
) -> CheckReport:
    """Read everything in a shard folder and report all findings.

    Args:
        folder: where `manifest.json` is.
        progress: called with the samples done and their total.
        table: the tasks that may occur.

    Raises:
        ShardError: if there is no manifest to start from, or it is damaged.
    """
    manifest = load_manifest(folder)
    check = _Check(folder, manifest, progress)
    for entry in manifest.entries:
        check.add_shard(entry, table)
    check.add_doubles()
    return check.report


class _Check:
    """The pass over a folder: collects findings and what has to be compared across shards."""

    def __init__(
        self, folder: Path, manifest: Manifest, progress: Callable[[int, int], None] | None
    ) -> None:
        self.report = CheckReport(folder)
        self._progress = progress
        self._done, self._total = 0, manifest.num_samples
        self._new_task = manifest.made_by.get("new_task")  # one that no table has, on purpose
        self._keys: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._contents: dict[tuple[tuple[int, ...], str], list[tuple[str, str, str]]] = defaultdict(
            list
        )

    def add_shard(self, entry: ShardEntry, table: TaskTable) -> None:
        """Check one shard; a broken one is reported and left."""
        summary = self.report.tasks.setdefault(entry.task, TaskSummary(entry.task))
        summary.shards += 1
        summary.samples += entry.samples
        summary.bytes += entry.bytes
        if entry.task not in {*table.names, self._new_task}:
            hint = closest(entry.task, list(table.names))
            self._add(entry, "", f"unknown task {entry.task!r}.{hint}")
        try:
            shard = self._open(entry)
        except ShardError as error:
            self._add(entry, "", str(error))
            self._advance(entry.samples)
            return
        for sample in range(entry.samples):
            self._add_sample(entry, shard, sample)
            self._advance(1)

    def add_doubles(self) -> None:
        """Report keys and pairs that occur more than once in a task."""
        for (task, key), files in self._keys.items():
            if len(files) > 1:
                message = f"task {task} has this key in {len(files)} shards: {', '.join(files)}"
                self._problem(Problem(True, files[1], key, message), task)
        for places in self._contents.values():
            (task, first_file, first_key), *others = places
            for _, file, key in others:
                message = f"is the same pair and instruction as {first_key} of {first_file}"
                self._problem(Problem(False, file, key, message), task)

    def _open(self, entry: ShardEntry) -> OpenShard:
        path = self.report.folder / entry.file
        verify_size(path, entry)
        verify_hash(path, entry)
        found = index_shard(path, task=entry.task)
        if not np.array_equal(found, load_index(path, entry)):
            raise ShardError(f"{path}: its index file does not describe it; write the shard again")
        return OpenShard(path, entry)

    def _add_sample(self, entry: ShardEntry, shard: OpenShard, sample: int) -> None:
        key = shard.key(sample)
        self._keys[entry.task, key].append(entry.file)
        checksums = shard.index["crc32"][sample]
        pair = tuple(int(checksums[ROLES.index(role)]) for role in ("source", "target"))
        instruction = shard.text(sample)["instruction"]
        self._contents[pair, instruction].append((entry.task, entry.file, key))
        try:
            source, target, mask = decode_pair(shard, sample)
        except InputError as error:
            self._add(entry, key, str(error))
            return
        summary = self.report.tasks[entry.task]
        size = (source.shape[1], source.shape[2])
        summary.smallest = min(summary.smallest or size, size, key=np.prod)
        summary.largest = max(summary.largest or size, size, key=np.prod)
        is_empty = mask is not None and not bool(mask.any())
        # identical pictures with an empty mask are no mistake: the pair says so itself
        if is_empty and not torch.equal(source, target):
            self._add(entry, key, "the mask is empty: nothing may change", is_error=False)
        for message in _oddities(source.numpy(), target.numpy(), is_noop=is_empty):
            self._add(entry, key, message, is_error=False)
        summary.masks += mask is not None

    def _add(self, entry: ShardEntry, key: str, message: str, *, is_error: bool = True) -> None:
        self._problem(Problem(is_error, entry.file, key, message), entry.task)

    def _problem(self, problem: Problem, task: str) -> None:
        self.report.problems.append(problem)
        summary = self.report.tasks[task]
        summary.errors += problem.is_error
        summary.warnings += not problem.is_error

    def _advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _oddities(source: np.ndarray, target: np.ndarray, *, is_noop: bool) -> Iterator[str]:
    if np.array_equal(source, target) and not is_noop:
        yield "target and source are identical"
    for name, picture in (("source", source), ("target", target)):
        if picture.max() <= _BLACKEST:
            yield f"the {name} is black"


def summarize(problems: list[Problem], limit: int = 20) -> list[str]:
    """Return one line for each of the first problems, and how many more there are in which file."""
    lines = [
        f"{'error' if p.is_error else 'warning'}: {p.file}"
        f"{f': sample {p.key!r}' if p.key else ''}: {p.message}"
        for p in problems[:limit]
    ]
    more = Counter(p.file for p in problems[limit:])
    return lines + [f"... and {count} more in {file}" for file, count in more.items()]
