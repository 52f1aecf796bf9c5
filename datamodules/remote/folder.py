"""Open a shard folder wherever it lies: a plain path, or an address read through a download cache.

A plain folder is read in place. From an address come the manifest at each start, and each shard
whole when it is first needed; its SHA-256 is compared with the manifest's before it gets its name
in the cache, and its index is made from the verified bytes. So a folder elsewhere needs
`manifest.json` and the tars only.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock

from datamodules.remote.address import Address, parse_place
from datamodules.remote.fetch import AttemptError, RetryPolicy, fetch
from datamodules.remote.node_cache import GIB, LOCKS, ShardCache
from datamodules.shards.folder import MAX_FILE_BYTES, LocalFolder, ShardFolder
from datamodules.shards.index import Index, index_shard, load_index, save_index
from datamodules.shards.manifest import (
    MANIFEST,
    MAX_BYTES,
    Manifest,
    ShardEntry,
    parse_manifest,
    read_manifest,
)
from emu_edit.errors import InputError, ShardError

HASH_AND_INDEX = 60.0  # seconds, for a shard of many GB
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSettings:
    """Where shards of other machines are kept, and how long to try to get them.

    Args:
        folder: on a disk of this machine; by default `~/.cache/emu-edit/shards`
            (`$XDG_CACHE_HOME` is heeded).
        max_gb: GiB the folder may take; shards not opened for longest go first.
        attempts: how often a file is asked for before the run ends.
        deadline: seconds all attempts for a file may take together.
        stall: seconds a web server may send no data before the attempt counts as failed;
            connecting, redirects and headers are no data.
        insecure_http: read `http://` of other machines, too.
    """

    folder: str | None = None
    max_gb: float = 64.0
    attempts: int = 5
    deadline: float = 240.0
    stall: float = 30.0
    insecure_http: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be waited for."""
        for name in ("max_gb", "attempts", "deadline", "stall"):
            value = vars(self)[name]
            if not 0 < value < float("inf"):
                raise InputError(f"data.cache.{name}={value!r} must be above 0 and finite")

    @property
    def patience(self) -> float:
        """Seconds to wait for another process: its whole deadline, and to hash and index."""
        return self.deadline + HASH_AND_INDEX

    @property
    def place(self) -> Path:
        """The folder of the cache."""
        if self.folder is not None:
            return Path(self.folder).expanduser()
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "emu-edit" / "shards"


@dataclass(frozen=True)
class RemoteFolder(ShardFolder):
    """A folder elsewhere, its shards fetched into the download cache when they are needed."""

    address: Address
    manifest: Manifest = field(repr=False, compare=False)
    cache: ShardCache = field(compare=False)
    policy: RetryPolicy = field(compare=False)
    # in shared memory, so that what workers count is seen here
    _retries: torch.Tensor = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The address without user, password and query."""
        return self.address.shown()

    @property
    def retries(self) -> int:
        """The attempts that failed and were made again."""
        return int(self._retries)

    def path(self, entry: ShardEntry) -> Path:
        """Return a shard as a file; raises as `open`."""
        if not self.cache.has(entry):
            os.close(self.open(entry))
        return self.cache.place(entry)

    def expect(self, entry: ShardEntry) -> None:
        """Have a shard in the cache that will be opened soon; raises as `open`."""
        if self.cache.has(entry):
            self.cache.mark(entry)
        else:
            os.close(self.open(entry))

    def open(self, entry: ShardEntry) -> int:
        """Fetch the shard unless it is in the cache, and open it.

        Raises:
            StorageError: if it cannot be had or kept.
            ShardError: if it is not the shard of the manifest.
        """
        with self.cache.opened(entry, lambda part: self._download(entry, part)) as descriptor:
            self._ensure_index(entry)
        return descriptor

    def index(self, entry: ShardEntry) -> Index:
        """Return the index that was made when the shard came; open the shard first."""
        return load_index(self.cache.place(entry), entry)

    def verify_hashes(self) -> None:
        """Do nothing: shards are verified when they come."""

    def read_file(self, name: str) -> bytes:
        """Fetch a small file; it is not kept."""
        return _read_small(self.address, name, MAX_FILE_BYTES, self.policy, self._count_retry)

    def _download(self, entry: ShardEntry, part: Path) -> None:
        logger.debug("fetching %s", self.address.shown(entry.file))

        def receive(chunks: Iterator[bytes]) -> None:
            digest, size = hashlib.sha256(), 0
            with part.open("r+b") as stream:
                for chunk in chunks:
                    size += len(chunk)
                    if size > entry.bytes:
                        reason = f"is longer than the {entry.bytes} bytes of the manifest"
                        raise AttemptError(reason, is_content=True)
                    digest.update(chunk)
                    stream.write(chunk)
            if size < entry.bytes:
                raise AttemptError(f"ended after {size} of {entry.bytes} bytes")
            if digest.hexdigest() != entry.sha256:
                reason = f"has sha256 {digest.hexdigest()[:12]}..., not {entry.sha256[:12]}..."
                raise AttemptError(f"{reason} of the manifest", is_content=True)

        fetch(self.address, entry.file, receive, self.policy, self._count_retry)

    def _ensure_index(self, entry: ShardEntry) -> None:
        path = self.cache.place(entry)
        try:
            load_index(path, entry)
        except ShardError:  # not made yet, or damaged since
            try:
                save_index(path, index_shard(path, task=entry.task))
            except ShardError as error:
                raise ShardError(f"{self.address.shown(entry.file)}: {error}") from error

    def _count_retry(self, line: str) -> None:
        logger.warning("%s", line)
        with FileLock(self.cache.folder / LOCKS / "retries"):
            self._retries.add_(1)


def open_folder(place: str | Path, cache: CacheSettings | None = None) -> ShardFolder:
    """Open a folder of shards; a plain one is checked for missing shards.

    Args:
        place: a path or an address; see `parse_place`.
        cache: by default `CacheSettings()`; a plain folder has no use for it.

    Raises:
        InputError: if the place cannot be read, or the cache is too small for a shard.
        StorageError: if there is no manifest to be had there.
        ShardError: if there is no manifest in a plain folder, it is damaged, or shards are missing.
    """
    settings = CacheSettings() if cache is None else cache
    address = parse_place(place, insecure_http=settings.insecure_http)
    if isinstance(address, Path):
        return LocalFolder(address, read_manifest(address))
    policy = RetryPolicy(
        settings.attempts, settings.deadline, settings.stall, settings.insecure_http
    )
    node = ShardCache(settings.place, int(settings.max_gb * GIB), settings.patience)
    node.sweep()
    retries = torch.zeros((), dtype=torch.int64).share_memory_()
    data = _read_small(address, MANIFEST, MAX_BYTES, policy, logger.warning)
    manifest = parse_manifest(data, address.shown(MANIFEST))
    node.refuse_too_large(max(manifest.entries, key=lambda entry: entry.bytes))
    return RemoteFolder(address, manifest, node, policy, retries)


def _read_small(
    address: Address,
    name: str,
    max_bytes: int,
    policy: RetryPolicy,
    on_retry: Callable[[str], None],
) -> bytes:
    def receive(chunks: Iterator[bytes]) -> bytes:
        data = bytearray()
        for chunk in chunks:
            data += chunk
            if len(data) > max_bytes:
                raise AttemptError(f"is longer than {max_bytes} bytes", is_final=True)
        return bytes(data)

    return fetch(address, name, receive, policy, on_retry)
