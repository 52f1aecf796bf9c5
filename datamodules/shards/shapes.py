"""The shapes that pictures are sorted by, and the sides a shape has in training.

A shape is a width and a height in eighths of `image_size`: "10x7" is 640 x 448 pixels at 512. So
shards that are sorted once serve trainings of any size, all sides are multiples of
image_size / 8, and a picture of exactly the sides of a shape is of that shape. All have about as
many pixels as the square, 63 to 70 of 64. A shape lies near each ratio that cameras and screens
have: 9x7 near 4:3, 10x7 near 3:2, 11x6 near 16:9, 13x5 near 21:9.

Source: ours; buckets of aspect ratios as in NovelAI 2022, "Improvements on Stable Diffusion", and
SDXL, Podell et al. 2023, arXiv:2307.01952, appendix I.
"""

from collections.abc import Iterable
from fractions import Fraction

EIGHTHS = 8  # units of a side of the square
SQUARE = "8x8"
SHAPES = ("5x13", "6x11", "7x10", "7x9", SQUARE, "9x7", "10x7", "11x6", "13x5")  # widths x heights


def shape_of(height: int, width: int) -> str:
    """Return the shape nearest to that of a picture of such sides."""
    return _nearest(Fraction(width, height), SHAPES)


def nearest_shape(shape: str, among: Iterable[str]) -> str:
    """Return the one of some shapes that is nearest to a shape; of two, the first."""
    return _nearest(_ratio(shape), among)


def sides_of(shape: str, image_size: int) -> tuple[int, int]:
    """Return height and width in pixels; `image_size` is a multiple of 8, or the shape a square."""
    width, height = _units(shape)
    return height * image_size // EIGHTHS, width * image_size // EIGHTHS


def _units(shape: str) -> tuple[int, int]:
    width, _, height = shape.partition("x")
    return int(width), int(height)


def _ratio(shape: str) -> Fraction:
    return Fraction(*_units(shape))


def _nearest(ratio: Fraction, among: Iterable[str]) -> str:
    # by the factor between two ratios, exactly: it is to be the same on every machine
    def factor(shape: str) -> Fraction:
        other = _ratio(shape)
        return max(ratio / other, other / ratio)

    return min(among, key=factor)
