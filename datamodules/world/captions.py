"""`make_caption`: a picture of the world and its caption, to learn to draw from words.

A pure function of seed, split and index, as pairs are. Scenes of the split "heldout" have a figure
whose colour and shape are together in no training picture.
"""

from datamodules.shards.writer import PairRecord
from datamodules.world.clips.shot import flat_shot
from datamodules.world.scene import Scene
from datamodules.world.studio import FLAT, Rules, Studio
from emu_edit.tasks import CAPTION

VERSION = 2  # of these pictures: raised whenever the same seed and index give another one
# all that scenes may have
FULL = Rules(word=0.1)
MOVING = 0.5  # the share of flat captions that tell of motion
FRAMES = 8  # of such a clip; words do not depend on it


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

    Half of the flat ones are called what the clip that begins with them would be, so that one
    caption draws a video's first frame and the video.

    Raises:
        InputError: as `caption_scene`.
    """
    studio, scene = caption_scene(seed, index, split=split, size=size, flat=flat)
    picture, caption = studio.render(scene), scene.caption
    if flat and studio.chance(MOVING):
        caption = f"{caption}; {flat_shot(studio, scene, FRAMES).words(scene)}"
    return PairRecord(
        key=studio.key,
        source=picture,
        target=picture,
        instruction=caption,
        task=CAPTION,
        target_caption=caption,
    )
