"""Things that are turned, or come nearer with their pattern: what the search for still ones misses.

The outline comes first: every shape at a ladder of angles and sizes is correlated with where a
colour is, then fitted to it whatever the pattern is. What is dark inside the outline then tells
texture, grain, and which of the angles that look alike it is. A thing's angle is known up to the
symmetry of what is seen of it.
"""

from dataclasses import replace
from functools import cache
from math import cos, pi, sin

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from datamodules.world.backgrounds import pixel_centres
from datamodules.world.fit import (
    COARSE_SCALE,
    TEXTURES,
    Candidate,
    colour_errors,
    fitted,
    light_share,
    offsets,
)
from datamodules.world.palette import SHAPES
from datamodules.world.render import DARK, dark_share, draw_figure
from datamodules.world.scene import Texture, Thing
from datamodules.world.sheet import Map, Sheet
from datamodules.world.sprites import thing_distance

RADII = tuple(0.07 * 1.19**k for k in range(9))
# after which part of a whole turn a shape looks the same; a triangle nearly does
SYMMETRY = {"circle": 24, "square": 4, "triangle": 3, "star": 5, "heart": 1, "cross": 4}
# and at how many angles each is looked for; of a triangle at all, as the three are not quite one
ANGLES = {"circle": 1, "square": 5, "triangle": 18, "star": 5, "heart": 16, "cross": 5}
MIDDLE = {"triangle": 0.2, "star": 0.05}  # how far below that of its circle, in radii
GRAINS = (0.64, 0.8, 1.0, 1.25, 1.56)
SMOOTHEST, SPOTTED = 0.1, 0.18  # dark shares below which all is plain, above which nothing is
NEAR = 5  # pixels of 64 from where the straight thing was found
OUTLINES, PATTERNS, MOST_FITS = 3, 2, 4  # that are fitted
HOPELESS = 0.8  # share of the best outline's score, below which none is fitted
PATTERN_PRICE = 3.0  # pixels: what a pattern at any angle and grain fits in any picture


def turned(sheet: Sheet, thing: Thing) -> list[Candidate]:
    """Return what fits near a thing that is not in the sheet, of all angles and grains, best first.

    Plain things that are straight are not among them: the search for still ones has those.
    """
    gain = sheet.errors(sheet.whole, scale=COARSE_SCALE) - colour_errors(
        sheet.picture, thing.colour
    )
    outlines = _outlines(gain, thing)
    found: list[Candidate] = []
    spots = _spots(sheet, thing.colour)
    for outline in outlines:
        dark = _dark(outline, spots, gain)
        if dark < SPOTTED and outline.angle != 0:
            found.append(fitted(sheet, outline))
        if dark > SMOOTHEST and len(found) < MOST_FITS:
            exact = fitted(_silhouette(gain), replace(outline, colour="white")).figure
            assert isinstance(exact, Thing)
            exact = replace(exact, colour=thing.colour)
            for patterned in _patterned(exact, spots, gain):
                fit = fitted(sheet, patterned)
                found.append(replace(fit, gain=fit.gain - PATTERN_PRICE))
    return sorted(found, key=lambda c: -c.gain)


def _outlines(gain: Map, thing: Thing) -> list[Thing]:
    """Return plain things of the most promising shapes near a thing."""
    size = len(gain)
    masks, things, reach = _bank(size)
    radii = np.array([model.radius for model in things])
    chosen = np.flatnonzero((radii > 0.7 * thing.radius) & (radii < 2 * thing.radius))
    column, row = (min(max(int(v * size), 0), size - 1) for v in (thing.x, thing.y))
    room = NEAR + reach
    padded = np.pad(gain, room)[row : row + 2 * room + 1, column : column + 2 * room + 1]
    patches = sliding_window_view(padded, (2 * reach + 1,) * 2)[::2, ::2]
    ways = np.arange(-NEAR, NEAR + 1, 2)
    near = masks[chosen] @ patches.reshape(len(ways) ** 2, -1).T
    scores = near.max(axis=1)
    best: dict[str, Thing] = {}
    for number in np.argsort(-scores).tolist():
        model = things[chosen[number]]
        if scores[number] < HOPELESS * scores.max():
            break
        if model.shape not in best:
            y, x = divmod(int(near[number].argmax()), len(ways))
            place = [(at + 0.5) / size for at in (column + int(ways[x]), row + int(ways[y]))]
            best[model.shape] = replace(model, colour=thing.colour, x=place[0], y=place[1])
    return list(best.values())[:OUTLINES]


