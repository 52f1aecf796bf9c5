"""Backgrounds: plain colours and five scenes; those that are photographs are in `photographs`.

A named background has one look and no randomness, so "replace the background with a beach" has one
right answer; a camera may look beyond its edges, where it goes on.
"""

from functools import lru_cache, partial

import numpy as np
from jaxtyping import Float32

from datamodules.world.palette import PLAIN_BACKGROUNDS, SCENIC_BACKGROUNDS
from datamodules.world.scene import AT_REST, View
from emu_edit.randomness import keyed_generator


def pixel_centres(size: int) -> Float32[np.ndarray, " size"]:
    """Return the centres of the pixels of one row, in fractions of the side."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


@lru_cache(32)
def named_background(
    name: str, size: int, view: View = AT_REST
) -> Float32[np.ndarray, "size size 3"]:
    """Return what a camera sees of a background, in [0, 255]; read-only, shared by all callers."""
    picture = np.empty((size, size, 3), dtype=np.float32)
    if name in PLAIN_BACKGROUNDS:
        picture[:] = PLAIN_BACKGROUNDS[name]
    else:
        parts = [np.array(rgb, dtype=np.float32) for rgb in SCENIC_BACKGROUNDS[name]]
        at = pixel_centres(size) * np.float32(view.side)
        x, y = at + np.float32(view.left), at + np.float32(view.top)
        _SCENIC[name](picture, parts, x, y, size / view.side)
    picture.flags.writeable = False
    return picture


# a painter gets the colours, the places of columns and rows, and how many pixels a side of the
# world at rest has
_Axis = Float32[np.ndarray, " n"]


def _banded(
    picture: np.ndarray,
    parts: list[np.ndarray],
    x: _Axis,  # noqa: ARG001  bands have no end
    y: _Axis,
    scale: float,
    *,
    edges: tuple[float, ...],
) -> None:
    """Paint horizontal bands of colour with anti-aliased edges."""
    column = np.broadcast_to(parts[0], (len(y), 3)).astype(np.float32)
    for edge, colour in zip(edges, parts[1:], strict=True):
        share = np.clip(0.5 + (y - np.float32(edge)) * scale, 0, 1)[:, None]
        column += share * (colour - column)
    picture[:] = column[:, None, :]


def _sunset(
    picture: np.ndarray,
    parts: list[np.ndarray],
    x: _Axis,  # noqa: ARG001
    y: _Axis,
    scale: float,  # noqa: ARG001
) -> None:
    stops = np.linspace(0, 1, len(parts))
    for channel in range(3):
        column = np.interp(y, stops, [part[channel] for part in parts])
        picture[:, :, channel] = column[:, None]


def _night_sky(
    picture: np.ndarray, parts: list[np.ndarray], x: _Axis, y: _Axis, scale: float
) -> None:
    picture[:] = parts[0] + np.clip(y, 0, 1)[:, None, None] * (parts[1] - parts[0])
    # one fixed sky: the same stars in every picture, and again beyond its edges
    for at_x, at_y, brightness in keyed_generator(0, "world stars", 0).random(
        (24, 3), dtype=np.float32
    ):
        far = np.maximum(_away(x, at_x)[None, :], _away(y, at_y)[:, None])
        star = np.clip(0.5 - (far - np.float32(0.008)) * scale, 0, 1)[..., None] * (
            0.4 + 0.6 * brightness
        )
        picture += star * (np.float32(255) - picture)


def _away(at: _Axis, star: np.float32) -> _Axis:
    """Return the distance to a star along one axis, or to the nearest of its copies beyond."""
    away = np.abs(at - star)
    outside = (at < 0) | (at > 1)
    return np.where(outside, np.abs(away - np.round(away)), away)


def _brick_wall(
    picture: np.ndarray, parts: list[np.ndarray], x: _Axis, y: _Axis, scale: float
) -> None:
    brick, mortar = parts
    course = np.floor(y * 8)
    row_edge = np.abs(y * 8 - np.round(y * 8)) / 8
    shifted = x[None, :] * 4 + 0.5 * (course[:, None] % 2)
    column_edge = np.abs(shifted - np.round(shifted)) / 4
    joint = np.minimum(row_edge[:, None], column_edge)
    share = np.clip(0.5 - (joint - 0.008) * scale, 0, 1)[..., None]
    picture[:] = brick + share * (mortar - brick)


_SCENIC = {
    "meadow": partial(_banded, edges=(0.45,)),
    "beach": partial(_banded, edges=(0.35, 0.62)),
    "sunset": _sunset,
    "night sky": _night_sky,
    "brick wall": _brick_wall,
}
