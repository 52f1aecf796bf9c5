"""A 5x7 bitmap alphabet and its exact coverage of pixels at any size.

The letters were drawn for this world. A word is a small bitmap; how much of each pixel it covers is
the product of two overlap matrices, one for rows and one for columns, so letters are crisp at 64 px
and smooth at any other size.
"""

from functools import cache

import numpy as np
from jaxtyping import Float32

ROWS, COLUMNS = 7, 5
CELL = 1 / 32  # side of a bitmap cell in fractions of the picture: two pixels at 64 px
BAND_TOP = {"top": 1.5 * CELL, "bottom": 1 - (ROWS + 1.5) * CELL}

_LETTERS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "G": "01111 10000 10000 10011 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "01110 00100 00100 00100 00100 00100 01110",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 11001 10101 10011 10011 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 01010 01010 00100",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
}


def bitmap(text: str) -> Float32[np.ndarray, "7 n"]:
    """Return a word as ones and zeros, one empty column between letters."""
    letters = [
        np.array([[int(bit) for bit in row] for row in _LETTERS[letter].split()], dtype=np.float32)
        for letter in text
    ]
    gap = np.zeros((ROWS, 1), dtype=np.float32)
    columns = [part for letter in letters for part in (gap, letter)]
    return np.concatenate(columns[1:], axis=1)


@cache
def word_coverage(text: str, band: str, size: int) -> Float32[np.ndarray, "size size"]:
    """Return how much of each pixel the word covers, in [0, 1]; centred in its band."""
    cells = bitmap(text)
    rows = _overlap(size, BAND_TOP[band], cells.shape[0])
    columns = _overlap(size, 0.5 - cells.shape[1] * CELL / 2, cells.shape[1])
    coverage = np.clip(rows @ cells @ columns.T, 0, 1)
    coverage.flags.writeable = False
    return coverage


def _overlap(size: int, start: float, cells: int) -> Float32[np.ndarray, "size cells"]:
    """Return which share of each pixel each cell covers along one axis; cells begin at `start`."""
    cell = (start + CELL * np.arange(cells)) * size
    pixel = np.arange(size)[:, None]
    overlap = np.minimum(pixel + 1, cell + CELL * size) - np.maximum(pixel, cell)
    # letters that begin inside a pixel would blur at 64 px; float error below a thousandth is no
    # overlap
    return np.where(overlap < 1e-3, 0, overlap).astype(np.float32)
