"""Find samples that occur more than once among very many: 16 bytes of memory for each.

A sample is known by two hashes of 64 bits, of its key and of its content. Among 100 million samples
the chance that any two different ones share a hash is 1 in 4000.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from jaxtyping import UInt64

Place = tuple[int, int]  # number of the shard, sample in it


def hash_of(*parts: object) -> int:
    """Return 64 bits that stand for some numbers and texts."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@dataclass
class Doubles:
    """Collects hashes shard by shard, and groups equal ones."""

    _shards: list[int] = field(default_factory=list)
    _hashes: list[UInt64[np.ndarray, " n"]] = field(default_factory=list)

    def add(self, shard: int, hashes: Sequence[int]) -> None:
        """Note the hashes of a shard's samples, in their order."""
        self._shards.append(shard)
        self._hashes.append(np.array(hashes, dtype=np.uint64))

    def groups(self) -> Iterator[list[Place]]:
        """Yield the places of samples of equal hash, in the order in which they were added."""
        if not self._hashes:
            return
        ends = np.cumsum([len(hashes) for hashes in self._hashes])
        everything = np.concatenate(self._hashes)
        order = np.argsort(everything, kind="stable")
        starts = np.flatnonzero(np.diff(everything[order])) + 1
        groups = [part for part in np.split(order, starts) if len(part) > 1]
        for part in sorted(groups, key=lambda part: part[0]):
            yield [self._place(int(number), ends) for number in part]

    def _place(self, number: int, ends: np.ndarray) -> Place:
        i = int(np.searchsorted(ends, number, side="right"))
        return self._shards[i], number - (int(ends[i - 1]) if i else 0)
