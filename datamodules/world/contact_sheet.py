"""One picture to look at: some pairs of every task, source beside target under the instruction."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datamodules.world.pair import WorldPair, make_pair
from datamodules.world.photos import Photos
from emu_edit.tasks import SIXTEEN

TILE = 128  # side of a shown picture
CAPTION = 42  # height of the text above it
GAP = 10
LETTERS = 44  # per line of text
NAME = 88  # width of the column with the task's name


def contact_sheet(rows: Sequence[tuple[str, Sequence[WorldPair]]]) -> Image.Image:
    """Return a sheet of named rows of pairs; pictures are enlarged without smoothing."""
    columns = max(len(pairs) for _, pairs in rows)
    cell = 2 * TILE + GAP
    width = NAME + columns * (cell + GAP)
    sheet = Image.new("RGB", (width, len(rows) * (CAPTION + TILE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for r, (name, pairs) in enumerate(rows):
        top = GAP + r * (CAPTION + TILE + GAP)
        draw.text(
            (GAP, top + CAPTION + TILE // 2),
            name,
            fill="black",
            font=ImageFont.load_default(size=13),
        )
        for c, pair in enumerate(pairs):
            left = NAME + c * (cell + GAP)
            lines = textwrap.wrap(pair.instruction, LETTERS)[:3]
            draw.multiline_text((left, top), "\n".join(lines), fill="black", font=font, spacing=2)
            sheet.paste(_enlarged(pair.source), (left, top + CAPTION))
            sheet.paste(_enlarged(pair.target), (left + TILE + 2, top + CAPTION))
    return sheet


def sample_rows(
    seed: int, columns: int, *, size: int, split: str, photos: Photos | None
) -> list[tuple[str, list[WorldPair]]]:
    """Return pairs of each task, of as many kinds of edit as fit, both directions among them."""
    rows = []
    for number, task in enumerate(SIXTEEN.names):
        pairs: list[WorldPair] = []
        kinds: set[object] = set()
        candidates = [
            make_pair(seed, number + 16 * i, task=task, size=size, split=split, photos=photos)
            for i in range(2 * columns)
        ]
        for pair in candidates:
            if pair.extra["kind"] not in kinds:
                kinds.add(pair.extra["kind"])
                pairs.append(pair)
        pairs.extend(pair for pair in candidates if all(pair is not p for p in pairs))
        rows.append((task, pairs[:columns]))
    return rows


def save_contact_sheet(
    path: Path, seed: int, *, size: int, split: str, photos: Photos | None, columns: int = 5
) -> None:
    """Write the sheet of a world as a PNG."""
    # scenes do not depend on the size, and pictures larger than a tile could not be seen
    rows = sample_rows(seed, columns, size=min(size, TILE), split=split, photos=photos)
    contact_sheet(rows).save(path)


def _enlarged(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.NEAREST)
