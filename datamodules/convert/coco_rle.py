"""Masks as COCO writes them: run lengths in a string of printable characters.

Runs go down the columns, the first is of zeros. A number is cut into groups of five bits, the
lowest first, each written as the character 48 + group, plus 32 while more follow; bit 4 of the last
group is the sign. From the fourth number on it is the difference from the number two before.
Source: the format of the COCO API (`maskApi.c`, `rleToString`); pycocotools, a compiled package,
would be a dependency for these lines.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from emu_edit.errors import BadImageError
from emu_edit.images import MAX_PIXELS

_LONGEST = 60  # bits of a number; unbounded, a hostile string would take quadratic time


def decode_rle(text: str, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Return the mask; True inside.

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
