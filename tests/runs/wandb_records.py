"""Read what W&B keeps of an offline run: its file of records, without its server.

The file is a log of LevelDB: a header of seven bytes, then blocks of 32 KiB with pieces of records,
each behind a checksum, its length and its kind (1 whole, 2 first, 3 middle, 4 last).
Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, struct.Struct("<IHB")


@dataclass
class OfflineRun:
    """What an offline run holds: the names it goes by, and all it was given."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)


def read_run(folder: Path) -> OfflineRun:
    """Read the records of one `offline-run-...`; nested keys are joined by a dot."""
    (file,) = folder.glob("*.wandb")
    found = OfflineRun(folder)
    for content in _contents(file.read_bytes()):
        record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  made at import
        record.ParseFromString(content)
        if record.HasField("run"):
            found.run = record.run
            found.config |= _values(record.run.config.update)
        found.config |= _values(record.config.update)
        found.summary |= _values(record.summary.update)
        for name, value in _values(record.history.item).items():
            found.history.setdefault(name, []).append(value)
        if record.HasField("artifact"):
            paths = [entry.path for entry in record.artifact.manifest.contents]
            found.artifacts[record.artifact.name] = paths
    return found


def _values(items: Any) -> dict[str, Any]:
    return {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}


def _contents(raw: bytes) -> Iterator[bytes]:
    held, position = b"", 7
    while position + HEADER.size <= len(raw):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:
            position += left
            continue
        _, size, kind = HEADER.unpack_from(raw, position)
        begin = position + HEADER.size
        piece, position = raw[begin : begin + size], begin + size
        held = piece if kind in {1, 2} else held + piece
        if kind in {1, 4}:
            yield held
