"""Light, weather, season and colour on photographs: picture in, picture out, nothing random.

The filters of the flat world (`filters`) scale all pixels alike; on a photograph that is a veil.
These look where it is bright, green or high up in the picture, and where something may be known of
depth they use the rule of thumb of landscapes: what is higher is farther. Each takes and returns
float32 in [0, 255] of a square picture; lengths are fractions of the side, from 64 to 256 px. All
are ours; the smoothing is Pillow's, of bytes, so that it is the same on every machine.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageFilter

from datamodules.world.backgrounds import pixel_centres
from datamodules.world.filters import Picture, grayscale, luma, rgb, saturate
from emu_edit.randomness import keyed_generator

Plane = Float32[np.ndarray, "h w 1"]
Channels = Float32[np.ndarray, "h w c"]
BLUR = 0.03  # deviation of the blur that is asked for, in fractions of the side


def smoothed(picture: Channels, sigma: float) -> Channels:
    """Return a picture of one or three channels after a Gaussian of `sigma` sides."""
    pixels = np.rint(np.clip(picture, 0, 255)).astype(np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    blurred = image.filter(ImageFilter.GaussianBlur(sigma * len(picture)))
    return np.asarray(blurred, dtype=np.float32).reshape(picture.shape)


def mixed(picture: Picture, other: np.ndarray, share: np.ndarray | float) -> Picture:
    """Return a picture that is another one to a share of each pixel."""
    return (picture + np.float32(1) * share * (other - picture)).astype(np.float32)


def curved(picture: Channels, gamma: float) -> Channels:
    """Return a picture with its values in [0, 1] raised to a power."""
    return np.float32(255) * np.clip(picture / 255, 0, 1) ** np.float32(gamma)


def toned(picture: Picture, strength: float) -> Picture:
    """Return a picture with its distance from grey scaled; 0 leaves none of its colour."""
    grey = luma(picture)
    return grey + np.float32(strength) * (picture - grey)


def night(picture: Picture) -> Picture:
    """Dim, blue and low in colour, the lightest parts most of all dimmed."""
    dim = curved(toned(picture, 0.5), 1.45)
    return dim * rgb(0.29, 0.36, 0.54) + rgb(3.0, 5.0, 17.0)


def evening(picture: Picture) -> Picture:
    """Golden from above: blue goes, shadows deepen, the light parts glow."""
    warm = curved(picture, 1.15) * rgb(1.08, 0.82, 0.52) + rgb(14.0, 3.0, 0.0)
    glow = np.clip(luma(smoothed(picture, 0.03)) / 255 - 0.35, 0, 1) * _from_top(1.0, 0.5, picture)
    return mixed(warm, rgb(255.0, 172.0, 82.0), 0.75 * glow)


def sunny(picture: Picture) -> Picture:
    """Bright warm light and fuller colours."""
    bright = curved(toned(picture, 1.25), 0.78)
    return bright * rgb(1.08, 1.03, 0.92) + rgb(6.0, 4.0, 0.0)


def fog(picture: Picture) -> Picture:
    """Light grey, thicker the higher (the farther, in a landscape), where outlines blur, too."""
    share = _from_top(0.88, 0.45, picture)
    soft = mixed(picture, smoothed(picture, 0.015), share)
    return mixed(soft, rgb(208.0, 212.0, 216.0), share)


def rain(picture: Picture) -> Picture:
    """A grey day behind slanted streaks, the far parts dimmed in the wet air."""
    grey = toned(curved(picture, 1.1), 0.45) * rgb(0.66, 0.7, 0.76)
    hazy = mixed(grey, rgb(122.0, 130.0, 138.0), _from_top(0.5, 0.15, picture))
    return mixed(hazy, rgb(216.0, 224.0, 232.0), 0.6 * streaks(len(picture)))


def snowfall(picture: Picture) -> Picture:
    """A pale cold day behind flakes of several sizes."""
    cold = toned(picture, 0.6) * rgb(0.8, 0.83, 0.88) + rgb(28.0, 31.0, 36.0)
    pale = mixed(cold, rgb(205.0, 211.0, 220.0), _from_top(0.45, 0.15, picture))
    return mixed(pale, rgb(252.0, 253.0, 255.0), flakes(len(picture)))


def winter(picture: Picture) -> Picture:
    """What grows is covered with snow, the rest is cold, and a few flakes fall."""
    pale = toned(picture, 0.4) * rgb(0.86, 0.93, 1.02) + rgb(20.0, 24.0, 30.0)
    # snow keeps the relief of what it lies on, in much lighter greys
    relief = 140 + np.float32(0.66) * luma(picture)
    snow = np.clip(relief, 0, 250) * rgb(0.96, 0.985, 1.02)
    covered = mixed(pale, snow, 0.12 + 0.8 * np.maximum(growing(picture), 0.9 * dry(picture)))
    return mixed(covered, rgb(250.0, 252.0, 255.0), 0.85 * flakes(len(picture), 70))


def autumn(picture: Picture) -> Picture:
    """What is green turns orange and brown."""
    grey = luma(picture)
    leaves = grey * rgb(1.45, 0.85, 0.3) + rgb(22.0, 2.0, 0.0)
    warmer = picture * rgb(1.04, 0.98, 0.88)
    return mixed(warmer, leaves, 0.9 * np.maximum(growing(picture), 0.7 * dry(picture)))


def underwater(picture: Picture) -> Picture:
    """Little red, sea green, light from above that fades, everything a little soft."""
    soft = smoothed(picture, 0.008) * rgb(0.3, 0.72, 0.8) + rgb(0.0, 28.0, 46.0)
    return soft * _from_top(1.2, 0.55, picture)


def growing(picture: Picture) -> Plane:
    """Return how far each pixel may be grass or leaves, by colour: green to yellow, not too pale.

    Excess green (2 G - R - B) is the vegetation index of Woebbecke et al. 1995; yellow counts less.
    """
    soft = smoothed(picture, 0.008)
    red, green, blue = (soft[:, :, i : i + 1] for i in range(3))
    excess = 2 * green - red - blue
    # yellow and skin have more red than green: no grass
    is_green = np.clip((green - np.maximum(red * np.float32(0.97), blue)) / 14 + 0.35, 0, 1)
    return (np.clip((excess - 14) / 24, 0, 1) * is_green).astype(np.float32)


def dry(picture: Picture) -> Plane:
    """Return how far each pixel may be dry grass or dark leaves: dull and olive."""
    soft = smoothed(picture, 0.008)
    red, green, blue = (soft[:, :, i : i + 1] for i in range(3))
    yellow = np.clip((np.minimum(red, green) - blue - 8) / 16, 0, 1)
    is_olive = np.clip(1 - (np.abs(red - green - 2) - 8) / 12, 0, 1)
    return (yellow * is_olive * np.clip((170 - luma(soft)) / 30, 0, 1)).astype(np.float32)


def warm(picture: Picture) -> Picture:
    """More red and yellow, less blue."""
    return picture * rgb(1.13, 1.0, 0.76) + rgb(14.0, 5.0, 0.0)


def cold(picture: Picture) -> Picture:
    """More blue, less red."""
    return picture * rgb(0.78, 0.97, 1.14) + rgb(0.0, 3.0, 12.0)


def brighten(picture: Picture) -> Picture:
    """Lift the middle; black stays black."""
    return curved(picture, 0.58)


def darken(picture: Picture) -> Picture:
    """Half the light."""
    return curved(picture, 1.25) * np.float32(0.58)


def more_contrast(picture: Picture) -> Picture:
    """Spread the values around the picture's own middle."""
    middle = np.float32(np.clip(picture.mean(), 90, 165))
    return middle + np.float32(1.65) * (picture - middle)


