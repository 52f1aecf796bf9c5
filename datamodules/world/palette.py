"""The words of the world, what they look like, and which combinations are held out.

Few and clear on purpose: a tiny model trained for minutes must be able to learn every word. A
colour is used on a background only when the two are far apart, so that every figure can be seen.
Some colour/shape pairs never occur in training; they test whether a model composes what it knows.
"""

from functools import cache
from typing import Literal

Split = Literal["train", "heldout"]
Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 150, 70),
    "blue": (50, 90, 220),
    "purple": (140, 60, 180),
    "pink": (250, 140, 190),
    "brown": (125, 75, 35),
}
INKS: dict[str, Rgb] = {
    "red": COLOURS["red"],
    "blue": COLOURS["blue"],
    "yellow": COLOURS["yellow"],
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
MARKS: dict[str, Rgb] = {"lime": (0, 255, 0), "magenta": (255, 0, 255), "aqua": (0, 255, 255)}
RGB: dict[str, Rgb] = {**COLOURS, **INKS, **MARKS}

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
TEXTURES = ("striped", "dotted", "checkered")
WORDS = ("CAT", "DOG", "SUN", "MOON", "STOP", "OPEN", "LOVE", "YES", "HI", "TEA", "PLAY", "BIG")
BANDS = ("top", "bottom")

# place -> centre as fractions of the picture (x from the left, y from the top)
PLACES: dict[str, tuple[float, float]] = {
    "in the top left corner": (0.2, 0.2),
    "at the top": (0.5, 0.2),
    "in the top right corner": (0.8, 0.2),
    "on the left": (0.2, 0.5),
    "in the centre": (0.5, 0.5),
    "on the right": (0.8, 0.5),
    "in the bottom left corner": (0.2, 0.8),
    "at the bottom": (0.5, 0.8),
    "in the bottom right corner": (0.8, 0.8),
}

PLAIN_BACKGROUNDS: dict[str, Rgb] = {
    "white": (245, 245, 245),
    "grey": (150, 150, 150),
    "black": (25, 25, 25),
    "beige": (225, 205, 170),
    "navy": (25, 35, 90),
    "mint": (170, 225, 200),
}
# the colours a scenic background is made of, back to front
SCENIC_BACKGROUNDS: dict[str, tuple[Rgb, ...]] = {
    "meadow": ((150, 200, 240), (110, 185, 80)),
    "beach": ((175, 215, 245), (40, 130, 190), (235, 210, 150)),
    "sunset": ((70, 60, 110), (255, 190, 150)),
    "night sky": ((10, 12, 40), (30, 35, 85)),
    "brick wall": ((170, 80, 60), (200, 190, 180)),
}
BACKGROUNDS: dict[str, tuple[Rgb, ...]] = {
    **{name: (rgb,) for name, rgb in PLAIN_BACKGROUNDS.items()},
    **SCENIC_BACKGROUNDS,
}

HELDOUT_PAIRS = frozenset({
    ("red", "star"),
    ("orange", "cross"),
    ("yellow", "heart"),
    ("green", "triangle"),
    ("blue", "circle"),
    ("purple", "square"),
    ("pink", "cross"),
    ("brown", "circle"),
    ("orange", "person"),
    ("blue", "person"),
})
HELDOUT_WORDS = frozenset({
    ("red", "SUN"),
    ("blue", "MOON"),
    ("yellow", "CAT"),
    ("white", "OPEN"),
    ("black", "LOVE"),
    ("red", "TEA"),
    ("white", "YES"),
    ("black", "DOG"),
})
MIN_DISTANCE = 90.0  # of two RGB values, ours: nearer ones are hard to tell apart at 64 px


def distance(first: Rgb, second: Rgb) -> float:
    """Return the Euclidean distance of two RGB values, in [0, 442]."""
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5


@cache
def stands_out(colour: str, background: str) -> bool:
    """Tell whether a colour can be seen against all of a background; on photographs it is True."""
    parts = BACKGROUNDS.get(background, ())
    return all(distance(RGB[colour], part) >= MIN_DISTANCE for part in parts)


@cache
def visible_colours(background: str) -> tuple[str, ...]:
    """Return the figure colours that stand out against a background."""
    return tuple(colour for colour in COLOURS if stands_out(colour, background))


@cache
def visible_inks(background: str) -> tuple[str, ...]:
    """Return the word colours that stand out against a background."""
    return tuple(ink for ink in INKS if stands_out(ink, background))
