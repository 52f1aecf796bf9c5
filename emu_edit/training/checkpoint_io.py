"""Checkpoints on disk: written whole or not at all, read without running anybody's code.

Lightning stages files in `$TMPDIR` and copies them, so a kill or a full disk can leave half a file
in place of a good one. Here the file is written beside its final place, flushed to the disk, and
renamed.
"""

import errno
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from emu_edit.errors import InputError


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a training checkpoint on the CPU; only tensors and primitives, never code.

    Raises:
        InputError: if the file is missing, truncated, not a checkpoint, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give a .ckpt file written by `emu-edit fit`")
    advice = "give a .ckpt file written by `emu-edit fit`"
    # torch also reads older formats, which are bare pickles; a cut file has lost its directory
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is truncated or not a checkpoint; {advice}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors and primitives, so it is not loaded; {advice}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(f"{path} is truncated or not a checkpoint; {advice}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} is a file of torch but not a training checkpoint; {advice}")
    return checkpoint


class DurableCheckpointIO(CheckpointIO):
    """Write checkpoints atomically, in the folder they belong to; read them with `weights_only`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object | None = None
    ) -> None:
        """Write `checkpoint` so that `path` always holds the old file or the new one.

        Also after kill -9 or a full disk.

        Raises:
            InputError: if the disk is full or the folder cannot be written; the previous file is
                kept.
        """
        if storage_options is not None:
            raise TypeError("DurableCheckpointIO writes plain files and has no storage options")
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            temporary.unlink(missing_ok=True)
            raise InputError(
                f"checkpoint {path} not written ({_reason(error)}); the previous one is kept: "
                "free space or set trainer.default_root_dir to a folder you may write"
            ) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

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
        """Delete a checkpoint; one that is gone already is fine."""
        with suppress(FileNotFoundError):
            Path(path).unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, "") + " " + os.strerror(error.errno)
    return str(error).splitlines()[0]
