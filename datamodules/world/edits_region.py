"""Edits of one region: local, remove, add, texture, background; outside the mask nothing changes.

The mask of an edit is where the figure is seen before or after it, anti-aliased fringe included;
everything else of the picture is computed from the same numbers and stays bit-identical.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from datamodules.world.instructions import SIZES, background_words, pick
from datamodules.world.palette import PLACES
from datamodules.world.render import coverage, seen
from datamodules.world.scene import Person, Scene, Thing
from datamodules.world.studio import Edited, Rules, Studio

ADDED_RADIUS = 0.16  # the instruction of `add` states no size, so there is one


def local(studio: Studio) -> Edited:
    """Swap a thing for another, or change a figure's colour or size."""
    kind = pick(studio.generator, ("swap", "swap", "recolour", "recolour", "resize"))
    scene, old = studio.scene(Rules(focus="any" if kind == "recolour" else "thing"))
    words = {"thing": old.name}
    if kind == "recolour" or isinstance(old, Person):
        colour = studio.new_colour(scene, old)
        new, words["colour"] = replace(old, colour=colour), colour
    elif kind == "swap":
        new = _other_thing(studio, scene, old)
        words["new"] = new.name
    else:
        size = pick(studio.generator, tuple(SIZES))
        new, words["size"] = replace(old, radius=round(old.radius * SIZES[size], 4)), size
    return _region(studio, "local", kind, (scene, scene.swapped(old, new)), words)


def remove(studio: Studio) -> Edited:
    """Erase a figure; what was behind it appears."""
    scene, figure = studio.scene(Rules())
    return _region(
        studio, "remove", "remove", (scene, scene.without(figure)), {"thing": figure.name}
    )


def add(studio: Studio) -> Edited:
    """Insert a thing at a stated place that is free."""
    scene, new, place = addition(studio)
    words = {"new": new.full_name, "place": place}
    return _region(studio, "add", "add", (scene, scene.with_figure(new)), words)


def addition(studio: Studio) -> tuple[Scene, Thing, str]:
    """Return a scene, a thing that is not yet in it, and the name of the free place it has."""
    scene, _ = studio.scene(Rules(things=(1, 1, 2, 2, 3), person=0.1, focus="thing"))
    free = [
        name
        for name, (x, y) in PLACES.items()
        if not any(_occupies(figure, x, y) for figure in scene.figures)
    ]
    place = pick(studio.generator, free)
    new = studio.thing(PLACES[place], ADDED_RADIUS, scene.background, scene.figures, in_focus=True)
    if studio.chance(0.25):
        new = replace(new, texture=studio.texture())
    return scene, new, place


def texture(studio: Studio) -> Edited:
    """Give a thing a pattern, another pattern, or none."""
    scene, old = studio.scene(Rules(focus="thing", texture=0.45))
    plain = old.texture != "plain" and studio.chance(0.5)
    new = replace(old, texture="plain" if plain else studio.texture(without=old.texture))
    words = {"thing": old.name, "texture": new.texture}
    kind = "plain" if plain else "pattern"
    return _region(studio, "texture", kind, (scene, scene.swapped(old, new)), words)


def background(studio: Studio) -> Edited:
    """Put another background behind everything."""
    before, _ = studio.scene(Rules(word=0.1))
    after = replace(before, background=studio.other_background(before))
    words = {"background": background_words(after.background.name)}
    mask = coverage(before, studio.size).background > 0
    return edited(studio, "background", "background", (before, after), words, mask)


def edited(
    studio: Studio,
    task: str,
    kind: str,
    scenes: tuple[Scene, Scene],
    words: dict[str, str],
    mask: Bool[np.ndarray, "size size"],
) -> Edited:
    """Return the pair whose pictures are the renderings of two scenes."""
    before, after = scenes
    return Edited(
        source=studio.render(before),
        target=studio.render(after),
        mask=mask,
        instruction=studio.phrase(task, kind, words),
        source_caption=before.caption,
        target_caption=after.caption,
        extra={"kind": kind, **words},
    )


def _region(
    studio: Studio, task: str, kind: str, scenes: tuple[Scene, Scene], words: dict[str, str]
) -> Edited:
    """Return the pair of two scenes that differ in one figure; the mask is where it is seen."""
    return edited(studio, task, kind, scenes, words, changed(*scenes, studio.size))


def changed(before: Scene, after: Scene, size: int) -> Bool[np.ndarray, "size size"]:
    """Return where a figure is seen that only one of two scenes has; nothing else may differ."""
    mask = np.zeros((size, size), dtype=np.bool_)
    for scene, other in ((before, after), (after, before)):
        for figure in scene.figures:
            if all(figure is not f for f in other.figures):
                mask |= seen(scene, figure, size)
    return mask


def _other_thing(studio: Studio, scene: Scene, old: Thing) -> Thing:
    """Return a thing of another shape for an old one's place, often in its colour."""
    others = scene.without(old).figures
    drawn = [
        studio.thing(
            (old.x, old.y),
            old.radius,
            scene.background,
            others,
            in_focus=True,
            without=frozenset({old.shape}),
        )
        for _ in range(6)
    ]
    new = next((thing for thing in drawn if thing.colour == old.colour), drawn[0])
    return replace(new, texture=old.texture)


def _occupies(figure: Thing | Person, x: float, y: float) -> bool:
    """Tell whether a place is taken: a thing takes the nearest, a person a whole column."""
    return abs(figure.x - x) < 0.2 and (isinstance(figure, Person) or abs(figure.y - y) < 0.2)
