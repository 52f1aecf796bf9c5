"""OmniEdit (`TIGER-Lab/OmniEdit-Filtered-1.2M`): parquet, any aspect ratio, seven tasks, scores.

    omni_edit_id, task, src_img, edited_img, edited_prompt_list: list[str], width, height,
    sc_score_1, sc_score_2, sc_reasoning, pq_score, pq_reasoning, o_score

Several wordings of one edit come as a list: the first is the instruction, the others travel along
as `instruction_alt`. `data/dev-*` are the set's own validation pairs: out of a folder that has
both, they are left out; give their file to convert them. Source: the data set's card; Wei et al.
2024, arXiv:2411.07199.
"""

from collections.abc import Iterator
from pathlib import Path

from datamodules.convert.heldout import held_out_tables, left_out
from datamodules.convert.pair import Converter, RawPair, Reason, RefusedPairError, Skipped
from datamodules.convert.rows import Row, Table, pairs_of, read_rows

TABLE = Table(
    "OmniEdit",
    needs=(("task",), ("src_img",), ("edited_img",), ("edited_prompt_list",)),
    pictures=("src_img", "edited_img"),
)
SCORES = ("sc_score_1", "sc_score_2", "pq_score", "o_score")
# image_field.md §5. Our "local" swaps an object or changes an attribute of it; "env" is weather,
# season, time of day.
TASKS: dict[str, str | None] = {
    "removal": "remove",
    "addition": "add",
    "swap": "local",
    "attribute_modification": "local",
    "env": "global",
    "background": "background",
    "style": "style",
}


def list_pairs(path: Path) -> Iterator[RawPair | Skipped]:
    """Yield the pairs of a file or folder.

    Raises:
        InputError: if there is no table, or one is another's.
    """
    held_out = held_out_tables(path, TABLE.what)
    yield from left_out(held_out)
    rows = read_rows(path, TABLE, is_wanted=lambda file: file not in held_out)
    yield from pairs_of(rows, _pair)


def _pair(row: Row) -> Iterator[RawPair]:
    wordings = _wordings(row)
    name = row.text("omni_edit_id")
    scores = {score: row.number(score) for score in SCORES if score in row.fields}
    yield RawPair(
        name=row.where,
        identity=name or row.place,
        source=row.picture("src_img"),
        target=row.picture("edited_img"),
        instruction=wordings[0],
        raw_task=row.text("task"),
        scores=scores,
        extra={"instruction_alt": wordings[1:]} if wordings[1:] else {},
    )


def _wordings(row: Row) -> list[str]:
    """Return the different wordings of the edit, in the set's order."""
    texts = (text.strip() for text in row.texts("edited_prompt_list"))
    wordings = list(dict.fromkeys(text for text in texts if text))
    if not wordings:
        detail = f"{row.where}: edited_prompt_list has no text"
        raise RefusedPairError(Reason.empty_instruction, detail)
    return wordings


CONVERTER = Converter("omniedit", list_pairs, TASKS)
