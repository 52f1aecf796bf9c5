"""The Emu Edit test set (`facebook/emu_edit_test_set`): no ground truth, tasks, two captions.

Two layouts are read: the parquet files of the hub (with pyarrow, an extra), and an export as
`metadata.jsonl` or `metadata.csv` beside the pictures, in the folder itself or in one folder per
split. Columns are those of the hub; an export names a picture's file in `file_name` (or `image`).
Source: Sheynin et al. 2023, arXiv:2311.10089, and the data set's card. `task` is an open
vocabulary: "color" and "text" were seen beside the card's seven.
"""

import re
from pathlib import Path

from datamodules.evaluation_sets.items import (
    SINGLE,
    Benchmark,
    BenchmarkItem,
    as_unicode,
    check_files,
    check_keys,
)
from datamodules.evaluation_sets.tables import Layout, Row, read_rows
from emu_edit.errors import InputError

NAME = "emu-edit"
EDITED = "edited_image"  # only the published results have it
LAYOUT = Layout(
    image="image",
    files=("file_name", "image"),
    needs="a download of facebook/emu_edit_test_set or an export of it",
    name="the Emu Edit test set",
    columns=("instruction", "task", "split", "idx", "input_caption", "output_caption"),
    foreign={
        EDITED: "is emu_edit_test_set_generations (Emu Edit's own results, with the names of its "
        "splits swapped), --data needs emu_edit_test_set; give its folder instead of a model to "
        "have the results scored"
    },
)
TEST = "test"
_UNSAFE = re.compile(r"[^A-Za-z0-9._]+")  # in the name of a file


def load_emu_edit(folder: Path, *, split: str | None) -> Benchmark:
    """Read the test set.

    Raises:
        InputError: if no layout fits, a column is missing, a row is malformed, pictures are
            missing, or there is no such split.
    """
    rows = list(read_rows(folder, LAYOUT))
    items = [(row.text("split"), _item(row)) for row in rows]
    check_keys((item for _, item in items), folder.name)
    check_files((row.path for row in rows if row.path is not None), folder.name)
    splits = list(dict.fromkeys(name for name, _ in items))
    chosen = _choose(split, splits, folder)
    wanted = tuple(item for name, item in items if name == chosen)
    hashes: dict[str, tuple[str, ...]] = {}  # some exports leave the column out
    for row, (_, item) in zip(rows, items, strict=True):
        value = row.fields.get("hash")
        if isinstance(value, str) and value:
            hashes[value] = (*hashes.get(value, ()), item.key)
    return Benchmark(
        name=NAME,
        folder=as_unicode(folder.resolve().name),
        split=chosen,
        items=wanted,
        blocks={SINGLE: tuple(item.key for item in wanted)},
        known=frozenset(item.key for _, item in items),
        hashes=hashes,
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


def _item(row: Row) -> BenchmarkItem:
    split, index = row.text("split"), row.fields.get("idx")
    if isinstance(index, bool) or not str(index).isdecimal():
        raise InputError(f"{row.where}: idx is {index!r}, needs a whole number")
    # `idx` counts within a split and a task
    key = f"{split}-{_UNSAFE.sub('_', row.text('task'))}-{int(str(index))}"
    return BenchmarkItem(
        key=key,
        task=row.text("task"),
        session=key,
        turn=1,
        instruction=row.text("instruction"),
        source=row.picture,
        source_caption=row.text("input_caption"),
        target_caption=row.text("output_caption"),
    )
