"""Rows of a benchmark that is a table with pictures: parquet files of the hub, or an export.

An export is `metadata.jsonl` or `metadata.csv` beside the pictures, in the folder itself or in one
folder per split; a column names each picture's file. What the columns mean is not known here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.convert.pair import is_safe_name
from datamodules.convert.parquet import read_columns, read_parquet
from datamodules.convert.picture import Picture
from datamodules.evaluation_sets.items import check_text
from datamodules.listing import find_file, list_files, read_table
from emu_edit.errors import InputError

METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Row:
    """One row of any layout.

    Attributes:
        where: its place, for messages.
        fields: its values by column.
        picture: not yet read.
        path: the picture's file, None where it is in the table.
    """

    where: str
    fields: dict[str, object]
    picture: Picture
    path: Path | None = None

    def text(self, column: str) -> str:
        """Read a field that has to be text.

        Raises:
            InputError: if it is something else, or no Unicode.
        """
        value = self.fields.get(column)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: {column} is {value!r}, needs text")
        return check_text(value, f"{self.where}: {column}")


@dataclass(frozen=True)
class Layout:
    """What a benchmark's tables have, and where their pictures are.

    Attributes:
        image: the column of parquet files with the pictures inside.
        files: columns of an export that name a file; the first that has one counts.
        needs: what a folder without any table lacks, for its message.
        name: of the benchmark, for messages.
        columns: that each table needs, besides its pictures.
        foreign: columns that only another benchmark has, and what to say then.
    """

    image: str
    files: tuple[str, ...]
    needs: str
    name: str = "the benchmark"
    columns: tuple[str, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)

    def check(self, columns: list[str], where: str) -> None:
        """Refuse a table that is another benchmark's.

        Raises:
            InputError: with the columns that are missing and those that came.
        """
        for column, why in self.foreign.items():
            if column in columns:
                raise InputError(f"{where} {why}")
        missing = [name for name in self.columns if name not in columns]
        if not set(self.files) & set(columns):
            missing.append(self.image)
        if missing:
            raise InputError(
                f"{where}: there is no column {', '.join(missing)}; it has {', '.join(columns)}, "
                f"{self.name} has others"
            )


def find_tables(folder: Path) -> tuple[list[Path], list[Path]]:
    """Find a folder's exports and its parquet files."""
    exports = [
        path
        for place in (folder, *sorted(folder.iterdir()))
        if place.is_dir() and not place.name.startswith(".")
        for name in METADATA
        if (path := place / name).is_file()
    ]
    parquets = [path for path in list_files(folder) if path.suffix.lower() == ".parquet"]
    return exports, parquets


def columns_of(table: Path, folder: Path) -> list[str]:
    """Read the names of a table's columns; of an export in JSON lines those of its first row.

    Raises:
        InputError: if it cannot be read.
    """
    name = _name(table, folder)
    if table.suffix == ".parquet":
        return read_columns(table, name)
    return next((list(fields) for _, fields in read_table(table, name)), [])


def read_rows(folder: Path, layout: Layout) -> Iterator[Row]:
    """Yield the rows of all tables of a folder.

    Raises:
        InputError: if it has none, or both exports and parquet files (which would be the same
            benchmark twice), or one cannot be read or is another benchmark's.
    """
    exports, parquets = find_tables(folder)
    if not exports and not parquets:
        raise InputError(
            f"{folder} has no {METADATA[0]}, {METADATA[1]} or parquet files; needs {layout.needs}"
        )
    if exports and parquets:
        raise InputError(
            f"{folder} has both {_name(exports[0], folder)} and {_name(parquets[0], folder)}; keep "
            "the one that is meant"
        )
    for table in parquets:
        name = _name(table, folder)
        for number, fields, pictures in read_parquet(table, name, [layout.image], layout.check):
            if layout.image not in pictures:
                raise InputError(f"{name} has no pictures in {layout.image}, needs {layout.needs}")
            yield Row(f"{name}, row {number}", fields, pictures[layout.image])
    for table in exports:
        yield from _exported(table, layout)


def _name(table: Path, folder: Path) -> str:
    # with the way to it: the hub calls the files of every split 0000.parquet
    return table.relative_to(folder).as_posix()


def _exported(table: Path, layout: Layout) -> Iterator[Row]:
    """Yield the rows of metadata.jsonl or metadata.csv."""
    name = f"{table.parent.name}/{table.name}"
    is_checked = False
    for number, fields in read_table(table, name):
        where = f"{name}:{number}"
        if not is_checked:
            layout.check(list(fields), where)
            is_checked = True
        column = _file_column(fields, layout)
        file = fields.get(column)
        if not isinstance(file, str) or not is_safe_name(file):
            raise InputError(
                f"{where}: {column} is {file!r}, needs the name of a picture beside {table.name}"
            )
        path = find_file(table.parent, file) or table.parent / file
        yield Row(where, fields, Picture.at(path), path)
    if not is_checked:
        raise InputError(f"{name} is empty, needs a row for each edit")


def _file_column(fields: dict[str, object], layout: Layout) -> str:
    """Find the column that names the file; where none has a name, the first that is there."""
    columns = [column for column in layout.files if column in fields] or [*layout.files]
    return next((column for column in columns if fields.get(column) is not None), columns[0])
