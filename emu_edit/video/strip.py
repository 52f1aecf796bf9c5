"""A strip of pictures: frames of a video in a row, the source's above the result's.

Clips that were drawn stand above true ones, on one page that is looked at and on one that moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from emu_edit.editing.sheets import (
    CELL,
    FAINT,
    HEADER_HEIGHT,
    INK,
    PAPER,
    TITLE_HEIGHT,
    GridRow,
    picture_grid,
)
from emu_edit.images import from_pil, resize, save_png, to_pil
from emu_edit.video.clip import Video
from emu_edit.video.io import open_video

COLUMNS = 8
HEIGHT = 160  # pixels of a picture in the strip
GAP = 4
LABEL = 50  # pixels for the words "drawn" and "true"
LETTER = 7  # mean width of a letter of captions


def write_strip(path: Path, source: Video, result: Path, *, halves: bool = False) -> None:
    """Write eight frames, evenly spaced, source over result; `halves` drops the left of a result.

    Raises:
        InputError: if the place cannot be written.
    """
    rows = [_row(source, halves=False), _row(open_video(result), halves=halves)]
    width = max(row.shape[2] for row in rows)
    padded = [
        torch.nn.functional.pad(row, (0, width - row.shape[2], 0, GAP), value=255) for row in rows
    ]
    save_png(path, torch.cat(padded, dim=1)[:, :-GAP])


def _row(video: Video, *, halves: bool) -> UInt8[Tensor, "3 h w"]:
    wanted = set(_evenly(video.info.frames))
    pictures = []
    for number, frame in enumerate(video.frames()):
        if number not in wanted:
            continue
        pixels = frame.pixels[:, :, frame.pixels.shape[2] // 2 :] if halves else frame.pixels
        height, width = pixels.shape[-2:]
        small = resize(pixels.contiguous(), (HEIGHT, max(1, round(width * HEIGHT / height))))
        pictures.append(torch.nn.functional.pad(small, (0, GAP), value=255))
    return torch.cat(pictures, dim=2)[:, :, :-GAP]


@dataclass(frozen=True)
class ClipRow:
    """A clip that was drawn from its first frame and a caption, and the true one."""

    drawn: UInt8[Tensor, "f 3 h w"]
    true: UInt8[Tensor, "f 3 h w"]
    caption: str
    task: str


def strip_grid(rows: Sequence[ClipRow], title: str) -> Image.Image:
    """Draw eight frames of each clip, evenly spaced, above those of the true one.

    Small frames are enlarged by whole factors, large ones made smaller.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("a grid of strips needs at least one clip, got none")
    shown = _evenly(len(rows[0].true))
    width, height = _enlarged(rows[0].true[0]).size
    row_height = HEADER_HEIGHT + 2 * (height + GAP) + 2 * GAP
    across = GAP + LABEL + max(len(shown) * (width + GAP), 2 * CELL)
    page = Image.new("RGB", (across, TITLE_HEIGHT + len(rows) * row_height), PAPER)
    draw, small = ImageDraw.Draw(page), ImageFont.load_default(size=13)
    draw.text((GAP, GAP), title, fill=INK, font=ImageFont.load_default(size=16))
    for number, row in enumerate(rows):
        top = TITLE_HEIGHT + number * row_height
        caption = shorten(row.caption, across // LETTER, placeholder=" …")
        draw.text((GAP, top), caption, fill=INK, font=small)
        for line, (name, frames) in enumerate((("drawn", row.drawn), ("true", row.true))):
            y = top + HEADER_HEIGHT + line * (height + GAP)
            draw.text((GAP, y), name, fill=FAINT, font=small)
            for column, frame in enumerate(shown):
                x = GAP + LABEL + column * (width + GAP)
                page.paste(_enlarged(frames[frame]), (x, y))
    return page


def moving_grid(rows: Sequence[ClipRow], title: str) -> UInt8[Tensor, "f 3 _ _"]:
    """Draw a page per frame: what was given, what was drawn and what is true move side by side."""
    pages = [
        picture_grid(
            [
                GridRow(row.true[0], row.drawn[f], row.true[f], row.caption, row.task)
                for row in rows
            ],
            title,
        )
        for f in range(len(rows[0].true))
    ]
    return torch.stack([from_pil(page) for page in pages])


def _evenly(count: int) -> list[int]:
    """Return which of so many frames are shown."""
    return sorted({round(i * (count - 1) / max(COLUMNS - 1, 1)) for i in range(COLUMNS)})


def _enlarged(frame: UInt8[Tensor, "3 h w"]) -> Image.Image:
    height, width = frame.shape[-2:]
    if height > HEIGHT:
        return to_pil(resize(frame, (HEIGHT, max(1, round(width * HEIGHT / height)))))
    times = max(1, CELL // width)
    return to_pil(frame).resize((width * times, height * times), Image.Resampling.NEAREST)
