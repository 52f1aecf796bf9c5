"""Shard folders in which some samples cannot be used, as an index that checks no pictures sees."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datamodules.shards.index import ROLES, load_index, save_index
from datamodules.shards.manifest import ShardEntry, read_manifest, write_manifest
from emu_edit.files import sha256_of

JUNK = b"this is no picture. "


def spoil(folder: Path, faults: Mapping[str, str]) -> None:
    """Overwrite a member of some samples, {key: role}, and make index and manifest fit again."""
    manifest = read_manifest(folder)
    entries = [_spoilt(folder, entry, faults) for entry in manifest.entries]
    write_manifest(folder, entries, made_by=manifest.made_by)


def _spoilt(folder: Path, entry: ShardEntry, faults: Mapping[str, str]) -> ShardEntry:
    path = folder / entry.file
    index, data = np.array(load_index(path, entry)), bytearray(path.read_bytes())
    for row in range(len(index)):
        role = faults.get(index["key"][row].decode())
        if role is None:
            continue
        column = ROLES.index(role)
        start, size = int(index["offset"][row, column]), int(index["size"][row, column])
        junk = (JUNK * size)[:size]
        data[start : start + size] = junk
        index["crc32"][row, column] = zlib.crc32(junk)
    path.write_bytes(bytes(data))
    save_index(path, index)
    return ShardEntry(entry.task, entry.file, entry.bytes, sha256_of(path), entry.samples)
