"""PromptFix (`yeates/PromptfixData`): restorations of photographs, one million, 416 GB.

Columns: `input_img, processed_img, instruction, auxiliary_prompt, task_id`. Source: Yu et al. 2024,
arXiv:2405.16785, and the set's card. `auxiliary_prompt` describes what the defect hides; it travels
with the sample.

The names in `task_id` are not listed anywhere; "Deblur" is the spelling in the authors' code. The
table has the paper's tasks in the forms one may expect; a name that is not in it is told before
anything is written.
"""

from collections.abc import Iterator
from pathlib import Path

from datamodules.convert.pair import Converter, RawPair, Skipped
from datamodules.convert.rows import Row, Table, pairs_of, read_rows

TABLE = Table(
    "PromptFix",
    needs=(("input_img",), ("processed_img",), ("instruction",), ("task_id",)),
    pictures=("input_img", "processed_img"),
)

# sharpness, light and colour of a whole photograph are Emu Edit's "color", weather is its "global"
# (Table 1 of arXiv:2311.10089); what covers the picture is removed
TASKS: dict[str, str | None] = {
    **dict.fromkeys(("colorization", "colorize"), "color"),
    **dict.fromkeys(("low-light", "low-light enhancement", "lightening"), "color"),
    **dict.fromkeys(("deblur", "deblurring", "super-resolution"), "color"),
    **dict.fromkeys(("watermark", "watermark removal", "dewatermark"), "remove"),
    **dict.fromkeys(("object removal", "inpaint", "inpainting"), "remove"),
    **dict.fromkeys(("desnow", "desnowing", "snow removal"), "global"),
    **dict.fromkeys(("dehaze", "dehazing", "dehazy", "haze removal"), "global"),
}


def list_pairs(path: Path) -> Iterator[RawPair | Skipped]:
    """Yield the rows.

    Raises:
        InputError: if there is no table, or it is another's.
    """
    return pairs_of(read_rows(path, TABLE), _of_row)


CONVERTER = Converter("promptfix", list_pairs, TASKS)


def _of_row(row: Row) -> Iterator[RawPair]:
    hint = row.text("auxiliary_prompt")
    yield RawPair(
        name=row.where,
        identity=row.place,
        source=row.picture("input_img"),
        target=row.picture("processed_img"),
        instruction=row.text("instruction"),
        raw_task=row.text("task_id"),
        extra={"auxiliary_prompt": hint} if hint else {},
    )
