"""`make_caption`: a picture of the world and its caption, to learn to draw from words.

A pure function of seed, split and index, as pairs are. Scenes of the split "heldout" have a figure
whose colour and shape are together in no training picture.
"""

from datamodules.shards.manifest import CAPTION
from datamodules.shards.writer import PairRecord
from datamodules.world.scene import Scene
from datamodules.world.studio import Rules, Studio

# one or two plain figures on a plain backdrop, or all that scenes may have
FLAT = Rules(things=(1, 1, 2, 2, 2), person=0.0, texture=0.0, flat=True)
FULL = Rules(word=0.1)


def caption_scene(
    seed: int, index: int, *, split: str = "train", size: int = 32, flat: bool = True
) -> tuple[Studio, Scene]:
    """Return the scene of an index and what draws it.

    Raises:
        InputError: if the split is unknown, the index negative, or the size too small.
    """
    kind = "flat" if flat else "full"
    studio = Studio.of(f"caption {kind}", CAPTION, seed, index, size=size, split=split, photos=None)
    return studio, studio.scene(FLAT if flat else FULL)[0]


def make_caption(
    seed: int, index: int, *, split: str = "train", size: int = 32, flat: bool = True
) -> PairRecord:
    """Return the picture of an index with its caption as instruction; there is no source.

    Raises:
        InputError: as `caption_scene`.
    """
    studio, scene = caption_scene(seed, index, split=split, size=size, flat=flat)
    picture = studio.render(scene)
    return PairRecord(
        key=studio.key,
        source=picture,
        target=picture,
        instruction=scene.caption,
        task=CAPTION,
        target_caption=scene.caption,
    )
