"""Backgrounds: plain colours, five scenes, or a crop of the user's photographs.

A named background has one look and no randomness, so "replace the background with a beach" has one
right answer.
"""

from functools import cache

import numpy as np
from jaxtyping import Float32

from datamodules.world.palette import PLAIN_BACKGROUNDS, SCENIC_BACKGROUNDS
from emu_edit.randomness import keyed_generator


def pixel_centres(size: int) -> Float32[np.ndarray, " size"]:
    """Return the centres of the pixels of one row, in fractions of the side."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


@cache
def named_background(name: str, size: int) -> Float32[np.ndarray, "size size 3"]:
    """Return a background by name, values in [0, 255]; read-only, shared by all callers."""
    picture = np.empty((size, size, 3), dtype=np.float32)
    if name in PLAIN_BACKGROUNDS:
        picture[:] = PLAIN_BACKGROUNDS[name]
    else:
        parts = [np.array(rgb, dtype=np.float32) for rgb in SCENIC_BACKGROUNDS[name]]
        _SCENIC[name](picture, parts)
    picture.flags.writeable = False
    return picture


def _meadow(picture: np.ndarray, parts: list[np.ndarray]) -> None:
    sky, grass = parts
    size = len(picture)
    picture[:] = _bands(size, (0.45,), (sky, grass))


def _beach(picture: np.ndarray, parts: list[np.ndarray]) -> None:
    picture[:] = _bands(len(picture), (0.35, 0.62), tuple(parts))


def _sunset(picture: np.ndarray, parts: list[np.ndarray]) -> None:
    at = pixel_centres(len(picture))
    stops = np.linspace(0, 1, len(parts))
    for channel in range(3):
        column = np.interp(at, stops, [part[channel] for part in parts])
        picture[:, :, channel] = column[:, None]


def _night_sky(picture: np.ndarray, parts: list[np.ndarray]) -> None:
    size = len(picture)
    at = pixel_centres(size)
    picture[:] = parts[0] + at[:, None, None] * (parts[1] - parts[0])
    # one fixed sky: the same stars in every picture
    for x, y, brightness in keyed_generator(0, "world stars", 0).random((24, 3), dtype=np.float32):
        far = np.maximum(np.abs(at - x)[None, :], np.abs(at - y)[:, None])
        star = np.clip(0.5 - (far - np.float32(0.008)) * size, 0, 1)[..., None] * (
            0.4 + 0.6 * brightness
        )
        picture += star * (np.float32(255) - picture)


def _brick_wall(picture: np.ndarray, parts: list[np.ndarray]) -> None:
    brick, mortar = parts
    size = len(picture)
    at = pixel_centres(size)
    course = np.floor(at * 8)
    row_edge = np.abs(at * 8 - np.round(at * 8)) / 8
    shifted = at[None, :] * 4 + 0.5 * (course[:, None] % 2)
    column_edge = np.abs(shifted - np.round(shifted)) / 4
    joint = np.minimum(row_edge[:, None], column_edge)
    share = np.clip(0.5 - (joint - 0.008) * size, 0, 1)[..., None]
    picture[:] = brick + share * (mortar - brick)


_SCENIC = {
    "meadow": _meadow,
    "beach": _beach,
    "sunset": _sunset,
    "night sky": _night_sky,
    "brick wall": _brick_wall,
}


def _bands(
    size: int, edges: tuple[float, ...], colours: tuple[np.ndarray, ...]
) -> Float32[np.ndarray, "size 1 3"]:
    """Return horizontal bands of colour with anti-aliased edges."""
    at = pixel_centres(size)
    column = np.broadcast_to(colours[0], (size, 3)).astype(np.float32)
    for edge, colour in zip(edges, colours[1:], strict=True):
        share = np.clip(0.5 + (at - np.float32(edge)) * size, 0, 1)[:, None]
        column += share * (colour - column)
    return column[:, None, :]
