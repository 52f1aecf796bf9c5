"""Where a pair is drawn by chance: everything an edit needs to make one.

A studio holds the generator of one pair, its split, size and photographs. It keeps the split's
rule: in training no figure has a held-out colour/shape pair; in the held-out split the figure in
focus has one and the others do not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from datamodules.shards.writer import PairRecord
from datamodules.world.instructions import paraphrased_templates, phrase, pick, templates
from datamodules.world.palette import (
    BACKGROUNDS,
    BANDS,
    HELDOUT_PAIRS,
    HELDOUT_WORDS,
    PLACES,
    PLAIN_BACKGROUNDS,
    SHAPES,
    WORDS,
    Split,
    stands_out,
    visible_colours,
    visible_inks,
)
from datamodules.world.photographs import Photos
from datamodules.world.render import changed, coverage, quantise, render
from datamodules.world.scene import Background, Figure, Person, Pose, Scene, Texture, Thing, Word
from datamodules.world.sprites import word_coverage
from emu_edit.errors import InputError
from emu_edit.randomness import keyed_generator

MIN_SIZE = 16  # pixels; below it letters and lines vanish
MIN_RADIUS, MAX_RADIUS = 0.13, 0.18  # of things: 8 to 12 pixels at 64
PERSON_COLUMNS = ((0.27, 2), (0.5, 0), (0.5, 2), (0.73, 0))  # x of a person, column left to things


@dataclass(frozen=True)
class Rules:
    """What a scene may contain; `flat`: plain background, no textures, no shape twice.

    Attributes:
        radius: of things, from and to, in fractions of the side.
        cells: the middles of the places for things, nearly; none means the nine of `PLACES`.
    """

    things: tuple[int, ...] = (1, 1, 1, 2, 2, 2, 2, 3, 3, 4)
    person: float = 0.15
    word: float = 0.0
    texture: float = 0.3
    flat: bool = False
    rows: tuple[int, ...] = (0, 1, 2)  # of the places, from the top
    focus: Literal["any", "thing", "person"] = "any"
    radius: tuple[float, float] = (MIN_RADIUS, MAX_RADIUS)
    cells: tuple[tuple[float, float], ...] | None = None


# one or two plain figures on a plain backdrop, large enough that 32 pixels show their shapes, with
# room to move
QUARTERS = tuple((x, y) for y in (0.28, 0.72) for x in (0.28, 0.72))
FLAT = Rules(
    things=(1, 1, 2, 2, 2),
    person=0.0,
    texture=0.0,
    flat=True,
    radius=(0.16, 0.22),
    cells=QUARTERS,
)


def _flattened(rules: Rules) -> Rules:
    """Return the rules of an edit as `FLAT` allows; a person is only where one has to be."""
    things = tuple(number for number in rules.things if number <= max(FLAT.things))
    person = float(rules.focus == "person")
    return replace(FLAT, things=things, person=person, word=rules.word, focus=rules.focus)


# split -> whose colour/shape pairs, and whose sentences
SPLITS: dict[str, tuple[Split, Split]] = {
    "train": ("train", "train"),
    "heldout": ("heldout", "heldout"),
    "sentences": ("train", "heldout"),
    "pairs": ("heldout", "train"),
}


@dataclass(frozen=True)
class WorldPair(PairRecord):
    """One pair with exact ground truth; `mask` is True where the target may differ.

    Attributes:
        scenes: what the pictures show before and after the edit; those of an edit that draws over
            a picture or filters it are one scene. None where pixels are all there is.
        draw: makes pictures and mask of the scenes, and of them moved, so that a clip can move.
    """

    mask: Bool[np.ndarray, "h w"] = field(kw_only=True)
    scenes: "tuple[Scene, Scene] | None" = field(default=None, kw_only=True)
    draw: "Draw | None" = field(default=None, kw_only=True)

    @property
    def is_noop(self) -> bool:
        """Whether nothing may change."""
        return not bool(self.mask.any())


@dataclass(frozen=True)
class Change:
    """An edit of a scene in the world's words: task, kind of edit, the scene after it."""

    task: str
    kind: str
    after: Scene
    words: dict[str, str]


