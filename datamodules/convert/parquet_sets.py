"""Public sets whose rows are pairs: UltraEdit, OmniEdit, HQ-Edit and PromptFix.

All are parquet on the hub, or JSON lines that name files. What a set calls its columns and tasks is
a table; only what is not one column, one value has code.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Bool, UInt8

from datamodules.convert.pair import (
    Converter,
    Mask,
    RawPair,
    Reason,
    RefusedPairError,
    white_mask,
)
from datamodules.convert.rows import Row, Table, list_rows

# UltraEdit, free-form and region-based (`BleachNick/UltraEdit`): scores, no tasks. The 500k release
# lacks `edit_object` and `mask_image`, free-form rows have a null mask, older JSON lines the word
# "NONE". Source: Zhao et al. 2024, arXiv:2407.05282, and the set's card.
_ULTRAEDIT = Table(
    "UltraEdit",
    source=("source_image",),
    target=("edited_image",),
    instruction=("edit_prompt",),
    captions=("source_caption", "target_caption"),
    scores=(
        *("clip_sim_source", "clip_sim_target", "clip_sim_dir", "clip_sim_image"),
        *("dinov2_sim", "ssim"),
    ),
    extra=("idx", "edit_object"),  # idx counts within a split: it is no key
    pictures=("mask_image",),
)


def _of_ultraedit(row: Row) -> Iterator[RawPair]:
    pair = row.pair(_ULTRAEDIT)
    named = row.fields.get("mask_image")
    if row.has("mask_image") and not (isinstance(named, str) and named.upper() in {"", "NONE"}):
        # an empty cell is no mask; a file that a line names and that is gone is a fault
        is_cell = "mask_image" in row.pictures
        mask = white_mask(row.picture("mask_image"), is_optional=is_cell)
        pair = replace(pair, mask=partial(_part, mask))
    yield pair


def _part(mask: Mask, source: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "_ _"] | None:
    """Return a mask; one that is white everywhere means no region."""
    region = mask(source)
    return None if region is None or region.all() else region


ULTRAEDIT = Converter("ultraedit", list_rows(_ULTRAEDIT, _of_ultraedit), tasks={})

# OmniEdit (`TIGER-Lab/OmniEdit-Filtered-1.2M`): any aspect ratio, seven tasks, scores. `data/dev-*`
# are its validation pairs. Source: the set's card; Wei et al. 2024, arXiv:2411.07199.
_OMNIEDIT = Table(
    "OmniEdit",
    source=("src_img",),
    target=("edited_img",),
    instruction=("edited_prompt_list",),
    task="task",
    scores=("sc_score_1", "sc_score_2", "pq_score", "o_score"),
    needs=(("task",),),
)
# image_field.md §5. Our "local" swaps an object or changes an attribute of it; "env" is weather,
# season, time of day.
OMNIEDIT_TASKS: dict[str, str | None] = {
    "removal": "remove",
    "addition": "add",
    "swap": "local",
    "attribute_modification": "local",
    "env": "global",
    "background": "background",
    "style": "style",
}


def _of_omniedit(row: Row) -> Iterator[RawPair]:
    """Several wordings come as a list: the first is the instruction, the others travel along."""
    texts = (text.strip() for text in row.texts("edited_prompt_list"))
    wordings = list(dict.fromkeys(text for text in texts if text))
    if not wordings:
        detail = f"{row.where}: edited_prompt_list has no text"
        raise RefusedPairError(Reason.empty_instruction, detail)
    pair = row.pair(_OMNIEDIT, wordings[0])
    others = {"instruction_alt": wordings[1:]} if wordings[1:] else {}
    yield replace(pair, identity=row.text("omni_edit_id") or row.place, extra=others)


OMNIEDIT = Converter("omniedit", list_rows(_OMNIEDIT, _of_omniedit, is_parted=True), OMNIEDIT_TASKS)

# HQ-Edit (`UCSC-VLAA/HQ-Edit`): each row is two edits, there and back; it names no tasks. The
# pictures were drawn as the halves of one and are not aligned pixel by pixel: samples say so, and
# the set is no use for edits of a region. Source: Hui et al. 2024, arXiv:2404.09990, and its card.
_HQ_EDIT = Table(
    "HQ-Edit",
    source=("input_image",),
    target=("output_image",),
    instruction=("edit", "edit_instruction"),
    captions=("input", "output"),
    needs=(("inverse_edit", "inverse-edit"),),
)


def _of_hq_edit(row: Row) -> Iterator[RawPair]:
    there = row.pair(_HQ_EDIT)
    back = replace(
        there,
        source=there.target,
        target=there.source,
        source_caption=there.target_caption,
        target_caption=there.source_caption,
        instruction=row.text(row.first(_HQ_EDIT.needs[0])),
    )
    for way, pair in (("forward", there), ("inverse", back)):
        yield replace(
            pair,
            name=f"{row.where}, {way}",
            identity=f"{row.place} {way}",
            group=row.place,
            extra={"aligned": False, "direction": way},
        )


HQ_EDIT = Converter("hq-edit", list_rows(_HQ_EDIT, _of_hq_edit), tasks={})

# PromptFix (`yeates/PromptfixData`): restorations of photographs, one million, 416 GB. What
# `auxiliary_prompt` says is what the defect hides; it travels with the sample. Source: Yu et al.
# 2024, arXiv:2405.16785, and the set's card.
_PROMPTFIX = Table(
    "PromptFix",
    source=("input_img",),
    target=("processed_img",),
    instruction=("instruction",),
    task="task_id",
    needs=(("task_id",),),
)
# The names in `task_id` are not listed anywhere; "Deblur" is the spelling in the authors' code, the
# others are the paper's tasks in the forms one may expect. Sharpness, light and colour of a whole
# photograph are Emu Edit's "color", weather is its "global" (Table 1 of arXiv:2311.10089); what
# covers the picture is removed.
_PROMPTFIX_TASKS: dict[str, str | None] = {
    **dict.fromkeys(("colorization", "colorize"), "color"),
    **dict.fromkeys(("low-light", "low-light enhancement", "lightening"), "color"),
    **dict.fromkeys(("deblur", "deblurring", "super-resolution"), "color"),
    **dict.fromkeys(("watermark", "watermark removal", "dewatermark"), "remove"),
    **dict.fromkeys(("object removal", "inpaint", "inpainting"), "remove"),
    **dict.fromkeys(("desnow", "desnowing", "snow removal"), "global"),
    **dict.fromkeys(("dehaze", "dehazing", "dehazy", "haze removal"), "global"),
}


def _of_promptfix(row: Row) -> Iterator[RawPair]:
    hint = row.text("auxiliary_prompt")
    yield replace(row.pair(_PROMPTFIX), extra={"auxiliary_prompt": hint} if hint else {})


PROMPTFIX = Converter("promptfix", list_rows(_PROMPTFIX, _of_promptfix), _PROMPTFIX_TASKS)
