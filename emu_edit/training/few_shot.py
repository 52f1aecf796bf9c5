"""The pairs of a new task: which are held out, how they are varied, in which order they come.

All of it is keyed by the seed. A mirrored pair is mirrored on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import UInt8
from torch import Tensor

from emu_edit.batch import EditBatch, EditSample
from emu_edit.errors import InputError
from emu_edit.randomness import keyed_generator

ENOUGH = 5  # pairs; from fewer, none is held out
CHECK_DRAWS = 24  # samples, each with its noise, that a check is measured with
CHECK_BATCH = 8


@dataclass(frozen=True)
class FewShotPair:
    """One example of the new task, both pictures at the size the model is trained for.

    `name` is where it came from; views (crops) of one pair share it, and are never on both sides of
    the split.
    """

    source: UInt8[Tensor, "3 h w"]
    target: UInt8[Tensor, "3 h w"]
    instruction: str
    name: str


def names_of(pairs: Sequence[FewShotPair]) -> tuple[str, ...]:
    """Return the names of the pairs, each once."""
    return tuple(dict.fromkeys(pair.name for pair in pairs))


def split(
    pairs: Sequence[FewShotPair], share: float, *, seed: int
) -> tuple[list[FewShotPair], list[FewShotPair]]:
    """Return the pairs to learn from and those to hold out, in their order.

    Held out is a `share` of the names, at least one when there are `ENOUGH`; 0 for none.

    Raises:
        InputError: if there are no pairs, or their sizes differ.
    """
    if not pairs:
        raise InputError("a new task needs at least one pair to learn from, got none")
    sizes = {tuple(picture.shape[1:]) for p in pairs for picture in (p.source, p.target)}
    if len(sizes) > 1:
        raise InputError(f"the pairs of a new task need one size, got {sorted(sizes)}")
    names = names_of(pairs)
    count = 0
    if len(names) >= ENOUGH and share > 0:
        count = min(max(round(share * len(names)), 1), len(names) - 1)
    order = keyed_generator(seed, "inversion held out", 0).permutation(len(names))
    held_out = {names[i] for i in order[:count]}
    return (
        [pair for pair in pairs if pair.name not in held_out],
        [pair for pair in pairs if pair.name in held_out],
    )


def views(pairs: Sequence[FewShotPair], *, flip: bool = False) -> list[EditSample]:
    """Return the pairs as samples, with a key each; with `flip` also all of them mirrored."""
    samples = []
    for mirrored in (False, True) if flip else (False,):
        for number, pair in enumerate(pairs):
            source, target = pair.source, pair.target
            if mirrored:
                source, target = source.flip(-1), target.flip(-1)
            key = f"{pair.name}/{number}{'/mirrored' if mirrored else ''}"
            samples.append(
                EditSample(
                    key=key,
                    source=source,
                    target=target,
                    instruction=pair.instruction,
                    task=0,
                )
            )
    return samples


def batch_at(samples: Sequence[EditSample], step: int, size: int, *, seed: int) -> EditBatch:
    """Return the batch of a step: all samples in one random order, then in another, without end."""
    drawn = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, len(samples))
        order = keyed_generator(seed, "inversion order", epoch).permutation(len(samples))
        drawn.append(replace(samples[order[place]], position=position))
    return EditBatch.collate(drawn)


def check_batches(samples: Sequence[EditSample]) -> list[EditBatch]:
    """Return `CHECK_DRAWS` samples in batches, the same every time.

    Of many, evenly spaced ones; few come several times, with another noise each time.
    """
    if not samples:
        return []
    spaced = samples[:: -(-len(samples) // CHECK_DRAWS)]
    rows = [replace(spaced[i % len(spaced)], position=i) for i in range(CHECK_DRAWS)]
    return [EditBatch.collate(rows[i : i + CHECK_BATCH]) for i in range(0, len(rows), CHECK_BATCH)]
