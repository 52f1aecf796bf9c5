"""What explains most of what is left of a picture: the best fits, place by place.

At each place the most promising persons and straight things are fitted; what is not seen to be
right is looked for at all angles and grains (`datamodules/world/turned.py`).
"""

from dataclasses import dataclass

import numpy as np

from datamodules.world.fit import (
    COARSE_SCALE,
    MIN_GAIN,
    Candidate,
    candidates,
    colour_errors,
    fitted,
    seeds,
)
from datamodules.world.palette import COLOURS, MARKS
from datamodules.world.render import draw_figure
from datamodules.world.scene import Figure, Person, Thing
from datamodules.world.sheet import Map, Sheet, around, without
from datamodules.world.turned import turned

SIDE = 64  # larger pictures are averaged down to it: the world has nothing finer
FIGURE_COLOURS = (*COLOURS, *MARKS)
CLOSE, FITS_TRIED = 0.75, 4  # of the candidates for a place, those this near the best are fitted
MIN_SMALL = 16.0  # pixels that a thing must explain which is looked for at all angles
MIN_FIT = 0.4  # share of a figure's pixels that must agree
OVERLOOKED_FIT = 0.5  # the same of one that may be turned, of any pattern
NEARLY = 0.15  # of a pixel's error, by which a colour may be worse than the best
SURE_LEAD = 0.06  # share of a blurred figure's gain; with less it may be turned
LEFT = 0.04  # share of a figure's pixels, of its colour around it, above which it may be turned
CERTAIN = 0.93  # share of a figure's pixels that agree, above which no other name is tried


@dataclass(frozen=True)
class Finding:
    """The best fit at one place, and how many pixels it is ahead of the next name there."""

    best: Candidate
    lead: float
    others: tuple[Candidate, ...]

    @property
    def is_clear(self) -> bool:
        """Whether no other name, as of a colour that belongs elsewhere, does nearly as well."""
        return self.lead > 0.05 * self.best.gain

    @staticmethod
    def of(fits: list[Candidate]) -> "Finding":
        """Return the first of some fits, ahead of the best of another name."""
        best = fits[0]
        name = best.figure.full_name
        rivals = [c.gain for c in fits if c.figure.full_name != name]
        return Finding(best, best.gain - max(rivals, default=0.0), tuple(fits))


def findings(sheet: Sheet, errors: Map) -> list[Finding]:
    """Return what explains most at each place where something is left to explain, best first."""
    scale = (SIDE / sheet.size) ** 2
    names = {figure.name for figure in sheet.figures}
    coarse = sheet.errors(sheet.whole, scale=COARSE_SCALE)
    colours = _colours(sheet, coarse)
    rough = [c for colour in colours for c in candidates(sheet, colour, errors, coarse)]
    found = []
    for place in _places([c for c in rough if c.figure.name not in names]):
        tried = [c for c in place if c.gain > CLOSE * place[0].gain][:FITS_TRIED]
        fits = sorted((fitted(sheet, c.figure) for c in tried), key=lambda c: -c.gain)
        best = fits[0]
        if not (0 <= best.figure.x <= 1 and 0 <= best.figure.y <= 1):
            continue  # the middle of a figure is never outside
        if best.gain * scale < MIN_GAIN or fit_of(sheet, best.figure) < MIN_FIT:
            continue
        found.append(Finding.of([*fits, *place]))
    return sorted(found, key=lambda f: -f.best.gain * fit_of(sheet, f.best.figure))


def _colours(sheet: Sheet, coarse_errors: Map) -> list[str]:
    """Return the colours that explain some of what is left nearly as well as any other."""
    costs = {colour: colour_errors(sheet.picture, colour) for colour in FIGURE_COLOURS}
    nearly = np.minimum.reduce(list(costs.values())) + NEARLY
    left = coarse_errors > 0.5
    least = MIN_SMALL / 2 * (sheet.size / SIDE) ** 2
    return [c for c, cost in costs.items() if np.count_nonzero(left & (cost < nearly)) >= least]


