"""From a scene to its picture, and to the share of each pixel that each figure has.

Each figure is a layer: a window of the picture with its distances, coverage and colours. Layers are
laid over the background from far to near; going the other way, what the nearer ones let through
gives the share of every pixel that belongs to each figure. Pictures are float32 in [0, 255] here;
`quantise` makes them bytes once, at the end.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from datamodules.world.backgrounds import named_background, pixel_centres
from datamodules.world.palette import RGB
from datamodules.world.photographs import Photos
from datamodules.world.scene import Background, Figure, Person, Scene, Thing
from datamodules.world.sprites import (
    joints,
    own_axes,
    person_distance,
    thing_distance,
    word_coverage,
)

PERIOD = 0.1  # of the textures, in fractions of the side: about six pixels at 64
DOT_RADIUS = 0.031
DARK = 0.35  # the second colour of a texture is the figure's colour times this
MARGIN = 0.03  # room around a figure for its outline in a sketch


@dataclass(frozen=True)
class Layer:
    """A figure drawn in a window of the picture; the arrays are shared and read-only."""

    rows: slice
    columns: slice
    distance: Float32[np.ndarray, "h w"]
    alpha: Float32[np.ndarray, "h w"]
    rgb: Float32[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Coverage:
    """The shares of each pixel, in [0, 1], that sum to one; `figures` in the scene's order."""

    background: Float32[np.ndarray, "h w"]
    figures: tuple[Float32[np.ndarray, "h w"], ...]
    word: Float32[np.ndarray, "h w"] | None

    def of(self, scene: Scene, figure: Figure) -> Float32[np.ndarray, "h w"]:
        """Return the share of one figure of the scene."""
        return self.figures[next(i for i, f in enumerate(scene.figures) if f is figure)]


def render(
    scene: Scene, size: int, photos: Photos | None = None
) -> Float32[np.ndarray, "size size 3"]:
    """Return the picture of a scene, values in [0, 255], not yet rounded."""
    picture = background_picture(scene.background, size, photos).copy()
    for figure in scene.figures:
        layer = draw_figure(figure, size)
        _lay_over(picture[layer.rows, layer.columns], layer.alpha, layer.rgb)
    if scene.word is not None:
        alpha = word_coverage(scene.word.text, scene.word.band, size)
        _lay_over(picture, alpha, np.array(RGB[scene.word.ink], dtype=np.float32))
    return picture


