"""Which sample takes the place of one that cannot be used.

A position of the stream stays filled, by another sample of the same task of the same data set, so
mixture, batch size, ranks and resume are what they are without bad samples. The choice is a pure
function of (seed, position, attempt): whichever worker reads, and whenever, finds the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.order import Position
from emu_edit.randomness import keyed_generator

MAX_ATTEMPTS = 8
# the first come from the shard that is open already: on a remote store any other is a download
ATTEMPTS_NEARBY = 4


@dataclass(frozen=True)
class Substitutes:
    """Draw the place of a substitute.

    Args:
        seed: another seed, other substitutes.
    """

    seed: int

    def __call__(
        self, where: Position, sizes: Sequence[int], *, position: int, attempt: int
    ) -> Position:
        """Return where to read in place of `where`, which is bad.

        Attempts 1 to `ATTEMPTS_NEARBY` draw another sample of the shard of `where`, if it has one;
        later ones, up to `MAX_ATTEMPTS`, a sample of any shard of the task.

        Args:
            where: the place that `position` of the stream stands for.
            sizes: samples of each shard of its task.
            position: place in the stream.
            attempt: 1 for the first substitute of this position.
        """
        generator = keyed_generator(self.seed, f"substitute/{attempt}", position)
        # raw words: numpy promises nothing about its bounded integers between versions
        draw = int(generator.bit_generator.random_raw())
        in_shard = sizes[where.shard]
        if attempt <= ATTEMPTS_NEARBY and in_shard > 1:
            return where._replace(sample=(where.sample + 1 + draw % (in_shard - 1)) % in_shard)
        ends = np.cumsum(sizes)
        place = draw % int(ends[-1])
        shard = int(np.searchsorted(ends, place, side="right"))
        first = int(ends[shard]) - sizes[shard]
        return where._replace(shard=shard, sample=place - first)
