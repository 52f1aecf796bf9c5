"""Distances between sets of features: against scipy and torchmetrics, closed forms, streaming."""

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from emu_edit.errors import InputError
from emu_edit.metrics.frechet import Moments, few_samples, frechet_distance, kernel_distance


def drawn(count: int, width: int, generator: torch.Generator, *, away: float = 0.0) -> Tensor:
    """Draw correlated features around `away`."""
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return rows @ mix + away


def by_scipy(true: Tensor, other: Tensor) -> float:
    """Compute the distance as its papers write it, with a root of the product."""
    a, b = true.numpy(), other.numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.asarray(linalg.sqrtm(s @ t))
    apart = a.mean(0) - b.mean(0)
    return float(apart @ apart + np.trace(s) + np.trace(t) - 2 * np.trace(root).real)


class Passed(nn.Module):
    """Pictures "n d 1 1" that are their own features."""

    num_features = 12

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)


def test_the_distance_is_that_of_scipy_and_of_torchmetrics(cpu_generator: torch.Generator):
    true = drawn(60, 12, cpu_generator)
    other = drawn(45, 12, cpu_generator, away=0.3)
    found = frechet_distance(Moments.of(true), Moments.of(other))
    assert found == pytest.approx(by_scipy(true, other), rel=1e-9)
    theirs = FrechetInceptionDistance(feature=Passed()).set_dtype(torch.float64)
    theirs.update(true[..., None, None], real=True)
    theirs.update(other[..., None, None], real=False)
    assert found == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_normal_distributions_have_the_distance_of_the_closed_form(cpu_generator: torch.Generator):
    # of axes that do not mix: the sum of (m - m')^2 + (s - s')^2
    rows = torch.randn(400, 3, generator=cpu_generator, dtype=torch.float64)
    rows = rows - rows.mean(0)
    q, _ = torch.linalg.qr(rows)
    unit = q * 399**0.5  # covariance is exactly one
    one, other = unit * torch.tensor([1.0, 2.0, 3.0]) + 1, unit * torch.tensor([2.0, 2.0, 0.5]) - 1
    found = frechet_distance(Moments.of(one), Moments.of(other))
    assert found == pytest.approx(3 * 4 + 1 + 0 + 6.25, rel=1e-9)


def test_equal_sets_are_at_zero_and_the_distance_is_symmetric(cpu_generator: torch.Generator):
    few = drawn(5, 12, cpu_generator)  # singular covariances
    many = drawn(80, 12, cpu_generator)
    assert frechet_distance(Moments.of(few), Moments.of(few)) == pytest.approx(0, abs=1e-5)
    forth = frechet_distance(Moments.of(few), Moments.of(many))
    assert forth > 1
    assert forth == pytest.approx(frechet_distance(Moments.of(many), Moments.of(few)), rel=1e-9)


def test_features_may_come_in_any_parts_and_far_from_zero(cpu_generator: torch.Generator):
    rows = drawn(50, 6, cpu_generator, away=1e6)
    moments = Moments()
    for part in rows.split([1, 7, 0, 30, 12]):
        moments.add(part)
    assert moments.count == 50
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance, rows.T.cov(), rtol=1e-7, atol=1e-7)


def test_few_samples_make_the_distance_too_large_and_it_is_said(cpu_generator: torch.Generator):
    rows = torch.randn(4000, 16, generator=cpu_generator, dtype=torch.float64)
    found = []
    for count in (10, 40, 400, 2000):
        pair = Moments.of(rows[:count]), Moments.of(rows[-count:])
        found.append(frechet_distance(*pair))
        assert bool(few_samples(*pair)) == (count <= 16)
    assert found == sorted(found, reverse=True)
    said = few_samples(Moments.of(rows[:10]), Moments.of(rows))
    assert said.startswith("10 clips for features of width 16")


def test_the_kernel_distance_is_that_of_loops_over_pairs(cpu_generator: torch.Generator):
    true, other = drawn(7, 4, cpu_generator), drawn(5, 4, cpu_generator, away=1)

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 4 + 1) ** 3)

    def inside(rows: Tensor) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(x, y) for x in true for y in other]
    wanted = inside(true) + inside(other) - 2 * sum(across) / len(across)
    assert kernel_distance(true, other) == pytest.approx(wanted, rel=1e-12)


def test_the_kernel_distance_of_few_samples_is_right_on_average(cpu_generator: torch.Generator):
    found = [
        kernel_distance(*torch.randn(2, 10, 16, generator=cpu_generator).unbind())
        for _ in range(400)
    ]
    spread = float(np.std(found)) / len(found) ** 0.5
    assert abs(np.mean(found)) < 4 * spread
    assert min(found) < 0


def test_what_has_no_distance_is_refused(cpu_generator: torch.Generator):
    one, two = drawn(1, 3, cpu_generator), drawn(2, 3, cpu_generator)
    with pytest.raises(InputError, match="at least 2 clips in each, got 1"):
        frechet_distance(Moments.of(two), Moments.of(one))
    with pytest.raises(InputError, match="at least 2 clips in each, got 2 and 1"):
        kernel_distance(two, one)
    with pytest.raises(InputError, match="NaN or infinity"):
        Moments.of(two / 0)
    with pytest.raises(ValueError, match="wide"):
        frechet_distance(Moments.of(two), Moments.of(drawn(4, 5, cpu_generator)))
