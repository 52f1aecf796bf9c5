"""Pixel functions of the tasks global, style and color: picture in, picture out, nothing random.

Each takes and returns float32 in [0, 255] (results may leave the range; rounding clamps) and works
on any picture, so the same edits are exact on photographs. Snow and rain fall in one fixed pattern:
the instruction has one answer.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float32, Int64

from datamodules.world.backgrounds import pixel_centres
from emu_edit.randomness import keyed_generator

Picture = Float32[np.ndarray, "h w 3"]
LUMA = np.array((0.299, 0.587, 0.114), dtype=np.float32)  # Rec. 601


def luma(picture: Picture) -> Float32[np.ndarray, "h w 1"]:
    """Return how light each pixel is."""
    # written out: a matrix product may add in another order on another machine
    red, green, blue = (picture[:, :, i] * LUMA[i] for i in range(3))
    return (red + green + blue)[:, :, None]


def rgb(*values: float) -> Float32[np.ndarray, " 3"]:
    """Return a colour, or a gain of each channel."""
    return np.array(values, dtype=np.float32)


def linear(
    gain: tuple[float, float, float], offset: tuple[float, float, float]
) -> Callable[[Picture], Picture]:
    """Return the filter that scales and shifts red, green and blue."""
    scale, shift = rgb(*gain), rgb(*offset)
    return lambda picture: picture * scale + shift


def snow(picture: Picture) -> Picture:
    """Pale the picture and let the fixed flakes fall."""
    pale = picture * np.float32(0.75) + rgb(50.0, 53.0, 58.0)
    flakes = snowflakes(len(picture))[:, :, None]
    return pale + flakes * (255 - pale)


def rain(picture: Picture) -> Picture:
    """Grey the picture and let the fixed drops fall."""
    grey = (0.6 * picture + 0.4 * luma(picture)) * rgb(0.62, 0.66, 0.74)
    drops = raindrops(len(picture))[:, :, None]
    return grey + np.float32(0.75) * drops * (rgb(190.0, 205.0, 225.0) - grey)


@cache
def snowflakes(size: int) -> Float32[np.ndarray, "size size"]:
    """Return the share of each pixel that is snow; always the same flakes."""
    at = pixel_centres(size)
    covered = np.zeros((size, size), dtype=np.float32)
    for x, y, grow in keyed_generator(0, "world snow", 0).random((55, 3), dtype=np.float32):
        far = np.sqrt((at - x)[None, :] ** 2 + (at - y)[:, None] ** 2)
        radius = np.float32(0.012) + np.float32(0.012) * grow
        np.maximum(covered, np.clip(0.5 - (far - radius) * size, 0, 1), out=covered)
    return covered


@cache
def raindrops(size: int) -> Float32[np.ndarray, "size size"]:
    """Return the share of each pixel that is a falling drop; always the same slanted streaks."""
    at = pixel_centres(size)
    covered = np.zeros((size, size), dtype=np.float32)
    for x, y in keyed_generator(0, "world rain", 0).random((45, 2), dtype=np.float32):
        along = np.clip((at - y)[:, None], 0, np.float32(0.12))
        far = np.hypot((at - x)[None, :] + np.float32(0.3) * along, (at - y)[:, None] - along)
        np.maximum(covered, np.clip(0.5 - (far - np.float32(0.008)) * size, 0, 1), out=covered)
    return covered


def poster(picture: Picture) -> Picture:
    """Keep three levels of each channel."""
    return np.rint(picture / np.float32(127.5)) * np.float32(127.5)


def mosaic(picture: Picture) -> Picture:
    """Average square tiles, about twelve to a side."""
    edges = np.unique(np.linspace(0, len(picture), 13).astype(int)[:-1])
    return tiled(tile_means(picture, edges), edges, len(picture))


def tile_means(picture: np.ndarray, edges: Int64[np.ndarray, " n"]) -> np.ndarray:
    """Return the means (n, n, channels) of the tiles that begin at these rows and columns."""
    counts = np.diff(np.append(edges, len(picture)))
    rows = np.add.reduceat(picture, edges, axis=0) / counts[:, None, None]
    return np.add.reduceat(rows, edges, axis=1) / counts[None, :, None]


def tiled(tiles: np.ndarray, edges: Int64[np.ndarray, " n"], size: int) -> Picture:
    """Return a picture of even tiles that begin at these rows and columns."""
    counts = np.diff(np.append(edges, size))
    return np.repeat(np.repeat(tiles, counts, axis=0), counts, axis=1).astype(np.float32)


def sepia(picture: Picture) -> Picture:
    """Grey, browned."""
    return luma(picture) * rgb(1.0, 0.82, 0.6) + rgb(12.0, 6.0, 0.0)


def negative(picture: Picture) -> Picture:
    """Turn light into dark and each colour into its opposite."""
    return 255 - picture


def blueprint(picture: Picture) -> Picture:
    """White edges on blue paper."""
    return rgb(25.0, 60.0, 150.0) + _edges(picture) * rgb(230.0, 195.0, 105.0)


def comic(picture: Picture) -> Picture:
    """Strong flat colours with black contours."""
    grey = luma(picture)
    strong = np.rint((grey + np.float32(1.4) * (picture - grey)) / 64) * 64
    return strong * (1 - _edges(picture))


def _edges(picture: Picture) -> Float32[np.ndarray, "h w 1"]:
    """Return how strong the colour changes to the neighbours, in [0, 1]."""
    down = np.abs(np.diff(picture, axis=0, append=picture[-1:])).max(axis=2)
    across = np.abs(np.diff(picture, axis=1, append=picture[:, -1:])).max(axis=2)
    strength = np.maximum(down, across)
    return np.clip((strength - 20) / 60, 0, 1)[:, :, None]


def blur(picture: Picture) -> Picture:
    """Blur with a Gaussian of 2.2 % of the side, reflected at the borders."""
    kernel = _gaussian(len(picture))
    reach = len(kernel) // 2
    for axis in (0, 1):
        padding = [(0, 0)] * 3
        padding[axis] = (reach, reach)
        padded = np.pad(picture, padding, mode="reflect")
        length = picture.shape[axis]
        # a plain sum of shifts: a matrix product would round differently from machine to machine
        shifts = [padded.take(range(i, i + length), axis=axis) for i in range(len(kernel))]
        picture = sum((w * s for w, s in zip(kernel, shifts, strict=True)), np.float32(0) * picture)
    return picture


@cache
def _gaussian(size: int) -> tuple[np.float32, ...]:
    sigma = 0.022 * size
    reach = max(1, min(round(2.5 * sigma), size - 1))
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return tuple((weights / weights.sum()).astype(np.float32))


def brighten(picture: Picture) -> Picture:
    """Go two fifths of the way to white."""
    return picture + np.float32(0.4) * (255 - picture)


def more_contrast(picture: Picture) -> Picture:
    """Spread the values around mid grey."""
    return np.float32(127.5) + np.float32(1.7) * (picture - np.float32(127.5))


def less_contrast(picture: Picture) -> Picture:
    """Pull the values towards mid grey."""
    return np.float32(127.5) + np.float32(0.45) * (picture - np.float32(127.5))


def grayscale(picture: Picture) -> Picture:
    """Keep the luma only."""
    return np.repeat(luma(picture), 3, axis=2)


def saturate(picture: Picture) -> Picture:
    """Move every colour away from its grey."""
    grey = luma(picture)
    return grey + np.float32(1.9) * (picture - grey)


EFFECTS: dict[str, Callable[[Picture], Picture]] = {
    "night": linear((0.28, 0.33, 0.52), (0.0, 0.0, 14.0)),  # darker, and blue more than red
    "fog": linear((0.42, 0.42, 0.42), (122.0, 125.0, 128.0)),  # mixed with light grey
    "snow": snow,
    "rain": rain,
    "evening": linear((0.9, 0.68, 0.38), (42.0, 16.0, 0.0)),  # all in gold
    "underwater": linear((0.28, 0.6, 0.65), (0.0, 45.0, 65.0)),  # little red, sea green
}
STYLES: dict[str, Callable[[Picture], Picture]] = {
    "poster": poster,
    "mosaic": mosaic,
    "sepia photograph": sepia,
    "film negative": negative,
    "blueprint": blueprint,
    "comic": comic,
}
ADJUSTMENTS: dict[str, Callable[[Picture], Picture]] = {
    "blur": blur,
    "brighten": brighten,
    "darken": linear((0.5, 0.5, 0.5), (0.0, 0.0, 0.0)),
    "more_contrast": more_contrast,
    "less_contrast": less_contrast,
    "grayscale": grayscale,
    "saturate": saturate,
}
