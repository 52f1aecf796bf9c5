"""The set of digests: the same answers as a set of Python, in a fraction of its memory."""

import random
import tracemalloc

import pytest

from datamodules.convert.gates import Digests, digest


@pytest.mark.parametrize("shift", [0, 20, 56])
def test_it_answers_as_a_set_does(shift: int) -> None:
    """Shifted numbers share their lowest bits, and with them the place where they begin."""
    rng = random.Random(shift)
    numbers = [rng.randrange(1, 256) << shift for _ in range(2000)]
    numbers += [rng.getrandbits(64) for _ in range(3000)]
    seen, found = set[int](), Digests()
    for number in numbers:
        assert (number in found) == (number in seen)
        seen.add(number)
        found.add(number)
        assert len(found) == len(seen)
    assert all(number in found for number in seen)


def test_zero_is_a_number_like_others() -> None:
    found = Digests()
    assert 0 not in found
    found.add(0)
    assert 0 in found
    assert len(found) == 1


def test_a_number_costs_at_most_32_bytes() -> None:
    count = 20_000
    tracemalloc.start()
    try:
        found = Digests()
        for number in range(count):
            found.add(digest(number.to_bytes(4, "little")))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(found) == count
    assert held <= 32 * count + 4096
