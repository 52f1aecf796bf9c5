"""Damage that the fuzzer found the way through with: each is one line now, and no traceback."""

import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loader_damage import BLOCK, members_of, with_checksum
from datamodules.shards.index import (
    IndexFile,
    index_path,
    index_shard,
    load_index,
    save_index,
)
from datamodules.shards.manifest import Manifest, ShardEntry
from datamodules.stream.reader import OpenShard
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


def header(kind: bytes, content: bytes, *, size: int | None = None) -> bytes:
    """Return a header that announces `content`, or any size, and the content itself."""
    block = bytearray(tarfile.TarInfo("ann").tobuf(tarfile.GNU_FORMAT))
    said = len(content) if size is None else size
    block[124:136] = (128 << 88 | said).to_bytes(12, "big")
    block[156:157] = kind
    return with_checksum(block) + content + bytes(-len(content) % BLOCK)


def record(keyword: bytes, value: bytes) -> bytes:
    """Return a record of a pax header, whose length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    length = next(n for n in range(rest, rest + 9) if n == rest + len(str(n)))
    return b"%d %s=%s\n" % (length, keyword, value)


MIB = 2**20
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a name of 2 GiB": (header(b"L", b"", size=2**31), "a header of 2147483648 bytes, allowed"),
    "a link of 2 GiB": (header(b"K", b"", size=2**31), "a header of 2147483648 bytes, allowed"),
    "a pax header of 2^80 bytes": (header(b"x", b"", size=2**80), "allowed are 0..1048576"),
    "a global header of 2^63 bytes": (header(b"g", b"", size=2**63), "allowed are 0..1048576"),
    "a size of no number": (header(b"x", record(b"size", b"n")), "b'n' where a number is needed"),
    "a size of 5000 digits": (
        header(b"x", record(b"size", b"9" * 5000)),
        "b'9{40}' where a number is needed",
    ),
    "a size of 20 digits": (header(b"x", record(b"size", b"9" * 20)), "has 9{20} bytes, allowed"),
    "a negative size": (header(b"x", record(b"size", b"-512")), "b'-512' where a number is needed"),
    "a record longer than its header": (header(b"x", b"999 path=a\n"), "no record of a pax header"),
    "a record of no length": (header(b"x", b"0 path=a\n"), "no record of a pax header"),
    "a record of no end": (header(b"x", b"9" * 500), "no record of a pax header|where a number"),
    "a name of a MiB": (header(b"L", b"a" * (MIB - 20) + b".source.png"), "has a name above 1024"),
    "a name of a MiB and no kind": (header(b"L", b"a" * MIB), "has a name above 1024 bytes"),
    "a name for all": (header(b"g", record(b"path", b"a")), "'path' is given to all members"),
    "a sparse map": (header(b"x", record(b"GNU.sparse.map", b"0,5,x")), "is a sparse file"),
    "a thousand headers": (header(b"x", b"") * 1000, "more than 8 headers for one member"),
    "a thousand names": (header(b"L", b"a") * 1000, "more than 8 headers for one member"),
    "a sparse file of GNU tar": (header(b"S", b"", size=2**40), "is a sparse file"),
    "a member of 2^63 bytes": (header(b"0", b"", size=2**63), "has 9223372036854775808 bytes"),
}


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_in_constant_memory(tmp_path: Path, before: int, name: str):
    hostile, reason = HOSTILE[name]
    path = write_tar(tmp_path / "local-000000.tar", sample("a"))
    members = members_of(path.read_bytes())
    members.insert(before, hostile)
    path.write_bytes(b"".join(members) + bytes(2 * BLOCK))
    with path.open("r+b") as stream:
        stream.truncate(3 * 2**30)  # a hole: what a header promises is there
    tracemalloc.start()
    with pytest.raises(ShardError, match=reason) as caught:
        index_shard(path, task="local")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert peak < 12 * MIB


@pytest.mark.parametrize("hostile", [header(b"x", b""), header(b"L", b"a"), header(b"g", b"")])
def test_a_header_without_its_member_is_refused(tmp_path: Path, hostile: bytes):
    path = write_tar(tmp_path / "local-000000.tar", sample("a"))
    path.write_bytes(b"".join(members_of(path.read_bytes())) + hostile + bytes(2 * BLOCK))
    with pytest.raises(ShardError, match="announces a member that is not there"):
        index_shard(path, task="local")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [20, 99, 100, 150])
def test_every_kind_of_tar_is_indexed_as_tarfile_reads_it(tmp_path: Path, kind: int, length: int):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=kind, pax_headers={"comment": "of all"}) as tar:
        for name, data in sample("sub/" + "k" * length + "/\u00e4"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        places = {info.name.partition(".")[2]: info.offset_data for info in tar}
        key = tar.getnames()[0].partition(".")[0]
    row = index_shard(path, task="local")[0]
    assert row["key"].decode() == key
    assert row["offset"].tolist() == [places["source.png"], places["target.png"], places["json"], 0]


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


def test_an_index_that_is_truncated_while_it_is_open_is_refused(tmp_path: Path, entry: ShardEntry):
    """Of a mapped file the kernel would end the process here, without a word (SIGBUS)."""
    shard = OpenShard(tmp_path / entry.file, entry)
    assert shard.key(0) == "local_00000"
    os.truncate(index_path(shard.path), 100)
    with pytest.raises(ShardError, match=r"idx\.npy is damaged: it ends before row 3, cut while"):
        shard.member(2, "source")


@pytest.mark.parametrize(("byte", "reason"), [(255, "is no text"), (65, "points outside the")])
def test_an_index_that_is_overwritten_while_it_is_open_is_refused(
    tmp_path: Path, entry: ShardEntry, byte: int, reason: str
):
    shard = OpenShard(tmp_path / entry.file, entry)
    path = index_path(shard.path)
    with path.open("r+b") as stream:
        stream.write(bytes([byte]) * path.stat().st_size)
    with pytest.raises(ShardError, match=rf"idx\.npy is damaged: .*{reason}"):
        shard.text(1)


@pytest.mark.parametrize("change", [-1, 1])
def test_an_index_of_another_length_is_refused(tmp_path: Path, entry: ShardEntry, change: int):
    path = index_path(tmp_path / entry.file)
    size = path.stat().st_size + change
    os.truncate(path, size)
    with pytest.raises(ShardError, match=rf"it has {size} bytes, too few or too many for its rows"):
        IndexFile(tmp_path / entry.file, entry)
