"""The sky of a photograph, where one can be told by its colour; and the same sky in another.

What is blue, or as pale as clouds, and hangs together with the upper border. Where that is too
little, nearly everything, or hardly blue, nobody can be sure that it is sky, and there is none.
"""

import numpy as np
from jaxtyping import Bool, Float32

from datamodules.world.filters import Picture, luma, rgb, tile_means
from datamodules.world.photograph_filters import Plane, smoothed

SKIES = {
    "pink": rgb(244.0, 150.0, 190.0),
    "orange": rgb(246.0, 160.0, 78.0),
    "purple": rgb(158.0, 112.0, 204.0),
    "red": rgb(216.0, 72.0, 62.0),
    "green": rgb(120.0, 198.0, 130.0),
    "yellow": rgb(246.0, 214.0, 104.0),
}
COARSE = 32  # cells, at most, on a side of the grid in which what hangs together is found
LEAST, MOST = 0.12, 0.85  # share of the picture that is sky
LEAST_BLUE = 0.45  # share of the sky that is blue and not cloud
LEAST_TOP = 0.6  # share of the upper border that is sky
MOST_BELOW = 0.12  # share of the lowest quarter that looks like sky: water, or no landscape at all


def find_sky(picture: Picture) -> Plane | None:
    """Return the share of each pixel that is sky; None where no sky can be told."""
    is_blue, is_pale = _colours(picture)
    like_sky = np.maximum(is_blue, is_pale)
    is_even = np.clip((22 - np.abs(picture - smoothed(picture, 0.02)).max(axis=2)) / 10, 0, 1)
    may_be = _coarse(like_sky * is_even[:, :, None])
    if may_be[-len(may_be) // 4 :].mean() > MOST_BELOW:
        return None
    reached = _connected_to_top(may_be > 0.5)
    if reached[0].mean() < LEAST_TOP:
        return None
    place = np.arange(len(picture)) * len(may_be) // len(picture)
    sky = like_sky * _grown(reached)[place][:, place][:, :, None]
    area = float(sky.mean())
    if not LEAST <= area <= MOST or float((sky * is_blue).mean()) < LEAST_BLUE * area:
        return None
    return sky.astype(np.float32)


def _colours(picture: Picture) -> tuple[Plane, Plane]:
    """Return how far each pixel is blue, and how far as pale as a cloud."""
    red, blue, grey = picture[:, :, :1], picture[:, :, 2:], luma(picture)
    is_blue = np.clip((blue - red - 6) / 12, 0, 1) * np.clip((grey - 35) / 20, 0, 1)
    colour = picture.max(axis=2, keepdims=True) - picture.min(axis=2, keepdims=True)
    is_pale = np.clip((grey - 150) / 25, 0, 1) * np.clip((48 - colour) / 20, 0, 1)
    return is_blue, is_pale


def coloured_sky(picture: Picture, sky: Plane, colour: str) -> Picture:
    """Return a picture with its sky in one of SKIES: as light and dark as it was, clouds whiter."""
    grey = luma(picture)
    light = grey / np.maximum((grey * sky).sum() / sky.sum(), 1)
    paint = SKIES[colour]
    darker = paint * np.minimum(light, 1)
    new = darker + (255 - darker) * np.clip((light - 1) * np.float32(1.3), 0, 0.8)
    return picture + sky * (new - picture)


def _coarse(plane: Float32[np.ndarray, "h w 1"]) -> Float32[np.ndarray, "n n"]:
    """Return the means of a grid of cells."""
    cells = min(COARSE, len(plane))
    edges = np.arange(cells) * len(plane) // cells
    return tile_means(plane, edges)[:, :, 0].astype(np.float32)


def _connected_to_top(cells: Bool[np.ndarray, "n n"]) -> Bool[np.ndarray, "n n"]:
    """Return the cells that hang together with the upper border."""
    reached = np.zeros_like(cells)
    reached[0] = cells[0]
    while True:
        further = cells & _grown(reached)
        if (further == reached).all():
            return reached
        reached = further


def _grown(cells: Bool[np.ndarray, "n n"]) -> Bool[np.ndarray, "n n"]:
    """Return the cells and their eight neighbours."""
    padded = np.pad(cells, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
