"""Tiny files in the schemas of released data sets, and pictures that are like photographs."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the hub's Image feature
SIZE = (24, 32)  # height, width


def scene(number: int) -> np.ndarray:
    """Return a smooth picture; two numbers have nothing in common."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    height, width = SIZE
    return np.asarray(
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.uint8
    )


def edited(picture: np.ndarray) -> np.ndarray:
    """Return the picture with a square painted over, as a local edit does."""
    painted = picture.copy()
    painted[4:12, 6:14] = 255 - painted[4:12, 6:14]
    return painted


def png(picture: np.ndarray) -> bytes:
    """Return the picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def cell(picture: np.ndarray) -> dict[str, object]:
    """Return a cell of a column of pictures."""
    return {"bytes": png(picture), "path": None}


def write_parquet(
    path: Path, schema: list[tuple[str, pa.DataType]], rows: list[dict], *, group: int = 64
) -> None:
    """Write rows; a key that a row lacks is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(schema)), path, row_group_size=group)


def write_lines(path: Path, *rows: dict) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def save(path: Path, picture: np.ndarray) -> None:
    """Write a picture file and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(picture))


def pixels(data: bytes) -> np.ndarray:
    """Return what is in a picture file."""
    return np.asarray(Image.open(io.BytesIO(data)))


def quarantine(out: Path) -> list[tuple[str, str, str]]:
    """Return name, reason and detail of what was left out."""
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["name"], row["reason"], row["detail"]) for row in rows]
