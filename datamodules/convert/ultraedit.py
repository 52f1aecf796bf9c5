"""UltraEdit, free-form and region-based (`BleachNick/UltraEdit`): parquet with scores, no tasks.

Columns: `clip_sim_source, clip_sim_target, clip_sim_dir, clip_sim_image, dinov2_sim, ssim,
source_caption, target_caption, idx, edit_prompt, edit_object, source_image, edited_image,
mask_image`. Which of them are there differs: the 500k release lacks `edit_object` and `mask_image`,
free-form rows have a null mask, older JSON lines the word "NONE". A mask that is white everywhere
means no region and becomes none. Source: Zhao et al. 2024, arXiv:2407.05282, and the set's card.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from datamodules.convert.pair import Converter, Mask, RawPair, Skipped, white_mask
from datamodules.convert.rows import Row, Table, pairs_of, read_rows

TABLE = Table(
    "UltraEdit",
    needs=(("source_image",), ("edited_image",), ("edit_prompt",)),
    pictures=("source_image", "edited_image", "mask_image"),
)
_SCORES = (
    "clip_sim_source",
    "clip_sim_target",
    "clip_sim_dir",
    "clip_sim_image",
    "dinov2_sim",
    "ssim",
)


def list_pairs(path: Path) -> Iterator[RawPair | Skipped]:
    """Yield the rows.

    Raises:
        InputError: if there is no table, or it is another's.
    """
    return pairs_of(read_rows(path, TABLE), _of_row)


CONVERTER = Converter("ultraedit", list_pairs, tasks={})


def _of_row(row: Row) -> Iterator[RawPair]:
    yield RawPair(
        name=row.where,
        identity=row.place,  # idx counts within a split
        source=row.picture("source_image"),
        target=row.picture("edited_image"),
        mask=_mask(row),
        instruction=row.text("edit_prompt"),
        source_caption=row.text("source_caption"),
        target_caption=row.text("target_caption"),
        scores={name: row.number(name) for name in _SCORES if name in row.fields},
        extra={name: row.fields[name] for name in ("idx", "edit_object") if row.has(name)},
    )


def _mask(row: Row) -> Mask | None:
    named = row.fields.get("mask_image")
    if not row.has("mask_image") or (isinstance(named, str) and named.upper() in {"", "NONE"}):
        return None
    # an empty cell is no mask; a file that a line names and that is gone is a fault
    is_cell = "mask_image" in row.pictures
    return partial(_region, white_mask(row.picture("mask_image"), is_optional=is_cell))


def _region(mask: Mask, source: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "_ _"] | None:
    region = mask(source)
    return None if region is None or region.all() else region
