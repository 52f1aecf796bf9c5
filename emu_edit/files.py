"""Files that are whole or not there, and known by their hash.

What is written goes to a temporary name in the same folder, is flushed to the disk, and is then
renamed over the final name: a reader sees the old file or the new one, never half of one (a rename
inside one file system is atomic; `$TMPDIR` may be another one). A failed write leaves nothing.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under `path` only when the block ends without an error."""
    part = _part_of(path)
    try:
        with part.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: none of them appears before all are on the disk."""
    parts = {path: _part_of(path) for path in files}
    with ExitStack() as stack:
        for path, part in parts.items():
            stack.callback(part.unlink, missing_ok=True)
            with part.open("xb") as stream:
                stream.write(files[path])
                stream.flush()
                os.fsync(stream.fileno())
        for path, part in parts.items():
            part.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, with one line end at its end."""
    with atomic_file(path) as stream:
        stream.write(f"{text.rstrip()}\n".encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file that people can read, too."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False))


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, *, from_disk: bool = False) -> str:
    """Hash a file's bytes; 64 hexadecimal digits, as the hub shows them on a file's page.

    Args:
        path: the file.
        from_disk: read what the disk holds rather than what the system remembers of it.
    """
    with path.open("rb") as stream:
        if from_disk and hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _part_of(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}.part")  # any `path.name` fits, long ones too
