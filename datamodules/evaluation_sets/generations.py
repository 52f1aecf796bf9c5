"""Emu Edit's own results as they are published (`facebook/emu_edit_test_set_generations`).

The columns of the test set, `edited_image`, and `model`, in the same two layouts: parquet files, or
an export whose `edited_image` (or `edited_image_file_name`) names a file. The names of its splits
are swapped (UltraEdit issue 18), and `idx` counts within a split and a task, so a row belongs to
the edit of the same `hash`, to no other, and both must ask for the same.
"""

from pathlib import Path

from datamodules.evaluation_sets.emu_edit import EDITED
from datamodules.evaluation_sets.items import Benchmark, Picture, check_files, some
from datamodules.evaluation_sets.tables import Layout, Row, columns_of, find_tables, read_rows
from emu_edit.errors import InputError

LAYOUT = Layout(
    image=EDITED,
    files=(EDITED, f"{EDITED}_file_name"),
    needs="a download of facebook/emu_edit_test_set_generations or an export of it",
    name="emu_edit_test_set_generations",
    columns=("hash", "instruction"),
)


def holds_generations(folder: Path) -> bool:
    """Say whether a folder's tables have edited pictures; parquet files are taken for such.

    Raises:
        InputError: if a table cannot be read.
    """
    if not folder.is_dir():
        return False
    exports, parquets = find_tables(folder)
    return bool(parquets) or any(
        set(LAYOUT.files) & set(columns_of(table, folder)) for table in exports
    )


def load_generations(folder: Path, benchmark: Benchmark) -> dict[str, Picture]:
    """Read the edited pictures by the key of their edit, also those of other splits.

    Raises:
        InputError: if the tables cannot be read, lack a column or a picture, are of several models,
            or a row's hash is no edit's, several edits', or another row's, or its instruction is
            not that of its edit.
    """
    if not benchmark.hashes:
        raise InputError(
            f"{benchmark.folder} has no column hash, by which the results in {folder.name} belong "
            "to edits; export it again with all columns"
        )
    rows = list(read_rows(folder, LAYOUT))
    check_files((row.path for row in rows if row.path is not None), folder.name)
    _check_model(rows, folder)
    instructions = {item.key: item.instruction for item in benchmark.items}
    found: dict[str, Row] = {}
    unknown: list[str] = []
    for row in rows:
        key = _key(row, benchmark)
        if key is None:
            unknown.append(row.text("hash"))
            continue
        _check_instruction(row, key, instructions.get(key))
        if key in found:
            raise InputError(
                f"{row.where} has the hash {row.text('hash')} of {found[key].where}; keep one "
                "result of each edit"
            )
        found[key] = row
    if unknown:
        raise InputError(
            f"{folder} has {len(unknown)} rows of no edit of {benchmark.folder}: hash "
            f"{some(unknown)}; give --data the test set they were made from"
        )
    return {key: row.picture for key, row in found.items()}


def _check_model(rows: list[Row], folder: Path) -> None:
    models = list(dict.fromkeys(str(row.fields.get("model")) for row in rows))
    if len(models) > 1:
        raise InputError(
            f"{folder} has results of {len(models)} models ({some(models)}); keep those of one"
        )


def _key(row: Row, benchmark: Benchmark) -> str | None:
    """Find the key of the edit that a row belongs to, None if there is none; refuse several."""
    keys = benchmark.hashes.get(row.text("hash"), ())
    if len(keys) > 1:
        raise InputError(
            f"{row.where} has the hash of {len(keys)} edits of {benchmark.folder} "
            f"({some(list(keys))}); which is meant cannot be told"
        )
    return keys[0] if keys else None


def _check_instruction(row: Row, key: str, instruction: str | None) -> None:
    """Refuse a row that asks for something else than its edit; None is one of another split."""
    asked = row.text("instruction")
    if instruction is not None and asked.split() != instruction.split():
        raise InputError(
            f"{row.where} asks {asked!r:.80}, and the edit of its hash, {key}, "
            f"{instruction!r:.80}; give --data the test set they were made from"
        )
