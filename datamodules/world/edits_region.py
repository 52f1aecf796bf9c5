"""Edits of one region: local, remove, add, texture, background; outside the mask nothing changes.

The mask of an edit is where the figure is seen before or after it, anti-aliased fringe included;
everything else of the picture is computed from the same numbers and stays bit-identical.
"""

from dataclasses import replace

from datamodules.world.instructions import SIZES, background_words, pick
from datamodules.world.palette import PLACES
from datamodules.world.scene import Figure, Person, Scene, Thing
from datamodules.world.studio import Change, Rules, Studio, WorldPair

ADDED_RADIUS = 0.16  # the instruction of `add` states no size, so there is one


def local(studio: Studio) -> WorldPair:
    """Swap a thing for another, or change a figure's colour or size."""
    kind = pick(studio.generator, ("swap", "swap", "recolour", "recolour", "resize"))
    scene, old = studio.scene(Rules(focus="any" if kind == "recolour" else "thing"))
    if kind == "recolour" or isinstance(old, Person):
        change = recoloured(studio, scene, old)
    elif kind == "swap":
        change = swapped(scene, old, _other_thing(studio, scene, old))
    else:
        change = resized(scene, old, pick(studio.generator, tuple(SIZES)))
    return studio.pair_of(scene, change)


def remove(studio: Studio) -> WorldPair:
    """Erase a figure; what was behind it appears."""
    scene, figure = studio.scene(Rules())
    return studio.pair_of(scene, removed(scene, figure))


def add(studio: Studio) -> WorldPair:
    """Insert a thing at a stated place that is free."""
    scene, new, place = addition(studio)
    return studio.pair_of(scene, added(scene, new, place))


def texture(studio: Studio) -> WorldPair:
    """Give a thing a pattern, another pattern, or none."""
    scene, old = studio.scene(Rules(focus="thing", texture=0.45))
    return studio.pair_of(scene, retextured(studio, scene, old))


def background(studio: Studio) -> WorldPair:
    """Put another background behind everything."""
    before, _ = studio.scene(Rules(word=0.1))
    after = replace(before, background=studio.other_background(before))
    words = {"background": background_words(after.background.name)}
    return studio.pair_of(before, Change("background", "background", after, words))


def recoloured(studio: Studio, scene: Scene, old: Figure) -> Change:
    """Return the scene with a figure in another colour, which is drawn."""
    colour = studio.new_colour(scene, old)
    after = scene.swapped(old, replace(old, colour=colour))
    return Change("local", "recolour", after, {"thing": old.name, "colour": colour})


def swapped(scene: Scene, old: Thing, new: Thing) -> Change:
    """Return the scene with another thing in the old one's place and pattern."""
    new = replace(new, texture=old.texture)
    return Change("local", "swap", scene.swapped(old, new), {"thing": old.name, "new": new.name})


def resized(scene: Scene, old: Thing, size: str) -> Change:
    """Return the scene with a thing bigger or smaller."""
    new = replace(old, radius=round(old.radius * SIZES[size], 4))
    return Change("local", "resize", scene.swapped(old, new), {"thing": old.name, "size": size})


def retextured(studio: Studio, scene: Scene, old: Figure) -> Change:
    """Return the scene with a pattern, another pattern, or none on a thing; it is drawn."""
    plain = old.texture != "plain" and studio.chance(0.5)
    new = replace(old, texture="plain" if plain else studio.texture(without=old.texture))
    kind = "plain" if plain else "pattern"
    words = {"thing": old.name, "texture": new.texture}
    return Change("texture", kind, scene.swapped(old, new), words)


def removed(scene: Scene, figure: Figure) -> Change:
    """Return the scene without a figure."""
    return Change("remove", "remove", scene.without(figure), {"thing": figure.name})


def added(scene: Scene, new: Thing, place: str) -> Change:
    """Return the scene with one thing more."""
    return Change("add", "add", scene.with_figure(new), {"new": new.full_name, "place": place})


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


def _other_thing(studio: Studio, scene: Scene, old: Thing) -> Thing:
    """Return a thing of another shape for an old one's place, often in its colour."""
    others, shape = scene.without(old).figures, frozenset({old.shape})
    place, around = (old.x, old.y), scene.background
    drawn = [
        studio.thing(place, old.radius, around, others, in_focus=True, without=shape)
        for _ in range(6)
    ]
    return next((thing for thing in drawn if thing.colour == old.colour), drawn[0])


def _occupies(figure: Figure, x: float, y: float) -> bool:
    """Tell whether a place is taken: a thing takes the nearest, a person a whole column."""
    return abs(figure.x - x) < 0.2 and (isinstance(figure, Person) or abs(figure.y - y) < 0.2)
