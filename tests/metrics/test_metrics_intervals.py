"""Intervals of means, ratios and shares."""

import math
from itertools import product

import numpy as np
import pytest

from emu_edit.metrics import intervals
from emu_edit.metrics.intervals import (
    MeanInterval,
    bootstrap_mean,
    bootstrap_ratio,
    wilson_share,
)
from emu_edit.randomness import keyed_generator

NORMAL = np.random.default_rng(0).normal(3, 2, size=400).tolist()


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation_at_many_values():
    mean, low, high = bootstrap_mean(NORMAL)
    error = 1.96 * float(np.std(NORMAL)) / math.sqrt(len(NORMAL))
    assert mean == pytest.approx(np.mean(NORMAL), abs=1e-12)
    assert low == pytest.approx(mean - error, abs=0.15 * error)
    assert high == pytest.approx(mean + error, abs=0.15 * error)


def test_three_values_have_the_interval_of_all_27_resamples():
    values = [0.0, 1.0, 5.0]
    means = sorted(sum(drawn) / 3 for drawn in product(values, repeat=3))
    interval = bootstrap_mean(values, n=20_000)
    # 1 in 27 resamples is all zeros, 1 in 27 all fives: the ends lie there
    assert (interval.low, interval.high) == (means[0], means[-1]) == (0.0, 5.0)


def test_the_interval_covers_the_truth_in_about_95_of_100_experiments():
    rng = np.random.default_rng(1)
    samples = rng.normal(0, 1, size=(300, 60))
    covered = sum(
        interval.low <= 0 <= interval.high
        for interval in (bootstrap_mean(sample.tolist(), n=400) for sample in samples)
    )
    assert 0.90 * 300 <= covered <= 0.99 * 300


def test_the_same_values_give_the_same_interval_and_another_seed_another():
    assert bootstrap_mean(NORMAL) == bootstrap_mean(list(NORMAL))
    first, second = bootstrap_mean(NORMAL, seed=0), bootstrap_mean(NORMAL, seed=1)
    assert first.mean == second.mean
    assert first != second


def test_more_resamples_change_the_ends_a_little_only():
    few, many = bootstrap_mean(NORMAL), bootstrap_mean(NORMAL, n=20_000)
    width = many.high - many.low
    assert max(abs(few.low - many.low), abs(few.high - many.high)) < 0.1 * width


def test_equal_values_have_an_interval_without_width():
    assert bootstrap_mean([0.25] * 9) == (0.25, 0.25, 0.25)
    assert bootstrap_mean([7.5]) == (7.5, 7.5, 7.5)


def test_turns_of_one_session_are_drawn_together():
    # forty sessions of five equal turns: two hundred numbers, but forty independent ones
    sessions = [i for i in range(40) for _ in range(5)]
    values = [NORMAL[i] for i in sessions]
    alone = bootstrap_mean(NORMAL[:40])
    together = bootstrap_mean(values, groups=sessions)
    apart = bootstrap_mean(values)
    assert together == pytest.approx(alone, abs=1e-12)
    assert together.high - together.low > 1.8 * (apart.high - apart.low)


def test_a_group_counts_as_often_as_it_has_numbers():
    values, groups = [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]
    interval = bootstrap_mean(values, groups=groups)
    assert interval.mean == 0.25
    assert (interval.low, interval.high) == (0.0, 1.0)  # both sessions the one, or the other
    # drawing one of each has the mean 1/4, not the 1/2 of the groups' means
    middle = [bootstrap_mean(values, groups=groups, seed=s, n=1).low for s in range(30)]
    assert set(middle) == {0.0, 0.25, 1.0}


def test_names_of_groups_do_not_matter():
    values = NORMAL[:6]
    first = bootstrap_mean(values, groups=["x", "x", "y", "z", "z", "z"])
    assert first == bootstrap_mean(values, groups=[5, 5, -1, 0, 0, 0])


def test_a_single_group_has_an_interval_without_width():
    interval = bootstrap_mean([1.0, 2.0, 6.0], groups=["a", "a", "a"])
    assert interval == (3.0, 3.0, 3.0)


def one_by_one(values: list[float], groups: list[int], seed: int, n: int) -> MeanInterval:
    """Draw and average one resample after the other, of lists of numbers."""
    members = [[v for v, g in zip(values, groups, strict=True) if g == name]
               for name in dict.fromkeys(groups)]  # fmt: skip
    generator = keyed_generator(seed, "bootstrap mean", len(members))
    means = []
    for _ in range(n):
        drawn = generator.integers(len(members), size=len(members))
        numbers = [v for place in drawn for v in members[place]]
        means.append(math.fsum(numbers) / len(numbers))
    low, high = np.quantile(means, [0.025, 0.975])
    return MeanInterval(math.fsum(values) / len(values), low, high)


