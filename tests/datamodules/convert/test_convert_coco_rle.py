"""COCO's run-length strings: those that pycocotools 2.0.11 wrote, and damaged ones."""

import numpy as np
import pytest

from datamodules.convert.imgedit_masks import decode_rle
from emu_edit.errors import BadImageError

# a mask of 5 x 7 (rows x columns) and its string, and shapes one can say in words
RANDOM = """
###....
...#.#.
#..####
...#...
..##..#
"""


def shape(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : 3 * height // 4, width // 3 :] = True
    return mask


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("01", np.ones((1, 1), dtype=bool)),
        ("1", np.zeros((1, 1), dtype=bool)),
        ("0S1", np.ones((5, 7), dtype=bool)),
        ("0P`2", np.ones((40, 64), dtype=bool)),
        (";230000000O", shape(5, 7)),
        (
            "bj0d0d00000000000000000000000000000000000000000000000000000000000000000000000000"
            "0000000000F",
            shape(40, 64),
        ),
        ("01101020O0N31M111OM0", np.array([[c == "#" for c in row] for row in RANDOM.split()])),
    ],
)
def test_what_pycocotools_wrote_is_read(text, mask):
    assert np.array_equal(decode_rle(text, *mask.shape), mask)


def encode(mask: np.ndarray) -> str:
    """Write the string from the description of the format, to try many masks."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    runs = np.diff(ends, prepend=0).tolist()
    text = ""
    for i, run in enumerate(runs):
        number = run - runs[i - 2] if i > 2 else run
        is_done = False
        while not is_done:
            group, number = number & 31, number >> 5
            is_done = number == (-1 if group & 16 else 0)
            text += chr(48 + group + (0 if is_done else 32))
    return text


def test_any_mask_comes_back():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 40, 2).tolist()
        mask = rng.random((height, width)) < rng.random()
        assert np.array_equal(decode_rle(encode(mask), height, width), mask)


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("0S1", (5, 8), "its runs cover 35 pixels, the picture has 8x5"),
        ("", (5, 8), "its runs cover 0 pixels"),
        ("O", (5, 8), "its runs cover -1 pixels"),
        ("0S", (5, 7), "ends in the middle of a number"),
        ("0S 1", (5, 7), "' ' is no character of a COCO run-length string"),
        ("`" * 10**6, (5, 7), "a number in the COCO run-length string has no end"),
        ("0S\u20ac", (5, 7), "is no character of a COCO run-length string"),
        ("0S1", (0, 7), "is 7x0, needs 1 to"),
        ("0S1", (10**6, 10**6), "is 1000000x1000000, needs 1 to"),
    ],
)
def test_a_damaged_string_is_refused(text, size, message):
    with pytest.raises(BadImageError, match=f"^mask: .*{message}"):
        decode_rle(text, *size)
