"""The findings of a check of shard folders: problems, a row of numbers for each task, doubles."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from jaxtyping import UInt64


@dataclass(frozen=True)
class Problem:
    """One finding. An error stops training or would corrupt it; a warning may be meant so."""

    is_error: bool
    folder: str
    file: str
    key: str
    message: str


@dataclass
class TaskSummary:
    """The numbers of one task of one folder: its samples, and how many findings of each kind."""

    folder: str
    task: str
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    masks: int = 0
    errors: int = 0
    warnings: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None

    def add_size(self, height: int, width: int) -> None:
        """Note the size of a pair in pixels."""
        sizes = [(height, width), *(s for s in (self.smallest, self.largest) if s is not None)]
        by_area = sorted(sizes, key=lambda size: size[0] * size[1])
        self.smallest, self.largest = by_area[0], by_area[-1]

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table, without the folder."""
        sizes = [size for size in (self.smallest, self.largest) if size is not None]
        return (
            self.task,
            str(self.shards),
            str(self.samples),
            f"{self.bytes / 2**20:.1f}",
            str(self.masks),
            " to ".join(dict.fromkeys(f"{height}x{width}" for height, width in sizes)) or "-",
            str(self.errors),
            str(self.warnings),
        )


@dataclass
class CheckReport:
    """All findings of some folders and a row for each task; sizes are (height, width)."""

    folders: list[str]
    problems: list[Problem] = field(default_factory=list)
    tasks: dict[tuple[str, str], TaskSummary] = field(default_factory=dict)

    @property
    def errors(self) -> list[Problem]:
        """The findings with which the folders should not be used."""
        return [problem for problem in self.problems if problem.is_error]

    @property
    def warnings(self) -> list[Problem]:
        """The findings to look at."""
        return [problem for problem in self.problems if not problem.is_error]

    @property
    def is_good(self) -> bool:
        """Whether training can use the folders."""
        return not self.errors

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table as text: a header and a row for each task, and its folder if several."""
        header = ("task", "shards", "samples", "MiB", "masks", "sizes", "errors", "warnings")
        rows = [header, *(summary.cells() for summary in self.tasks.values())]
        if len(self.folders) == 1:
            return rows
        names = ["folder", *(summary.folder for summary in self.tasks.values())]
        return [(name, *row) for name, row in zip(names, rows, strict=True)]

    def add(self, problem: Problem, task: str) -> None:
        """Note a finding and count it with its task."""
        self.problems.append(problem)
        summary = self.tasks[problem.folder, task]
        summary.errors += problem.is_error
        summary.warnings += not problem.is_error


def summarize(problems: Sequence[Problem], limit: int = 20) -> list[str]:
    """Return one line for each of the first problems, and how many more there are in which file.

    Errors come first; files are named with their folder when there are several.
    """
    several = len({problem.folder for problem in problems}) > 1
    ordered = sorted(problems, key=lambda problem: not problem.is_error)
    names = [f"{p.folder}/{p.file}" if several else p.file for p in ordered]
    lines = [
        f"{'error' if p.is_error else 'warning'}: {name}"
        f"{f': sample {p.key!r}' if p.key else ''}: {p.message}"
        for p, name in list(zip(ordered, names, strict=True))[:limit]
    ]
    return lines + [f"... and {n} more in {name}" for name, n in Counter(names[limit:]).items()]


Place = tuple[int, int]  # number of the shard, sample in it


def hash_of(*parts: object) -> int:
    """Return 64 bits that stand for some numbers and texts."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@dataclass
class Doubles:
    """Samples that occur more than once among very many, by hashes of 64 bits.

    Among 100 million samples the chance that any two different ones share a hash is 1 in 4000.
    """

    _shards: list[int] = field(default_factory=list)
    _hashes: list[UInt64[np.ndarray, " n"]] = field(default_factory=list)

    def add(self, shard: int, hashes: Sequence[int]) -> None:
        """Note the hashes of a shard's samples, in their order."""
        self._shards.append(shard)
        self._hashes.append(np.array(hashes, dtype=np.uint64))

    def groups(self) -> Iterator[list[Place]]:
        """Yield the places of samples of equal hash, in the order in which they were added."""
        if not self._hashes:
            return
        ends = np.cumsum([len(hashes) for hashes in self._hashes])
        everything = np.concatenate(self._hashes)
        order = np.argsort(everything, kind="stable")
        starts = np.flatnonzero(np.diff(everything[order])) + 1
        groups = [part for part in np.split(order, starts) if len(part) > 1]
        for part in sorted(groups, key=lambda part: part[0]):
            yield [self._place(int(number), ends) for number in part]

    def _place(self, number: int, ends: np.ndarray) -> Place:
        i = int(np.searchsorted(ends, number, side="right"))
        return self._shards[i], number - (int(ends[i - 1]) if i else 0)
