"""How sure a mean is: 95 % percentile-bootstrap intervals, the same numbers every time.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.

How good a classifier is, and whether its probabilities mean what they say.

A predictor is calibrated when, of all answers it gives with confidence 0.9, nine in ten are right.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emu_edit.randomness import keyed_generator

ENDS = (0.025, 0.975)
MEANS = 2_000  # resamples of a mean; each end moves by about 3 % of the width with the seed
SHARES = 10_000  # of a share, which is drawn at once and costs less
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
    """Return the mean of numbers with its 95 % percentile-bootstrap interval.

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
    """Return the ends of the 95 % percentile-bootstrap interval of sum(a) / sum(b) over pairs.

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


def bootstrap_share(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of a share.

    Resampling `count` yes/no outcomes with replacement draws binomial numbers of yes, so these are
    drawn at once. The interval has no width at 0 and at 1, where it understates what is unknown.
    """
    generator = keyed_generator(0, "bootstrap", count)
    shares = generator.binomial(count, successes / count, SHARES) / count
    low, high = np.quantile(shares, ENDS)
    return float(low), float(high)


def _resampled_means(
    sums: np.ndarray, sizes: np.ndarray, n: int, generator: np.random.Generator
) -> np.ndarray:
    """Return sum / size of n resamples, drawn one after the other from one stream."""
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
    """Return sum and size of each group, in the order of first appearance."""
    place: dict[Hashable, int] = {}
    of_number = [place.setdefault(group, len(place)) for group in groups]
    return np.bincount(of_number, weights=numbers), np.bincount(of_number)


BINS = 15  # of confidence; Guo et al. 2017, section 5
SHARPEST, FLATTEST = 0.05, 20.0  # temperatures to choose from
HALVINGS = 50  # of that interval: to the last bits of a double


def confusion_matrix(
    asked: Int64[Tensor, " b"], predicted: Int64[Tensor, " b"], num_classes: int
) -> Int64[Tensor, "n n"]:
    """Count how often class i (row) was taken for class j (column)."""
    flat = torch.bincount(asked * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def expected_calibration_error(
    probabilities: Float[Tensor, "b n"], asked: Int64[Tensor, " b"]
) -> float:
    """Average |accuracy - mean confidence| over bins of confidence, weighted by their size.

    ECE = sum_m |B_m| / b · |acc(B_m) - conf(B_m)|, in [0, 1]; the bins are ((m-1)/15, m/15].
    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Raises:
        ValueError: if there are no samples.
    """
    if len(asked) == 0:
        raise ValueError("the calibration error of no samples is undefined")
    confidence, predicted = probabilities.double().max(dim=1)
    is_right = (predicted == asked).double()
    bins = (confidence * BINS).ceil().clamp(1, BINS).long() - 1
    gaps = torch.zeros(BINS, dtype=torch.float64)
    # the sum of (right - confidence) over a bin is its size times (accuracy - mean confidence)
    gaps.index_add_(0, bins, is_right - confidence)
    return float(gaps.abs().sum() / len(asked))


def nll_temperature(logits: Float[Tensor, "b n"], asked: Int64[Tensor, " b"]) -> float:
    """Return the temperature T under which softmax(logits / T) is most likely.

    The negative log-likelihood is convex in 1/T; its derivative, the mean of
    sum_k p_k z_k - z_asked, rises with 1/T, so its root is found by halving an interval of log 1/T.
    Source: temperature scaling, Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Args:
        logits: of samples that the classifier was not trained on.
        asked: their classes.

    Returns:
        T in [0.05, 20]; the bounds are reached when all, or almost none, of the answers are right.
    """
    z = logits.double()
    of_asked = z.gather(1, asked[:, None])[:, 0]
    low, high = -math.log(FLATTEST), -math.log(SHARPEST)  # of log 1/T
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        p = torch.softmax(z * math.exp(middle), dim=1)
        is_too_sharp = bool(((p * z).sum(dim=1) - of_asked).mean() > 0)
        low, high = (low, middle) if is_too_sharp else (middle, high)
    return math.exp(-(low + high) / 2)
