import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from datamodules.remote import fetch as remote_fetch
from datamodules.remote import node_cache as shard_cache
from datamodules.remote.folder import CacheSettings, RemoteFolder, open_folder
from datamodules.remote.node_cache import GIB, LOCKS, ShardCache
from datamodules.shards.folder import CacheFullError
from datamodules.shards.manifest import ShardEntry, load_manifest
from emu_edit.errors import ExitStatus, InputError, StorageError
from tests.datamodules import loopback
from tests.datamodules.loopback import Site, serve
from tests.datamodules.toy_shards import make_folder

FIRST = "local-000000.tar"
SHARDS = 5


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_fetch, "FIRST_PAUSE", 0.01)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "data"
    make_folder(folder, {"local": 2 * SHARDS}, pairs_per_shard=2)
    with serve(folder) as served:
        yield served


def room_for(site: Site, shards: float) -> float:
    """Return the max_gb that holds so many of the (equally long) shards, with their indices."""
    longest = max(entry.bytes for entry in load_manifest(site.folder).entries)
    return shards * (longest + 2048) / GIB


def remote(site: Site, tmp_path: Path, *, shards: float = 100) -> RemoteFolder:
    settings = CacheSettings(
        str(tmp_path / "cache"), max_gb=room_for(site, shards), stall=5.0, deadline=20.0
    )
    folder = open_folder(site.url, settings)
    assert isinstance(folder, RemoteFolder)
    return folder


def kept(folder: RemoteFolder) -> list[str]:
    """Return the shards that are in the cache; each has its index beside it and nothing else."""
    shards = sorted(folder.cache.folder.glob("*/*.tar"))
    files = [p for p in folder.cache.folder.glob("*/*") if p.parent.name != LOCKS]
    assert len(files) == 2 * len(shards)
    return [shard.name for shard in shards]


def opened(path: Path, seconds: float) -> None:
    """Pretend that a shard was opened so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_shards_not_opened_for_longest_make_room(site: Site, tmp_path: Path):
    folder = remote(site, tmp_path, shards=3)
    entries = folder.manifest.entries
    for age, entry in zip((30, 20, 10), entries, strict=False):
        opened(folder.path(entry), age)
    os.close(folder.open(entries[0]))  # opened again: the second is now the oldest
    folder.path(entries[3])
    assert sorted(kept(folder)) == [entries[i].file for i in (0, 2, 3)]
    assert site.requests[FIRST] == 1


def test_what_is_being_read_is_never_removed(site: Site, tmp_path: Path):
    folder = remote(site, tmp_path, shards=2)
    entries = folder.manifest.entries
    descriptor = folder.open(entries[0])
    try:
        opened(folder.path(entries[0]), 1000)
        for entry in entries[1:]:
            os.close(folder.open(entry))
            assert sorted(kept(folder)) == [entries[0].file, entry.file]
        data = os.pread(descriptor, entries[0].bytes, 0)
        assert data == (site.folder / FIRST).read_bytes()
        assert len(folder.index(entries[0])) == 2
    finally:
        os.close(descriptor)
    folder.path(entries[1])
    assert FIRST not in kept(folder)


def test_a_reader_in_another_process_counts_too(site: Site, tmp_path: Path):
    folder = remote(site, tmp_path, shards=1)
    path = folder.path(folder.manifest.entries[0])
    code = (
        "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDONLY); "
        "fcntl.flock(d, fcntl.LOCK_SH); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"held\n"
        with pytest.raises(CacheFullError, match=r"has no room for local-000001\.tar: shards of"):
            folder.path(folder.manifest.entries[1])
        reader.kill()  # a lock ends with its process
    folder.path(folder.manifest.entries[1])
    assert kept(folder) == ["local-000001.tar"]


def test_a_cache_full_of_open_shards_says_which_setting_to_raise(site: Site, tmp_path: Path):
    folder = remote(site, tmp_path, shards=2)
    descriptors = [folder.open(entry) for entry in folder.manifest.entries[:2]]
    try:
        with pytest.raises(StorageError, match=r"are being read, data\.cache\.max_gb is .*; raise"):
            folder.open(folder.manifest.entries[2])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert site.requests["local-000002.tar"] == 0


def test_a_shard_larger_than_the_cache_is_refused_at_the_start(site: Site, tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.cache\.max_gb=\S+ is too small for local-00000"):
        remote(site, tmp_path, shards=0.5)


def test_a_shard_that_lost_its_end_in_the_cache_is_fetched_again(site: Site, tmp_path: Path):
    folder = remote(site, tmp_path)
    entry = folder.manifest.entries[0]
    path = folder.path(entry)
    os.truncate(path, 100)
    assert folder.path(entry).read_bytes() == (site.folder / FIRST).read_bytes()
    assert site.requests[FIRST] == 2


def test_a_missing_or_damaged_index_is_made_again_without_a_download(site: Site, tmp_path: Path):
    folder = remote(site, tmp_path)
    entry = folder.manifest.entries[0]
    index = folder.path(entry).with_suffix(".idx.npy")
    whole = index.read_bytes()
    for spoil in (index.unlink, lambda: os.truncate(index, 150)):
        spoil()
        os.close(folder.open(entry))
        assert index.read_bytes() == whole
    assert site.requests[FIRST] == 1


def test_what_is_not_the_caches_own_is_neither_counted_nor_removed(site: Site, tmp_path: Path):
    theirs = tmp_path / "cache" / "thesis" / "chapter.tex"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("x" * 10**6)
    (tmp_path / "cache" / "notes.txt").write_text("y")
    folder = remote(site, tmp_path, shards=1)
    for entry in folder.manifest.entries:
        folder.path(entry)
    assert len(list(folder.cache.folder.glob("*/*.tar"))) == 1
    assert theirs.stat().st_size == 10**6
    assert (tmp_path / "cache" / "notes.txt").exists()


def test_one_shard_under_two_names_is_kept_under_both(tmp_path: Path):
    cache = ShardCache(tmp_path, max_bytes=1000, patience=5.0)
    first = entry_of("a.tar", 100)
    for entry in (first, replace(first, file="b.tar"), first):
        with cache.opened(entry, complete) as descriptor:
            os.close(descriptor)
    assert {path.name for path in tmp_path.glob("*/*.tar")} == {"a.tar", "b.tar"}


FETCH = """
import sys
from datamodules.remote.folder import CacheSettings, open_folder
folder = open_folder(sys.argv[1], CacheSettings(sys.argv[2], stall=30.0))
for entry in folder.manifest.entries:
    folder.path(entry)
