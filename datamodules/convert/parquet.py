"""Rows of parquet files with pictures inside, as the Hugging Face hub stores data sets.

pyarrow is needed for nothing else, so it is an extra and imported when a parquet file is met. Row
groups are read in batches, and columns of pictures nobody asks for are never read. Memory holds a
batch of each column and the page it is from, which pyarrow reads as a whole: up to 1024 rows, but
no more than a row group, of which the hub's files of pictures have 100. (A memory map would hold
less; but a file that is cut or a network disk that fails would then kill the process.)
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from datamodules.convert.picture import MissingPictureError, Picture
from emu_edit.errors import InputError
from emu_edit.files import open_regular

PICTURE_ROWS = 16  # rows of a column of pictures that are taken from a page at a time
TEXT_ROWS = 1024  # rows of the other columns
_BUFFER = 2**20  # bytes read at once; without it pyarrow reads a group's column besides its page


class PictureColumn:
    """A column of pictures, structs of `bytes` and `path`, or bytes; remembers the last batch."""

    def __init__(self, file: Any, column: str) -> None:
        self.file = file
        self.column = column
        self._group = -1
        self._start = 0
        self._batch: Any = None
        self._batches: Iterator[Any] = iter(())

    @property
    def rows_held(self) -> int:
        """The number of rows in memory."""
        return 0 if self._batch is None else len(self._batch)

    def fetch(self, where: str, group: int, row: int) -> bytes:
        """Return the bytes of one picture; rows in order cost one pass over the column.

        Raises:
            MissingPictureError: if the cell is empty; starting with `where`.
            InputError: if the row group is damaged, or the cell is no picture.
        """
        if group != self._group or row < self._start:
            self._go_to(group)
        while row >= self._start + self.rows_held:
            self._advance(where)
        cell = self._batch.column(0)[row - self._start].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            raise MissingPictureError(
                f"{where} has no picture in {self.column}, needs a struct with its bytes; download "
                "the file again"
            )
        if not isinstance(data, bytes):
            raise InputError(f"{where}: {self.column} holds {type(data).__name__}, needs a picture")
        return data

    def _go_to(self, group: int) -> None:
        self._group, self._start, self._batch = group, 0, None
        self._batches = self.file.iter_batches(
            batch_size=PICTURE_ROWS, row_groups=[group], columns=[self.column]
        )

    def _advance(self, where: str) -> None:
        start = self._start + self.rows_held
        self._batch = None  # let go before the next is read
        try:
            with _damage(where):
                batch = next(self._batches, None)
                if batch is None:
                    raise ValueError(f"{self.column} ends before row {start} of its group")
                self._batch, self._start = batch, start
        except InputError:
            self._group = -1  # what is behind the damage is to be found anew
            raise


def read_columns(path: Path, name: str) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        InputError: if pyarrow is missing or the file is damaged.
    """
    with _open(path, name) as file:
        return list(file.schema_arrow.names)


def read_parquet(
    path: Path,
    name: str,
    images: Sequence[str],
    check_columns: Callable[[list[str], str], None],
) -> Iterator[tuple[int, dict[str, object], dict[str, Picture]]]:
    """Yield each row's number, its fields without pictures, and its pictures, not yet read.

    Args:
        path: the file.
        name: what to call it; unique, as rows are known by their places.
        images: the columns of the pictures that are meant; those the file lacks are not yielded,
            and one that holds texts is a field.
        check_columns: refuses a table that is another.

    Raises:
        InputError: if pyarrow is missing, the file is damaged or not UTF-8, or `check_columns` says
            so.
    """
    with _open(path, name) as file:
        names = list(file.schema_arrow.names)
        check_columns(names, name)
        heavy = {column for column in names if _is_heavy(file, column)}
        columns = {column: PictureColumn(file, column) for column in images if column in heavy}
        plain = [column for column in names if column not in heavy]
        count = 0
        for group in range(file.num_row_groups):
            for row, fields in enumerate(_rows(file, group, plain, name, count)):
                where = f"{name}, row {count}"
                pictures = {
                    column: Picture(where, partial(cells.fetch, where, group, row))
                    for column, cells in columns.items()
                }
                yield count, fields, pictures
                count += 1


def _is_heavy(file: Any, column: str) -> bool:
    """Say whether a column may hold pictures: structs with `bytes`, bytes, or lists of them."""
    types = import_module("pyarrow.types")
    kind = file.schema_arrow.field(column).type
    while types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def _rows(
    file: Any, group: int, columns: list[str], name: str, start: int
) -> Iterator[dict[str, object]]:
    if not columns:
        yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
        return
    batches = file.iter_batches(batch_size=TEXT_ROWS, row_groups=[group], columns=columns)
    while True:
        with _damage(name):
            batch = next(batches, None)
        if batch is None:
            return
        yield from _fields(batch, name, start)
        start += len(batch)


def _fields(batch: Any, name: str, start: int) -> list[dict[str, object]]:
    """Return a batch's rows; of a text that is not UTF-8, say in which row and column it is."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            for column in batch.schema.names:
                try:
                    batch.column(column)[row].as_py()
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{name}, row {start + row}: {column} is not UTF-8 text ({error.reason}); "
                        "download the file again"
                    ) from error
        raise


@contextmanager
def _open(path: Path, name: str) -> Iterator[Any]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{name} is a parquet file, which needs pyarrow; pip install pyarrow, or export "
            "the data set as metadata.jsonl with pictures"
        ) from error
    with _damage(name):
        os.close(open_regular(path))  # pyarrow would wait for a pipe
        file = parquet.ParquetFile(path, buffer_size=_BUFFER)
    yield file


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
