"""ImgEdit (`sysuyy/ImgEdit`): parquet with names of files, pictures in unpacked archives.

    single turns   input_images: list[str], output_images: list[str], prompt
    sessions       data: list of {input_images, output_images, prompt}, one for each turn

The task is in the name of the table alone: `add_part0.parquet`, `remove_part5.parquet`. Pictures
come in pieces of archives that have to be joined and unpacked somewhere below the folder; their top
folders are not always those that the tables name (`datamodules.convert.imgedit_files`). Turns of
sessions lean on the turns before ("withdraw the previous round") and are none of our tasks, nor are
edits with several input pictures. Some prompts are wrong (issue 14 of the authors' repository),
which nothing here can see. Source: the authors' README; Ye et al. 2025, arXiv:2505.20275.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from datamodules.convert.imgedit_files import Samples, task_in
from datamodules.convert.imgedit_masks import Region
from datamodules.convert.pair import Converter, RawPair, Reason, RefusedPairError, SkippedPair
from datamodules.convert.rows import Row, Table, find_tables, pairs_of, read_rows

TABLE = Table("ImgEdit", source=("input_images", "data"))  # lists: read here, row by row
# image_field.md §5; the names are those of the tables on the hub and of the archives
TASKS: dict[str, str | None] = {
    "add": "add",
    "remove": "remove",
    "replace": "local",
    "adjust": "local",  # colour, material, look of an object
    "adjust_canny": "local",
    "alter": "local",
    "action": "local",
    "background": "background",
    "background_change": "background",
    "style": "style",
    "style_transfer": "style",
    # several edits at once, or a picture of one object alone
    "hybrid": None,
    "compose": None,
    "extract": None,
    "extract_ref": None,
    "reference_extract": None,
    # sessions
    "content_memory": None,
    "content_understanding": None,
    "version_backtracking": None,
}


def list_pairs(path: Path) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of a table or of a folder with tables and pictures."""
    samples = Samples(path if path.is_dir() else path.parent, TASKS)
    # below the folder lie millions of pictures; the hub's layout tells where the tables are
    tables = path / "Parquet" if (path / "Parquet").is_dir() else path
    for table in find_tables(tables, TABLE.what):
        yield from pairs_of(read_rows(table, TABLE), partial(_pairs, samples, table))


def _pairs(samples: Samples, table: Path, row: Row) -> Iterator[RawPair | SkippedPair]:
    if "data" not in row.fields:
        yield _turn(samples, table, row, dict(row.fields), 0)
        return
    turns = row.fields["data"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RefusedPairError(Reason.bad_line, f"{row.where}: data needs a list of turns")
    for number, fields in enumerate(turns, 1):
        try:
            yield _turn(samples, table, row, fields, number)
        except RefusedPairError as error:
            yield SkippedPair(f"{row.where}, turn {number}", error.reason, str(error))


def _turn(samples: Samples, table: Path, row: Row, fields: dict, number: int) -> RawPair:
    """Return a pair; number 0 is an edit that is no turn of a session."""
    where = f"{row.where}, turn {number}" if number else row.where
    source = _one(fields, "input_images", where, Reason.missing_source)
    target = _one(fields, "output_images", where, Reason.missing_target)
    prompt = fields.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise RefusedPairError(Reason.bad_line, f"{where}: prompt is {type(prompt).__name__}")
    session = {"session": row.place, "turn": number} if number else {}
    return RawPair(
        name=where,
        identity=f"{table.stem} {source} {target}" + (f" {number}" if number else ""),
        source=samples.picture(table, source),
        target=samples.picture(table, target),
        instruction=prompt or "",
        raw_task=task_in(table.stem),
        mask=Region(samples, table, source),
        group=row.place if number else samples.of(source),
        extra=session,
    )


def _one(fields: dict, column: str, where: str, missing: Reason) -> str:
    """Return the one file name in a list; refuse a pair that has none or more than one."""
    names = fields.get(column)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        detail = f"{where}: {column} is {type(names).__name__}, needs a list of file names"
        raise RefusedPairError(Reason.bad_line, detail)
    if not names:
        raise RefusedPairError(missing, f"{where}: {column} is empty")
    if len(names) > 1:
        detail = f"{where}: {column} names {len(names)} pictures, an edit has one"
        raise RefusedPairError(Reason.bad_line, detail)
    return names[0]


CONVERTER = Converter("imgedit", list_pairs, TASKS)
