"""Draw a session as one picture: original and results side by side, the instruction under each.

Only drawing happens here. Small pictures are enlarged by whole factors, so that their pixels can be
seen; large ones are made smaller: the sheet is for looking, the turns' own files are the result.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from emu_edit.images import to_pil

LEAST_WIDTH = 192  # room for a line of about 27 letters
MOST_SIDE = 512
COLUMNS = 5
MARGIN = 10
LINE = 18
MOST_LINES = 5
LETTER = 7  # mean width of a letter in pixels at the size below
FONT_SIZE = 12
FONT = Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
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
