"""The validation tables some sets put beside their training tables, where a folder mixes both.

A hub data set is one folder with `data/train-00000-of-…` and `data/validation-…` or `data/dev-…`;
in the hub's own copies as parquet the split is a folder, `default/validation/0000.parquet`.
Converting the folder means its training pairs; the others are converted by giving their file.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from datamodules.convert.pair import Reason, Skipped
from datamodules.convert.rows import find_tables

_HELD_OUT = {"dev", "val", "valid", "validation", "test"}


def held_out_tables(path: Path, what: str) -> list[Path]:
    """Return the validation tables of a folder, none of a folder that has no others.

    Raises:
        InputError: if there are no tables at all.
    """
    files = find_tables(path, what)
    held_out = [file for file in files if _is_held_out(file.relative_to(path))]
    return held_out if len(held_out) < len(files) else []


def _is_held_out(file: Path) -> bool:
    names = (*file.parts[:-1], file.stem.split("-")[0])
    return any(name.lower() in _HELD_OUT for name in names)


def left_out(files: Iterable[Path]) -> Iterator[Skipped]:
    """Say of each table that it was not converted, and how it would be."""
    for file in files:
        detail = f"{file}: a validation split; to convert it, give the file itself as SRC"
        yield Skipped(file.name, Reason.validation_table, detail)
