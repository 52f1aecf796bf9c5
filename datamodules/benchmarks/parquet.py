"""Rows of parquet files with pictures inside, as the Hugging Face hub stores data sets.

pyarrow is needed for nothing else, so it is an extra and imported when a parquet file is met. The
pictures of one row group at a time are in memory.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

from datamodules.benchmarks.items import Picture
from emu_edit.errors import InputError

IMAGE = "image"  # a struct of `bytes` and `path`


class PictureColumn:
    """The picture column of a parquet file; remembers the row group that was read last."""

    def __init__(self, path: Path, parquet: ModuleType) -> None:
        self.path = path
        self.file = parquet.ParquetFile(path)
        self.group: tuple[int, list[dict[str, bytes] | None]] | None = None

    def fetch(self, group: int, row: int) -> bytes:
        """Return the bytes of one picture.

        Raises:
            InputError: if the row has none.
        """
        if self.group is None or self.group[0] != group:
            column = self.file.read_row_group(group, columns=[IMAGE]).column(IMAGE)
            self.group = (group, column.to_pylist())
        cell = self.group[1][row]
        data = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(data, bytes):
            raise InputError(
                f"{self.path.name}: row {row} of row group {group} has no picture inside, needs "
                "a struct with its bytes; download the file again"
            )
        return data


def read_parquet(
    path: Path, check_columns: Callable[[list[str], str], None]
) -> Iterator[tuple[str, dict[str, object], Picture]]:
    """Yield each row's place, its fields without the picture, and the picture, not yet read.

    Raises:
        InputError: if pyarrow is missing, the file is damaged, or `check_columns` says so.
    """
    parquet = _pyarrow(path)
    try:
        pictures = PictureColumn(path, parquet)
        names = list(pictures.file.schema_arrow.names)
        check_columns(names, path.name)
        count = 0
        for group in range(pictures.file.num_row_groups):
            plain = [name for name in names if name != IMAGE]
            rows = pictures.file.read_row_group(group, columns=plain).to_pylist()
            for row, fields in enumerate(rows):
                where = f"{path.name}, row {count}"
                yield where, fields, Picture(where, partial(pictures.fetch, group, row))
                count += 1
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path.name} is a damaged parquet file ({error}); download it again"
        ) from error


def _pyarrow(path: Path) -> ModuleType:
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{path.name} is a parquet file, which needs pyarrow; pip install pyarrow, or export "
            "the data set as metadata.jsonl with pictures"
        ) from error
