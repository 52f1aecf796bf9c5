"""Rows of the tables public sets are released as: parquet with pictures inside, or JSON lines.

One file or a folder of them is read in the order of the names, a batch of rows at a time. In JSON
lines, and in parquet columns of text, a picture is the name of a file beside the table. A `Table`
says which column holds what, so that a converter of a set whose rows are pairs is little more.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from datamodules.convert.pair import (
    RawPair,
    Reason,
    RefusedPairError,
    SkippedPair,
    check_name,
)
from datamodules.convert.parquet import read_parquet
from datamodules.convert.picture import MissingPictureError, Picture
from datamodules.listing import decode_text, list_files, read_table
from datamodules.shards.evaluation_only import refuse_columns, refuse_name
from emu_edit.errors import InputError
from emu_edit.files import read_regular

SUFFIXES = (".parquet", ".jsonl")
_HELD_OUT = {"dev", "val", "valid", "validation", "test"}  # names of tables not for training
T = TypeVar("T", list, dict)


@dataclass(frozen=True)
class Table:
    """The columns of a data set's tables; names that changed with time stand side by side.

    Attributes:
        what: the data set, for messages.
        source: the picture before.
        target: the picture after.
        instruction: the text.
        task: the edit's type in the set's words, "" where it has none.
        captions: what source and target show, "" where it does not say.
        scores: of the pair's quality.
        extra: what else travels with the sample, where a row has it.
        needs: other columns that have to be there.
        pictures: other columns that may hold pictures.
    """

    what: str
    source: tuple[str, ...]
    target: tuple[str, ...] = ()
    instruction: tuple[str, ...] = ()
    task: str = ""
    captions: tuple[str, str] = ("", "")
    scores: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    pictures: tuple[str, ...] = ()

    def check(self, columns: Sequence[str], where: str) -> None:
        """Refuse a table that is another's."""
        refuse_columns(columns, where)
        needs = (self.source, self.target, self.instruction, *self.needs)
        missing = [" or ".join(n) for n in needs if n and not set(n) & set(columns)]
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
        file: the table; files that the row names lie beside it.
    """

    where: str
    place: str
    fields: Mapping[str, object]
    pictures: Mapping[str, Picture]
    file: Path

    def has(self, column: str) -> bool:
        """Tell whether the row has such a column with something in it."""
        return column in self.pictures or self.fields.get(column) is not None

    def first(self, columns: Sequence[str]) -> str:
        """Return the first of the columns that is there, else the last."""
        return next((column for column in columns if self.has(column)), columns[-1])

    def text(self, column: str) -> str:
        """Return a text, "" for an empty cell; refuse the pair if it is something else."""
        value = self.fields.get(column)
        if value is not None and not isinstance(value, str):
            detail = f"{self.where}: {column} is {type(value).__name__}, needs text"
            raise RefusedPairError(Reason.bad_line, detail)
        return value or ""

    def texts(self, column: str) -> list[str]:
        """Return a list of texts, empty for an empty cell; refuse the pair if it is no list."""
        value = self.fields.get(column)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            detail = f"{self.where}: {column} is {value!r:.60}, needs a list of texts"
            raise RefusedPairError(Reason.bad_line, detail)
        return value

    def picture(self, column: str) -> Picture:
        """Return a picture; one that is not there says so when it is fetched."""
        if column in self.pictures:
            return self.pictures[column]
        name = self.text(column)
        if not name:
            return _missing(f"{self.where}: {column} is empty")
        check_name(name, f"{self.where}: {column}")
        return Picture.named(self.file.parent, name)

    def pair(self, table: Table, instruction: str | None = None) -> RawPair:
        """Return the pair of the row as the table's columns say."""
        if instruction is None:
            instruction = self.text(self.first(table.instruction))
        return RawPair(
            name=self.where,
            identity=self.place,
            source=self.picture(self.first(table.source)),
            target=self.picture(self.first(table.target)),
            instruction=instruction,
            raw_task=self.text(table.task),
            source_caption=self.text(table.captions[0]),
            target_caption=self.text(table.captions[1]),
            scores={s: finite(self.fields[s]) for s in table.scores if s in self.fields},
            extra={name: self.fields[name] for name in table.extra if self.has(name)},
        )


