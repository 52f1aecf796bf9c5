"""The Emu Edit test set (`facebook/emu_edit_test_set`): no ground truth, tasks, two captions.

Two layouts are read: the parquet files of the hub (with pyarrow, an extra), and an export as
`metadata.jsonl` or `metadata.csv` beside the pictures, in the folder itself or in one folder per
split. Columns are those of the hub; an export names a picture's file in `file_name` (or `image`).
Source: Sheynin et al. 2023, arXiv:2311.10089, and the data set's card. `task` is an open
vocabulary: "color" and "text" were seen beside the card's seven.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datamodules.benchmarks.items import (
    SINGLE,
    Benchmark,
    BenchmarkItem,
    Picture,
    check_files,
    check_keys,
)
from datamodules.benchmarks.parquet import read_parquet
from datamodules.convert.pair import is_safe_name
from emu_edit.errors import InputError

NAME = "emu-edit"
METADATA = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("instruction", "task", "split", "idx", "input_caption", "output_caption")
FILES = ("file_name", "image")  # of an export
TEST = "test"
_UNSAFE = re.compile(r"[^A-Za-z0-9._]+")  # in the name of a file


@dataclass(frozen=True)
class Row:
    """One row of any layout: its place for messages, its fields, its picture."""

    where: str
    fields: dict[str, object]
    picture: Picture
    path: Path | None = None


def load_emu_edit(folder: Path, *, split: str | None) -> Benchmark:
    """Read the test set.

    Raises:
        InputError: if no layout fits, a column is missing, a row is malformed, pictures are
            missing, or there is no such split.
    """
    rows = list(_rows(folder))
    items = [(_text(row, "split"), _item(row)) for row in rows]
    check_keys((item for _, item in items), folder.name)
    check_files((row.path for row in rows if row.path is not None), folder.name)
    splits = list(dict.fromkeys(name for name, _ in items))
    chosen = _choose(split, splits, folder)
    wanted = tuple(item for name, item in items if name == chosen)
    return Benchmark(
        name=NAME,
        folder=folder.resolve().name,
        split=chosen,
        items=wanted,
        blocks={SINGLE: tuple(item.key for item in wanted)},
        known=frozenset(item.key for _, item in items),
    )


def _choose(split: str | None, splits: list[str], folder: Path) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    wanted = TEST if split is None else split
    if wanted not in splits:
        raise InputError(
            f"{folder.name} has no split {wanted!r}, it has {', '.join(splits)}; give --split"
        )
    return wanted


def _rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of the layout the folder has.

    Raises:
        InputError: if it has none.
    """
    tables = [
        path
        for place in (folder, *sorted(folder.iterdir()))
        if place.is_dir() and not place.name.startswith(".")
        for name in METADATA
        if (path := place / name).is_file()
    ]
    parquets = sorted(
        path
        for path in folder.rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not tables and not parquets:
        raise InputError(
            f"{folder} has no {METADATA[0]}, {METADATA[1]} or parquet files; needs a download of "
            "facebook/emu_edit_test_set or an export of it"
        )
    if not tables:
        for path in parquets:
            for where, fields, picture in read_parquet(path, check_columns):
                yield Row(where, fields, picture)
    for table in tables:
        yield from _exported(table)


def check_columns(columns: list[str], where: str) -> None:
    """Refuse a table that is not the test set's.

    Raises:
        InputError: with the columns that are missing and those that came.
    """
    if {"edited_image", "model"} <= set(columns):
        raise InputError(
            f"{where} is emu_edit_test_set_generations (Emu Edit's own results, with the names of "
            "its splits swapped), needs emu_edit_test_set"
        )
    missing = [name for name in COLUMNS if name not in columns]
    if not set(FILES) & set(columns):
        missing.append(FILES[-1])
    if missing:
        raise InputError(
            f"{where}: there is no column {', '.join(missing)}; it has {', '.join(columns)}, the "
            "Emu Edit test set has others"
        )


def _exported(table: Path) -> Iterator[Row]:
    """Yield the rows of metadata.jsonl or metadata.csv."""
    name = f"{table.parent.name}/{table.name}"
    is_checked = False
    for number, fields in _lines(table, name):
        where = f"{name}:{number}"
        if not is_checked:
            check_columns(list(fields), where)
            is_checked = True
        column = next((key for key in FILES if fields.get(key) is not None), FILES[0])
        file = fields.get(column)
        if not isinstance(file, str) or not is_safe_name(file):
            raise InputError(
                f"{where}: {column} is {file!r}, needs the name of a picture beside {table.name}"
            )
        path = table.parent / file
        yield Row(where, fields, Picture.at(path), path)
    if not is_checked:
        raise InputError(f"{name} is empty, needs a row for each edit")


def _lines(table: Path, name: str) -> Iterator[tuple[int, dict[str, object]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                for fields in reader:
                    yield reader.line_num, {str(key): value for key, value in fields.items()}
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, f"{name}:{number}")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text ({error.reason}); export it again") from error
    except csv.Error as error:
        raise InputError(f"{name} is not CSV ({error}); export it again") from error


def _object(line: str, where: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not a line of JSON ({error}); export it again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where} holds {type(fields).__name__}, needs an object in {{}}")
    return fields


def _item(row: Row) -> BenchmarkItem:
    split, index = _text(row, "split"), row.fields.get("idx")
    if isinstance(index, bool) or not str(index).isdecimal():
        raise InputError(f"{row.where}: idx is {index!r}, needs a whole number")
    # `idx` counts within a split and a task
    key = f"{split}-{_UNSAFE.sub('_', _text(row, 'task'))}-{int(str(index))}"
    return BenchmarkItem(
        key=key,
        task=_text(row, "task"),
        session=key,
        turn=1,
        instruction=_text(row, "instruction"),
        source=row.picture,
        source_caption=_text(row, "input_caption"),
        target_caption=_text(row, "output_caption"),
    )


def _text(row: Row, column: str) -> str:
    value = row.fields.get(column)
    if not isinstance(value, str):
        raise InputError(f"{row.where}: {column} is {value!r}, needs text")
    return value
