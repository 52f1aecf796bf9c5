"""How sure a mean or a share is: 95 % intervals, the same numbers every time.

Of means and ratios by the percentile bootstrap (Efron & Tibshirani 1993, An Introduction to the
Bootstrap, section 13.3), of shares of independent yes and no by Wilson's formula.
"""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from emu_edit.randomness import keyed_generator

ENDS = (0.025, 0.975)
Z = NormalDist().inv_cdf(ENDS[1])  # 1.96
MEANS = 2_000  # resamples of a mean; each end moves by about 3 % of the width with the seed
AT_ONCE = 2**18  # drawn groups in memory together; how many does not change what is drawn


class MeanInterval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float],
    seed: int = 0,
    n: int = MEANS,
    *,
    groups: Sequence[Hashable] | None = None,
) -> MeanInterval:
    """Average numbers, with the 95 % percentile-bootstrap interval of their mean.

    Numbers of one group are not independent (turns of one session), so whole groups are drawn with
    replacement, and the resampled mean is that of all numbers drawn: a group counts as often as it
    has numbers, in the mean itself too. Without groups each number is its own.

    A single group says nothing about others: its interval has no width. The draws depend on the
    seed and on the number of groups only, so equal values give equal intervals, in whatever order
    they were computed; groups count in the order of their first number.

    Args:
        values: defined numbers; who has undefined ones leaves them out and says how many.
        seed: of the draws.
        n: number of resamples.
        groups: the group of each number.

    Raises:
        ValueError: without values, for one that is not finite, or when not every value has a group.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"a bootstrap needs at least one number, all finite; got {values!r:.80}")
    if groups is not None and len(groups) != len(numbers):
        raise ValueError(f"{len(numbers)} numbers need as many groups, got {len(groups)}")
    sums, sizes = _by_group(numbers, range(len(numbers)) if groups is None else groups)
    generator = keyed_generator(seed, "bootstrap mean", len(sums))
    low, high = np.quantile(_resampled_means(sums, sizes, n, generator), ENDS)
    return MeanInterval(float(numbers.mean()), float(low), float(high))


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0, n: int = MEANS
) -> tuple[float, float]:
    """Estimate the 95 % percentile-bootstrap interval of sum(a) / sum(b) over pairs; its ends.

    The pairs (a, b) are drawn with replacement, both of one together: what makes both large widens
    the interval less than if they were drawn apart. An end is infinite where resamples have sum
    b = 0.

    Args:
        numerators: not negative.
        denominators: not negative, as many; not all zero.
        seed: of the draws.
        n: number of resamples.

    Raises:
        ValueError: for negative numbers, ones that are not finite, unequally many, or no sum b.
    """
    pairs = np.asarray([numerators, denominators], dtype=np.float64)
    if not np.isfinite(pairs).all() or (pairs < 0).any() or not pairs[1].sum() > 0:
        raise ValueError(
            "the bootstrap of a ratio needs finite numbers of at least 0, and a sum to divide by; "
            f"got {numerators!r:.60} over {denominators!r:.60}"
        )
    generator = keyed_generator(seed, "bootstrap ratio", pairs.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = _resampled_means(pairs[0], pairs[1], n, generator)
    # nothing over nothing says nothing: neither end may rest on it
    low, high = np.quantile(np.where(np.isnan(ratios), np.inf, ratios), ENDS, method="inverted_cdf")
    return float(low), float(high)


def wilson_share(successes: int, count: int) -> tuple[float, float]:
    """Compute the 95 % score interval of a share; its ends, in [0, 1].

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), p = successes/n, z = 1.96

    It has a width at 0 and at 1, too, where resampling would never draw anything else.
    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    share, shift = successes / count, Z * Z / count
    middle = share + shift / 2
    reach = math.sqrt(shift * (share * (1 - share) + shift / 4))
    # at the edges middle and reach are equal but for rounding
    low = 0.0 if successes == 0 else (middle - reach) / (1 + shift)
    high = 1.0 if successes == count else (middle + reach) / (1 + shift)
    return low, high


def _resampled_means(
    sums: np.ndarray, sizes: np.ndarray, n: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw n resamples one after the other from one stream, and divide sum by size in each."""
    count = len(sums)
    rows = max(1, AT_ONCE // count)
    means = np.empty(n)
    for start in range(0, n, rows):
        part = means[start : start + rows]
        drawn = generator.integers(count, size=(len(part), count))
        numbers = len(sizes) if (sizes == 1).all() else sizes[drawn].sum(1)
        part[:] = sums[drawn].sum(1) / numbers
    return means


def _by_group(numbers: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count the numbers of each group, in the order of first appearance."""
    place: dict[Hashable, int] = {}
    of_number = [place.setdefault(group, len(place)) for group in groups]
    return np.bincount(of_number, weights=numbers), np.bincount(of_number)
