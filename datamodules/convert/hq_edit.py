"""HQ-Edit (`UCSC-VLAA/HQ-Edit`): each row is two edits, there and back; it names no tasks.

Columns: `input, input_image, edit, inverse_edit, output, output_image`; older revisions say
`edit_instruction` and `inverse-edit`. The inverse pair has the pictures swapped. The pictures were
drawn as the halves of one and are not aligned pixel by pixel: samples say so (`"aligned": false`),
and the set is no use for edits of a region. Source: Hui et al. 2024, arXiv:2404.09990, and the
set's card.
"""

from collections.abc import Iterator
from pathlib import Path

from datamodules.convert.pair import Converter, RawPair, Skipped
from datamodules.convert.rows import Row, Table, pairs_of, read_rows

_EDIT, _INVERSE = ("edit", "edit_instruction"), ("inverse_edit", "inverse-edit")
TABLE = Table(
    "HQ-Edit",
    needs=(("input_image",), ("output_image",), _EDIT, _INVERSE),
    pictures=("input_image", "output_image"),
)


def list_pairs(path: Path) -> Iterator[RawPair | Skipped]:
    """Yield the edit of each row and its inverse.

    Raises:
        InputError: if there is no table, or it is another's.
    """
    return pairs_of(read_rows(path, TABLE), _of_row)


CONVERTER = Converter("hq-edit", list_pairs, tasks={})


def _of_row(row: Row) -> Iterator[RawPair]:
    sides = (
        (row.picture("input_image"), row.text("input")),
        (row.picture("output_image"), row.text("output")),
    )
    ways = (("forward", _EDIT, sides), ("inverse", _INVERSE, sides[::-1]))
    for way, columns, ((source, before), (target, after)) in ways:
        yield RawPair(
            name=f"{row.where}, {way}",
            identity=f"{row.place} {way}",
            source=source,
            target=target,
            instruction=row.text(row.first(*columns)),
            source_caption=before,
            target_caption=after,
            group=row.place,
            extra={"aligned": False, "direction": way},
        )
