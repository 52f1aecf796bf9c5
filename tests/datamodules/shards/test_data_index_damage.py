"""Damage that the fuzzer found the way through with: each is one line now, and no traceback."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loader_damage import BLOCK, members_of, with_checksum, with_content
from datamodules.shards.index import index_path, index_shard, load_index, save_index
from datamodules.shards.manifest import Manifest, ShardEntry
from emu_edit.errors import ShardError
from tests.datamodules.toy_shards import make_folder, sample, write_tar


@pytest.fixture
def entry(tmp_path: Path) -> ShardEntry:
    """A shard of three samples in `tmp_path`, with its index."""
    manifest: Manifest = make_folder(tmp_path, {"local": 3})
    return manifest.entries[0]


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 50_000])
def test_a_text_of_endless_brackets_is_refused(tmp_path: Path, text: bytes):
    path = write_tar(tmp_path / "local-000000.tar", sample("a", json=text))
    with pytest.raises(ShardError, match=r"sample 'a': its json cannot be parsed \(maximum recurs"):
        index_shard(path, task="local")


@pytest.mark.parametrize("before", [0, 2])
def test_a_damaged_extended_header_is_refused_wherever_it_stands(tmp_path: Path, before: int):
    path = write_tar(tmp_path / "local-000000.tar", sample("a"))
    members = members_of(path.read_bytes())
    record = b"28 GNU.sparse.map=0,5,x,1,2\n"
    header = bytearray(with_content(members[0], record))
    header[156] = ord("x")
    members.insert(before, with_checksum(header[:BLOCK]) + bytes(header[BLOCK:]))
    path.write_bytes(b"".join(members) + bytes(2 * BLOCK))
    with pytest.raises(ShardError, match=r"has a damaged header \(invalid literal for int"):
        index_shard(path, task="local")


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "a bracket too many": lambda data: data.replace(b"'shape': (3,)", b"'shape': (3,("),
    "more rows than memory": lambda data: data.replace(
        b"(3,), }" + b" " * 12, b"(300000000000,), }"
    ),
    "more rows than a number holds": lambda data: data.replace(
        b"(3,), }" + b" " * 22, b"(3" + b"0" * 21 + b",), }"
    ),
    "other numbers": lambda data: data.replace(b"<u8", b"<f8"),
    "keys that are no bytes": lambda data: data.replace(b"|S", b"|V"),
    "a text in place of it": lambda data: b"\x93NUMPY\x01\x00\x10\x00{'descr': 'a'   }" + data,
    "an archive of arrays": lambda data: b"PK\x03\x04" + data[4:],
}


@pytest.mark.parametrize("name", HEADERS)
def test_an_index_with_a_damaged_header_is_refused(tmp_path: Path, entry: ShardEntry, name: str):
    shard = tmp_path / entry.file
    path = index_path(shard)
    whole = path.read_bytes()
    damaged = HEADERS[name](whole)
    assert damaged != whole
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match=r"idx\.npy (cannot be read as a shard|is not the) index"):
        load_index(shard, entry)


@pytest.mark.parametrize("field", ["offset", "size"])
@pytest.mark.parametrize("value", [2**64 - 1, 2**63, 10**6])
def test_an_index_that_points_outside_its_shard_is_refused(
    tmp_path: Path, entry: ShardEntry, field: str, value: int
):
    shard = tmp_path / entry.file
    index = np.array(load_index(shard, entry))
    index[field][1, 2] = value
    save_index(shard, index)
    with pytest.raises(ShardError, match=rf"points outside the {entry.bytes} bytes of local-0"):
        load_index(shard, entry)
