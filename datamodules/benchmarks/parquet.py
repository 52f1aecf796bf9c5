"""Rows of parquet files with pictures inside, as the Hugging Face hub stores data sets.

pyarrow is needed for nothing else, so it is an extra and imported when a parquet file is met. The
pictures of one row group at a time are in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from datamodules.benchmarks.items import Picture
from emu_edit.errors import InputError


class PictureColumn:
    """A column of pictures, structs of `bytes` and `path`; remembers the group read last."""

    def __init__(self, file: Any, column: str) -> None:
        self.file = file
        self.column = column
        self.group: tuple[int, list[dict[str, bytes] | None]] | None = None

    def fetch(self, where: str, group: int, row: int) -> bytes:
        """Return the bytes of one picture.

        Raises:
            InputError: if the row has none, or its row group is damaged; starting with `where`.
        """
        if self.group is None or self.group[0] != group:
            with _damage(where):
                table = self.file.read_row_group(group, columns=[self.column])
            self.group = (group, table.column(self.column).to_pylist())
        cell = self.group[1][row]
        data = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(data, bytes):
            raise InputError(
                f"{where} has no picture in {self.column}, needs a struct with its bytes; download "
                "the file again"
            )
        return data


def read_columns(path: Path, name: str) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        InputError: if pyarrow is missing or the file is damaged.
    """
    with _open(path, name) as file:
        return list(file.schema_arrow.names)


def read_parquet(
    path: Path, name: str, image: str, check_columns: Callable[[list[str], str], None]
) -> Iterator[tuple[str, dict[str, object], Picture]]:
    """Yield each row's place, its fields without pictures, and its picture, not yet read.

    Args:
        path: the file.
        name: what to call it; unique, as rows are known by their places.
        image: the column of the pictures that are meant.
        check_columns: refuses a table that is another.

    Raises:
        InputError: if pyarrow is missing, the file is damaged or not UTF-8, or `check_columns` says
            so.
    """
    with _open(path, name) as file:
        names = list(file.schema_arrow.names)
        check_columns(names, name)
        pictures = PictureColumn(file, image)
        plain = [column for column in names if column != image and not _is_struct(file, column)]
        count = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=plain)
            for row, fields in enumerate(_fields(table, name, count)):
                where = f"{name}, row {count}"
                yield where, fields, Picture(where, partial(pictures.fetch, where, group, row))
                count += 1


def _is_struct(file: Any, column: str) -> bool:
    """Say whether a column holds structs, as all columns of pictures do."""
    return file.schema_arrow.field(column).type.num_fields > 0


def _fields(table: Any, name: str, start: int) -> list[dict[str, object]]:
    """Return a row group's rows.

    Raises:
        InputError: if a text is not UTF-8, with its row and column.
    """
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        for row in range(table.num_rows):
            for column in table.column_names:
                try:
                    table.column(column)[row].as_py()
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{name}, row {start + row}: {column} is not UTF-8 text ({error.reason}); "
                        "download the file again"
                    ) from error
        raise


@contextmanager
def _open(path: Path, name: str) -> Iterator[Any]:
    parquet = _pyarrow(name)
    with _damage(name):
        yield parquet.ParquetFile(path)


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file into one line."""
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        if isinstance(error, InputError):
            raise
        why = " ".join(str(error).split())
        raise InputError(
            f"{where}: the parquet file is damaged ({why}); download it again"
        ) from error


def _pyarrow(name: str) -> ModuleType:
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{name} is a parquet file, which needs pyarrow; pip install pyarrow, or export "
            "the data set as metadata.jsonl with pictures"
        ) from error
