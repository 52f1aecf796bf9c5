"""Open shards: as many as are in use, each opened once, within what the system allows."""

import resource

from datamodules.stream.kept import Kept, most_open
from datamodules.stream.order import LaneOrder, Order, OrderSpec

SAMPLES, SHARDS, WINDOW = 50, 16, 8


def opens(quotas: list[int], count: int, most: int | None) -> tuple[int, int]:
    """Read so many samples of a mixture; return how often a shard was opened, how many stay so."""
    lanes = (LaneOrder(f"t{i}", quota, (SAMPLES,) * SHARDS) for i, quota in enumerate(quotas))
    order, kept, opened = Order(OrderSpec(0, tuple(lanes), window=WINDOW)), Kept(WINDOW, most), []

    def open_one() -> object:
        opened.append(0)
        return object()

    for g in range(count):
        place = order(g)
        kept.get(place.lane, place.shard, open_one)
    return len(opened), len(kept)


def test_a_mixture_of_sixteen_tasks_opens_every_shard_once():
    count = 16 * SHARDS * SAMPLES
    assert opens([1] * 16, count, most=1000) == (count // SAMPLES, 16 * WINDOW)
    few, kept = opens([1] * 16, count, most=64)  # half of those in use
    assert few > count / 2
    assert kept == 64


def test_tasks_that_come_seldom_lose_none_to_those_that_come_often():
    quotas, periods = [8] * 8 + [1] * 8, SHARDS * SAMPLES // 8
    often, seldom = 8 * SHARDS, 8 * WINDOW  # one whole epoch, and a part of the first window
    assert opens(quotas, periods * sum(quotas), most=1000) == (often + seldom, 16 * WINDOW)


def test_what_was_read_longest_ago_is_dropped_first():
    kept = Kept(window=2, most=10)
    for shard in (0, 1, 0, 2):
        kept.get(0, shard, lambda shard=shard: shard)
    assert [kept.get(0, shard, lambda: -1) for shard in (0, 2, 1)] == [0, 2, -1]
    assert [kept.drop() for _ in range(3)] == [True, True, False]


def test_as_many_stay_open_as_half_of_the_files_that_a_process_may_open():
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, usual[1]))
        assert most_open() == 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
