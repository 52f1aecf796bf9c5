"""Pairs that ask for what already holds: the target is the source, bit for bit, the mask is empty.

For training. A world's edits always change something; a model that saw nothing else also "makes the
red star red" and "removes the blue heart" where there is none, and damages the picture. The empty
mask says that nothing may change, so that `shards check` can tell such a pair from a mistake.
"""

from datamodules.world.edits_region import changed, edited
from datamodules.world.pair import MIN_SIZE, WorldPair
from datamodules.world.palette import Split
from datamodules.world.photos import Photos
from datamodules.world.sessions import Draw, absent_thing, same_colour, same_texture
from datamodules.world.studio import Rules, Studio
from emu_edit.errors import InputError
from emu_edit.randomness import keyed_generator

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
        paraphrased: in training, also ask in the many more ways of `datamodules.paraphrases`.

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
