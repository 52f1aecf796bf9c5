"""Write pairs as WebDataset shards: plain tars, one task each, indexed when written.

Pictures are stored as PNG, lossless; a shard appears under its name only when it is complete.
webdataset itself writes the tar, so its own reader reads the folder back. Times in the tar are
zero: the same pairs give the same bytes. Whoever writes training data comes through here, so this
is where evaluation sets are refused: by what folder and pairs say of themselves, always, and by
their pixels, where a guard (`datamodules.checks.leaks.LeakGuard`) is given.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from webdataset.writer import TarWriter

from datamodules.shards.evaluation_only import refuse_declared, refuse_output
from datamodules.shards.index import add_index
from datamodules.shards.manifest import ShardEntry
from datamodules.shards.shapes import SQUARE, shape_of
from emu_edit.errors import InputError
from emu_edit.files import atomic_file
from emu_edit.tasks import CAPTION

# webdataset splits a name at its first dot, and a key becomes part of names: letters, digits, _ and
# - are safe
_KEY = re.compile(r"[\w-]+(/[\w-]+)*")
_TASK = re.compile(r"[\w-]+")
_LONGEST_KEY = 80  # bytes; with ".source.png" it fits the 100 bytes of a ustar name


@dataclass(frozen=True)
class PairRecord:
    """One pair on its way into a shard: RGB arrays; `mask` is True where the edit may change.

    Of the task `caption` the source is the target, and is not written.
    """

    key: str
    source: UInt8[np.ndarray, "h w 3"]
    target: UInt8[np.ndarray, "_ _ 3"]
    instruction: str
    task: str
    mask: Bool[np.ndarray, "_ _"] | None = None
    source_caption: str = ""
    target_caption: str = ""
    extra: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what could not be read back."""
        if not _KEY.fullmatch(self.key) or len(self.key.encode()) > _LONGEST_KEY:
            raise InputError(
                f"sample key {self.key!r} cannot be stored; a key is at most {_LONGEST_KEY} bytes "
                "of letters, digits, '_' and '-', with '/' between folders"
            )
        if self.source.shape != self.target.shape:
            raise InputError(
                f"{self.key}: source is {self.source.shape[:2]} and target "
                f"{self.target.shape[:2]} (height, width); both need the same size"
            )
        if self.mask is not None and self.mask.shape != self.source.shape[:2]:
            raise InputError(
                f"{self.key}: mask is {self.mask.shape} and the pictures {self.source.shape[:2]} "
                "(height, width); they need the same size"
            )

    def members(self) -> dict[str, str | bytes]:
        """Return name ending and content of each member."""
        members: dict[str, str | bytes] = {
            **self.pictures(),
            "json": json.dumps(self.text(), ensure_ascii=False).encode(),
        }
        if self.mask is not None:
            members["mask.png"] = png_of(self.mask.astype(np.uint8) * 255)
        return members

    def pictures(self) -> dict[str, bytes]:
        """Return name ending and content of source and target."""
        return {f"{role}.png": png_of(pixels) for role, pixels in self._roles().items()}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is seen at once."""
        return self.source.shape[0], self.source.shape[1]

    def views(self) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
        """Yield role and pixels of all that is seen at once."""
        yield from self._roles().items()

    def _roles(self) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
        both = {"source": self.source, "target": self.target}
        return {"target": self.target} if self.task == CAPTION else both

    def text(self) -> dict[str, object]:
        """Return what the json says."""
        return {
            **self.extra,
            "instruction": self.instruction,
            "task": self.task,
            "source_caption": self.source_caption,
            "target_caption": self.target_caption,
        }


_Label = tuple[str, str, str]  # task, kind and shape of the pairs of a shard
# says why a pair must not be trained on, None if it may
Guard = Callable[[PairRecord], str | None]


class ShardWriter:
    """Writes pairs of any tasks, in any order, as `<task>-000000.tar`, ..., one open tar a task.

    A shard appears under its name, with its index beside it, when it is full or the block ends
    well; what is open when the block fails is removed. One pair is in memory at a time. Finish the
    folder with `write_manifest`.

    Args:
        folder: made if missing; refused if it is called after an evaluation set.
        pairs_per_shard: how many pairs a shard holds at most.
        by_kind: pairs of another `kind` (in their `extra`) go into shards of their own,
            `<task>-<kind>-000000.tar`, so that training can draw kinds apart; a kind that is called
            like its task is none.
        by_shape: so do pairs whose pictures have another shape (`datamodules.shards.shapes`),
            `<task>-10x7-000000.tar`, so that training can keep it; squares are called as ever.
        guard: looks at the pixels of every pair, e.g. a `LeakGuard` of benchmarks' pictures.

    Attributes:
        entries: the shards that are complete, in the order in which they became so.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pairs_per_shard: int = 1000,
        by_kind: bool = False,
        by_shape: bool = False,
        guard: Guard | None = None,
    ) -> None:
        if pairs_per_shard < 1:
            raise InputError(f"pairs_per_shard={pairs_per_shard} must be at least 1")
        refuse_output(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.entries: list[ShardEntry] = []
        self._folder = folder
        self._pairs_per_shard = pairs_per_shard
        self._by_kind, self._by_shape = by_kind, by_shape
        self._guard = guard
        self._open: dict[_Label, _OpenTar] = {}
        self._count: Counter[str] = Counter()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with ExitStack() as unfinished:
            for tar in self._open.values():
                unfinished.push(tar.stack)
            if error is not None:
                raise error
            for label in list(self._open):
                self._finish(label)

    def add(self, record: PairRecord) -> None:
        """Write one pair; one that is refused leaves no trace, so the caller may go on without it.

        Raises:
            InputError: if the pair is of an evaluation set, the guard knows a picture of it, or the
                task's name cannot be a file name.
            ShardError: if a shard that became full cannot be indexed, e.g. because two records have
                one key.
        """
        refuse_declared(record.extra, f"sample {record.key!r}")
        why = None if self._guard is None else self._guard(record)
        if why is not None:
            raise InputError(
                f"sample {record.key!r}: {why}; evaluation pictures never become training data, "
                "leave the pair out"
            )
        kind = str(record.extra.get("kind", "")) if self._by_kind else ""
        shape = shape_of(*record.size) if self._by_shape else ""
        label = (record.task, "" if kind == record.task else kind, shape)
        tar = self._open.get(label)
        if tar is None:
            tar = self._start(label)
        tar.write(record)
        if tar.count == self._pairs_per_shard:
            self._finish(label)

    def _start(self, label: "_Label") -> "_OpenTar":
        task, kind, shape = label
        if not _TASK.fullmatch(task):
            raise InputError(f"task {task!r} cannot name a shard; use letters, digits, '_' and '-'")
        parts = (task, re.sub("[^a-zA-Z0-9]+", "_", kind), shape if shape != SQUARE else "")
        name = "-".join(part for part in parts if part)
        path = self._folder / f"{name}-{self._count[name]:06d}.tar"
        self._count[name] += 1
        self._open[label] = _OpenTar(path)
        return self._open[label]

    def _finish(self, label: "_Label") -> None:
        tar = self._open[label]
        tar.stack.close()
        del self._open[label]
        task, kind, shape = label
        self.entries.append(add_index(tar.path, task=task, kind=kind, shape=shape))


class _OpenTar:
    """A tar on its way to its name, which it gets when `stack` is closed without an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.stack = ExitStack()
        stream = self.stack.enter_context(atomic_file(path))
        self._tar = self.stack.enter_context(
            TarWriter(stream, encoder=False, compress=False, mtime=0.0)
        )

    def write(self, record: PairRecord) -> None:
        self._tar.write({"__key__": record.key, **record.members()})
        self.count += 1


def write_task_shards(
    folder: Path,
    task: str,
    records: Iterable[PairRecord],
    *,
    pairs_per_shard: int = 1000,
    by_kind: bool = False,
    by_shape: bool = False,
    guard: Guard | None = None,
) -> list[ShardEntry]:
    """Write the pairs of one task, as `ShardWriter` does; `records` may be a generator.

    Raises:
        InputError: if there is no record, a record is of another task or of an evaluation set, or
            the task's name cannot be a file name.
        ShardError: if what was written cannot be indexed, e.g. because two records have one key.
    """
    if not _TASK.fullmatch(task):
        raise InputError(f"task {task!r} cannot name a shard; use letters, digits, '_' and '-'")
    with ShardWriter(
        folder, pairs_per_shard=pairs_per_shard, by_kind=by_kind, by_shape=by_shape, guard=guard
    ) as writer:
        for record in records:
            if record.task != task:
                raise InputError(
                    f"{record.key} is of task {record.task!r} and cannot go into shards of {task!r}"
                )
            writer.add(record)
    if not writer.entries:
        raise InputError(f"task {task!r} has no pairs to write to {folder}")
    return writer.entries


def png_of(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """Return a picture as PNG."""
    buffer = io.BytesIO()
    # level 1: about as small as 6 at these sizes, in a third of the time
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
