"""Draw edits as one picture: a session with its turns side by side, or a table of many edits.

Only drawing happens here; who edits, when, and where the file goes is decided by the callers. Small
pictures are enlarged by whole factors, so that their pixels can be seen; the large ones of a
session are made smaller: a sheet is for looking, the turns' own files are the result. Plots of
numbers begin with `new_figure`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from emu_edit.images import to_pil

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_WIDTH = 192  # room for a line of about 27 letters
MOST_SIDE = 512
COLUMNS = 5
MARGIN = 10
LINE = 18
MOST_LINES = 5
LETTER = 7  # mean width of a letter in pixels at the size below
FONT_SIZE = 12
FONT = Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
CELL = 128  # shortest width of a picture in a grid; smaller ones are enlarged by whole factors
TEXT_WIDTH = 230
GAP = 8
TITLE_HEIGHT = 30
HEADER_HEIGHT = 22
ROWS_PER_PANEL = 8
INK, FAINT, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


def draw_sheet(
    images: Sequence[UInt8[Tensor, "3 h w"]], captions: Sequence[tuple[str, str]]
) -> Image.Image:
    """Draw pictures of one size in rows of five, each above its caption.

    Args:
        images: at least one.
        captions: for each picture a faint heading, e.g. "1. local", and a text below it, broken
            into at most five lines.
    """
    width, height = _panel_size(*reversed(images[0].shape[-2:]))
    column = max(width, LEAST_WIDTH)
    texts = [_broken(text, column // LETTER) for _, text in captions]
    lines = 1 + max(len(text) for text in texts)
    row_height = height + lines * LINE + 2 * MARGIN
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    page = Image.new(
        "RGB", (MARGIN + columns * (column + MARGIN), MARGIN + rows * row_height), PAPER
    )
    draw, font = ImageDraw.Draw(page), _font()
    for i, image in enumerate(images):
        left = MARGIN + i % columns * (column + MARGIN)
        top = MARGIN + i // columns * row_height
        # NEAREST to enlarge: interpolation would invent pixels
        filters = Image.Resampling
        how = filters.NEAREST if width >= image.shape[-1] else filters.LANCZOS
        page.paste(to_pil(image).resize((width, height), how), (left, top))
        draw.text((left, top + height + 4), captions[i][0], fill=FAINT, font=font)
        for number, line in enumerate(texts[i], start=1):
            draw.text((left, top + height + 4 + number * LINE), line, fill=INK, font=font)
    return page


def _font() -> ImageFont.FreeTypeFont:
    """Return matplotlib's font: Pillow's own has no letters beyond English ones, no umlaut even."""
    spec = find_spec("matplotlib")  # found, not imported: that takes half a second
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("matplotlib, whose font the sheet is written in, is missing")
    return ImageFont.truetype(str(Path(spec.origin).parent / FONT), FONT_SIZE)


def _panel_size(width: int, height: int) -> tuple[int, int]:
    longer = max(width, height)
    if longer > MOST_SIDE:
        return max(1, width * MOST_SIDE // longer), max(1, height * MOST_SIDE // longer)
    times = max(1, min(LEAST_WIDTH // width, MOST_SIDE // longer))
    return width * times, height * times


def _broken(text: str, letters: int) -> list[str]:
    # wrapped by letters, not by drawn width: a line of capitals may run into the margin
    lines = wrap(text, letters - 2) or [""]
    if len(lines) <= MOST_LINES:
        return lines
    return [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1][: letters - 4]} …"]


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
    height, width = (scale * max(row.source.shape[axis] for row in rows) for axis in (-2, -1))
    panels = [rows[i : i + ROWS_PER_PANEL] for i in range(0, len(rows), ROWS_PER_PANEL)]
    panel_width = 3 * (width + GAP) + TEXT_WIDTH + GAP
    page = Image.new(
        "RGB",
        (
            GAP + len(panels) * panel_width,
            TITLE_HEIGHT + HEADER_HEIGHT + len(panels[0]) * (height + GAP),
        ),
        PAPER,
    )
    ImageDraw.Draw(page).text((GAP, GAP), title, fill=INK, font=ImageFont.load_default(size=16))
    for number, panel in enumerate(panels):
        _draw_panel(page, panel, GAP + number * panel_width, (width, height), scale)
    return page


def _draw_panel(
    page: Image.Image, rows: Sequence[GridRow], left: int, cell: tuple[int, int], scale: int
) -> None:
    width, height = cell
    draw = ImageDraw.Draw(page)
    small = ImageFont.load_default(size=13)
    for column, name in enumerate(("source", "edited", "target", "instruction")):
        draw.text((left + column * (width + GAP), TITLE_HEIGHT + 2), name, fill=FAINT, font=small)
    for number, row in enumerate(rows):
        top = TITLE_HEIGHT + HEADER_HEIGHT + number * (height + GAP)
        for column, image in enumerate((row.source, row.edited, row.target)):
            size = (image.shape[-1] * scale, image.shape[-2] * scale)
            enlarged = to_pil(image).resize(size, Image.Resampling.NEAREST)
            page.paste(enlarged, (left + column * (width + GAP), top))
        text_left = left + 3 * (width + GAP)
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


def new_figure(width: float, height: float) -> "Figure":
    """Begin a plot of so many inches, drawn without a display and without global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
