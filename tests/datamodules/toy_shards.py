"""Small shard folders, and tars with whatever members a test needs."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.checks.folders import CheckReport, check_folder
from datamodules.shards.index import index_shard, save_index
from datamodules.shards.manifest import Manifest, ShardEntry, write_manifest
from datamodules.shards.writer import PairRecord, write_task_shards
from emu_edit.files import sha256_of

SIZE = 16


def records(task: str, count: int, *, size: int = SIZE) -> Iterator[PairRecord]:
    """Yield pairs whose pixels tell them apart; every second one has a mask."""
    for i in range(count):
        rng = np.random.default_rng([len(task), ord(task[0]), i])
        source = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        mask = None
        if i % 2:
            mask = np.zeros((size, size), dtype=np.bool_)
            mask[2:5, 3:7] = True
        yield PairRecord(
            key=f"{task}_{i:05d}",
            source=source,
            target=255 - source,
            instruction=f"do {task} number {i}",
            task=task,
            mask=mask,
            source_caption=f"before {i}",
            target_caption=f"after {i}",
            extra={"note": i},
        )


def make_folder(
    folder: Path, counts: dict[str, int], *, pairs_per_shard: int = 4, size: int = SIZE
) -> Manifest:
    """Write a complete shard folder."""
    entries = []
    for task, count in counts.items():
        pairs = records(task, count, size=size)
        entries += write_task_shards(folder, task, pairs, pairs_per_shard=pairs_per_shard)
    return write_manifest(folder, entries, made_by={"program": "test"})


def make_named_folder(folder: Path, counts: dict[str, int], name: str) -> Manifest:
    """Write a complete shard folder whose keys and pictures belong to it alone."""
    entries = []
    for task, count in counts.items():
        pairs = (
            replace(record, key=f"{name}_{record.key}", source=record.source ^ len(name))
            for record in records(task, count)
        )
        entries += write_task_shards(folder, task, pairs, pairs_per_shard=4)
    return write_manifest(folder, entries, made_by={"program": "test"})


def png(size: tuple[int, int] = (SIZE, SIZE), level: int = 70) -> bytes:
    """Return a grey RGB picture of (height, width) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), level, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def text(task: str = "local", **changes: object) -> bytes:
    """Return the json member of a sample."""
    return json.dumps({"instruction": "do it", "task": task, **changes}).encode()


def sample(key: str, **changes: bytes) -> list[tuple[str, bytes]]:
    """Return the members of a good sample; `changes` replaces members by role."""
    members = {"json": text(), "source": png(level=70), "target": png(level=90)} | changes
    names = {"json": "json", "source": "source.png", "target": "target.png", "mask": "mask.png"}
    return [(f"{key}.{names[role]}", data) for role, data in members.items()]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write members as they come, with Python's own writer."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def folder_of(folder: Path, *shards: list[tuple[str, bytes]]) -> CheckReport:
    """Check a folder of tars that the writer would not write."""
    entries = []
    for number, members in enumerate(shards):
        path = write_tar(folder / f"local-{number:06d}.tar", members)
        index = index_shard(path, task="local")
        save_index(path, index)
        size = path.stat().st_size
        entries.append(ShardEntry("local", path.name, size, sha256_of(path), len(index)))
    write_manifest(folder, entries, made_by={})
    return check_folder(folder)
