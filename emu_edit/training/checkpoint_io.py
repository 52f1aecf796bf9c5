"""Checkpoints on disk: written whole or not at all, read without running anybody's code.

Lightning stages files in `$TMPDIR` and copies them, so a kill or a full disk can leave half a file
in place of a good one. Here the file is written beside its final place, flushed to the disk, and
renamed. Neither torch nor safetensors notices a flipped bit, so a sidecar, `NAME.ckpt.json`, keeps
the file's hash, which is compared at every load. It is written after the checkpoint; a file without
one (of an older version, or whose writer was killed between the two renames) is judged by the
checksums of its zip archive.
"""

import errno
import hashlib
import json
import operator
import os
import pickle
import platform
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO

from emu_edit.editing.cost import stored_in
from emu_edit.errors import BrokenCheckpointError, InputError, StorageError
from emu_edit.files import read_regular, sha256_of, sync_folder
from emu_edit.training.checkpoint_parts import ADVICE, check_parts

SUFFIX = ".json"


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
    data = read_regular(path)
    try:
        known = json.loads(data)
        return Sidecar(**{**known, "step": operator.index(known["step"])})
    except (LookupError, ValueError, TypeError, RecursionError) as error:
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
        if sha256_of(checkpoint, from_disk=True) != known.sha256:
            raise BrokenCheckpointError(
                f"{checkpoint}: sha256 mismatch, these are not the bytes that were written; "
                "go on from an older checkpoint"
            )
        with _archive(checkpoint):
            pass
    except OSError as error:
        raise StorageError(f"{checkpoint} cannot be read ({error.strerror}); try again") from error


def _verify_archive(checkpoint: Path) -> None:
    # torch also reads older formats, which are bare pickles; a cut file has lost its directory
    if not zipfile.is_zipfile(checkpoint):
        raise BrokenCheckpointError(f"{checkpoint} is truncated or not a checkpoint; {ADVICE}")
    with _archive(checkpoint) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise BrokenCheckpointError(
            f"{checkpoint} is damaged in {damaged} (checksum); go on from an older checkpoint"
        )


@contextmanager
def _archive(checkpoint: Path) -> Iterator[zipfile.ZipFile]:
    """Open the zip archive that torch writes; its table bounds what reading it can cost."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > checkpoint.stat().st_size:  # torch stores, it does not compress
                raise BrokenCheckpointError(
                    f"{checkpoint} would unpack to {in_words(unpacked)}, more than the file has; "
                    f"no training writes that; {ADVICE}"
                )
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise BrokenCheckpointError(
            f"{checkpoint} is truncated or not a checkpoint; {ADVICE}"
        ) from error


HEADROOM = 1.2  # free bytes asked for, as a multiple of what will be written; ours
SMALL_PARTS = 1 << 16  # bytes of a checkpoint that are not in tensors, roughly
TEMPORARY = re.compile(r"^\.(?P<name>.+\.ckpt(\.json)?)\.(?P<pid>\d+)\.tmp$")

GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # what torch does not know, in its words


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a training checkpoint on the CPU; only tensors and primitives, never code.

    Raises:
        BrokenCheckpointError: if the file is truncated, changed, not a checkpoint, or holds code.
        InputError: if it is missing.
        StorageError: if the disk does not give it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; {ADVICE}")
    verify(path)
    try:
        checkpoint = _load(path)
    except pickle.UnpicklingError as error:
        named = GLOBAL.search(str(error))
        what = "" if named is None else f" ({named[1]})"
        raise BrokenCheckpointError(
            f"{path} holds more than tensors and primitives{what}: code, which is never loaded; "
            f"{ADVICE}"
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise BrokenCheckpointError(f"{path} is truncated or not a checkpoint; {ADVICE}") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({_reason(error)}); try again") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise BrokenCheckpointError(
            f"{path} is a file of torch but not a training checkpoint; {ADVICE}"
        )
    check_parts(checkpoint, str(path))
    return checkpoint


def _load(path: Path) -> Any:
    """Load a file; torchao says itself which of its tensors, of 8-bit optimizers, are no code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = GLOBAL.search(str(error))
        if named is None or not named[1].startswith("torchao.optim.") or not find_spec("torchao"):
            raise
        import_module("torchao.optim")
    return torch.load(path, map_location="cpu", weights_only=True)


