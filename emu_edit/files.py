"""Write a file so that a reader sees the old one or the new one, never half of one.

The data goes to a temporary name in the same folder, is flushed to the disk, and is then renamed
over the final name (a rename inside one file system is atomic; `$TMPDIR` may be another one). A
failed write leaves nothing behind.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under `path` only when the block ends without an error."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
