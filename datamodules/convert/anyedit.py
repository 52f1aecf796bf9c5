"""AnyEdit (`Bin1117/AnyEdit`, `Bin1117/anyedit-split`): parquet, 25 edit types, captions.

    image_id, edit_instruction, edit_type, image_file, edited_file, visual_input, input, output

The authors' own JSON lines have `edit` for `edit_instruction`, and file names for pictures. Traps:
in some releases rows are misaligned, so that a target belongs to another row's source: of each file
some rows of local edits are looked at first, and a file most of whose pairs are unlike each other
is left out as a whole. The split release writes edit types without underscores, and only in the
names of its files. The `visual_*` types need a third picture, which the instruction calls [v*] and
the model is never shown. Validation tables are left out of a folder. Source: the data sets' cards;
Yu et al. 2024, arXiv:2411.15738.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from datamodules.convert.gates import Gates
from datamodules.convert.pair import (
    Converter,
    RawPair,
    Reason,
    RefusedPairError,
    SkippedPair,
    read_pair,
)
from datamodules.convert.rows import (
    Row,
    Table,
    find_tables,
    held_out_tables,
    left_out,
    pairs_of,
    read_rows,
)

TABLE = Table(
    "AnyEdit",
    source=("image_file",),
    target=("edited_file",),
    instruction=("edit_instruction", "edit"),
    captions=("input", "output"),
)
# image_field.md §5 and the examples of the authors' README. "tune_transfer" is a misspelling found
# in files ("Change the season to autumn").
TASKS: dict[str, str | None] = {
    "add": "add",
    "remove": "remove",
    "replace": "local",
    "color_alter": "local",
    "appearance_alter": "local",
    "action_change": "local",
    "material_change": "texture",
    "background_change": "background",
    "textual_change": "text",
    "tone_transfer": "global",
    "tune_transfer": "global",
    "style_change": "style",
    # none of the sixteen: geometry, numbers, riddles
    "counting": None,
    "movement": None,
    "outpaint": None,
    "resize": None,
    "rotation_change": None,
    "relation": None,
    "implicit_change": None,
    # a third picture says what to do
    "visual_bbox": None,
    "visual_depth": None,
    "visual_material_transfer": None,
    "visual_reference": None,
    "visual_scribble": None,
    "visual_segment": None,
    "visual_sketch": None,
}
PROBED = 24  # rows of a file that are looked at before it is believed
MISALIGNED = 0.5  # share of unlike pairs above which a file is not
_FEWEST = 6  # readable local edits that say something
LIKENESS = 0.15  # of the picture is left by every local edit (`gates.kept_share`)
_ALIKE = Gates(near_identical=None, blank=None, captions=False, mask_fit=False)  # likeness alone
_LOCAL = {"add", "remove", "replace", "coloralter", "appearancealter", "materialchange"}
_SEARCHED = 512  # rows, for local edits among them
_THIRD_PICTURE = re.compile(r"\[v\*?\]", re.IGNORECASE)


def list_pairs(path: Path) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of a file or folder."""
    held_out = held_out_tables(path, TABLE.what)
    yield from left_out(held_out)
    for file in find_tables(path, TABLE.what):
        if file not in held_out:
            yield from _of_file(path, file)


def _of_file(path: Path, file: Path) -> Iterator[RawPair | SkippedPair]:
    why = _misaligned(read_rows(path, TABLE, is_wanted=file.__eq__), file)
    for item in pairs_of(read_rows(path, TABLE, is_wanted=file.__eq__), _of_row):
        if why is None or isinstance(item, SkippedPair):
            yield item
        else:
            yield SkippedPair(item.name, Reason.unlike_pair, why)


def _of_row(row: Row) -> Iterator[RawPair]:
    edit_type = _type(row)
    pair = row.pair(TABLE)
    text, edited = str(pair.instruction), row.fields.get("edited object")
    if _THIRD_PICTURE.search(text) and not edit_type.startswith("visual"):
        detail = f"{row.where}: {text[:80]!r} speaks of a third picture"
        raise RefusedPairError(Reason.bad_instruction, detail)
    yield replace(
        pair,
        raw_task=edit_type,
        likeness=LIKENESS if _is_local(edit_type) else None,
        group=row.text("image_id"),
        extra={"edited_object": edited} if isinstance(edited, str) else {},
    )


def _type(row: Row) -> str:
    """Return the edit type; where there is no such column, the file's name begins with it.

    In the hub's own copies as parquet, `default/add/0000.parquet`, its folder has the name.
    """
    name = row.file.stem.split("-")[0]
    return row.text("edit_type") or (row.file.parent.name if name.isdecimal() else name)


def _is_local(edit_type: str) -> bool:
    return re.sub(r"[^a-z]", "", edit_type.lower()) in _LOCAL


def _misaligned(rows: Iterator[Row], file: Path) -> str | None:
    """Say why a file's targets belong to other rows, None if they seem to belong to theirs."""
    listed = pairs_of(islice(rows, _SEARCHED), _of_row)
    local = (item for item in listed if isinstance(item, RawPair) and _is_local(item.raw_task))
    read = unlike = 0
    for pair in islice(local, PROBED):
        try:
            record = read_pair(pair, "local")
        except RefusedPairError:  # it is judged when its turn comes
            continue
        read += 1
        try:
            _ALIKE.check_record(record, pair)
        except RefusedPairError:
            unlike += 1
    if read < _FEWEST or unlike <= MISALIGNED * read:
        return None
    return (
        f"{file.name}: rows are misaligned: {unlike} of its first {read} local edits have a target "
        "unlike their source; download another revision"
    )


CONVERTER = Converter("anyedit", list_pairs, TASKS)
