"""Drawn and painted photographs: picture in, picture out, nothing random.

A painting keeps edges and loses grain, which is what the filter of Kuwahara does; a drawing keeps
little else than where brightness changes, which is what a photograph divided by its own blur shows.
Pictures are as in `photograph_filters`.
"""

from functools import cache

import numpy as np
from jaxtyping import Float32

from datamodules.world import filters
from datamodules.world.filters import Picture, luma, rgb
from datamodules.world.photograph_filters import (
    Filter,
    Plane,
    curved,
    mixed,
    sepia,
    smoothed,
    toned,
)
from emu_edit.randomness import keyed_generator


def kuwahara(picture: Picture, radius: float) -> Picture:
    """Return each pixel as the mean of its surroundings, those sides counting that are even.

    Eight squares around the pixel, each weighted by its variance to the power of -4; means and
    variances come from running sums. `radius` is how far they reach, in fractions of the picture's
    side. Source: the filter of Kuwahara et al. 1976, softened as in Papari et al. 2007, "Artistic
    edge and corner enhancing smoothing", equation 10.
    """
    reach = max(1, round(radius * len(picture)))
    side = reach + 1 + reach % 2  # odd
    room = reach + side // 2
    padded = np.pad(picture, ((room, room), (room, room), (0, 0)), mode="edge")
    grey = luma(padded)
    means = _box_means(padded, side)
    spreads = _box_means(grey**2, side) - _box_means(grey, side) ** 2
    weights = 1 / (np.maximum(spreads, 0) + 1) ** 4
    size, far = len(picture), round(0.7 * reach)  # of those at the corners
    painted, total = np.zeros(picture.shape), np.zeros((*picture.shape[:2], 1))
    for down, across in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        away = far if down and across else reach
        top, left = reach + down * away, reach + across * away
        window = slice(top, top + size), slice(left, left + size)
        painted += weights[window] * means[window]
        total += weights[window]
    return (painted / total).astype(np.float32)


def _box_means(picture: np.ndarray, side: int) -> np.ndarray:
    """Return the mean of every square of `side` pixels that lies in a picture."""
    sums = np.cumsum(np.cumsum(picture, axis=0, dtype=np.float64), axis=1)
    sums = np.pad(sums, ((1, 0), (1, 0), (0, 0)))
    total = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return total / side**2


def lines(picture: Picture, sigma: float = 0.008, strength: float = 14.0) -> Plane:
    """Return how far each pixel is part of a line between two tones, in [0, 1].

    A pixel darker than its surroundings: the difference of two Gaussians, cut off softly. Source:
    Winnemöller et al. 2012, "XDoG: an eXtended difference-of-Gaussians compendium".
    """
    grey = luma(picture)
    near, far = smoothed(grey, sigma), smoothed(grey, 1.8 * sigma)
    return np.clip((far - near - 1.5) / np.float32(strength), 0, 1)


def line_drawing(picture: Picture) -> Picture:
    """Return dark lines on white paper."""
    ink = lines(kuwahara(picture, 0.016), sigma=max(0.005, 0.55 / len(picture)), strength=7.0)
    return np.repeat(255 - np.float32(235) * ink, 3, axis=2)


def pencil(picture: Picture) -> Picture:
    """Grey pencil: the tone divided by its surroundings, with a shade left where it is dark."""
    grey = luma(picture)
    relief = np.clip(grey / np.maximum(smoothed(grey, 0.03), 1), 0, 1.0)
    shade = curved(np.clip(grey * np.float32(1.1) + 40, 0, 255), 0.75) / 255
    drawn = relief**2 * (0.62 + 0.38 * shade)
    return np.repeat(np.float32(252) * drawn, 3, axis=2) - 4 * grain(len(picture))


def watercolour(picture: Picture) -> Picture:
    """Pale even washes, darker where two meet, on rough paper."""
    washes = kuwahara(kuwahara(picture, 0.02), 0.014)
    light = curved(toned(washes, 1.35), 0.68)
    wet = mixed(light, rgb(255.0, 252.0, 244.0), 0.16)
    pooled = wet * (1 - np.float32(0.35) * lines(washes, 0.012, 16.0))
    return pooled - 5 * grain(len(picture))


def oil(picture: Picture) -> Picture:
    """Thick even strokes in strong colours."""
    strokes = kuwahara(kuwahara(picture, 0.024), 0.016)
    strong = toned(strokes, 1.45)
    grey = luma(strokes)
    ridges = grey - smoothed(grey, 0.012)  # paint stands up where tones change
    return np.float32(1.12) * (strong - 128) + 128 + np.float32(0.9) * ridges


def cartoon(picture: Picture) -> Picture:
    """Flat strong colours inside black lines."""
    flat = kuwahara(kuwahara(picture, 0.016), 0.012)
    grey = luma(flat)
    steps = np.rint(grey / 42) * 42 + 10
    coloured = toned(flat + (steps - grey), 1.5)
    width = max(0.006, 0.55 / len(picture))
    return coloured * (1 - lines(kuwahara(picture, 0.016), width, 10.0))


def poster(picture: Picture) -> Picture:
    """Few flat tones of each colour, as of a print."""
    flat = kuwahara(kuwahara(picture, 0.02), 0.014)
    grey = luma(flat)
    # in steps of lightness: in steps of red, green and blue faces turn pink and skies green
    steps = np.rint(np.clip(1.15 * (grey - 128) + 128, 0, 255) / 63.75) * np.float32(63.75)
    return toned(flat, 1.8) + (steps - grey)


def pixel_art(picture: Picture) -> Picture:
    """Large square pixels of few colours."""
    size = len(picture)
    block = max(3, round(size / 22))
    edges = np.arange(0, size, block)
    strong = toned(np.float32(1.15) * (picture - 128) + 128, 1.4)
    tiles = filters.tile_means(strong, edges)
    grey = luma(tiles.astype(np.float32))
    few = np.rint(grey / np.float32(36)) * np.float32(36) + np.rint((tiles - grey) / 28) * 28
    return filters.tiled(few, edges, size)


def blueprint(picture: Picture) -> Picture:
    """White lines on blue paper."""
    ink = 1 - line_drawing(picture) / 255
    return rgb(22.0, 62.0, 140.0) + ink * rgb(225.0, 185.0, 110.0)


@cache
def grain(size: int) -> Plane:
    """Return the roughness of paper, about -1 to 1; always the same."""
    # drawn at a fixed size, so that it is the same paper at every size
    rough = keyed_generator(0, "paper", 0).standard_normal((256, 256, 1), dtype=np.float32)
    soft = smoothed(128 + 40 * rough, 0.004) - 128
    return (_resized(soft, size) / 20).astype(np.float32)


def _resized(plane: Float32[np.ndarray, "h w 1"], size: int) -> np.ndarray:
    picked = np.arange(size) * len(plane) // size
    return plane[picked][:, picked]


STYLES: dict[str, Filter] = {
    "pencil": pencil,
    "watercolour": watercolour,
    "oil": oil,
    "cartoon": cartoon,
    "poster": poster,
    "pixel_art": pixel_art,
    "mosaic": filters.mosaic,
    "sepia": sepia,
    "negative": filters.negative,
    "blueprint": blueprint,
}