def less_contrast(picture: Picture) -> Picture:
    """Pull the values towards a light grey, as a faded print."""
    return np.float32(142) + np.float32(0.48) * (picture - np.float32(128))


def mute(picture: Picture) -> Picture:
    """Move every colour towards its grey."""
    return toned(picture, 0.42)


def blur(picture: Picture) -> Picture:
    """Blur everything."""
    return smoothed(picture, BLUR)


def soften(picture: Picture) -> Picture:
    """Blur as a lens out of focus does: what `sharpen` starts from."""
    return smoothed(picture, 0.014)


def blur_edges(picture: Picture) -> Picture:
    """Blur towards the border, leave the middle as it is."""
    return mixed(picture, smoothed(picture, BLUR), np.clip((_from_middle(picture) - 0.5) * 3, 0, 1))


def vignette(picture: Picture) -> Picture:
    """Darken towards the corners."""
    return picture * (1 - np.float32(0.72) * np.clip((_from_middle(picture) - 0.45) * 1.5, 0, 1))


def sepia(picture: Picture) -> Picture:
    """Brown tones of an old print."""
    return luma(picture) * rgb(1.0, 0.83, 0.62) + rgb(16.0, 8.0, 0.0)


def _from_top(top: float, bottom: float, picture: Picture) -> Plane:
    """Return a share that goes evenly from one at the top to one at the bottom."""
    down = pixel_centres(len(picture))[:, None, None]
    return np.broadcast_to(
        np.float32(top) + np.float32(bottom - top) * down, (*picture.shape[:2], 1)
    )