def _places(rough: list[Candidate]) -> list[list[Candidate]]:
    """Return the candidates in groups that want the same place, best first in each."""
    places: list[list[Candidate]] = []
    for candidate in sorted(rough, key=lambda c: -c.gain):
        if candidate.gain < 0.5 * MIN_GAIN:
            break
        box = box_of(candidate.figure)
        near = [p for p in places if overlap(box_of(p[0].figure), box) > 0.3]
        if near:
            near[0].append(candidate)
        else:
            places.append([candidate])
    return places


def apart(found: list[Finding], size: int) -> list[Finding]:
    """Return the best findings that do not touch: what each of them explains is its own."""
    taken = np.zeros((size, size), dtype=np.bool_)
    chosen = []
    for finding in found:
        window = around(finding.best.figure, size)
        if not taken[window].any() and (finding.is_clear or not chosen):
            chosen.append(finding)
        taken[window] = True
    return chosen


def or_turned(sheet: Sheet, finding: Finding) -> Finding:
    """Return a finding, or what fits better there when it is turned or of another grain."""
    ahead = SURE_LEAD if sheet.blur > 0 else 0.0
    if agrees(sheet, finding.best.figure, CERTAIN) and finding.lead >= ahead * finding.best.gain:
        return finding
    names = {figure.name for figure in sheet.figures}
    tried: dict[str, Thing] = {}
    for c in finding.others:
        if isinstance(c.figure, Thing) and c.gain > CLOSE * finding.best.gain:
            tried.setdefault(c.figure.colour, c.figure)
    if isinstance(finding.best.figure, Person):
        things = [c.figure for c in finding.others if isinstance(c.figure, Thing)]
        tried = {thing.colour: thing for thing in things[:1]}
    fits = [c for seed in list(tried.values())[:2] for c in turned(sheet, seed)]
    fits = sorted((c for c in fits if c.figure.name not in names), key=lambda c: -c.gain)
    if not fits or fits[0].gain <= finding.best.gain:
        return finding
    return Finding.of([*fits, *finding.others])


def overlooked(sheet: Sheet) -> list[Finding]:
    """Return turned things whose patterns fit so badly when straight that no place was seen."""
    names = {figure.name for figure in sheet.figures}
    coarse = sheet.errors(sheet.whole, scale=COARSE_SCALE)
    fits = []
    for colour in _colours(sheet, coarse):
        for thing in seeds(sheet, colour, coarse):
            fits += [c for c in turned(sheet, thing) if c.figure.name not in names]
    fits.sort(key=lambda c: -c.gain)
    fits = [c for c in fits if c.gain > MIN_SMALL and fit_of(sheet, c.figure) > OVERLOOKED_FIT]
    return [Finding.of(fits)] if fits else []


def fit_of(sheet: Sheet, figure: Figure) -> float:
    """Return the share of a figure's pixels that agree with the picture, were it in the scene."""
    window = around(figure, sheet.size)
    bare = without(sheet, figure)
    share = np.abs(bare.drawn(window, figure) - bare.drawn(window)).max(axis=2) > 8
    if not share.any():
        return 0.0
    return 1 - float(bare.errors(window, figure)[share].mean())


def agrees(sheet: Sheet, figure: Figure, share: float) -> bool:
    """Tell whether so much of a figure agrees, and nothing of its colour is left around it."""
    return fit_of(sheet, figure) > share and _left(sheet, figure) < LEFT


def _left(sheet: Sheet, figure: Figure) -> float:
    """Return how much of a figure's colour is left around it, as a share of the figure's pixels."""
    window = around(figure, sheet.size)
    of_colour = colour_errors(sheet.picture[window], figure.colour)
    left = sheet.errors(window, figure, scale=COARSE_SCALE) - of_colour
    pixels = (draw_figure(figure, sheet.size).alpha > 0.5).sum()
    return float((left > 0.4).sum() / max(pixels, 1))


def box_of(figure: Figure) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of the pixels a figure has, hidden ones included, as fractions."""
    layer = draw_figure(figure, SIDE)
    solid = layer.alpha >= 0.5
    if not solid.any():
        return figure.x, figure.y, figure.x, figure.y
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    y0, x0 = layer.rows.start, layer.columns.start
    edges = (x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1)
    left, top, right, bottom = (float(edge) / SIDE for edge in edges)
    return left, top, right, bottom


def overlap(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> float:
    """Return the intersection of two boxes over their union, in [0, 1]."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / (areas - width * height)
