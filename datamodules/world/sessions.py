"""Edits of one scene one after the other, and pairs that ask for nothing.

A session is the drift test: odd turns edit one thing, even turns ask for what already holds ("make
the red star red") or for the removal of what is not there. Because every turn is an edit of the
scene and not of pixels, the right picture after any number of turns is known, and pixels that no
mask has touched are bit-identical to the first picture. Not among the edits: `background`, which
would leave nothing outside the masks to measure, and people, who take so much room that little
could be added beside them.

Pairs that ask for nothing are for training, too: a model that only saw edits that change something
also "makes the red star red" and damages the picture. Their target is the source, bit for bit, and
the empty mask says that nothing may change, so that `shards check` can tell them from a mistake.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import hypot

import numpy as np
from jaxtyping import UInt8

from datamodules.world import edits_region as edits
from datamodules.world.edits_region import ADDED_RADIUS
from datamodules.world.instructions import SIZES, pick
from datamodules.world.palette import COLOURS, HELDOUT_PAIRS, PLACES, SHAPES, Split
from datamodules.world.photographs import Photos
from datamodules.world.scene import Background, Scene, Thing
from datamodules.world.studio import MAX_RADIUS, MIN_RADIUS, Change, Rules, Studio, WorldPair
from emu_edit.errors import InputError

TASKS = ("local", "remove", "add", "texture")  # what a model must know to be tested
MOST_THINGS = 4  # as many as a scene of the training set has
GAP = 0.04  # between an added thing and the others


@dataclass(frozen=True)
class WorldSession:
    """A first picture and turns that follow each other: each source is the target before it."""

    key: str
    turns: tuple[WorldPair, ...]

    @property
    def original(self) -> UInt8[np.ndarray, "h w 3"]:
        """The picture the session begins with."""
        return self.turns[0].source


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

    The first turns do not depend on how many there are, nor the scenes on the size. The split
    "heldout" has held-out phrasings, and begins with one held-out colour/shape pair.

    Raises:
        InputError: if there are no turns, or the size is too small.
    """
    if turns < 1:
        raise InputError(f"a session needs at least 1 turn, got {turns}")
    studio = Studio.of("session", "session", seed, index, size=size, split=split, photos=photos)
    scene, _ = studio.scene(Rules(things=(2, 3), person=0.0, focus="thing"))
    pairs = []
    for number in range(turns):
        requests = REQUESTS_FOR_NOTHING if number % 2 else edits_of(scene)
        change = pick(studio.generator, requests)(studio, scene)
        pairs.append(studio.pair_of(scene, change))
        scene = change.after
    return WorldSession(studio.key, tuple(pairs))


Draw = Callable[[Studio, Scene], Change]


def edits_of(scene: Scene) -> list[Draw]:
    """Return the edits that a scene allows."""
    allowed: list[Draw] = [recolour, swap, texture]
    if any(sizes(scene, thing) for thing in things(scene)):
        allowed.append(resize)
    if len(scene.figures) > 1:
        allowed.append(remove)
    if len(scene.figures) < MOST_THINGS and free_places(scene):
        allowed.append(add)
    return allowed


def recolour(studio: Studio, scene: Scene) -> Change:
    """Give a thing another colour."""
    return edits.recoloured(studio, scene, pick(studio.generator, things(scene)))


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
    return edits.swapped(scene, old, new)


def resize(studio: Studio, scene: Scene) -> Change:
    """Make a thing bigger or smaller."""
    old = pick(studio.generator, [thing for thing in things(scene) if sizes(scene, thing)])
    return edits.resized(scene, old, pick(studio.generator, sizes(scene, old)))


def texture(studio: Studio, scene: Scene) -> Change:
    """Give a thing a pattern, another pattern, or none."""
    return edits.retextured(studio, scene, pick(studio.generator, things(scene)))


def remove(studio: Studio, scene: Scene) -> Change:
    """Erase a thing."""
    return edits.removed(scene, pick(studio.generator, things(scene)))


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
    return edits.added(scene, new, place)


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


NOOPS: dict[str, Draw] = {"local": same_colour, "remove": absent_thing, "texture": same_texture}


def make_noop(
    seed: int,
    index: int,
    *,
    task: str,
    size: int = 64,
    split: str = "train",
    photos: Photos | None = None,
    paraphrased: bool = False,
) -> WorldPair:
    """Return the no-op pair of an index; the arguments are those of `make_pair`.

    Raises:
        InputError: if the task has no such pairs, the index is negative, or the size too small.
    """
    if task not in NOOPS:
        raise InputError(f"there are no-op pairs of {', '.join(NOOPS)}, not of {task!r}")
    purpose, stem = f"no-op {task}", f"{task}-noop"
    studio = Studio.of(
        purpose, stem, seed, index, size=size, split=split, photos=photos, paraphrased=paraphrased
    )
    if task == "remove" and photos is not None and studio.chance(photos.share / 2):
        # a photograph alone, of which nothing is to be removed
        scene = Scene.of(Background("photograph", photos.draw(studio.generator)), ())
    else:
        # at most three shapes, so that there is one to name that is not there
        scene, _ = studio.scene(Rules(things=(1, 2, 2, 3), person=0.0, focus="thing"))
    return studio.pair_of(scene, NOOPS[task](studio, scene))
