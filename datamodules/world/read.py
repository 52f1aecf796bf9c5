"""From a picture back to its scene: what a person would say is in it.

Analysis by synthesis, nothing is learned: the background that explains most pixels, then again
and again the figure or word that explains most of what is left, each fitted with the world's own
renderer (`datamodules/world/fit.py`). What was read is judged by how well the rendered reading
agrees with the picture and how far behind the best other name is; that is the doubt, so that
blurred and half-made figures of a generated picture can be called unreadable.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from datamodules.world.backgrounds import named_background
from datamodules.world.fit import (
    COARSE_SCALE,
    FIT_SCALE,
    MIN_GAIN,
    TEXTURES,
    Candidate,
    Map,
    Sheet,
    around,
    candidates,
    fitted,
    mismatch,
)
from datamodules.world.palette import BACKGROUNDS, BANDS, COLOURS, INKS, MARKS, RGB, SHAPES, WORDS
from datamodules.world.render import draw_figure
from datamodules.world.scene import Background, Figure, Scene, Thing, Word
from datamodules.world.sprites import word_coverage
from emu_edit.errors import InputError

SIDE = 64  # larger pictures are averaged down to it: the world has nothing finer
FIGURE_COLOURS = (*COLOURS, *MARKS)
MOST_ROUNDS = 5
CLOSE, FITS_TRIED = 0.75, 4  # of the candidates for a place, those this near the best are fitted
MIN_FIT = 0.4  # share of a figure's pixels that must agree
MIN_BACKGROUND = 0.3  # share of the picture
SHARP = 0.98  # where less of the best figure agrees, blurs are tried
BLURS = (0.0, 0.6, 1.0, 1.4)  # in pixels
WORDS_TRIED = 4
CERTAIN = 0.93  # share of a figure's pixels that agree, above which no other name is tried
LEAD = 0.03  # a lead of this share of a figure's pixels over the next name halves the doubt


@dataclass(frozen=True)
class ReadFigure:
    """A figure that was read; its box is x0, y0, x1, y1 in fractions of the side, hidden parts too.

    `doubt` in [0, 1] grows with the share of its pixels that do not agree, and with how nearly
    another name would have fitted as well. Right figures of true and of slightly damaged renders
    have at most 0.25 in 99 of 100 cases; call what has more unreadable.
    """

    figure: Figure
    box: tuple[float, float, float, float]
    doubt: float


@dataclass(frozen=True)
class Reading:
    """What was read, figures from far to near; `doubt` is the share of pixels not explained.

    The background is None where none of the named ones explains the picture.
    """

    figures: tuple[ReadFigure, ...]
    background: str | None
    word: Word | None
    doubt: float

    @property
    def scene(self) -> Scene | None:
        """The reading as a scene that can be rendered; None without a background."""
        if self.background is None:
            return None
        figures = tuple(read.figure for read in self.figures)
        return Scene.of(Background(self.background), figures, self.word)


def read_scene(picture: UInt8[np.ndarray, "3 h w"]) -> Reading:
    """Return what is in a square picture.

    Raises:
        InputError: if the picture is not uint8 of three channels, or not square.
    """
    pixels = _at_side(picture)
    name, explained = _background(pixels)
    if explained < MIN_BACKGROUND:
        return Reading((), None, None, 1.0)
    sheet = Sheet(pixels, named_background(name, len(pixels)))
    sheet, leads = _filled(sheet)
    sheet = _settled(_recast(sheet, leads))
    read = tuple(_judged(sheet, figure, leads) for figure in sheet.figures)
    return Reading(read, name, sheet.word, float(sheet.errors(sheet.whole).mean()))


def _at_side(picture: UInt8[np.ndarray, "3 h w"]) -> Float32[np.ndarray, "side side 3"]:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
        raise InputError(
            f"the picture to read is {picture.dtype} of shape {picture.shape}; give uint8 of shape "
            "(3, side, side)"
        )
    if picture.shape[1] != picture.shape[2] or picture.shape[1] < 16:
        raise InputError(
            f"the picture to read has {picture.shape[1]} rows and {picture.shape[2]} columns; give "
            "a square one of 16 or more"
        )
    pixels = picture.transpose(1, 2, 0)
    if len(pixels) > SIDE:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
    return pixels.astype(np.float32)


def _background(pixels: Float32[np.ndarray, "h w 3"]) -> tuple[str, float]:
    """Return the named background that explains most pixels, and their share."""
    explained = {
        name: 1 - float(mismatch(pixels - named_background(name, len(pixels))).mean())
        for name in BACKGROUNDS
    }
    best = max(explained, key=lambda name: explained[name])
    return best, explained[best]


def _filled(sheet: Sheet) -> tuple[Sheet, dict[str, float]]:
    """Return the sheet with figures and word found, and each figure's lead.

    The lead is how many pixels more a figure explains than the best of another name.
    """
    leads: dict[str, float] = {}
    for number in range(MOST_ROUNDS):
        errors = sheet.errors(sheet.whole)
        found = _found(sheet, errors)
        if number == 0 and found and _fit(sheet, found[0].best.figure) < SHARP:
            sheet = replace(sheet, blur=_blur(sheet, [f.best.figure for f in found[:2]]))
            errors = sheet.errors(sheet.whole)
            found = found if sheet.blur == 0 else _found(sheet, errors)
        word, gain = _word(sheet, errors)
        if word is not None and gain > _rival(found, word, sheet.size):
            sheet = replace(sheet, word=word)
        elif found:
            for finding in _apart(found, sheet.size):
                leads[finding.best.figure.name] = finding.lead
                sheet = replace(sheet, figures=(*sheet.figures, finding.best.figure))
        else:
            break
    return sheet, leads


def _rival(found: list["_Finding"], word: Word, size: int) -> float:
    """Return the gain of the best finding where a word would be."""
    covered = word_coverage(word.text, word.band, size) > 0
    gains = [f.best.gain for f in found if covered[around(f.best.figure, size)].any()]
    return max(gains, default=0.0)


def _blur(sheet: Sheet, figures: list[Figure]) -> float:
    """Return the blur with which a scene of these figures explains most of the picture."""
    left = {}
    for blur in BLURS:
        soft = replace(sheet, blur=blur)
        placed = tuple(fitted(soft, figure).figure for figure in figures)
        left[blur] = float(replace(soft, figures=placed).errors(sheet.whole).sum())
    return min(left, key=lambda blur: left[blur])


@dataclass(frozen=True)
class _Finding:
    """The best fit at one place, and how many pixels it is ahead of the next name there."""

    best: Candidate
    lead: float


def _found(sheet: Sheet, errors: Map) -> list[_Finding]:
    """Return what explains most at each place where something is left to explain, best first."""
    scale = (SIDE / sheet.size) ** 2
    names = {figure.name for figure in sheet.figures}
    coarse = sheet.errors(sheet.whole, scale=COARSE_SCALE)
    rough = [c for colour in FIGURE_COLOURS for c in candidates(sheet, colour, errors, coarse)]
    found = []
    for place in _places([c for c in rough if c.figure.name not in names]):
        tried = [c for c in place if c.gain > CLOSE * place[0].gain][:FITS_TRIED]
        fits = sorted((fitted(sheet, c.figure) for c in tried), key=lambda c: -c.gain)
        best = fits[0]
        if best.gain * scale < MIN_GAIN or _fit(sheet, best.figure) < MIN_FIT:
            continue
        name = best.figure.full_name
        others = [c.gain for c in (*fits, *place) if c.figure.full_name != name]
        found.append(_Finding(best, best.gain - max(others, default=0.0)))
    return sorted(found, key=lambda finding: -finding.best.gain)


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


def _apart(found: list[_Finding], size: int) -> list[_Finding]:
    """Return the best findings that do not touch: what each of them explains is its own."""
    taken = np.zeros((size, size), dtype=np.bool_)
    apart = []
    for finding in found:
        window = around(finding.best.figure, size)
        if not taken[window].any():
            apart.append(finding)
        taken[window] = True
    return apart


def _word(sheet: Sheet, errors: Map) -> tuple[Word | None, float]:
    """Return the word that explains most of what is left, and how many pixels that is."""
    if sheet.word is not None:
        return None, 0.0
    rough = []
    wide = mismatch(sheet.picture - sheet.drawn(sheet.whole), FIT_SCALE)
    for ink in INKS:
        gains = wide - mismatch(sheet.picture - np.array(RGB[ink], dtype=np.float32), FIT_SCALE)
        for band in BANDS:
            for text in WORDS:
                gain = float((word_coverage(text, band, sheet.size) * gains).sum())
                rough.append((gain, text, ink, band))
    best, best_gain = None, MIN_GAIN * (sheet.size / SIDE) ** 2
    for gain, text, ink, band in sorted(rough, reverse=True)[:WORDS_TRIED]:
        if gain < best_gain / 2:
            break
        word = Word(text, ink, band)
        exact = float((errors - replace(sheet, word=word).errors(sheet.whole)).sum())
        if exact > max(best_gain, MIN_FIT * word_coverage(text, band, sheet.size).sum()):
            best, best_gain = word, exact
    return best, best_gain


def _recast(sheet: Sheet, leads: dict[str, float]) -> Sheet:
    """Return the sheet with each uncertain thing as what fits best there, of all it may be.

    Which shapes and textures were tried when it was found depended on what else was still
    unexplained. Its lead is brought up to date in `leads`.
    """
    for thing in sheet.figures:
        if not isinstance(thing, Thing) or _fit(sheet, thing) > CERTAIN:
            continue
        bare = _without(sheet, thing)
        casts = [replace(thing, shape=s, texture=t) for s in SHAPES for t in TEXTURES]
        taken = {figure.name for figure in bare.figures}
        rough = sorted(
            (Candidate(cast, bare.gain(cast)) for cast in casts if cast.name not in taken),
            key=lambda c: -c.gain,
        )
        fits = [fitted(bare, c.figure) for c in rough[:FITS_TRIED]]
        fits = sorted([*fits, Candidate(thing, bare.gain(thing))], key=lambda c: -c.gain)
        best = fits[0]
        others = [c.gain for c in fits if c.figure.full_name != best.figure.full_name]
        leads[best.figure.name] = best.gain - max(others, default=0.0)
        sheet = replace(bare, figures=(*bare.figures, best.figure))
    return sheet


def _settled(sheet: Sheet) -> Sheet:
    """Return the sheet with each figure fitted again among all others, needless ones taken out.

    A small gain may be the misfit of a neighbour that was fitted before: a figure is needless when
    its neighbours, fitted without it, explain nearly as much.
    """
    least = MIN_GAIN * (sheet.size / SIDE) ** 2
    for figure in sheet.figures:
        sheet = _refitted(sheet, figure)
    for figure in sheet.figures:
        bare = _without(sheet, figure)
        if bare.gain(figure) > 4 * least:
            continue
        for other in bare.figures:
            if overlap(box_of(other), box_of(figure)) > 0:
                bare = _refitted(bare, other)
        if bare.errors(bare.whole).sum() - sheet.errors(sheet.whole).sum() < least:
            sheet = bare
    return replace(sheet, figures=tuple(sorted(sheet.figures, key=lambda f: (f.base, f.name))))


def _refitted(sheet: Sheet, figure: Figure) -> Sheet:
    """Return the sheet with one of its figures fitted among all others."""
    bare = _without(sheet, figure)
    return replace(bare, figures=(*bare.figures, fitted(bare, figure).figure))


def _without(sheet: Sheet, figure: Figure) -> Sheet:
    return replace(sheet, figures=tuple(f for f in sheet.figures if f is not figure))


def _fit(sheet: Sheet, figure: Figure) -> float:
    """Return the share of a figure's pixels that agree with the picture, were it in the scene."""
    window = around(figure, sheet.size)
    bare = _without(sheet, figure)
    share = np.abs(bare.drawn(window, figure) - bare.drawn(window)).max(axis=2) > 8
    if not share.any():
        return 0.0
    return 1 - float(bare.errors(window, figure)[share].mean())


def _judged(sheet: Sheet, figure: Figure, leads: dict[str, float]) -> ReadFigure:
    bare = _without(sheet, figure)
    lead = leads[figure.name] / max(bare.gain(figure), 1.0)
    sure = _fit(sheet, figure) * (1 - 0.5 ** (1 + max(lead, 0.0) / LEAD))
    return ReadFigure(figure, box_of(figure), float(np.clip(1 - sure, 0, 1)))


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
