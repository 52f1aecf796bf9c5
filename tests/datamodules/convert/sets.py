"""Tiny copies of public sets: pictures, parquet files in the hub's form, and samples read back."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from emu_edit.images import decode_mask, decode_rgb
from tests.datamodules.convert.shards import read_back

HEIGHT, WIDTH = 24, 32
REGION = (slice(4, 14), slice(6, 20))  # what an edit of these pictures changes


@dataclass(frozen=True)
class Sample:
    """One sample as it lies in a shard."""

    key: str
    text: dict
    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray | None


def before(seed: int) -> np.ndarray:
    """Return a picture of coloured blocks, different for each seed."""
    blocks = np.random.default_rng(seed).integers(30, 220, (3, 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, axis=0).repeat(8, axis=1))


def after(seed: int) -> np.ndarray:
    """Return `before` with its region inverted."""
    picture = before(seed)
    picture[REGION] = 255 - picture[REGION]
    return picture


def region() -> np.ndarray:
    """Return the mask of the region as a white drawing on black."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[REGION] = 255
    return mask


def png(pixels: np.ndarray) -> bytes:
    """Return pixels as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def cell(pixels: np.ndarray) -> dict[str, object]:
    """Return a picture as the hub's parquet files hold it."""
    return {"bytes": png(pixels), "path": None}


def write_parquet(path: Path, rows: Sequence[Mapping[str, object]], group: int = 2) -> Path:
    """Write rows in row groups of `group`."""
    pyarrow, parquet = (import_module(module) for module in ("pyarrow", "pyarrow.parquet"))
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=group)
    return path


def save(path: Path, pixels: np.ndarray, *, quality: int | None = None) -> Path:
    """Write a picture file, lossless unless a quality is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if quality is None:
        image.save(path)
    else:
        image.save(path, quality=quality, subsampling=0)
    return path


def samples(folder: Path) -> list[Sample]:
    """Return what was written, in the order of the shards."""
    return [
        Sample(
            key=item["__key__"],
            text=json.loads(item["json"]),
            source=_pixels(item["source.png"]),
            target=_pixels(item["target.png"]),
            mask=decode_mask(item["mask.png"]).numpy() if "mask.png" in item else None,
        )
        for item in read_back(folder)
    ]


def quarantine(folder: Path) -> list[dict[str, str]]:
    """Return the pairs left out."""
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def _pixels(data: bytes) -> np.ndarray:
    return decode_rgb(data).permute(1, 2, 0).numpy()
