"""The download cache: shards from elsewhere on a local disk, of bounded size, shared by processes.

A shard lies under its own hash, `<folder>/<sha256>/<name>.tar`, so that two addresses of one shard
share it and a replaced shard is another one. It gets its name only when it is complete; until then
it is `.part-<host>-<pid>`, which no reader opens and the next process removes. A lock file for each
shard lets one process download while the others wait. Whoever reads a shard holds a shared lock on
the open file itself, which ends with the process however it ends; a shard with such a lock is never
removed. Locks of files need a disk of this machine, not one that is shared over a network.
"""

import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from datamodules.shards.folder import CacheFullError
from datamodules.shards.index import index_path
from datamodules.shards.manifest import ShardEntry
from emu_edit.errors import InputError, StorageError

GIB = 2**30
LOCKS = ".locks"
PARTS = ".part-*"  # downloads under way
OWN = ("*.tar", "*.idx.npy", ".*.part", PARTS)  # what may be removed; `.*.part` is an index's
SHA256 = re.compile(r"[0-9a-f]{64}")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Kept:
    """One shard in the cache: its folder, the bytes it takes, when it was last opened."""

    folder: Path
    bytes: int
    is_complete: bool
    opened: float


@dataclass(frozen=True)
class ShardCache:
    """A folder of downloaded shards; the least recently opened make room for others.

    Args:
        folder: on a disk of this machine; made when it is missing.
        max_bytes: what shards, their indices and unfinished downloads may take together.
        patience: seconds to wait for another process that is downloading the shard.
    """

    folder: Path
    max_bytes: int
    patience: float

    def place(self, entry: ShardEntry) -> Path:
        """Return where a shard lies when it is there."""
        return self.folder / entry.sha256 / entry.file

    def has(self, entry: ShardEntry) -> bool:
        """Tell whether a shard is there, complete."""
        try:
            return self.place(entry).stat().st_size == entry.bytes
        except OSError:
            return False

    def mark(self, entry: ShardEntry) -> None:
        """Let a shard count as opened now, so that others are removed before it."""
        with suppress(OSError):  # removed at this moment
            os.utime(self.place(entry))

    def refuse_too_large(self, entry: ShardEntry) -> None:
        """Refuse a shard for which the cache has no room even when empty."""
        if entry.bytes > self.max_bytes:
            raise InputError(
                f"data.cache.max_gb={self.max_bytes / GIB:g} is too small for {entry.file} of "
                f"{entry.bytes / GIB:.3g} GB; raise it"
            )

    @contextmanager
    def opened(self, entry: ShardEntry, make: Callable[[Path], None]) -> Iterator[int]:
        """Hold the shard's lock, provide it, and give its file descriptor with the reader's lock.

        The descriptor is closed if the block raises; otherwise it is the caller's.

        Args:
            entry: the shard.
            make: writes the shard into the (sparse, already as long) file it is given, or raises.

        Raises:
            StorageError: if the folder cannot be used, has no room, or the lock is not let go.
        """
        with self._disk_errors(), self._locked(entry):
            if not self.has(entry):
                self._make(entry, make)
            path = self.place(entry)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                # never waits: who wants it exclusively holds the shard's lock file, too
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                os.utime(path)
                yield descriptor
            except BaseException:
                os.close(descriptor)
                raise

    def sweep(self) -> None:
        """Remove what processes left behind that were killed while downloading."""
        with self._disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for kept in self._contents():
                if not kept.is_complete:
                    self._remove(kept.folder)

    def _make(self, entry: ShardEntry, make: Callable[[Path], None]) -> None:
        path = self.place(entry)
        with suppress(FileNotFoundError):  # of another size, or of a process that was killed
            for file in [path, index_path(path), *path.parent.glob(PARTS)]:
                file.unlink(missing_ok=True)
        part = path.with_name(f"{PARTS[:-1]}{socket.gethostname()}-{os.getpid()}")
        try:
            self._reserve(entry, part)
            make(part)
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, entry: ShardEntry, part: Path) -> None:
        """Make room and mark it as taken by a sparse file of the shard's length."""
        self.refuse_too_large(entry)
        with FileLock(self.folder / LOCKS / "room", timeout=self.patience):
            contents = sorted(self._contents(), key=lambda kept: (kept.is_complete, kept.opened))
            taken = sum(kept.bytes for kept in contents)
            for kept in contents:
                if taken + entry.bytes <= self.max_bytes:
                    break
                if self._remove(kept.folder):
                    taken -= kept.bytes
                    logger.debug("removed %s from the cache", kept.folder)
            if taken + entry.bytes > self.max_bytes:
                raise CacheFullError(
                    f"{self.folder} has no room for {entry.file}: shards of {taken / GIB:.3g} GB "
                    f"are being read, data.cache.max_gb is {self.max_bytes / GIB:g}; raise it"
                )
            part.parent.mkdir(exist_ok=True)
            with part.open("wb") as stream:
                stream.truncate(entry.bytes)

    def _contents(self) -> Iterator[_Kept]:
        for folder in self.folder.iterdir():
            if not SHA256.fullmatch(folder.name):  # somebody else's: not counted, not touched
                continue
            try:
                found = [(file.name, file.stat()) for file in folder.iterdir()]
            except OSError:  # another process is removing it
                continue
            complete = [stat.st_mtime for name, stat in found if name.endswith(".tar")]
            size = sum(stat.st_size for _, stat in found)
            yield _Kept(folder, size, bool(complete), max(complete, default=0.0))

    def _remove(self, folder: Path) -> bool:
        """Remove a shard unless somebody downloads, opens or reads it."""
        try:
            with FileLock(self._lock_file(folder.name), timeout=0):
                for shard in folder.glob("*.tar"):
                    descriptor = os.open(shard, os.O_RDONLY)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    finally:
                        os.close(descriptor)
                for kind in OWN:
                    for file in folder.glob(kind):
                        file.unlink(missing_ok=True)
                folder.rmdir()
        except (Timeout, BlockingIOError, FileNotFoundError):
            return False
        return True

    @contextmanager
    def _locked(self, entry: ShardEntry) -> Iterator[None]:
        (self.folder / LOCKS).mkdir(parents=True, exist_ok=True, mode=0o700)
        start = time.monotonic()
        lock = FileLock(self._lock_file(entry.sha256), timeout=self.patience)
        try:
            lock.acquire()
        except Timeout:
            raise StorageError(
                f"{self.place(entry)}: another process has held the lock for "
                f"{time.monotonic() - start:.0f} s; see what it does, or end it"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _lock_file(self, sha256: str) -> Path:
        return self.folder / LOCKS / sha256

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StorageError(
                f"{self.folder} cannot keep shards ({reason}); give data.cache.folder a folder "
                "with room that can be written"
            ) from error