def list_rows(
    table: Table,
    pairs_of_row: Callable[[Row], Iterable[RawPair | SkippedPair]],
    *,
    is_parted: bool = False,
) -> Callable[[Path], Iterator[RawPair | SkippedPair]]:
    """Return the lister of a set whose rows are pairs.

    Args:
        table: its columns.
        pairs_of_row: the pairs of a row.
        is_parted: the set has validation tables, which are left out of a folder that has others.
    """

    def list_pairs(path: Path) -> Iterator[RawPair | SkippedPair]:
        held_out = held_out_tables(path, table.what) if is_parted else []
        yield from left_out(held_out)
        rows = read_rows(path, table, is_wanted=lambda file: file not in held_out)
        yield from pairs_of(rows, pairs_of_row)

    return list_pairs


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
        yield from rows_of(file, name, table)


def rows_of(file: Path, name: str, table: Table) -> Iterator[Row]:
    """Yield the rows of one file, .parquet, .jsonl or .csv; `name` is its place in the set."""
    if file.suffix.lower() == ".parquet":
        images = (*table.source, *table.target, *table.pictures)
        for number, fields, pictures in read_parquet(file, name, images, table.check):
            yield Row(f"{name}, row {number}", f"{name} {number}", fields, pictures, file)
        return
    is_checked = False
    for number, fields in read_table(file, name):
        where = f"{name}:{number}"
        if not is_checked:
            table.check(list(fields), where)
            is_checked = True
        yield Row(where, where, fields, {}, file)


def pairs_of(
    rows: Iterable[Row], make: Callable[[Row], Iterable[RawPair | SkippedPair]]
) -> Iterator[RawPair | SkippedPair]:
    """Yield what `make` makes of each row; a row that it refuses is left out with its reason."""
    for row in rows:
        try:
            made = list(make(row))
        except RefusedPairError as error:
            yield SkippedPair(row.where, error.reason, str(error))
        else:
            yield from made


def find_tables(path: Path, what: str) -> list[Path]:
    """Return the tables of a file or a folder, in the order of their names.

    Raises:
        InputError: if there are none, or files of both kinds, which would be the same data twice.
    """
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return [path]
    below = list_files(path) if path.is_dir() else ()
    files = [file for file in below if file.suffix.lower() in SUFFIXES]
    kinds = sorted({file.suffix.lower() for file in files})
    if not files:
        raise InputError(f"{path}: has no {' or '.join(SUFFIXES)} files; give a copy of {what}")
    if len(kinds) > 1:
        raise InputError(
            f"{path}: has both {' and '.join(kinds)} files, which would be the same pairs twice; "
            "give the files or the folder of one kind"
        )
    return files


def held_out_tables(path: Path, what: str) -> list[Path]:
    """Return the validation tables of a folder, none of a folder that has no others.

    A hub data set is one folder with `data/train-00000-of-…` and `data/validation-…` or
    `data/dev-…`; in the hub's own copies as parquet the split is a folder,
    `default/validation/0000.parquet`.
    """

    def is_held_out(file: Path) -> bool:
        inside = file.relative_to(path)
        names = (*inside.parts[:-1], inside.stem.split("-")[0])
        return any(name.lower() in _HELD_OUT for name in names)

    files = find_tables(path, what)
    held_out = [file for file in files if is_held_out(file)]
    return held_out if len(held_out) < len(files) else []


def left_out(files: Iterable[Path]) -> Iterator[SkippedPair]:
    """Say of each table that it was not converted, and how it would be."""
    for file in files:
        detail = f"{file}: a validation split; to convert it, give the file itself as SRC"
        yield SkippedPair(file.name, Reason.validation_table, detail)


def read_json(path: Path, kind: type[T], needed: str) -> T:
    """Read a JSON file of a data set.

    Raises:
        InputError: if it is not JSON or holds something else than `kind`, in words `needed`.
    """
    try:
        values = json.loads(decode_text(read_regular(path), str(path)))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); download it again") from error
    if not isinstance(values, kind):
        raise InputError(f"{path}: holds {type(values).__name__}, needs {needed}")
    return values


def finite(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _missing(what: str) -> Picture:
    def fetch() -> bytes:
        raise MissingPictureError(what)

    return Picture(what, fetch)
