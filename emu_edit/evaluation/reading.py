"""Whether edited pictures of the world show exactly the scene that was asked for, by its reader.

Of pairs whose target is a scene as it is drawn; marks, maps and filters have measures of their own,
see `EditScore.read`. A reading takes a tenth of a second and more, so all cores share them.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from datamodules.world.find import box_of, overlap
from datamodules.world.pair import WorldPair
from datamodules.world.read import read_scene
from datamodules.world.scene import Scene
from datamodules.world.studio import rendered
from emu_edit.metrics.world import Truth, score

SAME_PLACE = 0.5  # intersection over union of the boxes; half of a figure's width aside is a third
FEWEST_FOR_A_POOL = 64  # readings; below it starting processes takes longer

Asked = tuple[UInt8[np.ndarray, "3 h w"], Scene]


def shows(picture: UInt8[np.ndarray, "3 h w"], scene: Scene) -> bool:
    """Tell whether a picture shows a scene: its background, its word, its figures and no others.

    A figure is there if one of its colour, shape and pattern is read where it should be.
    """
    reading = read_scene(picture)
    if reading != reading.readable:  # something is there, and nobody could say what
        return False
    if reading.background != scene.background.name or reading.word != scene.word:
        return False
    left = list(reading.figures)
    for figure in scene.figures:
        at = box_of(figure)
        found = next(
            (
                read
                for read in left
                if read.figure.full_name == figure.full_name and overlap(read.box, at) >= SAME_PLACE
            ),
            None,
        )
        if found is None:
            return False
        left.remove(found)
    return not left


def target_scene(pair: WorldPair) -> Scene | None:
    """Return what the target shows, if it is a scene as drawn and its background has a name."""
    is_drawn = pair.draw is rendered or pair.extra.get("direction") == "from_map"
    if pair.scenes is None or not is_drawn or pair.scenes[1].background.crop is not None:
        return None
    return pair.scenes[1]


def readings(
    pairs: Sequence[WorldPair],
    truths: Sequence[Truth],
    pictures: Sequence[UInt8[Tensor, "3 h w"]],
    on_step: Callable[[int, int], None] | None = None,
) -> list[bool | None]:
    """Tell of each pair's picture whether it shows the target's scene; None has nothing to read.

    What is as far from the target as from the source does not, and is not read.
    """
    answers: list[bool | None] = []
    asked: dict[int, Asked] = {}
    for number, (pair, truth, picture) in enumerate(zip(pairs, truths, pictures, strict=True)):
        scene = target_scene(pair)
        answers.append(None if scene is None else False)
        if scene is not None and score(picture, truth).is_closer:
            asked[number] = picture.numpy(), scene
    for done, (number, is_shown) in enumerate(zip(asked, _all([*asked.values()]), strict=True), 1):
        answers[number] = is_shown
        if on_step is not None:
            on_step(done, len(asked))
    return answers


def _all(asked: Sequence[Asked]) -> Iterator[bool]:
    workers = os.cpu_count() or 1
    if workers == 1 or len(asked) < FEWEST_FOR_A_POOL:
        yield from map(_shows, asked)
        return
    # spawn: torch has threads by now, and a forked process may wait forever for one of their locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_shows, asked, chunksize=8)


def _shows(asked: Asked) -> bool:
    return shows(*asked)
