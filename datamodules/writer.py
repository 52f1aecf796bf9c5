"""Write pairs as WebDataset shards: plain tars, one task each, indexed when written.

Pictures are stored as PNG, lossless; a shard appears under its name only when it is complete.
webdataset itself writes the tar, so its own reader reads the folder back. Times in the tar are
zero: the same pairs give the same bytes.
"""

import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from webdataset.writer import TarWriter

from datamodules.atomic import atomic_file
from datamodules.index import index_shard, save_index
from datamodules.manifest import Manifest, ShardEntry, sha256_of, write_manifest
from emu_edit.errors import InputError

__all__ = ["Manifest", "PairRecord", "ShardEntry", "write_manifest", "write_task_shards"]

# webdataset splits a name at its first dot, and a key becomes part of names: letters, digits, _ and
# - are safe
_KEY = re.compile(r"[\w-]+(/[\w-]+)*")
_TASK = re.compile(r"[\w-]+")
_LONGEST_KEY = 80  # bytes; with ".source.png" it fits the 100 bytes of a ustar name


@dataclass(frozen=True)
class PairRecord:
    """One pair on its way into a shard: RGB arrays; `mask` is True where the edit may change."""

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
                "of letters, digits, "
                "'_' and '-', with '/' between folders"
            )
        if self.source.shape != self.target.shape:
            raise InputError(
                f"{self.key}: source is {self.source.shape[:2]} and target "
                f"{self.target.shape[:2]} (height, width); "
                "both need the same size"
            )
        if self.mask is not None and self.mask.shape != self.source.shape[:2]:
            raise InputError(
                f"{self.key}: mask is {self.mask.shape} and the pictures {self.source.shape[:2]} "
                "(height, width); "
                "they need the same size"
            )


def write_task_shards(
    folder: Path, task: str, records: Iterable[PairRecord], *, pairs_per_shard: int = 1000
) -> list[ShardEntry]:
    """Write the pairs of one task as `<task>-000000.tar`, ..., each with its index beside it.

    `records` may be a generator: one pair is in memory at a time. Finish the folder with
    `write_manifest`.

    Raises:
        InputError: if there is no record, a record is of another task, or the task's name cannot be
            a file name.
        ShardError: if what was written cannot be indexed, e.g. because two records have one key.
    """
    if not _TASK.fullmatch(task):
        raise InputError(f"task {task!r} cannot name a shard; use letters, digits, '_' and '-'")
    if pairs_per_shard < 1:
        raise InputError(f"pairs_per_shard={pairs_per_shard} must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    stream = iter(records)
    entries = []
    while first := list(islice(stream, 1)):
        path = folder / f"{task}-{len(entries):06d}.tar"
        rest = islice(stream, pairs_per_shard - 1)
        entries.append(_write_shard(path, task, chain(first, rest)))
    if not entries:
        raise InputError(f"task {task!r} has no pairs to write to {folder}")
    return entries


def _write_shard(path: Path, task: str, records: Iterable[PairRecord]) -> ShardEntry:
    with (
        atomic_file(path) as stream,
        TarWriter(stream, encoder=False, compress=False, mtime=0.0) as tar,
    ):
        for record in records:
            if record.task != task:
                raise InputError(
                    f"{record.key} is of task {record.task!r} and cannot go into shards of {task!r}"
                )
            tar.write(_members(record))
    index = index_shard(path, task=task)
    save_index(path, index)
    return ShardEntry(task, path.name, path.stat().st_size, sha256_of(path), len(index))


def _members(record: PairRecord) -> dict[str, str | bytes]:
    text = {
        **record.extra,
        "instruction": record.instruction,
        "task": record.task,
        "source_caption": record.source_caption,
        "target_caption": record.target_caption,
    }
    members: dict[str, str | bytes] = {
        "__key__": record.key,
        "source.png": _png(record.source),
        "target.png": _png(record.target),
        "json": json.dumps(text, ensure_ascii=False).encode(),
    }
    if record.mask is not None:
        members["mask.png"] = _png(record.mask.astype(np.uint8) * 255)
    return members


def _png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    buffer = io.BytesIO()
    # level 1: about as small as 6 at these sizes, in a third of the time
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
