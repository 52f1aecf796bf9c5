"""Edits of the whole picture or of its writing: global, style, text, and the filters of color.

The target of a filter is computed from the source's bytes, so it is a function of what the model
sees.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from datamodules.world import filters
from datamodules.world.instructions import EFFECTS, FILTERS, STYLES, pick
from datamodules.world.palette import HELDOUT_WORDS, WORDS, visible_inks
from datamodules.world.render import quantise, render
from datamodules.world.scene import Scene
from datamodules.world.studio import Change, Drawn, Rules, Studio, WorldPair, everywhere

WHOLE = Rules(word=0.1)


def global_(studio: Studio) -> WorldPair:
    """Change weather or time of day of the whole scene."""
    effect = pick(studio.generator, tuple(EFFECTS))
    command, clause = EFFECTS[effect]
    words = {"command": command, "clause": clause}
    return _filtered(studio, "global", effect, words, filters.EFFECTS[effect], f"when {clause}")


def style(studio: Studio) -> WorldPair:
    """Redraw the picture in another style."""
    name = pick(studio.generator, STYLES)
    return _filtered(studio, "style", name, {"style": name}, filters.STYLES[name], f"as a {name}")


def color(studio: Studio) -> WorldPair:
    """Sharpen, blur, or adjust colour, contrast and brightness."""
    name = pick(studio.generator, tuple(FILTERS))
    words = {"filter": FILTERS[name]}
    if name != "sharpen":
        return _filtered(studio, "color", name, words, filters.ADJUSTMENTS[name], name)
    # flat pictures have nothing to sharpen: a blurred picture becomes the one it came from
    scene, _ = studio.scene(WHOLE)
    captions = (f"{scene.caption}, blurred", scene.caption)
    return studio.drawn(Change("color", name, scene, words), _sharpened, scene, captions, extra={})


def text(studio: Studio) -> WorldPair:
    """Add, remove or replace a word, or change its colour."""
    kind = pick(studio.generator, ("add", "remove", "replace", "recolour"))
    scene, _ = studio.scene(Rules(things=(1, 1, 2), person=0.0, rows=(1,), focus="thing"))
    word = studio.word(scene.background)
    with_word, without = replace(scene, word=word), replace(scene, word=None)
    words = {"word": word.text, "ink": word.ink, "band": word.band}
    match kind:
        case "add":
            before, after = without, with_word
        case "remove":
            before, after = with_word, without
        case "replace":
            texts = [t for t in WORDS if t != word.text and _is_allowed(studio, word.ink, t)]
            words["new"] = pick(studio.generator, texts)
            before, after = with_word, replace(scene, word=replace(word, text=words["new"]))
        case _:
            inks = visible_inks(scene.background.name)
            inks = [ink for ink in inks if ink != word.ink and _is_allowed(studio, ink, word.text)]
            words["ink"] = pick(studio.generator, inks)
            before, after = with_word, replace(scene, word=replace(word, ink=words["ink"]))
    return studio.pair_of(before, Change("text", kind, after, words))


def _filtered(
    studio: Studio,
    task: str,
    kind: str,
    words: dict[str, str],
    function: Callable[[filters.Picture], filters.Picture],
    remark: str,
) -> WorldPair:
    """Return the pair of a scene and its filtered picture; `remark` ends the target's caption."""
    scene, _ = studio.scene(WHOLE)

    def draw(studio: Studio, before: Scene, after: Scene) -> Drawn:
        del after  # the same scene
        source = studio.render(before)
        return everywhere(source, quantise(function(source.astype(np.float32))))

    captions = (scene.caption, f"{scene.caption}, {remark}")
    return studio.drawn(Change(task, kind, scene, words), draw, scene, captions)


def _sharpened(studio: Studio, before: Scene, after: Scene) -> Drawn:
    sharp = render(after, studio.size, studio.photos)
    del before  # the same scene
    return everywhere(quantise(filters.blur(sharp)), quantise(sharp))


def _is_allowed(studio: Studio, ink: str, text: str) -> bool:
    """Tell whether the split may show a word in an ink."""
    return studio.split == "heldout" or (ink, text) not in HELDOUT_WORDS