@cache
def _bank(size: int) -> tuple[np.ndarray, list[Thing], int]:
    """Return masks of every shape at every angle and radius, what they are of, and their reach."""
    things = [
        Thing(
            shape, "red", "plain", 0.0, 0.0, radius, 2 * pi * k / SYMMETRY_OF[shape] / ANGLES[shape]
        )
        for shape in SHAPES
        for k in range(ANGLES[shape])
        for radius in RADII
    ]
    at = offsets(RADII[-1] * 1.3, size)
    masks = [
        np.clip(0.5 - thing_distance(thing, at[None, :], at[:, None]) * size, 0, 1).reshape(-1)
        for thing in things
    ]
    return np.array(masks), things, len(at) // 2


SYMMETRY_OF = {**SYMMETRY, "triangle": 1}


def _silhouette(gain: Map) -> Sheet:
    """Return a sheet that shows where a colour is, white on black."""
    shown = np.repeat(np.clip(gain, 0, 1)[..., None] * np.float32(250), 3, axis=2)
    return Sheet(shown, np.zeros_like(shown))


def _spots(sheet: Sheet, colour: str) -> Map:
    """Return how dark each pixel is between a colour and the second one of its textures."""
    return (1 - light_share(sheet.picture, colour)) / np.float32(1 - DARK)


def _dark(outline: Thing, spots: Map, gain: Map) -> float:
    """Return the dark share of what is in an outline, its rim left out."""
    layer = draw_figure(outline, len(spots))
    window = (layer.rows, layer.columns)
    inside = (layer.distance * len(spots) < -1.5) & (gain[window] > 0.25)
    return float(spots[window][inside].mean()) if inside.any() else 0.0


def _patterned(outline: Thing, spots: Map, gain: Map) -> list[Thing]:
    """Return the textures, angles and grains that agree best with the spots in an outline."""
    size = len(spots)
    layer = draw_figure(outline, size)
    window = (layer.rows, layer.columns)
    inside = (layer.distance * size < -0.5) & (gain[window] > 0.1)
    at = pixel_centres(size)
    x, y = at[None, layer.columns], at[layer.rows, None]
    scored = []
    for texture in TEXTURES[1:]:
        for alike in _alike(outline, texture):
            for grain in GRAINS:
                trial = replace(alike, texture=texture, grain=grain)
                off = np.abs(dark_share(trial, x, y, size) - spots[window])
                scored.append((float(off[inside].sum()), trial))
    return [trial for _, trial in sorted(scored, key=lambda s: s[0])[:PATTERNS]]


def _alike(outline: Thing, texture: Texture) -> list[Thing]:
    """Return a thing at each angle at which its outline looks the same and its texture does not."""
    period = pi if texture == "striped" else pi / 2
    times = SYMMETRY[outline.shape]
    offset = MIDDLE.get(outline.shape, 0.0) * outline.radius
    different: list[Thing] = []
    for k in range(times):
        angle = outline.angle + 2 * pi * k / times
        # it turns around its own middle, which is not that of its circle
        x = outline.x + offset * (sin(angle) - sin(outline.angle))
        y = outline.y - offset * (cos(angle) - cos(outline.angle))
        same = (abs((angle - t.angle + period / 2) % period - period / 2) < 1e-3 for t in different)
        if offset > 0 or not any(same):
            different.append(replace(outline, x=x, y=y, angle=angle))
    return different
