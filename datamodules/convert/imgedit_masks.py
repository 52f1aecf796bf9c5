"""The region of an ImgEdit pair, from whichever of three places has it.

1. `mask.png` beside the pictures (`mask_0.png` of a session's first turn). Its makers saved it for
   inpainting, inverted: the region is BLACK.
2. `result.json` beside them, if the object in it still has its run-length string.
3. `ImgEdit_recap_mask`, unpacked below the folder: one JSON file for each LAION picture, with all
   its objects. `result.json` says by class and box which of them was edited; without it, or if it
   fits none, there is no mask: a wrong one would be worse.

Run-length strings are of the LAION picture's size, and so may `mask.png` be; they are brought to
the pair's size without smoothing, and dropped if the pair was cropped to another shape. Source: the
authors' `inpaint-workflow` and README; issue 12 of their repository for the joining of paths.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from datamodules.convert.imgedit_files import Samples
from datamodules.convert.picture import MissingPictureError
from emu_edit.errors import BadImageError
from emu_edit.files import read_regular
from emu_edit.images import decode_mask
from emu_edit.pictures import MAX_PIXELS, read_image_bytes

RESULT = "result.json"
_OBJECTS = ("edit_obj", "edit_result")  # for "add" the object is what came
_BOX_SLACK = 1.0  # pixels by which two spellings of one box may differ
_ASPECT_SLACK = 0.02  # of the ratio of sides, for a mask of another size
_MOST_BYTES = 64 * 2**20
_LONGEST = 60  # bits of a run length; unbounded, a hostile string would take quadratic time


@dataclass(frozen=True)
class Region:
    """The mask of a pair, read when it is called; None if there is none."""

    samples: Samples
    table: Path
    source: str

    def __call__(self, source: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"] | None:
        """Return the mask in the size of the source, True where the edit may change.

        Raises:
            BadImageError: if the file that should hold it is damaged.
        """
        try:
            picture = self.samples.find(self.table, self.source)
        except MissingPictureError:
            return None
        beside = picture.with_name(f"mask{_turn_of(picture.stem)}.png")
        if beside.is_file():
            region = ~decode_mask(read_image_bytes(beside), str(beside)).numpy()
        else:
            region = self._of_runs(picture.parent)
        return None if region is None else _resized(region, source.shape[:2])

    def _of_runs(self, sample: Path) -> Bool[np.ndarray, "_ _"] | None:
        result = _read(sample / RESULT)
        edited = next((result[name] for name in _OBJECTS if _is_object(result.get(name))), None)
        if edited is None:
            return None
        if isinstance(edited.get("mask"), str) and edited["mask"]:
            return _decode(edited["mask"], result, sample)
        for record in self._recaps(sample.name):
            for found in _objects(record):
                if _is_same(found, edited):
                    return _decode(found["mask"], record, sample)
        return None

    def _recaps(self, sample: str) -> Iterator[dict[str, Any]]:
        """Yield the recap records of the LAION picture `00095_00019_000197953`."""
        path = sample.replace("_", "/")
        for name in (f"{sample}.json", f"{sample.replace('_', '')}.json", f"{path}.json"):
            for file in self.samples.recaps(name):
                record = _read(file)
                if PurePosixPath(str(record.get("path"))).with_suffix("").as_posix() == path:
                    yield record


def _turn_of(stem: str) -> str:
    """Return "_1" of "origin_1", "" of "original"."""
    _, line, number = stem.rpartition("_")
    return f"_{number}" if line and number.isdecimal() else ""


def _read(file: Path) -> dict[str, Any]:
    """Return a JSON object, an empty one if there is none."""
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        return {}
    try:
        content = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError) as error:
        raise BadImageError(f"{file}: is not JSON ({error}), the mask cannot be read") from error
    return content if isinstance(content, dict) else {}


def _is_object(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class_name"), str)


def _objects(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    segmentation = record.get("segmentation")
    for kind in ("object", "background"):
        listed = segmentation.get(kind) if isinstance(segmentation, dict) else None
        for found in listed if isinstance(listed, list) else ():
            if _is_object(found) and isinstance(found.get("mask"), str):
                yield found


def _is_same(found: dict[str, Any], edited: dict[str, Any]) -> bool:
    """Tell whether two entries are one object: equal class, equal box (xyxy, pixels)."""
    try:
        boxes = np.array([found["bbox"], edited["bbox"]], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        return False
    is_near = boxes.shape == (2, 4) and bool((np.abs(boxes[0] - boxes[1]) <= _BOX_SLACK).all())
    return is_near and found["class_name"] == edited["class_name"]


def _decode(text: str, record: dict[str, Any], sample: Path) -> Bool[np.ndarray, "_ _"]:
    size = record.get("resolution")
    sides = size if isinstance(size, dict) else {}
    height, width = sides.get("height"), sides.get("width")
    if not isinstance(height, int) or not isinstance(width, int):
        raise BadImageError(f"{sample}: the mask's resolution is {size!r}, needs height and width")
    return decode_rle(text, height, width)


def _resized(
    region: Bool[np.ndarray, "_ _"], size: tuple[int, ...]
) -> Bool[np.ndarray, "h w"] | None:
    (height, width), (tall, wide) = size, region.shape
    ratio = (width * tall) / (height * wide)
    if max(ratio, 1 / ratio) - 1 > _ASPECT_SLACK:
        return None
    return np.asarray(Image.fromarray(region).resize((width, height), Image.Resampling.NEAREST))


def decode_rle(text: str, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Decode a mask as COCO writes it, run lengths in printable characters; True inside.

    Runs go down the columns, the first is of zeros. A number is cut into groups of five bits, the
    lowest first, each written as the character 48 + group, plus 32 while more follow; bit 4 of the
    last group is the sign. From the fourth number on it is the difference from the number two
    before. Source: the format of the COCO API (`maskApi.c`, `rleToString`); pycocotools, a compiled
    package, would be a dependency for these lines.

    Raises:
        BadImageError: if the text is no such string, or its runs do not fill the picture.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise BadImageError(f"mask: is {width}x{height}, needs 1 to {MAX_PIXELS} pixels")
    runs = list(_numbers(text))
    for i in range(3, len(runs)):
        runs[i] += runs[i - 2]
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise BadImageError(
            f"mask: its runs cover {sum(runs)} pixels, the picture has {width}x{height}; the "
            "string is damaged or of another picture"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _numbers(text: str) -> Iterator[int]:
    number = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise BadImageError(f"mask: {character!r} is no character of a COCO run-length string")
        if shift > _LONGEST:
            raise BadImageError("mask: a number in the COCO run-length string has no end")
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            yield number - (1 << shift) if group & 16 else number
            number = shift = 0
    if shift:
        raise BadImageError("mask: the COCO run-length string ends in the middle of a number")
