"""Several edits of one scene, one after the other, each with exact ground truth: the drift test.

Odd turns edit one thing, even turns ask for nothing: for what already holds ("make the red star
red") or for the removal of what is not there. Because every turn is an edit of the scene and not of
pixels, the right picture after any number of turns is known, and pixels that no mask has touched
are bit-identical to the first picture.

Not among the edits: `background`, which would leave nothing outside the masks to measure, and
people, who take so much room that little could be added beside them.

Pairs that ask for what already holds: the target is the source, bit for bit, the mask is empty.

For training. A world's edits always change something; a model that saw nothing else also "makes the
red star red" and "removes the blue heart" where there is none, and damages the picture. The empty
mask says that nothing may change, so that `shards check` can tell such a pair from a mistake.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import hypot

import numpy as np
from jaxtyping import UInt8

from datamodules.world.backgrounds import Photos
from datamodules.world.edits_region import ADDED_RADIUS, changed, edited
from datamodules.world.instructions import SIZES, pick
from datamodules.world.pair import MIN_SIZE, WorldPair
from datamodules.world.palette import COLOURS, HELDOUT_PAIRS, PLACES, SHAPES, Split
from datamodules.world.scene import Scene, Thing
from datamodules.world.studio import MAX_RADIUS, MIN_RADIUS, Edited, Rules, Studio
from emu_edit.errors import InputError
from emu_edit.randomness import keyed_generator

TASKS = ("local", "remove", "add", "texture")  # what a model must know to be tested
MOST_THINGS = 4  # as many as a scene of the training set has
GAP = 0.04  # between an added thing and the others


@dataclass(frozen=True)
class Change:
    """An edit of a scene in the world's words: which task and phrasing, and the scene after it."""

    task: str
    kind: str
    after: Scene
    words: dict[str, str]


@dataclass(frozen=True)
class SessionTurn:
    """One turn: the task and the pair; a no-op has two equal pictures and an empty mask."""

    task: str
    pair: Edited

    @property
    def is_noop(self) -> bool:
        """Whether nothing may change."""
        return not bool(self.pair.mask.any())


@dataclass(frozen=True)
class WorldSession:
    """A first picture and turns that follow each other: each source is the target before it."""

    key: str
    turns: tuple[SessionTurn, ...]

    @property
    def original(self) -> UInt8[np.ndarray, "h w 3"]:
        """The picture the session begins with."""
        return self.turns[0].pair.source


def make_session(
    seed: int,
    index: int,
    *,
    turns: int = 10,
    size: int = 64,
    split: Split = "heldout",
    photos: Photos | None = None,
) -> WorldSession:
    """Return the session of an index, a pure function of the arguments.

    The first turns do not depend on how many there are, nor the scenes on the size.

    Args:
        seed: of the world.
        index: at least 0.
        turns: how many, at least 1.
        size: side of the pictures in pixels.
        split: "heldout" has held-out phrasings, and begins with one held-out colour/shape pair.
        photos: photographs used as backgrounds.

    Raises:
        InputError: if there are no turns, or the size is too small.
    """
    if turns < 1:
        raise InputError(f"a session needs at least 1 turn, got {turns}")
    if size < MIN_SIZE:
        raise InputError(f"size={size} is too small for the world; give {MIN_SIZE} or more pixels")
    generator = keyed_generator(seed, f"world session {split}", index)
    studio = Studio(generator, split, size, photos)
    scene, _ = studio.scene(Rules(things=(2, 3), person=0.0, focus="thing"))
    made = []
    for number in range(turns):
        draw = pick(generator, REQUESTS_FOR_NOTHING) if number % 2 else real_edit(studio, scene)
        change = draw(studio, scene)
        mask = changed(scene, change.after, size)
        scenes = (scene, change.after)
        pair = edited(studio, change.task, change.kind, scenes, change.words, mask)
        made.append(SessionTurn(change.task, pair))
        scene = change.after
    return WorldSession(f"session-{split}-{seed}-{index:08d}", tuple(made))


Draw = Callable[[Studio, Scene], Change]


def real_edit(studio: Studio, scene: Scene) -> Draw:
    """Return one of the edits that this scene allows, equally likely."""
    allowed: list[Draw] = [recolour, swap, texture]
    if any(sizes(scene, thing) for thing in things(scene)):
        allowed.append(resize)
    if len(scene.figures) > 1:
        allowed.append(remove)
    if len(scene.figures) < MOST_THINGS and free_places(scene):
        allowed.append(add)
    return pick(studio.generator, allowed)


def recolour(studio: Studio, scene: Scene) -> Change:
    """Give a thing another colour."""
    old = pick(studio.generator, things(scene))
    colour = studio.new_colour(scene, old)
    after = scene.swapped(old, replace(old, colour=colour))
    return Change("local", "recolour", after, {"thing": old.name, "colour": colour})


def swap(studio: Studio, scene: Scene) -> Change:
    """Put a thing of another shape in the place of one."""
    old = pick(studio.generator, things(scene))
    new = studio.thing(
        (old.x, old.y),
        old.radius,
        scene.background,
        scene.without(old).figures,
        in_focus=False,
        without=crowded(scene) | {old.shape},
    )
    new = replace(new, texture=old.texture)
    return Change("local", "swap", scene.swapped(old, new), {"thing": old.name, "new": new.name})