class DurableCheckpointIO(CheckpointIO):
    """Write checkpoints atomically, in the folder they belong to; read them with `weights_only`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object | None = None
    ) -> None:
        """Write `checkpoint` so that `path` always holds the old file or the new one.

        Also after kill -9, a full disk or loss of power. The sidecar comes last.

        Raises:
            StorageError: if the disk is full or the folder cannot be written; the previous file is
                kept.
        """
        if storage_options is not None:
            raise TypeError("DurableCheckpointIO writes plain files and has no storage options")
        path = Path(path)
        sidecar = path.with_name(path.name + SUFFIX)  # also when a link is replaced
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _need_space(checkpoint, path)
            with _temporary(path) as data, _temporary(sidecar) as facts:
                sha256, size = _write(checkpoint, data)
                known = _sidecar(checkpoint, sha256, size)
                _write_text(facts, known.to_json())
                # a file without a sidecar is whole; one with that of its predecessor seems broken
                sidecar.unlink(missing_ok=True)
                data.replace(path)
                facts.replace(sidecar)
            sync_folder(path.parent)
        except OSError as error:
            raise StorageError(
                f"checkpoint {path} not written ({_reason(error)}); the previous one is kept: "
                "free space or set trainer.default_root_dir to a folder you may write"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = None,  # noqa: ARG002  Lightning moves weights itself
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint on the CPU.

        Raises:
            InputError: if it is not one.
            ValueError: if the caller asks for a load that may run code.
        """
        if weights_only is False:
            raise ValueError(
                "weights_only=False would run code stored in the checkpoint; it is not supported"
            )
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint and its sidecar; one that is gone already is fine."""
        path = Path(path)
        for file in (path, path.with_name(path.name + SUFFIX)):
            with suppress(FileNotFoundError):
                file.unlink()


def sweep(folder: Path) -> list[str]:
    """Delete what killed writers left in a folder; return the names that were being written.

    Nobody else may be writing there, as a run's lock makes sure.
    """
    found = [(path, TEMPORARY.match(path.name)) for path in sorted(folder.glob(".*.tmp"))]
    orphans = [(path, match) for path, match in found if match is not None]
    for path, _ in orphans:
        path.unlink(missing_ok=True)
    return [match["name"] for _, match in orphans if match["name"].endswith(".ckpt")]


def size_of(checkpoint: object) -> int:
    """Return how many bytes the tensors in nested dicts and lists take, shared ones once."""
    sizes: dict[int, int] = {}
    rest = [checkpoint]
    while rest:
        match rest.pop():
            case torch.Tensor() as tensor:
                for storage in (part.untyped_storage() for part in stored_in(tensor)):
                    sizes[storage.data_ptr()] = storage.nbytes()
            case dict() as entries:
                rest += entries.values()
            case list() | tuple() as entries:
                rest += entries
            case _:
                pass
    return sum(sizes.values())


def in_words(size: int | float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


class _Hashing:
    """A file that hashes what goes into it, and keeps the error torch would hide."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(data)
        size = memoryview(data).nbytes
        self.size += size
        return size

    def flush(self) -> None:
        self._file.flush()


def _write(checkpoint: dict[str, Any], path: Path) -> tuple[str, int]:
    """Write and flush; return hash and size."""
    with path.open("wb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(checkpoint, hashing)  # type: ignore[arg-type]  it calls write and flush only
        except RuntimeError as error:
            # torch goes on after a failed write, and then complains about positions
            if hashing.failure is None:
                raise
            raise hashing.failure from error
        file.flush()
        os.fsync(file.fileno())
    return hashing.digest.hexdigest(), hashing.size


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Give the name under which `path` is written, and clean up behind whatever happens."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _need_space(checkpoint: dict[str, Any], path: Path) -> None:
    need = HEADROOM * (size_of(checkpoint) + SMALL_PARTS)
    free = shutil.disk_usage(path.parent).free
    if free < need:
        step = checkpoint.get("global_step", "?")
        raise StorageError(
            f"checkpoint step {step} not written: need {in_words(need)}, free {in_words(free)} in "
            f"{path.parent}; the previous one is kept: free some space"
        )


def _sidecar(checkpoint: dict[str, Any], sha256: str, size: int) -> Sidecar:
    states = [state for state in checkpoint.values() if isinstance(state, dict)]
    consumed = [state["consumed"] for state in states if "consumed" in state]
    is_distributed = dist.is_available() and dist.is_initialized()
    return Sidecar(
        sha256=sha256,
        bytes=size,
        step=checkpoint.get("global_step", 0),
        consumed=consumed[0] if consumed else None,
        world=dist.get_world_size() if is_distributed else 1,
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "lightning": lightning.__version__,
        },
    )


def _reason(error: OSError) -> str:
    if error.errno is None:
        return str(error)
    return f"{errno.errorcode.get(error.errno, '')} {os.strerror(error.errno)}".strip()
