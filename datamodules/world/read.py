"""From a picture back to its scene: what a person would say is in it.

Analysis by synthesis, nothing is learned: the background and the view of it that explain most
pixels, then again and again the figure or word that explains most of what is left, still or turned,
each fitted with the world's own renderer (`datamodules/world/fit.py`). What was read is judged by
how well the rendered reading agrees with the picture and how far behind the best other name is;
that is the doubt, so that blurred and half-made figures of a generated picture can be called
unreadable.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from datamodules.world.backgrounds import named_background
from datamodules.world.find import (
    CERTAIN,
    FITS_TRIED,
    MIN_FIT,
    SIDE,
    Finding,
    agrees,
    apart,
    box_of,
    findings,
    fit_of,
    or_turned,
    overlap,
    overlooked,
)
from datamodules.world.fit import FIT_SCALE, MIN_GAIN, TEXTURES, Candidate, fitted
from datamodules.world.palette import BANDS, INKS, RGB, SHAPES, WORDS
from datamodules.world.scene import AT_REST, Background, Figure, Scene, Thing, View, Word
from datamodules.world.sheet import Map, Sheet, around, mismatch, without
from datamodules.world.sprites import word_coverage
from datamodules.world.view import read_background
from emu_edit.errors import InputError

MOST_ROUNDS = 6
MIN_BACKGROUND = 0.3  # share of the picture
SHARP = 0.98  # where less of the best figure agrees, blurs are tried
BLURS = (0.0, 0.6, 1.0, 1.4)  # in pixels
WORDS_TRIED = 4
READABLE = 0.31  # doubt; right figures of true and of slightly damaged renders have at most this
LEAD = 0.03  # a lead of this share of a figure's pixels over the next name halves the doubt


@dataclass(frozen=True)
class ReadFigure:
    """A figure that was read; its box is x0, y0, x1, y1 in fractions of the side, hidden parts too.

    `doubt` in [0, 1] grows with the share of its pixels that do not agree, and with how nearly
    another name would have fitted as well. Right figures of true and of slightly damaged renders
    have at most `READABLE` in 99 of 100 cases; what has more is no such figure to a person either.
    """

    figure: Figure
    box: tuple[float, float, float, float]
    doubt: float


@dataclass(frozen=True)
class Reading:
    """What was read, figures from far to near; `doubt` is the share of pixels not explained.

    The background is None where none of the named ones explains the picture. The view is what the
    camera shows of it, as far as that can be seen, see `datamodules.world.view`.
    """

    figures: tuple[ReadFigure, ...]
    background: str | None
    word: Word | None
    doubt: float
    view: View = AT_REST

    @property
    def readable(self) -> "Reading":
        """The reading without the figures that are in doubt."""
        clear = tuple(read for read in self.figures if read.doubt <= READABLE)
        return replace(self, figures=clear)

    @property
    def scene(self) -> Scene | None:
        """The reading as a scene that can be rendered; None without a background."""
        if self.background is None:
            return None
        figures = tuple(read.figure for read in self.figures)
        return Scene.of(Background(self.background, view=self.view), figures, self.word)


def read_scene(picture: UInt8[np.ndarray, "3 h w"]) -> Reading:
    """Return what is in a square picture.

    Raises:
        InputError: if the picture is not uint8 of three channels, or not square.
    """
    pixels = _at_side(picture)
    name, view, explained = read_background(pixels)
    if explained < MIN_BACKGROUND:
        return Reading((), None, None, 1.0)
    sheet = Sheet(pixels, named_background(name, len(pixels), view))
    sheet, leads = _filled(sheet)
    sheet = _settled(_recast(sheet, leads))
    read = tuple(_judged(sheet, figure, leads) for figure in sheet.figures)
    return Reading(read, name, sheet.word, float(sheet.errors(sheet.whole).mean()), view)


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


def _filled(sheet: Sheet) -> tuple[Sheet, dict[str, float]]:
    """Return the sheet with figures and word found, and each figure's lead.

    The lead is how many pixels more a figure explains than the best of another name.
    """
    leads: dict[str, float] = {}
    for number in range(MOST_ROUNDS):
        errors = sheet.errors(sheet.whole)
        found = findings(sheet, errors)
        if number == 0 and found and not agrees(sheet, found[0].best.figure, SHARP):
            sheet = _blurred(sheet, found[:2])
            errors = sheet.errors(sheet.whole)
            found = found if sheet.blur == 0 else findings(sheet, errors)
        word, gain = _word(sheet, errors)
        if not found and word is None:
            found = overlooked(sheet)
        if word is not None and gain > _rival(found, word, sheet.size):
            sheet = replace(sheet, word=word)
        elif found:
            for finding in [or_turned(sheet, f) for f in apart(found, sheet.size)]:
                leads[finding.best.figure.name] = finding.lead
                sheet = replace(sheet, figures=(*sheet.figures, finding.best.figure))
        else:
            break
    return sheet, leads


def _rival(found: list[Finding], word: Word, size: int) -> float:
    """Return the gain of the best finding where a word would be."""
    covered = word_coverage(word.text, word.band, size) > 0
    gains = [f.best.gain for f in found if covered[around(f.best.figure, size)].any()]
    return max(gains, default=0.0)


def _blurred(sheet: Sheet, found: list[Finding]) -> Sheet:
    """Return the sheet with the blur at which a scene of some findings explains most."""
    figures = [finding.best.figure for finding in found]
    blur, placed = _blur(sheet, figures)
    soft = replace(sheet, blur=blur)
    if not all(agrees(soft, figure, CERTAIN) for figure in placed):
        better = [or_turned(soft, finding).best.figure for finding in found]
        if any(new is not old for new, old in zip(better, figures, strict=True)):
            soft = replace(sheet, blur=_blur(sheet, better)[0])
    return soft


def _blur(sheet: Sheet, figures: list[Figure]) -> tuple[float, list[Figure]]:
    """Return the blur with which a scene of these figures explains most, and they fitted to it."""
    tried = []
    for blur in BLURS:
        soft = replace(sheet, blur=blur)
        placed = [fitted(soft, figure).figure for figure in figures]
        left = replace(soft, figures=tuple(placed)).errors(sheet.whole).sum()
        tried.append((float(left), blur, placed))
    _, blur, placed = min(tried, key=lambda t: t[0])
    return blur, placed


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
        if not isinstance(thing, Thing) or fit_of(sheet, thing) > CERTAIN:
            continue
        bare = without(sheet, thing)
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
        bare = without(sheet, figure)
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
    bare = without(sheet, figure)
    return replace(bare, figures=(*bare.figures, fitted(bare, figure).figure))


def _judged(sheet: Sheet, figure: Figure, leads: dict[str, float]) -> ReadFigure:
    bare = without(sheet, figure)
    lead = leads[figure.name] / max(bare.gain(figure), 1.0)
    sure = fit_of(sheet, figure) * (1 - 0.5 ** (1 + max(lead, 0.0) / LEAD))
    return ReadFigure(figure, box_of(figure), float(np.clip(1 - sure, 0, 1)))