def resize(studio: Studio, scene: Scene) -> Change:
    """Make a thing bigger or smaller."""
    old = pick(studio.generator, [thing for thing in things(scene) if sizes(scene, thing)])
    size = pick(studio.generator, sizes(scene, old))
    new = replace(old, radius=round(old.radius * SIZES[size], 4))
    return Change("local", "resize", scene.swapped(old, new), {"thing": old.name, "size": size})


def texture(studio: Studio, scene: Scene) -> Change:
    """Give a thing a pattern, another pattern, or none."""
    old = pick(studio.generator, things(scene))
    plain = old.texture != "plain" and studio.chance(0.5)
    new = replace(old, texture="plain" if plain else studio.texture(without=old.texture))
    kind = "plain" if plain else "pattern"
    words = {"thing": old.name, "texture": new.texture}
    return Change("texture", kind, scene.swapped(old, new), words)


def remove(studio: Studio, scene: Scene) -> Change:
    """Erase a thing."""
    old = pick(studio.generator, things(scene))
    return Change("remove", "remove", scene.without(old), {"thing": old.name})


def add(studio: Studio, scene: Scene) -> Change:
    """Insert a thing at a free place."""
    place = pick(studio.generator, free_places(scene))
    new = studio.thing(
        PLACES[place],
        ADDED_RADIUS,
        scene.background,
        scene.figures,
        in_focus=False,
        without=crowded(scene),
    )
    words = {"new": new.full_name, "place": place}
    return Change("add", "add", scene.with_figure(new), words)


def same_colour(studio: Studio, scene: Scene) -> Change:
    """Ask for the colour a thing already has."""
    thing = pick(studio.generator, things(scene))
    return Change("local", "recolour", scene, {"thing": thing.name, "colour": thing.colour})


def same_texture(studio: Studio, scene: Scene) -> Change:
    """Ask for the pattern, or the smoothness, a thing already has."""
    thing = pick(studio.generator, things(scene))
    kind = "plain" if thing.texture == "plain" else "pattern"
    return Change("texture", kind, scene, {"thing": thing.name, "texture": thing.texture})


def absent_thing(studio: Studio, scene: Scene) -> Change:
    """Ask to remove a thing of a shape that nothing in the scene has."""
    present = {figure.shape for figure in scene.figures}
    shape = pick(studio.generator, [shape for shape in SHAPES if shape not in present])
    known = [c for c in COLOURS if studio.split == "heldout" or (c, shape) not in HELDOUT_PAIRS]
    absent = f"{pick(studio.generator, known)} {shape}"
    return Change("remove", "remove", scene, {"thing": absent})


REQUESTS_FOR_NOTHING: tuple[Draw, ...] = (same_colour, same_texture, absent_thing)


def things(scene: Scene) -> list[Thing]:
    """Return the figures that are things; here all are."""
    return [figure for figure in scene.figures if isinstance(figure, Thing)]


def crowded(scene: Scene) -> frozenset[str]:
    """Return the shapes that occur twice: a third might find no colour that is left."""
    shapes = [figure.shape for figure in scene.figures]
    return frozenset(shape for shape in shapes if shapes.count(shape) > 1)


def sizes(scene: Scene, thing: Thing) -> list[str]:
    """Return the sizes a thing may be given: from an ordinary one, and hiding no other's centre."""
    if not MIN_RADIUS <= thing.radius <= MAX_RADIUS:
        return []
    fitting = ["smaller"]
    reach = thing.radius * SIZES["bigger"]
    others = [figure for figure in scene.figures if figure is not thing]
    if all(hypot(other.x - thing.x, other.y - thing.y) > reach for other in others):
        fitting.append("bigger")
    return fitting


def free_places(scene: Scene) -> list[str]:
    """Return the named places with room for a new thing."""
    return [
        name
        for name, (x, y) in PLACES.items()
        if all(
            hypot(thing.x - x, thing.y - y) > max(thing.radius, ADDED_RADIUS) + GAP
            for thing in things(scene)
        )
    ]


NOOPS: dict[str, Draw] = {
    "local": same_colour,
    "remove": absent_thing,
    "texture": same_texture,
}


def make_noop(
    seed: int,
    index: int,
    *,
    task: str,
    size: int = 64,
    split: Split = "train",
    photos: Photos | None = None,
    paraphrased: bool = False,
) -> WorldPair:
    """Return the no-op pair of an index, a pure function of the arguments.

    Args:
        seed: of the world.
        index: at least 0.
        task: one of `NOOPS`.
        size: side of the pictures in pixels, at least 16.
        split: which phrasings, and which pairs of colour and shape.
        photos: photographs used as backgrounds.
        paraphrased: in training, also ask in the many more ways of `datamodules.world.paraphrases`.

    Raises:
        InputError: if the task has no such pairs, the index is negative, or the size too small.
    """
    if task not in NOOPS:
        raise InputError(f"there are no-op pairs of {', '.join(NOOPS)}, not of {task!r}")
    if index < 0 or size < MIN_SIZE:
        raise InputError(f"index={index} must be at least 0 and size={size} at least {MIN_SIZE}")
    generator = keyed_generator(seed, f"world no-op {task} {split}", index)
    studio = Studio(generator, split, size, photos, paraphrased=paraphrased)
    # at most three shapes, so that there is one to name that is not there
    scene, _ = studio.scene(Rules(things=(1, 2, 2, 3), person=0.0, focus="thing"))
    change = NOOPS[task](studio, scene)
    mask = changed(scene, change.after, size)
    pair = edited(studio, change.task, change.kind, (scene, scene), change.words, mask)
    return WorldPair.of(f"{task}-noop-{split}-{seed}-{index:08d}", task, pair)