print(folder.retries)
"""


def fetching(site: Site, tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, site.url, str(tmp_path / "cache")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_of_a_node_fetch_each_shard_once(site: Site, tmp_path: Path):
    for entry in load_manifest(site.folder).entries:
        site.always[entry.file] = loopback.slow
    processes = [fetching(site, tmp_path) for _ in range(3)]
    ends = [(process.communicate()[0], process.returncode) for process in processes]
    assert ends == [("0\n", 0)] * 3
    assert site.requests.pop("manifest.json") == 3
    assert site.requests == {entry.file: 1 for entry in load_manifest(site.folder).entries}


def test_threads_of_a_process_fetch_each_shard_once(site: Site, tmp_path: Path):
    folder = remote(site, tmp_path)
    site.always[FIRST] = loopback.slow
    entry = folder.manifest.entries[0]
    threads = [threading.Thread(target=folder.path, args=(entry,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.requests[FIRST] == 1
    assert kept(folder) == [FIRST]


@pytest.mark.slow
def test_a_killed_download_leaves_no_half_shard_and_holds_nobody_up(site: Site, tmp_path: Path):
    site.plan[FIRST] = [loopback.stall]
    with fetching(site, tmp_path) as process:
        # a loaded machine takes minutes to import torch; a process that fails ends by itself
        while site.requests[FIRST] == 0 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    cache = tmp_path / "cache"
    assert [p.name.startswith(".part-") for p in cache.glob("*/*") if p.parent.name != LOCKS]
    assert not list(cache.rglob("*.tar"))
    folder = remote(site, tmp_path)
    assert kept(folder) == []  # swept at the start
    assert folder.path(folder.manifest.entries[0]).stat().st_size > 0
    assert kept(folder) == [FIRST]


def entry_of(name: str, size: int) -> ShardEntry:
    return ShardEntry("local", name, size, name[0] * 64, 1)


def complete(part: Path) -> None:
    """Leave the file as long as it is."""
    assert part.exists()


def test_room_is_reserved_while_a_download_is_under_way(tmp_path: Path):
    cache = ShardCache(tmp_path, max_bytes=1000, patience=5.0)
    inside = []

    def second(part: Path) -> None:
        part.write_bytes(b"b" * 500)

    def first(part: Path) -> None:
        assert part.stat().st_size == 600  # before a byte has come
        with pytest.raises(CacheFullError), cache.opened(entry_of("b.tar", 500), second):
            pass
        with cache.opened(entry_of("c.tar", 400), lambda p: inside.append(p.stat().st_size)) as d:
            os.close(d)

    with cache.opened(entry_of("a.tar", 600), first) as descriptor:
        os.close(descriptor)
    assert inside == [400]


def test_a_download_that_fails_gives_its_room_back(tmp_path: Path):
    cache = ShardCache(tmp_path, max_bytes=1000, patience=5.0)

    def fail(part: Path) -> None:
        raise StorageError(f"{part.name} cannot be had")

    with pytest.raises(StorageError, match="cannot be had"), cache.opened(entry_of("a", 900), fail):
        pass
    with cache.opened(entry_of("b.tar", 900), complete) as descriptor:
        os.close(descriptor)


def test_another_process_that_never_lets_go_is_named_after_a_while(tmp_path: Path):
    cache = ShardCache(tmp_path, max_bytes=1000, patience=0.1)
    entry = entry_of("a.tar", 10)
    (tmp_path / LOCKS).mkdir()
    with (
        FileLock(tmp_path / LOCKS / entry.sha256),
        pytest.raises(StorageError, match=r"a\.tar: another process has held the lock for"),
        cache.opened(entry, complete),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_a_storage_error(site: Site, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"cannot keep shards \(.*data\.cache\.folder") as caught:
        open_folder(site.url, CacheSettings(str(tmp_path / "file" / "cache")))
    assert caught.value.status == ExitStatus.storage


def test_a_full_disk_is_named_and_not_taken_for_the_network(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = remote(site, tmp_path)

    def full(descriptor: int) -> None:
        del descriptor
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot keep shards \(No space left on device\)"):
        folder.path(folder.manifest.entries[0])
    assert site.requests[FIRST] == 1
    assert kept(folder) == []


def test_the_lock_of_a_reader_is_shared(site: Site, tmp_path: Path):
    folder = remote(site, tmp_path)
    entry = folder.manifest.entries[0]
    descriptors = [folder.open(entry), folder.open(entry)]
    third = os.open(folder.path(entry), os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for descriptor in descriptors:
        os.close(descriptor)
    fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(third)


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CacheSettings().place == tmp_path / "emu-edit" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert CacheSettings().place == Path("~/.cache/emu-edit/shards").expanduser()
    assert shard_cache.GIB == 2**30