def quantise(picture: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture as bytes: clamped and rounded."""
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


def background_picture(
    background: Background, size: int, photos: Photos | None
) -> Float32[np.ndarray, "size size 3"]:
    """Return the picture behind the figures; may be shared, so copy before writing."""
    if background.crop is None:
        return named_background(background.name, size, background.view)
    if photos is None:
        raise ValueError("the scene has a photograph as background; pass the folder it is from")
    return photos.picture(background.crop, size).astype(np.float32)


def coverage(scene: Scene, size: int) -> Coverage:
    """Return the share of each pixel that is background, each figure, and the word."""
    left = np.ones((size, size), dtype=np.float32)
    word = None
    if scene.word is not None:
        word = word_coverage(scene.word.text, scene.word.band, size)
        left -= word
    shares = []
    for figure in reversed(scene.figures):
        layer = draw_figure(figure, size)
        share = np.zeros((size, size), dtype=np.float32)
        window = (layer.rows, layer.columns)
        share[window] = left[window] * layer.alpha
        left[window] -= share[window]
        shares.append(share)
    return Coverage(left, tuple(reversed(shares)), word)


def seen(scene: Scene, figure: Figure, size: int) -> Bool[np.ndarray, "size size"]:
    """Return the pixels a figure contributes to, fringe included: those that may change with it."""
    return coverage(scene, size).of(scene, figure) > 0


def changed(before: Scene, after: Scene, size: int) -> Bool[np.ndarray, "size size"]:
    """Return where a figure is seen that only one of two scenes has; nothing else may differ."""
    mask = np.zeros((size, size), dtype=np.bool_)
    for scene, other in ((before, after), (after, before)):
        for figure in scene.figures:
            if all(figure is not f for f in other.figures):
                mask |= seen(scene, figure, size)
    return mask


@lru_cache(maxsize=128)
def draw_figure(figure: Figure, size: int) -> Layer:
    """Return the layer of a figure; cached, as source and target share most of them."""
    x0, y0, x1, y1 = extent(figure)
    rows, columns = _window(y0, y1, size), _window(x0, x1, size)
    at = pixel_centres(size)
    y, x = at[rows, None], at[None, columns]
    rgb = np.empty((y.size, x.size, 3), dtype=np.float32)
    rgb[:] = RGB[figure.colour]
    if isinstance(figure, Person):
        distance = person_distance(figure, x, y)
    else:
        distance = thing_distance(figure, x, y)
        if figure.texture != "plain":
            dark = dark_share(figure, x, y, size)[:, :, None]
            rgb *= 1 - (1 - np.float32(DARK)) * dark
    alpha = np.clip(np.float32(0.5) - distance * np.float32(size), 0, 1)
    for array in (distance, alpha, rgb):
        array.flags.writeable = False
    return Layer(rows, columns, distance, alpha, rgb)


def _lay_over(
    window: Float32[np.ndarray, "h w 3"],
    alpha: Float32[np.ndarray, "h w"],
    rgb: Float32[np.ndarray, "*any 3"],
) -> None:
    """Mix colours into a window in place."""
    # not window + alpha (rgb - window): where alpha is 1 nothing of what is behind may be left,
    # not even a rounding error, or pixels outside the mask of an edit could change
    share = alpha[:, :, None]
    window *= 1 - share
    window += share * rgb


def extent(figure: Figure) -> tuple[float, float, float, float]:
    """Return a rectangle that surely holds the figure: x0, y0, x1, y1."""
    if isinstance(figure, Thing):
        # the farthest corner of a shape, of the triangle, is 1.25 radii from the middle
        reach = figure.radius * (1.1 if figure.angle == 0 else 1.3) + MARGIN
        return figure.x - reach, figure.y - reach, figure.x + reach, figure.y + reach
    points = joints(figure)
    low, high = points.min(axis=0), points.max(axis=0)
    reach = 0.11 * figure.height + MARGIN
    x0, y0, x1, y1 = *(low - reach).tolist(), *(high + reach).tolist()
    return x0, y0, x1, y1


def _window(low: float, high: float, size: int) -> slice:
    """Return the pixels between two fractions, two more on either side, at least one pixel."""
    start = min(max(int(low * size) - 2, 0), size - 1)
    return slice(start, max(min(int(high * size) + 3, size), start + 1))


def dark_share(
    thing: Thing, x: Float32[np.ndarray, "1 w"], y: Float32[np.ndarray, "h 1"], size: int
) -> Float32[np.ndarray, "h w"]:
    """Return the dark share of a texture, anti-aliased; it is anchored at the thing's centre."""
    period, dot_radius = PERIOD * thing.grain, DOT_RADIUS * thing.grain
    x, y = own_axes(thing, x, y)
    across, down = _wave(x / period), _wave(y / period)
    match thing.texture:
        case "striped":
            stripe = np.clip(0.5 - (down - 0.25) * period * size, 0, 1)
            shape = np.broadcast_shapes(across.shape, down.shape)
            return np.broadcast_to(stripe, shape).astype(np.float32)
        case "dotted":
            far = np.sqrt(across**2 + down**2) * period
            return np.clip(0.5 - (far - dot_radius) * size, 0, 1).astype(np.float32)
        case "checkered":
            a = np.clip(0.5 - (across - 0.25) * period * size, 0, 1)
            b = np.clip(0.5 - (down - 0.25) * period * size, 0, 1)
            return (a + b - 2 * a * b).astype(np.float32)
        case _:
            raise ValueError(f"no pattern for the texture {thing.texture!r}")


def _wave(u: Float32[np.ndarray, "*n"]) -> Float32[np.ndarray, "*n"]:
    """Return the distance to the nearest half-integer, in [0, 0.5]."""
    return np.abs(u - np.floor(u) - np.float32(0.5))
