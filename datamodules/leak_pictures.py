"""The evaluation pictures a leak guard is given: read from folders, shards and parquet files.

Every picture is decoded, one at a time. One that cannot be read is an error and not skipped: what
the guard does not know, it cannot find.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from datamodules.manifest import MANIFEST, read_manifest
from datamodules.parquet import read_columns, read_parquet
from datamodules.picture import MissingPictureError, Picture
from datamodules.reader import OpenShard
from emu_edit.errors import InputError
from emu_edit.images import EXTENSIONS

_PARQUET = ".parquet"


def evaluation_pictures(
    paths: Sequence[Path], on_picture: Callable[[int], None] | None = None
) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
    """Yield the place and the pixels of every picture.

    Args:
        paths: files (pictures, parquet) and folders of them or of shards, searched to the bottom.
        on_picture: called with the number of pictures read so far.

    Raises:
        InputError: if a path is missing or holds no picture, or a picture cannot be decoded.
    """
    count = 0
    for path in paths:
        before = count
        for picture in _pictures(path):
            yield picture.where, picture.decode().permute(1, 2, 0).contiguous().numpy()
            count += 1
            if on_picture is not None:
                on_picture(count)
        if count == before:
            raise InputError(
                f"{path}: holds no pictures (looked for {', '.join(EXTENSIONS)}, {_PARQUET} and "
                f"shards); give the folder with the benchmark's pictures"
            )


def _pictures(path: Path) -> Iterator[Picture]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give the evaluation pictures' place")
    if path.is_file():
        yield from _of_file(path)
        return
    for parent, folders, files in os.walk(path):
        folders.sort()
        folder = Path(parent)
        if MANIFEST in files:
            yield from _of_shards(folder)
            folders.clear()
            continue
        for name in sorted(files):
            if Path(name).suffix.lower() in {*EXTENSIONS, _PARQUET}:
                yield from _of_file(folder / name)


def _of_file(path: Path) -> Iterator[Picture]:
    if path.suffix.lower() != _PARQUET:
        yield Picture.at(path)
        return
    columns = read_columns(path, str(path))
    for _, _, pictures in read_parquet(path, str(path), columns, lambda _columns, _where: None):
        for column, picture in pictures.items():
            try:
                data = picture.fetch()
            except MissingPictureError:  # an empty cell, or a column of something else
                continue
            yield Picture.of(data, f"{picture.where}, {column}")


def _of_shards(folder: Path) -> Iterator[Picture]:
    for entry in read_manifest(folder).entries:
        shard = OpenShard(folder / entry.file, entry)
        for sample in range(entry.samples):
            for role in ("source", "target"):
                where = f"{folder / entry.file}: {role} of {shard.key(sample)!r}"
                yield Picture.of(shard.member(sample, role) or b"", where)