@pytest.mark.parametrize("count", [1, 2, 7, 60])
@pytest.mark.parametrize("at_once", [1, 64, 2**18])
def test_resamples_drawn_together_are_those_drawn_one_by_one(
    count: int, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intervals, "AT_ONCE", at_once)
    values = NORMAL[:count]
    for seed, groups in ((0, list(range(count))), (3, [i // 3 for i in range(count)])):
        wanted = one_by_one(values, groups, seed, 101)
        assert bootstrap_mean(values, seed, 101, groups=groups) == pytest.approx(wanted, abs=1e-12)


def test_what_has_no_mean_is_refused():
    for values in ([], [1.0, math.nan], [1.0, -math.inf]):
        with pytest.raises(ValueError, match="a bootstrap needs at least one number, all finite"):
            bootstrap_mean(values)
    with pytest.raises(ValueError, match="2 numbers need as many groups, got 1"):
        bootstrap_mean([1.0, 2.0], groups=["a"])


def test_the_interval_of_a_ratio_is_that_of_the_delta_method_at_many_pairs():
    rng = np.random.default_rng(2)
    below = rng.uniform(1, 3, size=500)
    above = 5 * below + rng.normal(0, 1, size=500)
    low, high = bootstrap_ratio(above.tolist(), below.tolist())
    ratio = above.sum() / below.sum()
    # Cochran 1977, Sampling Techniques, equation 2.39, without the finite population
    error = 1.96 * np.std(above - ratio * below) / math.sqrt(500) / below.mean()
    assert (low, high) == pytest.approx((ratio - error, ratio + error), abs=0.15 * error)


def test_pairs_of_one_ratio_have_an_interval_without_width():
    assert bootstrap_ratio([2.0, 8.0, 5.0], [1.0, 4.0, 2.5]) == (2.0, 2.0)


def test_a_ratio_is_unbounded_where_resamples_have_nothing_to_divide_by():
    low, high = bootstrap_ratio([1.0, 1.0], [0.0, 1.0])
    assert (low, high) == (1.0, math.inf)


@pytest.mark.parametrize(
    ("above", "below"), [([1.0], [0.0]), ([-1.0], [1.0]), ([math.nan], [1.0]), ([], [])]
)
def test_what_has_no_ratio_is_refused(above: list[float], below: list[float]):
    with pytest.raises(ValueError, match=r"a sum to divide by; got \["):
        bootstrap_ratio(above, below)


def test_the_interval_of_a_share_is_that_of_the_normal_approximation_at_many_edits():
    low, high = wilson_share(300, 1000)
    spread = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (low, high) == pytest.approx((0.3 - spread, 0.3 + spread), abs=0.001)


@pytest.mark.parametrize("successes", [0, 1, 5, 9, 10])
def test_the_ends_are_the_shares_that_the_score_test_just_accepts(successes: int):
    # Wilson's question: of which true shares p is what was seen no more than 1.96 sigma away?
    ends = wilson_share(successes, 10)
    for end in ends:
        distance = abs(successes / 10 - end)
        assert distance == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 10), abs=1e-6)
    low, high = ends
    assert 0 <= low <= successes / 10 <= high <= 1


def test_never_and_always_are_not_certain():
    # z²/(n + z²): what is left open by 12 of 12, and by 192 of 192
    assert wilson_share(12, 12) == (pytest.approx(12 / (12 + 1.959964**2), abs=1e-6), 1.0)
    assert wilson_share(0, 192) == (0.0, pytest.approx(1.959964**2 / (192 + 1.959964**2), abs=1e-6))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_the_interval_of_a_share_covers_the_truth_as_often_as_it_says(share: float):
    # exactly, over all outcomes of 100; the nominal 95 % holds on average over shares
    covered = sum(
        math.comb(100, k) * share**k * (1 - share) ** (100 - k)
        for k in range(101)
        if (ends := wilson_share(k, 100))[0] <= share <= ends[1]
    )
    assert 0.92 < covered < 0.98


def test_more_edits_make_the_interval_narrower():
    few, many = wilson_share(5, 10), wilson_share(500, 1000)
    assert many[1] - many[0] < 0.2 * (few[1] - few[0])
