"""Rows of the tables public sets are released as: parquet with pictures inside, or JSON lines.

One file or a folder of them is read in the order of the names, a batch of rows at a time. In JSON
lines, and in parquet columns of text, a picture is the name of a file beside the table.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.convert.pair import RawPair, Reason, RefusedPairError, Skipped, is_safe_name
from datamodules.convert.parquet import read_parquet
from datamodules.convert.picture import MissingPictureError, Picture
from datamodules.shards.evaluation_only import refuse_columns, refuse_name
from emu_edit.errors import InputError

SUFFIXES = (".parquet", ".jsonl")


@dataclass(frozen=True)
class Table:
    """What a data set's tables have.

    Attributes:
        what: the data set, for messages.
        needs: groups of columns, old and new names of the same; of each group one has to be there.
        pictures: the columns that may hold pictures.
    """

    what: str
    needs: tuple[tuple[str, ...], ...]
    pictures: tuple[str, ...]

    def check(self, columns: Sequence[str], where: str) -> None:
        """Refuse a table that is another's.

        Raises:
            InputError: naming the columns that are missing and those that came.
        """
        refuse_columns(columns, where)
        missing = [" or ".join(names) for names in self.needs if not set(names) & set(columns)]
        if missing:
            raise InputError(
                f"{where}: a table of {self.what} has the columns {', '.join(missing)}, this one "
                f"has {', '.join(columns) or 'none'}; give the folder of {self.what}, or another "
                "KIND"
            )


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        where: its place, for messages: "train-00000.parquet, row 12", "pairs.jsonl:13".
        place: the same in the form that decides keys.
        fields: values by column, without the pictures.
        pictures: those inside the table, not yet read.
        folder: where files that the row names lie.
    """

    where: str
    place: str
    fields: Mapping[str, object]
    pictures: Mapping[str, Picture]
    folder: Path

    def has(self, column: str) -> bool:
        """Tell whether the row has such a column with something in it."""
        return column in self.pictures or self.fields.get(column) is not None

    def first(self, *columns: str) -> str:
        """Return the first of the columns that is there, else the last: names change with time."""
        return next((column for column in columns if self.has(column)), columns[-1])

    def text(self, column: str) -> str:
        """Return a text, "" for an empty cell.

        Raises:
            RefusedPairError: if it is something else.
        """
        value = self.fields.get(column)
        if value is not None and not isinstance(value, str):
            detail = f"{self.where}: {column} is {type(value).__name__}, needs text"
            raise RefusedPairError(Reason.bad_line, detail)
        return value or ""

    def texts(self, column: str) -> list[str]:
        """Return a list of texts, empty for an empty cell.

        Raises:
            RefusedPairError: if it is something else.
        """
        value = self.fields.get(column)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            detail = f"{self.where}: {column} is {value!r:.60}, needs a list of texts"
            raise RefusedPairError(Reason.bad_line, detail)
        return value

    def number(self, column: str) -> float | None:
        """Return a finite number; None for an empty cell or one that is no such number."""
        value = self.fields.get(column)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:  # an integer of hundreds of digits
            return None

    def picture(self, column: str) -> Picture:
        """Return a picture; one that is not there says so when it is fetched.

        Raises:
            RefusedPairError: if the row names a file outside its folder.
        """
        if column in self.pictures:
            return self.pictures[column]
        name = self.text(column)
        if not name:
            return _missing(f"{self.where}: {column} is empty")
        if not is_safe_name(name):
            detail = f"{self.where}: {column} {name!r} must be a relative name without '..'"
            raise RefusedPairError(Reason.unsafe_name, detail)
        return Picture.at(self.folder / name)


def read_rows(
    path: Path, table: Table, *, is_wanted: Callable[[Path], bool] = bool
) -> Iterator[Row]:
    """Yield the rows of a file or of all tables below a folder.

    Args:
        path: a .parquet or .jsonl file, or a folder with some.
        table: what the columns have to be.
        is_wanted: which files below the folder to read.

    Raises:
        InputError: if there is no table, or one is damaged or another's.
    """
    root = path if path.is_dir() else path.parent
    for file in find_tables(path, table.what):
        if not is_wanted(file):
            continue
        refuse_name(file)  # one of many sets below a folder
        name = file.relative_to(root).as_posix()
        if file.suffix == ".parquet":
            yield from _of_parquet(file, name, table)
        else:
            yield from _of_lines(file, name, table)


def pairs_of(
    rows: Iterable[Row], make: Callable[[Row], Iterable[RawPair | Skipped]]
) -> Iterator[RawPair | Skipped]:
    """Yield what `make` makes of each row; a row that it refuses is left out with its reason."""
    for row in rows:
        try:
            made = list(make(row))
        except RefusedPairError as error:
            yield Skipped(row.where, error.reason, str(error))
        else:
            yield from made


def find_tables(path: Path, what: str) -> list[Path]:
    """Return the tables of a file or a folder, in the order of their names.

    Raises:
        InputError: if there are none, or files of both kinds, which would be the same data twice.
    """
    if path.is_file() and path.suffix in SUFFIXES:
        return [path]
    files = sorted(
        file
        for suffix in SUFFIXES
        for file in (path.rglob(f"*{suffix}") if path.is_dir() else ())
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    kinds = sorted({file.suffix for file in files})
    if not files:
        raise InputError(f"{path}: has no {' or '.join(SUFFIXES)} files; give a copy of {what}")
    if len(kinds) > 1:
        raise InputError(
            f"{path}: has both {' and '.join(kinds)} files, which would be the same pairs twice; "
            "give the files or the folder of one kind"
        )
    return files


def _of_parquet(file: Path, name: str, table: Table) -> Iterator[Row]:
    for number, fields, pictures in read_parquet(file, name, table.pictures, table.check):
        place = f"{name} {number}"
        yield Row(f"{name}, row {number}", place, fields, pictures, file.parent)


def _of_lines(file: Path, name: str, table: Table) -> Iterator[Row]:
    with file.open("rb") as lines:
        is_checked = False
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            fields = _object(line, f"{name}:{number}")
            if not is_checked:
                table.check(list(fields), f"{name}:{number}")
                is_checked = True
            yield Row(f"{name}:{number}", f"{name}:{number}", fields, {}, file.parent)


def _object(line: bytes, where: str) -> dict[str, object]:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not a line of JSON ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: holds {type(fields).__name__}, needs an object in {{}}")
    return fields


def _missing(what: str) -> Picture:
    def fetch() -> bytes:
        raise MissingPictureError(what)

    return Picture(what, fetch)