@dataclass(frozen=True)
class Studio:
    """The generator of one pair and what it may draw; use `of` to make one."""

    generator: np.random.Generator
    split: Split  # of the colour/shape pairs
    sentences: Split
    size: int
    key: str
    photos: Photos | None
    paraphrased: bool  # in training sentences, ask in many more ways
    flat: bool = False  # all scenes are as FLAT allows, whatever else an edit asks for

    @staticmethod
    def of(
        purpose: str,
        stem: str,
        seed: int,
        index: int,
        *,
        size: int,
        split: str,
        photos: Photos | None,
        paraphrased: bool = False,
        flat: bool = False,
    ) -> "Studio":
        """Return the studio of one pair, whose draws are a function of seed, index and purpose.

        Two purposes share no draws; the pair's key begins with `stem`. The rest is as in
        `make_pair`.
        """
        if index < 0:
            raise InputError(f"index={index} of a world pair is negative; give 0 or more")
        if size < MIN_SIZE:
            raise InputError(
                f"size={size} is too small for the world; give {MIN_SIZE} or more pixels"
            )
        if split not in SPLITS:
            known = ", ".join(repr(name) for name in SPLITS)
            raise InputError(f"unknown split {split!r} of the world; give one of {known}")
        generator = keyed_generator(seed, f"world {purpose} {split}", index)
        key = f"{stem}-{split}-{seed}-{index:08d}"
        return Studio(generator, *SPLITS[split], size, key, photos, paraphrased, flat)

    def render(self, scene: Scene) -> UInt8[np.ndarray, "size size 3"]:
        """Return the picture of a scene as bytes."""
        return quantise(render(scene, self.size, self.photos))

    def drawn(
        self,
        change: "Change",
        draw: "Draw",
        before: Scene,
        captions: tuple[str, str],
        *,
        extra: Mapping[str, object] | None = None,
    ) -> WorldPair:
        """Return the pair that `draw` makes of a scene and the scene after a change."""
        source, target, mask = draw(self, before, change.after)
        pair = self.pair(
            change.task,
            change.kind,
            (source, target),
            captions,
            words=change.words,
            mask=mask,
            extra=extra,
        )
        crop = before.background.crop
        if crop is not None and self.photos is not None:
            pair.extra["photograph"] = self.photos.of(crop).name
        return replace(pair, scenes=(before, change.after), draw=draw)

    def pair(
        self,
        task: str,
        kind: str,
        pictures: tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]],
        captions: tuple[str, str],
        *,
        words: dict[str, str],
        mask: Bool[np.ndarray, "h w"] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> WorldPair:
        """Return a pair of two pictures, asked for in a sentence that is drawn now.

        `words` fill the sentence, and are what the sample says besides its kind unless `extra` is
        given. The pictures may differ where the mask is; None is everywhere.
        """
        if self.paraphrased and self.sentences == "train":
            choices = paraphrased_templates(task, kind)
        else:
            choices = templates(task, kind, self.sentences)
        return WorldPair(
            key=self.key,
            source=pictures[0],
            target=pictures[1],
            instruction=phrase(self.generator, choices, words),
            task=task,
            mask=np.ones((self.size, self.size), dtype=np.bool_) if mask is None else mask,
            source_caption=captions[0],
            target_caption=captions[1],
            extra={"kind": kind, **(words if extra is None else extra)},
        )

    def pair_of(self, before: Scene, change: Change) -> WorldPair:
        """Return the pair of a scene and the scene after a change."""
        return self.drawn(change, rendered, before, (before.caption, change.after.caption))

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return bool(self.generator.random() < probability)

    def between(self, low: float, high: float) -> float:
        """Return a number of an interval, uniformly, rounded to four digits."""
        return round(low + (high - low) * float(self.generator.random()), 4)

    def scene(self, rules: Rules, background: Background | None = None) -> tuple[Scene, Figure]:
        """Return a scene and the figure in focus, whose name no other figure of the scene has.

        The background is drawn, too, unless it is given.
        """
        rules = _flattened(rules) if self.flat else rules
        background = background or self.background(flat=rules.flat)
        cells = rules.cells or tuple(
            cell for i, cell in enumerate(PLACES.values()) if i // 3 in rules.rows
        )
        number = pick(self.generator, rules.things)
        figures: list[Figure] = []
        if rules.focus == "person" or self.chance(rules.person):
            in_focus = rules.focus == "person" or (rules.focus == "any" and self.chance(0.6))
            x, column = pick(self.generator, PERSON_COLUMNS)
            cells = cells[column::3]
            number = min(number, 2) if in_focus else min(max(number, 1), 2)
            figures.append(self.person(x, background, in_focus=in_focus))
        else:
            in_focus = False
        order = self.generator.permutation(len(cells))[:number]
        for i, cell in enumerate(order.tolist()):
            first = i == 0 and not in_focus
            figures.append(self._placed(cells[cell], background, figures, rules, in_focus=first))
        focus = figures[0] if in_focus or isinstance(figures[0], Thing) else figures[1]
        word = self.word(background) if self.chance(rules.word) else None
        return Scene.of(background, tuple(figures), word), focus

    def background(self, *, flat: bool = False) -> Background:
        """Return a photograph to their share, else a named background; if flat a plain one."""
        if flat:
            return Background(pick(self.generator, tuple(PLAIN_BACKGROUNDS)))
        photos = self.photos
        if photos is not None and (photos.share == 1 or self.chance(photos.share)):
            return Background("photograph", photos.draw(self.generator))
        return Background(pick(self.generator, tuple(BACKGROUNDS)))

    def other_background(self, scene: Scene) -> Background:
        """Return another named background on which every figure and the word can be seen."""
        colours = [figure.colour for figure in scene.figures]
        if scene.word is not None:
            colours.append(scene.word.ink)
        fitting = [
            name
            for name in (PLAIN_BACKGROUNDS if self.flat else BACKGROUNDS)
            if name != scene.background.name and all(stands_out(c, name) for c in colours)
        ]
        return Background(pick(self.generator, fitting))

    def thing(
        self,
        place: tuple[float, float],
        radius: float,
        background: Background,
        others: Sequence[Figure],
        *,
        in_focus: bool,
        without: frozenset[str] = frozenset(),
    ) -> Thing:
        """Return a plain thing of a name none of the others has and of a shape not in `without`."""
        names = {figure.name for figure in others}
        fitting = [
            (colour, shape)
            for shape in SHAPES
            if shape not in without
            for colour in self._colours(shape, background, in_focus=in_focus)
            if f"{colour} {shape}" not in names
        ]
        colour, shape = pick(self.generator, fitting)
        return Thing(shape, colour, "plain", round(place[0], 4), round(place[1], 4), radius)

    def texture(self, without: Texture = "plain") -> Texture:
        """Return a pattern other than `without`."""
        patterns: list[Texture] = ["striped", "dotted", "checkered"]
        return pick(self.generator, [texture for texture in patterns if texture != without])

    def new_colour(self, scene: Scene, figure: Figure) -> str:
        """Return another colour for a figure; names stay unique, held-out pairs out of training."""
        names = {other.name for other in scene.figures}
        fitting = [
            colour
            for colour in visible_colours(scene.background.name)
            if f"{colour} {figure.shape}" not in names
            and (self.split == "heldout" or (colour, figure.shape) not in HELDOUT_PAIRS)
        ]
        return pick(self.generator, fitting)

    def word(self, background: Background) -> Word:
        """Return a word that can be read; its ink/word pair is held out iff the split is."""
        fitting = [
            (ink, text)
            for ink in visible_inks(background.name)
            for text in WORDS
            if ((ink, text) in HELDOUT_WORDS) == (self.split == "heldout")
        ]
        ink, text = pick(self.generator, fitting)
        return Word(text, ink, pick(self.generator, BANDS))

    def person(self, x: float, background: Background, *, in_focus: bool) -> Person:
        """Return a person standing at x in a random pose."""
        colours = self._colours("person", background, in_focus=in_focus)
        angles = self.generator.random(8).tolist()
        # upper arms, forearms, thighs, shins, each left and right: from hanging to raised, legs a
        # little apart
        ranges = ((0.35, 2.6),) * 2 + ((0.1, 2.9),) * 2 + ((0.12, 0.6),) * 2 + ((-0.2, 0.5),) * 2
        a = [
            round(low + (high - low) * u, 4) for u, (low, high) in zip(angles, ranges, strict=True)
        ]
        pose = Pose((a[0], a[1]), (a[2], a[3]), (a[4], a[5]), (a[6], a[7]))
        y, height = self.between(0.48, 0.54), self.between(0.66, 0.74)
        return Person(pick(self.generator, colours), x, y, height, pose)

    def _placed(
        self,
        cell: tuple[float, float],
        background: Background,
        others: Sequence[Figure],
        rules: Rules,
        *,
        in_focus: bool,
    ) -> Thing:
        """Return a thing near the middle of a cell, following the rules of the scene."""
        place = (cell[0] + self.between(-0.04, 0.04), cell[1] + self.between(-0.04, 0.04))
        radius = self.between(*rules.radius)
        # two of a shape at most, so that there is always another colour for each of them
        shapes = [figure.shape for figure in others]
        taken = frozenset(s for s in shapes if shapes.count(s) >= (1 if rules.flat else 2))
        plain = self.thing(place, radius, background, others, in_focus=in_focus, without=taken)
        if rules.flat or not self.chance(rules.texture):
            return plain
        return Thing(plain.shape, plain.colour, self.texture(), plain.x, plain.y, plain.radius)

    def _colours(self, shape: str, background: Background, *, in_focus: bool) -> tuple[str, ...]:
        held = self.split == "heldout" and in_focus
        return tuple(
            colour
            for colour in visible_colours(background.name)
            if ((colour, shape) in HELDOUT_PAIRS) == held
        )


Drawn = tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]
Draw = Callable[[Studio, Scene, Scene], Drawn]
"""From the scenes before and after an edit to source, target and mask; nothing random."""


def rendered(studio: Studio, before: Scene, after: Scene) -> Drawn:
    """Draw both scenes; the mask is where they may differ: figures, word, all of the background."""
    mask = changed(before, after, studio.size)
    for scene, other in ((before, after), (after, before)):
        if scene.word is not None and scene.word != other.word:
            mask |= word_coverage(scene.word.text, scene.word.band, studio.size) > 0
    if before.background != after.background:
        mask |= coverage(before, studio.size).background > 0
    return studio.render(before), studio.render(after), mask


def everywhere(
    source: UInt8[np.ndarray, "size size 3"], target: UInt8[np.ndarray, "size size 3"]
) -> Drawn:
    """Return two pictures that may differ everywhere."""
    return source, target, np.ones(source.shape[:2], dtype=np.bool_)
