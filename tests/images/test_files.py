"""What a user names is read only if it is a regular file, and never without end."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.convert.folder import list_pairs
from datamodules.convert.parquet import read_columns
from datamodules.convert.rows import read_json
from datamodules.shards.index import IndexFile, index_path, index_shard
from datamodules.shards.manifest import MANIFEST, ShardEntry, read_manifest
from datamodules.stream.reader import OpenShard
from emu_edit.cli.edit_run import read_manifest as read_session
from emu_edit.errors import InputError
from emu_edit.evaluation.figures import RESULTS, read_results
from emu_edit.files import open_regular, open_stream, read_regular, sha256_of
from emu_edit.images import read_image
from emu_edit.metrics.published import load_published

ENTRY = ShardEntry("local", "a.tar", 3, "0" * 64, 1)
READERS: dict[str, Callable[[Path], object]] = {
    "a.bin": open_regular,
    "b.bin": open_stream,
    "c.bin": read_regular,
    "d.bin": sha256_of,
    "a.tar": lambda path: index_shard(path, task="local"),
    "b.tar": lambda path: OpenShard(path, ENTRY),
    index_path(Path("a.tar")).name: lambda path: IndexFile(path.with_name("a.tar"), ENTRY),
    MANIFEST: lambda path: read_manifest(path.parent),
    "a.png": read_image,
    "a.parquet": lambda path: read_columns(path, path.name),
    "a.jsonl": lambda path: list(list_pairs(path)),
    "a.json": lambda path: read_json(path, dict, "an object"),
    "session.json": read_session,
    "published.json": load_published,
    RESULTS: lambda path: read_results(path.parent),
}


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    place = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(place)


def terminal(path: Path) -> None:
    path.symlink_to("/dev/ptmx")  # a device whose reader waits


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("make", [fifo, listening, terminal])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(
    tmp_path: Path, name: str, make: Callable[[Path], None]
):
    make(tmp_path / name)
    with pytest.raises((OSError, InputError)) as caught:
        READERS[name](tmp_path / name)
    line = str(caught.value)
    refusals = ("regular file", "no such file", "there is no file", "has no results.json")
    assert any(words in line for words in refusals)
    assert "\n" not in line


def test_a_folder_is_refused_by_name(tmp_path: Path):
    with pytest.raises(OSError, match="is a folder, needs a regular file"):
        read_regular(tmp_path)


@pytest.fixture
def endless() -> Path:
    """A file that calls itself regular and empty, and is not: as /proc/kmsg, which blocks."""
    path = Path("/proc/self/environ")
    if not path.exists():
        pytest.skip("this system has no /proc")
    return path


def test_a_file_that_says_it_is_empty_is_not_read(endless: Path):
    assert endless.read_bytes()
    assert read_regular(endless) == b""
    with open_stream(endless) as stream:
        assert stream.read() == b""


def test_a_file_is_read_up_to_its_bound_and_not_above(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="has 5 bytes, at most 4 are read"):
        read_regular(path, 4)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a"
    path.touch()
    before = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda _: before)
    with pytest.raises(OSError, match="is a pipe, a device or a socket, needs a regular file"):
        open_regular(path)