def _from_middle(picture: Picture) -> Plane:
    """Return the distance from the middle: 0 there, 1 in the middle of a side, 1.4 in corners."""
    away = 2 * pixel_centres(len(picture)) - 1
    return np.sqrt(away[:, None, None] ** 2 + away[None, :, None] ** 2)


@cache
def streaks(size: int) -> Plane:
    """Return the share of each pixel that is falling rain; always the same thin slanted streaks."""
    at = pixel_centres(size)
    covered = np.zeros((size, size), dtype=np.float32)
    half = max(0.0032, 0.42 / size)  # of the width: never less than most of a pixel
    draws = keyed_generator(0, "photograph rain", 0).random((110, 4), dtype=np.float32)
    # some begin above and beside the picture
    draws[:, :2] = draws[:, :2] * (1.3, 1.1) - np.float32(0.1)
    for x, y, long, light in draws:
        length = np.float32(0.06) + np.float32(0.1) * long
        along = np.clip((at - y)[:, None], 0, length)
        far = np.hypot((at - x)[None, :] + np.float32(0.22) * along, (at - y)[:, None] - along)
        share = np.clip(0.5 - (far - np.float32(half)) * size, 0, 1) * (0.4 + 0.6 * light)
        np.maximum(covered, share, out=covered)
    return covered[:, :, None]


@cache
def flakes(size: int, count: int = 190) -> Plane:
    """Return the share of each pixel that is a falling flake: many small ones, few large and soft.

    Always the same flakes.
    """
    at = pixel_centres(size)
    covered = np.zeros((size, size), dtype=np.float32)
    for x, y, grow in keyed_generator(0, "photograph snow", 0).random((count, 3), dtype=np.float32):
        far = np.sqrt((at - x)[None, :] ** 2 + (at - y)[:, None] ** 2)
        radius = max(0.005 + 0.013 * float(grow) ** 3, 0.55 / size)
        edge = max(1.0 / size, 0.6 * radius)
        share = np.clip(0.5 - (far - np.float32(radius)) / np.float32(edge), 0, 1)
        np.maximum(covered, share * np.float32(0.95), out=covered)
    return covered[:, :, None]


Filter = Callable[[Picture], Picture]
WEATHER: dict[str, Filter] = {
    "night": night,
    "evening": evening,
    "sunny": sunny,
    "fog": fog,
    "rain": rain,
    "snow": snowfall,
    "winter": winter,
    "autumn": autumn,
    "underwater": underwater,
}
COLOURS: dict[str, Filter] = {
    "grayscale": grayscale,
    "warm": warm,
    "cold": cold,
    "brighten": brighten,
    "darken": darken,
    "more_contrast": more_contrast,
    "less_contrast": less_contrast,
    "saturate": saturate,
    "mute": mute,
    "blur": blur,
    "blur_edges": blur_edges,
    "vignette": vignette,
}
