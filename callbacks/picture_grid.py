"""Draw a table of edits as one picture: source, edited, target and the instruction, a row for each.

Only drawing happens here; who edits, when, and where the file goes is decided by the callback.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from emu_edit.images import to_pil

CELL = (
    128  # shortest width of a picture in the grid; smaller pictures are enlarged by whole factors
)
TEXT_WIDTH = 230
MARGIN = 8
TITLE_HEIGHT = 30
HEADER_HEIGHT = 22
ROWS_PER_PANEL = 8
INK, PAPER, FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)


@dataclass(frozen=True)
class GridRow:
    """One edit and what it should have been."""

    source: UInt8[Tensor, "3 h w"]
    edited: UInt8[Tensor, "3 h w"]
    target: UInt8[Tensor, "3 h w"]
    instruction: str
    task: str


def picture_grid(rows: Sequence[GridRow], title: str) -> Image.Image:
    """Draw the rows below a title, in panels side by side when there are many.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("a picture grid needs at least one row, got none")
    scale = max(1, -(-CELL // rows[0].source.shape[-1]))
    height, width = (side * scale for side in rows[0].source.shape[-2:])
    panels = [rows[i : i + ROWS_PER_PANEL] for i in range(0, len(rows), ROWS_PER_PANEL)]
    panel_width = 3 * (width + MARGIN) + TEXT_WIDTH + MARGIN
    page = Image.new(
        "RGB",
        (
            MARGIN + len(panels) * panel_width,
            TITLE_HEIGHT + HEADER_HEIGHT + len(panels[0]) * (height + MARGIN),
        ),
        PAPER,
    )
    ImageDraw.Draw(page).text(
        (MARGIN, MARGIN), title, fill=INK, font=ImageFont.load_default(size=16)
    )
    for number, panel in enumerate(panels):
        _draw_panel(page, panel, MARGIN + number * panel_width, (width, height))
    return page


def _draw_panel(
    page: Image.Image, rows: Sequence[GridRow], left: int, size: tuple[int, int]
) -> None:
    width, height = size
    draw = ImageDraw.Draw(page)
    small = ImageFont.load_default(size=13)
    for column, name in enumerate(("source", "edited", "target", "instruction")):
        draw.text(
            (left + column * (width + MARGIN), TITLE_HEIGHT + 2), name, fill=FAINT, font=small
        )
    for number, row in enumerate(rows):
        top = TITLE_HEIGHT + HEADER_HEIGHT + number * (height + MARGIN)
        for column, image in enumerate((row.source, row.edited, row.target)):
            enlarged = to_pil(image).resize(size, Image.Resampling.NEAREST)
            page.paste(enlarged, (left + column * (width + MARGIN), top))
        text_left = left + 3 * (width + MARGIN)
        draw.text((text_left, top), row.task, fill=FAINT, font=small)
        draw.multiline_text(
            (text_left, top + 18),
            _fitted(row.instruction, height),
            fill=INK,
            font=ImageFont.load_default(size=14),
        )


def _fitted(text: str, height: int) -> str:
    """Break a text into lines, as many as fit into a row."""
    lines = wrap(text, 30)
    room = max(1, (height - 18) // 18)
    return "\n".join(
        lines if len(lines) <= room else [*lines[: room - 1], lines[room - 1][:29] + "…"]
    )
