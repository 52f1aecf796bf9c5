"""A directory that is a model, or a part of one: its index, its JSON, and how it is replaced.

A directory appears whole or not at all: it is written under another name and renamed.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emu_edit.errors import InputError
from emu_edit.models.trust import PICKLED, read_bounded_json

INDEX = "model_index.json"  # diffusers' name; what makes a directory a model directory
TEMPORAL = "temporal"  # the folder of its temporal adapter, where it has one
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "tasks")


@contextmanager
def new_directory(path: str | Path, index: str, *, what: str) -> Iterator[Path]:
    """Yield an empty directory that appears under `path` when the block ends without an error.

    Args:
        path: the directory to make; replaced when it exists.
        index: name of the file that every directory of this kind has.
        what: name of the kind, for the message.

    Raises:
        InputError: if `path` is a file, or a directory of another kind that is not empty.
    """
    target = Path(path).expanduser().absolute()
    refuse_another_kind(target, index, what=what)
    part = target.parent / f".{target.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if not target.exists():
            part.rename(target)
            return
        old = target.parent / f".{target.name}.{os.getpid()}.old"
        target.rename(old)
        part.rename(target)
        shutil.rmtree(old)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def copy_model(source: Path, target: Path) -> None:
    """Copy a picture model's own files, byte for byte, and nothing else that lies beside them."""
    target.mkdir()
    if (source / INDEX).is_file():
        shutil.copyfile(source / INDEX, target / INDEX)
    ignore = shutil.ignore_patterns(*(f"*{suffix}" for suffix in PICKLED), "learned")
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=ignore)


def refuse_another_kind(path: Path, index: str, *, what: str) -> None:
    """Refuse to replace what `new_directory` would not replace; call it before long work.

    Raises:
        InputError: if `path` is a file, or a directory without an `index` that is not empty.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / index).is_file()):
        raise InputError(f"{path} exists and is no {what}; it is left alone, give another path")


def read_index(folder: Path) -> dict:
    """Return a model directory's `model_index.json`.

    Raises:
        InputError: if it is no model directory of this project.
    """
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} is no model directory (no {INDEX}); give one made by `export`")
    index = read_json(folder / INDEX)
    if not isinstance(index.get("_emu_edit"), dict) or not isinstance(index.get("_networks"), dict):
        raise InputError(
            f"{folder} is a diffusers model, not one of this project; `fit` on it, then `export`"
        )
    return index


def read_json(file: Path) -> dict:
    """Return the JSON object of a file that belongs to a model directory.

    Raises:
        InputError: if it cannot be read or holds something else.
    """
    value = read_bounded_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file} holds {type(value).__name__}, needs a JSON object")
    return value
