"""A picture and what is known of its scene, drawn by the world's renderer and compared with it.

Costs are robust: a pixel that nothing explains counts one at most, so what another figure hides
neither helps nor harms. Source: the weights are Welsch's.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Float32

from datamodules.world.palette import RGB
from datamodules.world.render import Layer, draw_figure
from datamodules.world.scene import Figure, Word
from datamodules.world.sprites import word_coverage

SCALE = 48.0  # grey levels: about where a difference of colour begins to be another colour
ROOM = 4  # pixels around a figure in which its fit is judged
REACH = 4  # of a blur, in pixels

Map = Float32[np.ndarray, "h w"]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Sheet:
    """A square picture and what is known of its scene: background, figures, word, sharpness.

    `blur` is the deviation in pixels of a Gaussian that the rendered scene goes through.
    """

    picture: Float32[np.ndarray, "h w 3"]
    background: Float32[np.ndarray, "h w 3"]
    figures: tuple[Figure, ...] = ()
    word: Word | None = None
    blur: float = 0.0

    @property
    def size(self) -> int:
        """The side in pixels."""
        return len(self.picture)

    @property
    def whole(self) -> Window:
        """The window that is all of the picture."""
        return slice(0, self.size), slice(0, self.size)

    def drawn(self, window: Window, *more: Figure) -> Float32[np.ndarray, "h w 3"]:
        """Return a part of the rendered scene, with more figures in their places of depth."""
        if self.blur == 0:
            return self._sharp(window, *more)
        rows, columns = (
            slice(max(s.start - REACH, 0), min(s.stop + REACH, self.size)) for s in window
        )
        sharp = self._sharp((rows, columns), *more)
        mixing = _mixing(self.size, self.blur)
        down = np.tensordot(mixing[window[0], rows], sharp, 1)
        return mixing[window[1], columns] @ down

    def _sharp(self, window: Window, *more: Figure) -> Float32[np.ndarray, "h w 3"]:
        rows, columns = window
        part = self.background[window].copy()
        for figure in sorted((*self.figures, *more), key=lambda f: (f.base, f.name)):
            _lay(part, draw_figure(figure, self.size), rows, columns)
        if self.word is not None:
            share = word_coverage(self.word.text, self.word.band, self.size)[window][:, :, None]
            part += share * (rgb_of(self.word.ink) - part)
        return part

    def errors(self, window: Window, *more: Figure, scale: float = SCALE) -> Map:
        """Return how badly each pixel of a window is explained, in [0, 1]."""
        return mismatch(self.picture[window] - self.drawn(window, *more), scale)

    def gain(self, figure: Figure, errors: Map | None = None) -> float:
        """Return how many pixels more are explained with a figure than without.

        `errors` are those of the whole sheet as it is, if they are known.
        """
        window = around(figure, self.size)
        before = self.errors(window) if errors is None else errors[window]
        return float((before - self.errors(window, figure)).sum())


@cache
def _mixing(size: int, blur: float) -> Float32[np.ndarray, "size size"]:
    """Return the matrix that blurs a column; beyond the borders the last pixel goes on."""
    weights = np.exp(-(np.arange(-REACH, REACH + 1) ** 2) / (2 * blur**2))
    mixing = np.zeros((size, size), dtype=np.float32)
    for offset, weight in zip(range(-REACH, REACH + 1), weights / weights.sum(), strict=True):
        np.add.at(mixing, (np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)), weight)
    return mixing


def mismatch(
    difference: Float32[np.ndarray, "*any 3"], scale: float = SCALE
) -> Float32[np.ndarray, "*any"]:
    """Return 1 - exp(-d² / 2 s²), d the length of a difference of colours (Welsch)."""
    squared = np.einsum("...c,...c->...", difference, difference)
    return 1 - np.exp(squared * np.float32(-0.5 / scale**2))


def around(figure: Figure, size: int) -> Window:
    """Return the window in which the fit of a figure is judged."""
    layer = draw_figure(figure, size)
    rows, columns = (
        slice(max(s.start - ROOM, 0), min(s.stop + ROOM, size)) for s in (layer.rows, layer.columns)
    )
    return rows, columns


def without(sheet: Sheet, figure: Figure) -> Sheet:
    """Return the sheet with one figure less."""
    return replace(sheet, figures=tuple(f for f in sheet.figures if f is not figure))


def rgb_of(colour: str) -> Float32[np.ndarray, " 3"]:
    """Return the colour of a name, in [0, 255]."""
    return np.array(RGB[colour], dtype=np.float32)


def _lay(part: Float32[np.ndarray, "h w 3"], layer: Layer, rows: slice, columns: slice) -> None:
    """Lay the share of a layer that lies in a window over that part of a picture, in place."""
    y0, y1 = max(rows.start, layer.rows.start), min(rows.stop, layer.rows.stop)
    x0, x1 = max(columns.start, layer.columns.start), min(columns.stop, layer.columns.stop)
    if y0 >= y1 or x0 >= x1:
        return
    inner = (
        slice(y0 - layer.rows.start, y1 - layer.rows.start),
        slice(x0 - layer.columns.start, x1 - layer.columns.start),
    )
    target = part[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start]
    target += layer.alpha[inner][:, :, None] * (layer.rgb[inner] - target)
