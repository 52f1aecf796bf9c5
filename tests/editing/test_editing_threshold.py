import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.editing.task_mix import TaskMix
from emu_edit.editing.threshold import (
    ALPHA,
    WHOLE_PICTURE,
    default_alpha,
    is_unchanged,
    keep_unchanged,
)
from emu_edit.errors import InputError
from emu_edit.tasks import SIXTEEN
from tests.editing.conftest import picture


def shifted(image: UInt8[Tensor, "3 h w"], levels: int) -> UInt8[Tensor, "3 h w"]:
    """Move every value by `levels` grey levels, towards the middle so that none is clipped."""
    towards = torch.where(image < 128, levels, -levels)
    return (image.int() + towards).to(torch.uint8)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32), size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    alpha=st.floats(0, 3.5),
)  # fmt: skip
def test_each_pixel_is_bit_identical_to_one_of_the_two_pictures_by_the_formula(
    seed: int, size: tuple[int, int], alpha: float
) -> None:
    before, after = picture(*size, seed=seed), picture(*size, seed=seed + 1)
    kept = keep_unchanged(before, after, alpha=alpha)
    for y in range(size[0]):
        for x in range(size[1]):
            rows, columns = slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3)
            d = (before[:, rows, columns].int() - after[:, rows, columns].int()).abs().sum(0)
            mean = d.double().mean() / 255
            if abs(mean - alpha) > 1e-5:  # at the very threshold float32 may round either way
                chosen = before if mean < alpha else after
                assert torch.equal(kept[:, y, x], chosen[:, y, x])


def test_alpha_is_of_the_difference_summed_over_the_channels() -> None:
    before = picture()
    two_levels, three_levels = shifted(before, 2), shifted(before, 3)
    # 3 channels * 2 / 255 = 0.0235 < 0.03 < 3 * 3 / 255 = 0.0353
    assert torch.equal(keep_unchanged(before, two_levels), before)
    assert torch.equal(keep_unchanged(before, three_levels), three_levels)


def test_one_noisy_pixel_is_not_an_edit_and_a_thin_line_is_one() -> None:
    before = torch.zeros(3, 16, 16, dtype=torch.uint8)
    noisy, line = before.clone(), before.clone()
    noisy[:, 8, 8] = 60  # d = 0.71 at one pixel, 0.028 as a mean of 25
    line[:, 8, :] = 60
    assert torch.equal(keep_unchanged(before, noisy), before)
    assert torch.equal(keep_unchanged(before, line), line)


def test_pixels_away_from_the_edit_are_kept_and_those_next_to_it_are_not() -> None:
    before = picture()
    after = shifted(before, 1)
    after[:, 4:8, 4:8] = 255 - before[:, 4:8, 4:8]
    kept = keep_unchanged(before, after)
    assert torch.equal(kept[:, 2:10, 2:10], after[:, 2:10, 2:10])  # the edit and two pixels around
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[2:10, 2:10] = False
    assert torch.equal(kept[:, outside], before[:, outside])


def test_alpha_zero_keeps_nothing_and_a_large_one_everything() -> None:
    before, after = picture(), picture(seed=1)
    assert torch.equal(keep_unchanged(before, after, alpha=0.0), after)
    assert torch.equal(keep_unchanged(before, after, alpha=3.01), before)


def test_the_kept_pixels_do_not_depend_on_the_number_of_threads() -> None:
    before, after = picture(64, 64), picture(64, 64, seed=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = is_unchanged(before, after, alpha=1.0)
        torch.set_num_threads(2)
        two = is_unchanged(before, after, alpha=1.0)
    finally:
        torch.set_num_threads(threads)
    assert one.any()
    assert not one.all()
    assert torch.equal(one, two)


@pytest.mark.parametrize("alpha", [-0.01, math.nan, math.inf])
def test_a_threshold_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match="the threshold must be a number of at least 0, got"):
        keep_unchanged(picture(), picture(), alpha=alpha)


def test_the_default_is_on_from_the_second_turn_unless_the_task_repaints_the_picture() -> None:
    assert set(SIXTEEN.names) >= WHOLE_PICTURE
    for task in SIXTEEN.names:
        assert default_alpha(task, 1) is None
        assert default_alpha(task, 2) == (None if task in WHOLE_PICTURE else ALPHA)
    assert default_alpha("learned by inversion", 5) == ALPHA
    assert default_alpha(TaskMix("local", "style", 0.1), 2) is None
    assert default_alpha(TaskMix("local", "add", 0.1), 2) == ALPHA
