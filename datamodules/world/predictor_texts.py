"""Instructions with the task they ask for: what a task predictor is trained and tested on.

Three sources: the procedural world and everyday sentences (pure functions of seed and index) and
any folder of shards, of which only the texts are read. Pictures are made or decoded in none.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from datamodules.shards.manifest import ShardEntry, read_manifest
from datamodules.stream.reader import OpenShard, wordings_of
from datamodules.world.everyday.sentences import everyday
from datamodules.world.instructions import (
    background_words,
    corpus,
    fix_articles,
    pick,
    slot_words,
    slots_of,
)
from datamodules.world.pair import make_pair
from datamodules.world.palette import PLAIN_BACKGROUNDS, TEXTURES, WORDS
from datamodules.world.phrasings import PARAPHRASES
from datamodules.world.studio import MIN_SIZE
from datamodules.world.write import PROGRAM as WORLD_PROGRAM
from emu_edit.errors import BadSampleError, InputError
from emu_edit.randomness import keyed_generator
from emu_edit.tasks import SIXTEEN

Instruction = tuple[str, str]  # the text, and the name of the task
WORLD_TEXTS = 3200  # of the built-in world, 200 for each task: 4 seconds
PARAPHRASED_TEXTS = 8000  # 500 for each task, drawn from 9 to 23 sentences and their words
EVERYDAY_TEXTS = 24_000  # 1500 for each task: 4 seconds
UNSEEN_TEXTS = 1600  # of everyday patterns held back
MOST_PER_TASK = 500  # texts of a shard folder
OnStep = Callable[[int, int], None]  # called with (instructions done, instructions in all)

logger = logging.getLogger(__name__)


def world_instructions(
    seed: int, count: int, *, split: str = "train", on_step: OnStep | None = None
) -> list[Instruction]:
    """Return the instructions of pairs 0 to `count` - 1 of a world, as its shards have them.

    A pair's instruction follows from its scene, which does not depend on the size; so the pairs are
    made at the smallest size, in about a millisecond each; sixteen in a row are of sixteen tasks.

    Raises:
        InputError: if `count` is below 1 or the split is unknown.
    """
    _refuse_none(count)
    made = []
    for index in range(count):
        pair = make_pair(seed, index, size=MIN_SIZE, split=split)
        made.append((pair.instruction, pair.task))
        if on_step is not None and (len(made) % 100 == 0 or len(made) == count):
            on_step(len(made), count)
    return made


def paraphrases(seed: int, count: int) -> list[Instruction]:
    """Return `count` sentences of `phrasings.PARAPHRASES` with words of the training world."""
    _refuse_none(count)
    made = []
    for index in range(count):
        generator = keyed_generator(seed, "paraphrase", index)
        task = SIXTEEN.names[index % len(SIXTEEN)]
        template = pick(generator, PARAPHRASES[task])
        words = {slot: pick(generator, paraphrase_words()[slot]) for slot in slots_of(template)}
        made.append((fix_articles(template.format_map(words)), task))
    return made


def shard_instructions(
    folder: Path, *, most_per_task: int | None = None, on_step: OnStep | None = None
) -> list[Instruction]:
    """Return the instructions of a shard folder, in the order of the shards; no picture is read.

    A pair whose instruction has other wordings gives them all; one whose text cannot be used gives
    none, which is said. Of a task at most `most_per_task` pairs are read, at equal distances.

    Raises:
        ShardError: if there is no such folder, or its manifest or an index is damaged.
    """
    manifest = read_manifest(folder)
    places = [p for task in manifest.tasks for p in _places(manifest.of_task(task), most_per_task)]
    total = sum(len(samples) for _, samples in places)
    read: list[Instruction] = []
    done, bad = 0, []
    for entry, samples in places:
        shard = OpenShard(folder / entry.file, entry)
        for sample in samples:
            try:
                read += [(wording, entry.task) for wording in wordings_of(shard.text(sample))]
            except BadSampleError as error:
                bad.append(str(error))
            done += 1
            if on_step is not None and (done % 1000 == 0 or done == total):
                on_step(done, total)
    if bad:
        logger.warning("%s: %d texts cannot be used, the first: %s", folder, len(bad), bad[0])
    return read


def training_instructions(
    folder: Path | None, *, seed: int = 0, on_step: OnStep | None = None
) -> list[Instruction]:
    """Return the texts a task predictor is trained on, of the built-in world or a shard folder.

    When the folder holds a world, or none is given, paraphrases and everyday sentences are added;
    and to a world of few pairs, which cannot have every sentence, all training sentences of it.

    Raises:
        ShardError: if the folder cannot be read.
    """
    if folder is None:
        own = world_instructions(seed, WORLD_TEXTS, on_step=on_step)
    else:
        own = shard_instructions(folder, most_per_task=MOST_PER_TASK, on_step=on_step)
        if not is_world(folder):
            return own
        if len(own) < WORLD_TEXTS:
            own += corpus("train")
    return [*own, *paraphrases(seed, PARAPHRASED_TEXTS), *everyday(seed, EVERYDAY_TEXTS)]


def unseen_instructions(folder: Path | None, *, seed: int = 0) -> list[Instruction]:
    """Return texts of patterns that `training_instructions` of the folder has none of.

    None where it has no everyday sentences.

    Raises:
        ShardError: if the folder cannot be read.
    """
    if folder is not None and not is_world(folder):
        return []
    return everyday(seed, UNSEEN_TEXTS, held_back=True)


def is_world(folder: Path) -> bool:
    """Tell whether a shard folder holds pairs of the built-in world."""
    return read_manifest(folder).made_by.get("program") == WORLD_PROGRAM


def _places(
    entries: tuple[ShardEntry, ...], most: int | None
) -> Iterator[tuple[ShardEntry, range]]:
    """Yield the samples to read of each shard of one task."""
    total = sum(entry.samples for entry in entries)
    step = 1 if most is None else -(-total // most)
    first = 0  # of the next shard, counted over the task
    for entry in entries:
        samples = range(-first % step, entry.samples, step)
        if samples:
            yield entry, samples
        first += entry.samples


@cache
def paraphrase_words() -> dict[str, tuple[str, ...]]:
    """Return the fillings of each slot of a paraphrase; no held-out combination."""
    words = slot_words("local", "swap", "train")
    things = words["thing"]
    shapes = tuple(thing for thing in things if not thing.endswith("person"))
    plain = tuple(map(background_words, PLAIN_BACKGROUNDS))
    return {
        **words,
        "new": (*shapes, *(f"{t} {s}" for t, s in zip(TEXTURES * 4, shapes, strict=False))),
        "new_word": tuple(reversed(WORDS)),
        "scene": tuple(
            f"a {first} and a {second} on {plain[i % len(plain)]}"
            for i, (first, second) in enumerate(zip(things, reversed(things), strict=True))
        ),
    }


def _refuse_none(count: int) -> None:
    if count < 1:
        raise InputError(f"{count} instructions are too few, give 1 or more")
