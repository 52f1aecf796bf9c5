"""Whether a checkpoint still has the bytes that were written: its sidecar, and the check itself.

`NAME.ckpt.json` lies beside `NAME.ckpt` and is written after it. Neither torch nor safetensors
notices a flipped bit. A file without a sidecar (written by an older version, or whose writer was
killed between the two renames) is judged by the checksums of its zip archive.
"""

import hashlib
import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from emu_edit.errors import BrokenCheckpointError, StorageError

SUFFIX = ".json"
CHUNK = 1 << 22
ADVICE = "give a .ckpt file written by `emu-edit fit`"


@dataclass(frozen=True)
class Sidecar:
    """What is known about a checkpoint.

    Attributes:
        sha256: of the file, in hexadecimal.
        bytes: its size.
        step: optimizer steps made.
        consumed: samples trained on; None if the data module does not count them.
        world: processes that trained.
        versions: of the libraries it was written with.
    """

    sha256: str
    bytes: int
    step: int
    consumed: int | None
    world: int
    versions: dict[str, str]

    def to_json(self) -> str:
        """Return the file's content."""
        return json.dumps(asdict(self), indent=2) + "\n"


def sidecar_of(checkpoint: Path) -> Path:
    """Return where the sidecar of a checkpoint is; of a link, beside the file it points to."""
    real = checkpoint.resolve()
    return real.with_name(real.name + SUFFIX)


def read_sidecar(checkpoint: Path) -> Sidecar | None:
    """Read the sidecar of a checkpoint; None if there is none.

    Raises:
        BrokenCheckpointError: if it is not one.
    """
    path = sidecar_of(checkpoint)
    if not path.is_file():
        return None
    data = path.read_bytes()
    try:
        return Sidecar(**json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokenCheckpointError(
            f"{path} is damaged, so {checkpoint.name} cannot be verified; remove it to have the "
            "archive's own checksums used"
        ) from error


def verify(checkpoint: Path) -> None:
    """Read the whole file and compare it with what was written.

    Raises:
        BrokenCheckpointError: if it is truncated, changed, or no checkpoint at all.
        StorageError: if it cannot be read now, which says nothing about its bytes.
    """
    try:
        known = read_sidecar(checkpoint)
        if known is None:
            _verify_archive(checkpoint)
            return
        size = checkpoint.stat().st_size
        if size != known.bytes:
            raise BrokenCheckpointError(
                f"{checkpoint} is truncated or another file: it has {size} bytes, "
                f"{known.bytes} were written; {ADVICE}"
            )
        if sha256_of(checkpoint) != known.sha256:
            raise BrokenCheckpointError(
                f"{checkpoint}: sha256 mismatch, these are not the bytes that were written; "
                "go on from an older checkpoint"
            )
    except OSError as error:
        raise StorageError(f"{checkpoint} cannot be read ({error.strerror}); try again") from error


def sha256_of(path: Path) -> str:
    """Return the hash of a file in hexadecimal, read from the disk rather than from memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _verify_archive(checkpoint: Path) -> None:
    # torch also reads older formats, which are bare pickles; a cut file has lost its directory
    if not zipfile.is_zipfile(checkpoint):
        raise BrokenCheckpointError(f"{checkpoint} is truncated or not a checkpoint; {ADVICE}")
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise BrokenCheckpointError(
            f"{checkpoint} is truncated or not a checkpoint; {ADVICE}"
        ) from error
    if damaged is not None:
        raise BrokenCheckpointError(
            f"{checkpoint} is damaged in {damaged} (checksum); go on from an older checkpoint"
        )
