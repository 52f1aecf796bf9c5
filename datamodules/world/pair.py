"""`make_pair`: one pair of the world as a pure function of seed, index, task, split and size.

Sixteen edits, one per task. The index decides everything random; the task, when not given, is the
index modulo sixteen, so any run of consecutive indexes has equal shares of the tasks. A pair's
scene does not depend on the size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from datamodules.shards.writer import PairRecord
from datamodules.world.backgrounds import Photos
from datamodules.world.edits_freeform import color, global_, style, text
from datamodules.world.edits_region import add, background, local, remove, texture
from datamodules.world.edits_vision import detect, segment, to_and_from_map
from datamodules.world.palette import Split
from datamodules.world.studio import Edited, Studio
from emu_edit.errors import InputError
from emu_edit.randomness import keyed_generator
from emu_edit.tasks import SIXTEEN

VERSION = 1  # of the world: raised whenever the same seed and index give another pair
MIN_SIZE = 16  # below it letters and lines vanish

# split -> whose colour/shape pairs, and whose phrasings
SPLITS: dict[str, tuple[Split, Split]] = {
    "train": ("train", "train"),
    "heldout": ("heldout", "heldout"),
    "sentences": ("train", "heldout"),
    "pairs": ("heldout", "train"),
}

EDITS: dict[str, Callable[[Studio], Edited]] = {
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
    "sketch": to_and_from_map("sketch"),
    "depth": to_and_from_map("depth"),
    "normal": to_and_from_map("normal"),
    "pose": to_and_from_map("pose"),
    "segmap": to_and_from_map("segmap"),
}


@dataclass(frozen=True)
class WorldPair:
    """One pair with exact ground truth; `mask` is True where the target may differ."""

    key: str
    task: str
    source: UInt8[np.ndarray, "h w 3"]
    target: UInt8[np.ndarray, "h w 3"]
    instruction: str
    mask: Bool[np.ndarray, "h w"]
    source_caption: str
    target_caption: str
    extra: dict[str, object]

    @staticmethod
    def of(key: str, task: str, edited: Edited) -> "WorldPair":
        """Return what an edit made, under its key and task."""
        return WorldPair(
            key=key,
            task=task,
            source=edited.source,
            target=edited.target,
            instruction=edited.instruction,
            mask=edited.mask,
            source_caption=edited.source_caption,
            target_caption=edited.target_caption,
            extra=edited.extra,
        )

    def to_record(self) -> PairRecord:
        """Return the pair as the shard writer takes it."""
        return PairRecord(
            key=self.key,
            source=self.source,
            target=self.target,
            instruction=self.instruction,
            task=self.task,
            mask=self.mask,
            source_caption=self.source_caption,
            target_caption=self.target_caption,
            extra=self.extra,
        )


def make_pair(
    seed: int,
    index: int,
    *,
    task: str | None = None,
    size: int = 64,
    split: str = "train",
    photos: Photos | None = None,
    paraphrased: bool = False,
) -> WorldPair:
    """Return the pair of an index.

    Args:
        seed: of the world; two seeds share no pairs.
        index: at least 0.
        task: one of the sixteen; by default `index % 16`.
        size: side of the pictures in pixels, at least 16.
        split: "heldout" has only held-out phrasings, and held-out colour/shape pairs in focus;
            "train" has none of either; "sentences" has held-out phrasings alone, "pairs" held-out
            colour/shape pairs alone.
        photos: photographs used as backgrounds.
        paraphrased: in training, also ask in the many more ways of `datamodules.world.paraphrases`.

    Raises:
        InputError: if the task or split is unknown, the index negative, or the size too small.
    """
    if index < 0:
        raise InputError(f"index={index} of a world pair is negative; give 0 or more")
    if size < MIN_SIZE:
        raise InputError(f"size={size} is too small for the world; give {MIN_SIZE} or more pixels")
    name = SIXTEEN.names[index % len(SIXTEEN) if task is None else SIXTEEN.index(task)]
    generator = keyed_generator(seed, f"world {name} {split}", index)
    figures, sentences = SPLITS[_known(split)]
    studio = Studio(generator, figures, size, photos, sentences, paraphrased)
    pair = EDITS[name](studio)
    return WorldPair.of(f"{name}-{split}-{seed}-{index:08d}", name, pair)


def _known(split: str) -> str:
    if split not in SPLITS:
        known = ", ".join(repr(name) for name in SPLITS)
        raise InputError(f"unknown split {split!r} of the world; give one of {known}")
    return split
