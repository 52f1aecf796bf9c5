"""Distances between two sets of features: how far what a model draws is from what is true.

With features of videos the Fréchet distance is called FVD, with those of pictures FID; the number
means nothing without the network that the features are of and how many there were. Means and
covariances are summed as features come, in float64; the features themselves are not kept.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from emu_edit.errors import InputError

ROWS_AT_ONCE = 1024  # of the kernel's matrix


@dataclass
class Moments:
    """Number, mean and scatter of features, to which more are added as they come.

        scatter = sum over features of (x - mean)(x - mean)^T

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances", eq. 2.1; unlike sums of squares it does not lose digits.

    Attributes:
        count: how many features were added.
        mean: of them.
        scatter: around it.
    """

    count: int = 0
    mean: Float64[Tensor, "*d"] = field(default_factory=lambda: torch.zeros((), dtype=torch.double))
    scatter: Float64[Tensor, "*dd"] = field(
        default_factory=lambda: torch.zeros((), dtype=torch.double)
    )

    @staticmethod
    def of(features: Float[Tensor, "n d"]) -> "Moments":
        """Return those of some features."""
        moments = Moments()
        moments.add(features)
        return moments

    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Take in more features, of any number.

        Raises:
            InputError: if one holds NaN or infinity.
        """
        if not features.isfinite().all():
            raise InputError(
                "a feature holds NaN or infinity; the network's weights are damaged, or the clips "
                "are none"
            )
        rows = features.detach().double().cpu()
        new, known = len(rows), self.count
        if new == 0:
            return
        mean = rows.mean(0)
        centred, step = rows - mean, mean - self.mean
        share = known * new / (known + new)
        self.scatter = self.scatter + centred.T @ centred + share * torch.outer(step, step)
        self.mean = self.mean + step * (new / (known + new))
        self.count += new

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance; needs two features.

        Raises:
            InputError: if there are fewer.
        """
        if self.count < 2:
            raise InputError(
                f"a distance between sets needs at least 2 clips in each, got {self.count}; "
                "give more clips"
            )
        return self.scatter / (self.count - 1)


def frechet_distance(true: Moments, drawn: Moments) -> float:
    """Compute the squared Fréchet distance of two normal distributions, at least 0.

        |m_1 - m_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1^(1/2) S_2 S_1^(1/2))^(1/2))

    The last trace is the sum of the singular values of S_1^(1/2) S_2^(1/2), which is also right
    where covariances are singular, as those of few samples are; a root of S_1 S_2 need not exist.
    Few samples make the distance too large, see `few_samples`.

    Source: Dowson and Landau 1982; FID: Heusel et al. 2017, arXiv:1706.08500, eq. 6; FVD:
    Unterthiner et al. 2018, arXiv:1812.01717, eq. 2.

    Raises:
        InputError: if a set has fewer than two features.
        ValueError: if their widths differ.
    """
    if true.mean.shape != drawn.mean.shape:
        raise ValueError(f"features are {true.mean.shape} and {drawn.mean.shape} wide")
    first, second = true.covariance, drawn.covariance
    shared = torch.linalg.svdvals(_root(first) @ _root(second)).sum()
    apart = (true.mean - drawn.mean).square().sum()
    return max(0.0, (apart + first.trace() + second.trace() - 2 * shared).item())


def _root(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """Return the root of a symmetric matrix; what rounding left of eigenvalues of 0 is 0."""
    values, vectors = torch.linalg.eigh(covariance)
    least = values.max() * len(values) * torch.finfo(values.dtype).eps
    return (vectors * values.where(values > least, 0.0).sqrt()) @ vectors.T


def few_samples(true: Moments, drawn: Moments) -> str:
    """Say that a distance is too large because of few samples; "" if they are more than wide.

    A covariance of n features has rank n - 1, so with fewer than their width some directions count
    as empty. Even above it the distance falls as 1/n (Chong and Forsyth 2020, arXiv:1911.07023):
    only distances of equally many clips can be compared.
    """
    width, fewest = len(true.mean), min(true.count, drawn.count)
    if fewest > width:
        return ""
    return (
        f"{fewest} clips for features of width {width}: the distance is too large and only "
        f"comparable at the same number; give more than {width}"
    )


def kernel_distance(true: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"]) -> float:
    """Compute the squared maximum mean discrepancy under k(x, y) = (x·y / d + 1)^3.

        mean of k over pairs of true + mean over pairs of drawn - 2 mean over true and drawn

    Pairs are of different ones, so that it is unbiased for any number of samples: of equal
    distributions it is 0 on average, and may be below.
    Source: KID, Binkowski et al. 2018, arXiv:1801.01401, section 4 and eq. 4 of the appendix.

    Raises:
        InputError: if a set has fewer than two features.
    """
    if min(len(true), len(drawn)) < 2:
        raise InputError(
            f"a distance between sets needs at least 2 clips in each, got {len(true)} and "
            f"{len(drawn)}; give more clips"
        )
    first, second = true.double().cpu(), drawn.double().cpu()
    return (
        _pairs(first) + _pairs(second) - 2 * _kernel_sum(first, second) / (len(first) * len(second))
    )


def _pairs(rows: Float64[Tensor, "n d"]) -> float:
    """Average the kernel over all pairs of different features."""
    itself = (rows.square().mean(1) + 1).pow(3).sum().item()
    return (_kernel_sum(rows, rows) - itself) / (len(rows) * (len(rows) - 1))


def _kernel_sum(first: Float64[Tensor, "n d"], second: Float64[Tensor, "m d"]) -> float:
    width = first.shape[1]
    parts = [((part @ second.T) / width + 1).pow(3).sum() for part in first.split(ROWS_AT_ONCE)]
    return math.fsum(part.item() for part in parts)
