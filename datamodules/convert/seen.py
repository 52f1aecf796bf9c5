"""What a run remembers of the pairs it has seen: 64 bits of each content and key, nothing else.

A set of Python takes some 80 bytes for such a number; with millions of pairs that is most of a
run's memory. Here they stand in one table, at most half full: 16 to 32 bytes each.
"""

import hashlib
from array import array

_FIRST = 1024  # places; a power of two, as all sizes are


def digest(*parts: bytes | memoryview) -> int:
    """Return 64 bits of BLAKE2b; two of four million numbers agree with a chance of 10^-6."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return int.from_bytes(found.digest(), "little")


class Digests:
    """A set of numbers of 64 bits: open addressing, linear probing, 0 is an empty place.

    The number 0 is taken for 1, which of digests nobody will notice.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * _FIRST))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return self._table[self._place(number or 1)] != 0

    def add(self, number: int) -> None:
        """Remember the number."""
        number = number or 1
        place = self._place(number)
        if self._table[place]:
            return
        self._table[place] = number
        self._count += 1
        if 2 * self._count > len(self._table):
            self._grow()

    def _place(self, number: int) -> int:
        """Return where the number is, or the empty place where it would be."""
        table, last = self._table, len(self._table) - 1
        place = number & last
        while table[place] not in {0, number}:
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        old, self._table = self._table, array("Q", bytes(16 * len(self._table)))
        for number in old:
            if number:
                self._table[self._place(number)] = number
