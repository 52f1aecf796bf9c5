"""Pictures with a table: `metadata.jsonl`, `.csv` or `.parquet`, whose columns the user names.

Hugging Face's imagefolder with several pictures a row: `file_name` and `edited_file_name`, say, are
names of files beside the table, and the instruction is a column, too. A table of any other name
(JSON lines, CSV, or the hub's parquet with pictures inside) is read when it is given itself.
Source: the documentation of the datasets library, "Create an image dataset".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from datamodules.convert.pair import (
    Converter,
    FieldMap,
    RawPair,
    SkippedPair,
    white_mask,
)
from datamodules.convert.parquet import read_columns
from datamodules.convert.report import unnamed_in
from datamodules.convert.rows import Row, Table, pairs_of, rows_of
from datamodules.listing import find_file, list_files, read_table, same_form
from datamodules.shards.evaluation_only import refuse_columns, refuse_name
from emu_edit.errors import InputError
from emu_edit.pictures import EXTENSIONS

STEM = "metadata"
SUFFIXES = (".jsonl", ".csv", ".parquet")
_ASK = "say which is what: --source COLUMN --target COLUMN --instruction COLUMN"


@dataclass(frozen=True)
class _Columns(Table):
    """The columns that the user named; a table without one of them says which it has."""

    def check(self, columns: Sequence[str], where: str) -> None:
        refuse_columns(columns, where)
        wanted = [*self.source, *self.target, *self.instruction, *self.pictures, self.task]
        missing = [name for name in wanted if name and name not in columns]
        if missing:
            has = ", ".join(columns) or "none"
            raise InputError(f"{where}: has no column {', '.join(missing)}; it has {has}; {_ASK}")


def made_for(fields: FieldMap | None) -> Converter:
    """Return the converter of tables with these columns."""
    return Converter("imagefolder", partial(list_pairs, fields=fields), has_place=_has_place)


def list_pairs(path: Path, *, fields: FieldMap | None) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of all tables, in the order of their names.

    Raises:
        InputError: if there is no table, one cannot be read, or lacks a column: it says which it
            has.
    """
    root = path if path.is_dir() else path.parent
    named: set[int] = set()
    for file in find_tables(path):
        refuse_name(file)
        name = file.relative_to(root).as_posix()
        if fields is None:
            raise InputError(f"{name} has the columns {', '.join(_columns_of(file, name))}; {_ASK}")
        rows = rows_of(file, name, _table(fields))
        yield from pairs_of(rows, partial(_of_row, fields, named))
    if path.is_dir():
        yield from unnamed_in(path, named)


def find_tables(path: Path) -> list[Path]:
    """Return the tables of a folder, or the file itself.

    Raises:
        InputError: if there are none.
    """
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return [path]
    found = [file for file in list_files(path) if _is_table(file)] if path.is_dir() else []
    if not found:
        wanted = f"{STEM}{SUFFIXES[0]}, {SUFFIXES[1]} or {SUFFIXES[2]}"
        raise InputError(
            f"{path}: has no {wanted}, which names the pictures; or give a table itself"
        )
    return found


def _is_table(file: PurePosixPath | Path) -> bool:
    return file.stem == STEM and file.suffix.lower() in SUFFIXES


def _has_place(name: PurePosixPath) -> bool:
    return _is_table(name) or name.suffix.lower() in EXTENSIONS


def _columns_of(file: Path, name: str) -> list[str]:
    if file.suffix.lower() == ".parquet":
        return read_columns(file, name)
    return next((list(fields) for _, fields in read_table(file, name)), [])


def _table(fields: FieldMap) -> Table:
    return _Columns(
        "a table",
        source=(fields.source,),
        target=(fields.target,),
        instruction=(fields.instruction,),
        task=fields.task,
        pictures=(fields.mask,) if fields.mask else (),
    )


def _of_row(fields: FieldMap, named: set[int], row: Row) -> Iterator[RawPair]:
    for column in filter(None, (fields.source, fields.target, fields.mask)):
        name = row.fields.get(column)
        if isinstance(name, str):
            found = find_file(row.file.parent, name) or row.file.parent / name
            named.add(hash(same_form(str(found))))
    pair = row.pair(_table(fields))
    if fields.mask and row.has(fields.mask) and row.fields.get(fields.mask) != "":
        pair = replace(pair, mask=white_mask(row.picture(fields.mask), is_optional=True))
    yield pair
