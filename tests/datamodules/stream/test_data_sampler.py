import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.stream.sampler import GlobalBatchSampler, Layout, evaluation_batches
from emu_edit.errors import InputError

BATCH = 24


def steps_of(world: int, accumulate: int, *, first: int = 0, steps: int = 3) -> list[list[int]]:
    """Return the positions of each optimizer step, over all ranks."""
    layout = Layout(BATCH, accumulate, world)
    ranks = [list(GlobalBatchSampler(lambda: first, steps, layout, r)) for r in range(world)]
    assert {len(batches) for batches in ranks} == {steps * accumulate}
    return [
        [g for a in range(accumulate) for batches in ranks for g in batches[step * accumulate + a]]
        for step in range(steps)
    ]


LAYOUTS = [
    (world, accumulate)
    for world in range(1, BATCH + 1)
    for accumulate in range(1, BATCH + 1)
    if BATCH % (world * accumulate) == 0
]


@pytest.mark.parametrize(("world", "accumulate"), LAYOUTS)
def test_one_to_24_ranks_train_on_the_same_samples_in_every_step(world: int, accumulate: int):
    expected = [list(range(s * BATCH, (s + 1) * BATCH)) for s in range(3)]
    assert steps_of(world, accumulate) == expected


@given(step=st.integers(0, 10**12), layout=st.sampled_from(LAYOUTS))
def test_a_sampler_goes_on_from_any_step_in_any_layout(step: int, layout: tuple[int, int]):
    first = step * BATCH
    found = steps_of(*layout, first=first, steps=2)
    assert found == [list(range(first, first + BATCH)), list(range(first + BATCH, first + 48))]


def test_each_iteration_asks_where_training_stands():
    position = 0
    sampler = GlobalBatchSampler(lambda: position, 1, Layout(4, 2, 1), 0)
    assert len(sampler) == 2
    assert list(sampler) == [[0, 1], [2, 3]]
    position = 4
    assert list(sampler) == [[4, 5], [6, 7]]


def test_a_world_that_does_not_divide_the_batch_is_refused_with_those_that_do():
    with pytest.raises(
        InputError, match=r"global_batch=24 .* over 5 processes .*fits 1, 2, 3, 4, 6, 8, 12, 24 p"
    ):
        Layout(24, 1, 5)


def test_an_accumulation_that_does_not_divide_is_refused_with_valid_micro_batches():
    with pytest.raises(InputError, match=r"5 accumulated .*micro_batch may be 1, 2, 3, 4, 6, 12$"):
        Layout(24, 5, 2)


def test_an_empty_global_batch_is_refused():
    with pytest.raises(InputError, match=r"global_batch=0 .*must be at least 1"):
        Layout(0, 1, 1)


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match=r"rank 2 is outside 0\.\.1"):
        GlobalBatchSampler(lambda: 0, 1, Layout(4, 1, 2), 2)


@given(n=st.integers(1, 60), micro=st.integers(1, 9), world=st.integers(1, 9))
def test_evaluation_sees_every_sample_once_with_equal_numbers_of_batches(
    n: int, micro: int, world: int
):
    if n < world:
        with pytest.raises(InputError, match=rf"has {n} samples, needs at least one for each of"):
            evaluation_batches(n, micro, world, 0)
        return
    ranks = [evaluation_batches(n, micro, world, r) for r in range(world)]
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(n))
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch for batches in ranks for batch in batches)
    largest = max(len(batch) for batches in ranks for batch in batches)
    assert largest <= micro + 1
    assert world > 1 or largest <= micro


def test_one_process_evaluates_in_order():
    assert evaluation_batches(5, 2, 1, 0) == [[0], [1, 2], [3, 4]]
