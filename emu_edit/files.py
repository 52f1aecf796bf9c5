"""Files that are whole or not there, known by their hash, and opened only if they are regular.

What is written goes to a temporary name in the same folder, is flushed to the disk, and is then
renamed over the final name: a reader sees the old file or the new one, never half of one (a rename
inside one file system is atomic; `$TMPDIR` may be another one). A failed write leaves nothing.
What a user names is read through `open_regular`, `open_stream` or `read_regular`, so that no pipe
and no device is waited for.
"""

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
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


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return the descriptor, the caller's to close.

    A pipe, a device or a socket may block for ever, never end, or do something when it is opened:
    it is refused before that.

    Raises:
        OSError: if there is no such file, it cannot be read, or is not regular; its `strerror` says
            which.
    """
    _refuse_irregular(path, os.stat(path).st_mode)
    # not blocking: a pipe may have taken the file's place since
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _refuse_irregular(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_stream(path: Path) -> BufferedReader:
    """Open a regular file as a stream of bytes; raises as `open_regular`.

    A file of no bytes is an empty stream and never read: what the kernel shows under /proc calls
    itself regular and empty, and may block (/proc/kmsg) or never end.
    """
    descriptor = open_regular(path)
    if os.fstat(descriptor).st_size > 0:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return open(os.devnull, "rb")  # a stream with a descriptor, as the others


def read_regular(path: Path, most: int = 2**30) -> bytes:
    """Return what a regular file of at most `most` bytes holds.

    Raises:
        OSError: as `open_regular`, or if it has more bytes.
    """
    with open_stream(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size > most:
            raise OSError(errno.EFBIG, f"has {size} bytes, at most {most} are read", str(path))
        stream.seek(0)
        return stream.read(size)


def sha256_of(path: Path, *, from_disk: bool = False) -> str:
    """Hash a file's bytes; 64 hexadecimal digits, as the hub shows them on a file's page.

    Args:
        path: the file.
        from_disk: read what the disk holds rather than what the system remembers of it.
    """
    with open_stream(path) as stream:
        if from_disk and hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_irregular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = "folder" if stat.S_ISDIR(mode) else "pipe, a device or a socket"
        raise OSError(errno.EINVAL, f"is a {what}, needs a regular file", str(path))


def _part_of(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}.part")  # any `path.name` fits, long ones too
