"""A folder of shards as the reader sees it, wherever it lies.

`LocalFolder` is read in place. `datamodules.remote.folder` has the one that is fetched, and
`open_folder`, which tells them apart.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.shards.index import Index, load_index
from datamodules.shards.manifest import MAKE_AGAIN, Manifest, ShardEntry, verify_hash
from emu_edit.errors import ShardError, StorageError
from emu_edit.files import open_regular, read_regular

MAX_FILE_BYTES = 64 * 2**20  # of a small file beside the shards


class ShardFolder(ABC):
    """Shards and their manifest; copies in other processes keep working. `str` is its `name`."""

    manifest: Manifest

    def __str__(self) -> str:
        return self.name

    @property
    @abstractmethod
    def name(self) -> str:
        """The folder as people may see it: no passwords, no tokens."""

    @property
    def retries(self) -> int:
        """The attempts that failed and were made again, in all processes with a copy of this."""
        return 0

    @abstractmethod
    def path(self, entry: ShardEntry) -> Path:
        """Return a shard as a file, fetched if needed.

        A fetched file that nobody has opened may be removed again: see `open`.
        """

    @abstractmethod
    def open(self, entry: ShardEntry) -> int:
        """Open a shard and return the file descriptor, the caller's to close.

        While it is open the shard and its index stay.
        """

    @abstractmethod
    def index(self, entry: ShardEntry) -> Index:
        """Return where the members of a shard lie."""

    @abstractmethod
    def verify_hashes(self) -> None:
        """Compare the shards' hashes with the manifest, unless that was done when they came."""

    @abstractmethod
    def read_file(self, name: str) -> bytes:
        """Return another small file of the folder; the manifest does not vouch for it."""


@dataclass(frozen=True)
class LocalFolder(ShardFolder):
    """A folder read in place: nothing is copied or locked."""

    root: Path
    manifest: Manifest = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The path."""
        return str(self.root)

    def path(self, entry: ShardEntry) -> Path:
        """Return where the shard lies."""
        return self.root / entry.file

    def open(self, entry: ShardEntry) -> int:
        """Open the shard."""
        return open_descriptor(self.path(entry))

    def index(self, entry: ShardEntry) -> Index:
        """Read the index that lies beside the shard."""
        return load_index(self.path(entry), entry)

    def verify_hashes(self) -> None:
        """Read all shards once."""
        for entry in self.manifest.entries:
            verify_hash(self.path(entry), entry)

    def read_file(self, name: str) -> bytes:
        """Read a file of the folder."""
        try:
            return read_regular(self.root / name, MAX_FILE_BYTES)
        except OSError as error:
            reason = f"{self.root / name} cannot be read ({error.strerror})"
            raise ShardError(f"{reason}; {MAKE_AGAIN}") from error


def open_descriptor(path: Path) -> int:
    """Open a shard for reading."""
    try:
        return open_regular(path)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error


class CacheFullError(StorageError):
    """Everything in the download cache is being read, so nothing can make room."""
