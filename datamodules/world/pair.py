"""`make_pair`: one pair of the world as a pure function of seed, index, task, split and size.

Sixteen edits, one per task. The index decides everything random; the task, when not given, is the
index modulo sixteen, so any run of consecutive indexes has equal shares of the tasks. A pair's
scene does not depend on the size.
"""

from collections.abc import Callable
from dataclasses import replace

from datamodules.world import photograph_edits
from datamodules.world.edits_freeform import color, global_, style, text
from datamodules.world.edits_region import add, background, local, remove, texture
from datamodules.world.edits_vision import detect, segment, to_and_from_map
from datamodules.world.photographs import Photos
from datamodules.world.phrasings import MAP_WORDS
from datamodules.world.studio import Studio, WorldPair
from emu_edit.tasks import SIXTEEN

VERSION = 1  # of the world: raised whenever the same seed and index give another pair

EDITS: dict[str, Callable[[Studio], WorldPair]] = {
    "local": local,
    "remove": remove,
    "add": add,
    "texture": texture,
    "background": background,
    "global": global_,
    "style": style,
    "text": text,
    "detect": detect,
    "segment": segment,
    "color": color,
    **{task: to_and_from_map(task) for task in MAP_WORDS},
}


def make_pair(
    seed: int,
    index: int,
    *,
    task: str | None = None,
    size: int = 64,
    split: str = "train",
    photos: Photos | None = None,
    paraphrased: bool = False,
    flat: bool = False,
) -> WorldPair:
    """Return the pair of an index.

    Args:
        seed: of the world; two seeds share no pairs.
        index: at least 0.
        task: one of the sixteen; by default `index % 16`.
        size: side of the pictures in pixels, at least 16.
        split: "heldout" has only held-out sentences, and held-out colour/shape pairs in focus;
            "train" has none of either; "sentences" has held-out sentences alone, "pairs" held-out
            colour/shape pairs alone.
        photos: photographs used as backgrounds, and edited themselves, to their share.
        paraphrased: in training, also ask in the many more ways of `phrasings.PARAPHRASES`.
        flat: one or two plain figures on a plain backdrop, as models of captions draw them.

    Raises:
        InputError: if the task or split is unknown, the index negative, or the size too small.
    """
    name = SIXTEEN.names[index % len(SIXTEEN) if task is None else SIXTEEN.index(task)]
    studio = Studio.of(
        f"{name} flat" if flat else name,
        f"{name}-flat" if flat else name,
        seed,
        index,
        size=size,
        split=split,
        photos=photos,
        paraphrased=paraphrased,
        flat=flat,
    )
    if photos is None or name not in photograph_edits.EDITS:
        return EDITS[name](studio)
    edit, chance = photograph_edits.EDITS[name]
    pair = edit(studio) if studio.chance(photos.share * chance) else None
    if pair is not None:
        return pair
    # filters of the flat world look wrong on photographs, and a sketch of one has its lines
    return EDITS[name](studio if name == "local" else replace(studio, photos=None))
