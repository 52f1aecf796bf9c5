import pickle
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.stream.order import LaneOrder, Order, OrderSpec, Position
from datamodules.stream.sampler import GlobalBatchSampler, Layout

# bucket, quota and shard sizes of each lane
LANES = {
    "local@a": ("a", 5, (4, 3)),
    "local@b": ("b", 2, (2,)),
    "add@a": ("a", 3, (6,)),
    "add@c": ("c", 1, (1, 2)),
    "depth@b": ("b", 2, (5, 1)),
}
STEP = 4
SPEC = OrderSpec(
    7,
    tuple(LaneOrder(name, q, sizes, bucket=bucket) for name, (bucket, q, sizes) in LANES.items()),
    window=2,
    step=STEP,
)
PLAIN = replace(SPEC, lanes=tuple(replace(lane, bucket="") for lane in SPEC.lanes))


# bucket, quota and size of each lane; seed; step. Made to a spec outside of hypothesis' drawing,
# because beartype draws numbers, too
RAW = st.tuples(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(1, 9), st.integers(1, 9)),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 99),
    st.integers(1, 7),
)
Raw = tuple[list[tuple[str, int, int]], int, int]


def spec_of(raw: Raw) -> OrderSpec:
    lanes, seed, step = raw
    ordered = tuple(
        LaneOrder(f"t{i}", quota, (size,), bucket=bucket)
        for i, (bucket, quota, size) in enumerate(lanes)
    )
    return OrderSpec(seed, ordered, step=step)


def positions(spec: OrderSpec, count: int) -> list[Position]:
    order = Order(spec)
    return [order(g) for g in range(spec.start, spec.start + count)]


def bucket_at(order: Order, g: int) -> str:
    return order.spec.lanes[order(g).lane].bucket


@settings(deadline=None, max_examples=25)
@given(RAW)
def test_all_draws_of_a_step_are_of_one_bucket(raw: Raw):
    spec = spec_of(raw)
    order = Order(spec)
    for step in range(12):
        own = range(step * spec.step, (step + 1) * spec.step)
        assert len({bucket_at(order, g) for g in own}) == 1


@settings(deadline=None, max_examples=25)
@given(RAW)
def test_a_lane_is_drawn_as_often_as_without_buckets_over_a_period(raw: Raw):
    spec = spec_of(raw)
    drawn = Counter(place.lane for place in positions(spec, spec.period * spec.step))
    assert drawn == {t: lane.quota * spec.step for t, lane in enumerate(spec.lanes)}


@settings(deadline=None, max_examples=25)
@given(RAW)
def test_the_mixture_is_never_far_from_its_shares(raw: Raw):
    spec = spec_of(raw)
    quotas = Counter()
    lanes_of = Counter(lane.bucket for lane in spec.lanes)
    for lane in spec.lanes:
        quotas[lane.bucket] += lane.quota
    counts = Counter()
    for g, place in enumerate(positions(spec, 2 * spec.period * spec.step), start=1):
        counts[place.lane] += 1
        if g % spec.step:
            continue
        for t, lane in enumerate(spec.lanes):
            of_bucket = quotas[lane.bucket]
            in_steps = spec.step * (1 + len(lanes_of) * of_bucket / spec.period)
            in_draws = 1 + lanes_of[lane.bucket] * lane.quota / of_bucket
            error = abs(counts[t] - g * lane.quota / spec.period)
            assert error <= in_steps * lane.quota / of_bucket + in_draws


def test_each_lane_has_the_very_sequence_it_has_without_buckets():
    sequences = []
    for spec in (SPEC, PLAIN):
        found = defaultdict(list)
        for place in positions(spec, 6 * spec.period * STEP):
            found[place.lane].append(place)
        sequences.append(found)
    assert sequences[0] == sequences[1]


def test_every_sample_of_a_lane_is_seen_once_in_an_epoch():
    seen = Counter(positions(SPEC, 6 * SPEC.period * STEP))
    assert set(seen.values()) == {1}
    epochs = Counter((place.lane, place.epoch) for place in seen)
    for t, lane in enumerate(SPEC.lanes):
        last = max(epoch for lane_index, epoch in epochs if lane_index == t)
        assert all(epochs[t, epoch] == sum(lane.shard_sizes) for epoch in range(last))


def test_a_position_means_the_same_whatever_was_asked_before():
    forward = positions(SPEC, 300)
    order = Order(SPEC)
    assert [order(g) for g in reversed(range(300))] == forward[::-1]
    assert pickle.loads(pickle.dumps(order))(123) == forward[123]


def test_one_bucket_is_as_none():
    of_one = replace(SPEC, lanes=tuple(replace(lane, bucket="") for lane in SPEC.lanes), step=1)
    assert positions(PLAIN, 200) == positions(of_one, 200)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 200))
def test_draws_are_counted_up_to_any_position(g: int):
    order = Order(SPEC)
    counts = Counter(SPEC.lanes[order(i).lane].name for i in range(g))
    assert order.drawn_before(g) == {name: counts[name] for name in LANES}


@pytest.mark.parametrize("start", [0, STEP, 29 * STEP])
def test_a_new_stretch_goes_on_in_every_lane(start: int):
    drawn = Order(SPEC).drawn_before(start)
    quotas = (1, 4, 4, 2, 2)
    lanes = tuple(
        replace(lane, quota=quota, drawn=drawn[lane.name])
        for lane, quota in zip(SPEC.lanes, quotas, strict=True)
    )
    changed = replace(SPEC, lanes=lanes, start=start)
    both, whole = positions(SPEC, start) + positions(changed, 80), positions(SPEC, 1000)
    for t in range(len(lanes)):
        sequence = [place for place in both if place.lane == t]
        assert sequence == [place for place in whole if place.lane == t][: len(sequence)]
    followed = Order(SPEC)
    assert followed.follow(changed.stretch)
    assert [followed(g) for g in range(start, start + 80)] == both[start:]


def test_another_seed_gives_other_steps():
    other = replace(SPEC, seed=8)
    buckets = [[bucket_at(Order(spec), g) for g in range(0, 200, STEP)] for spec in (SPEC, other)]
    assert buckets[0] != buckets[1]


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4), (4, 1)])
def test_all_ranks_and_micro_batches_of_a_step_meet_in_one_bucket(accumulate: int, world: int):
    layout, steps = Layout(STEP, accumulate, world), 30
    order = Order(SPEC)
    ranks = [
        list(GlobalBatchSampler(lambda: 8 * STEP, steps, layout, rank)) for rank in range(world)
    ]
    of_steps = []
    for s in range(steps):
        batches = [b for rank in ranks for b in rank[s * accumulate : (s + 1) * accumulate]]
        (bucket,) = {bucket_at(order, g) for batch in batches for g in batch}
        of_steps.append(bucket)
    # the same whatever the layout
    assert of_steps == [bucket_at(order, g) for g in range(8 * STEP, (8 + steps) * STEP, STEP)]


def test_a_step_without_draws_is_a_mistake():
    with pytest.raises(ValueError, match="a step of 0 draws is none"):
        replace(SPEC, step=0)
