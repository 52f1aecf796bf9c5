"""Edits of the whole picture or of its writing: global, style, text, and the filters of color.

The target of a filter is computed from the source's bytes, so it is a function of what the model
sees.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from datamodules.world import filters
from datamodules.world.edits_region import edited
from datamodules.world.instructions import EFFECTS, FILTERS, STYLES, pick
from datamodules.world.palette import HELDOUT_WORDS, WORDS, visible_inks
from datamodules.world.render import quantise, render
from datamodules.world.scene import Scene, Word
from datamodules.world.sprites import word_coverage
from datamodules.world.studio import Edited, Rules, Studio

WHOLE = Rules(word=0.1)


def global_(studio: Studio) -> Edited:
    """Change weather or time of day of the whole scene."""
    effect = pick(studio.generator, tuple(EFFECTS))
    command, clause = EFFECTS[effect]
    words = {"command": command, "clause": clause}
    return _filtered(studio, "global", effect, words, filters.EFFECTS[effect], f", when {clause}")


def style(studio: Studio) -> Edited:
    """Redraw the picture in another style."""
    name = pick(studio.generator, STYLES)
    return _filtered(studio, "style", name, {"style": name}, filters.STYLES[name], f", as a {name}")


def color(studio: Studio) -> Edited:
    """Sharpen, blur, or adjust colour, contrast and brightness."""
    name = pick(studio.generator, tuple(FILTERS))
    words = {"filter": FILTERS[name]}
    if name != "sharpen":
        return _filtered(studio, "color", name, words, filters.ADJUSTMENTS[name], "")
    # flat pictures have nothing to sharpen, so this pair is a blurred picture and the sharp one it
    # came from
    scene, _ = studio.scene(WHOLE)
    sharp = render(scene, studio.size, studio.photos)
    return Edited(
        source=quantise(filters.blur(sharp)),
        target=quantise(sharp),
        mask=np.ones((studio.size, studio.size), dtype=np.bool_),
        instruction=studio.phrase("color", "color", words),
        source_caption=f"{scene.caption}, blurred",
        target_caption=scene.caption,
        extra={"kind": name},
    )


def text(studio: Studio) -> Edited:
    """Add, remove or replace a word, or change its colour."""
    kind = pick(studio.generator, ("add", "remove", "replace", "recolour"))
    scene, _ = studio.scene(Rules(things=(1, 1, 2), person=0.0, rows=(1,), focus="thing"))
    word = studio.word(scene.background)
    with_word, without = replace(scene, word=word), replace(scene, word=None)
    words = {"word": word.text, "ink": word.ink, "band": word.band}
    match kind:
        case "add":
            scenes = (without, with_word)
        case "remove":
            scenes = (with_word, without)
        case "replace":
            new = pick(studio.generator, _other_texts(studio, word))
            words["new"] = new
            scenes = (with_word, replace(scene, word=replace(word, text=new)))
        case _:
            ink = pick(studio.generator, _other_inks(studio, scene, word))
            words["ink"] = ink
            scenes = (with_word, replace(scene, word=replace(word, ink=ink)))
    mask = np.zeros((studio.size, studio.size), dtype=np.bool_)
    for s in scenes:
        if s.word is not None:
            mask |= word_coverage(s.word.text, s.word.band, studio.size) > 0
    return edited(studio, "text", kind, scenes, words, mask)


def _filtered(
    studio: Studio,
    task: str,
    kind: str,
    words: dict[str, str],
    function: Callable[[filters.Picture], filters.Picture],
    remark: str,
) -> Edited:
    """Return the pair of a scene and its filtered picture; `remark` ends the target's caption."""
    scene, _ = studio.scene(WHOLE)
    source = studio.render(scene)
    return Edited(
        source=source,
        target=quantise(function(source.astype(np.float32))),
        mask=np.ones((studio.size, studio.size), dtype=np.bool_),
        instruction=studio.phrase(task, task, words),
        source_caption=scene.caption,
        target_caption=f"{scene.caption}{remark or f', {kind}'}",
        extra={"kind": kind, **words},
    )


def _other_texts(studio: Studio, word: Word) -> list[str]:
    """Return the words that may replace one, in the same ink."""
    return [
        text
        for text in WORDS
        if text != word.text
        and (studio.split == "heldout" or (word.ink, text) not in HELDOUT_WORDS)
    ]


def _other_inks(studio: Studio, scene: Scene, word: Word) -> list[str]:
    """Return the inks a word may change to."""
    return [
        ink
        for ink in visible_inks(scene.background.name)
        if ink != word.ink and (studio.split == "heldout" or (ink, word.text) not in HELDOUT_WORDS)
    ]
