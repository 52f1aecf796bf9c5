"""Pixel thresholding: what an edit hardly changed is taken, bit for bit, from the picture before.

A network never returns a picture exactly; over many turns the small errors outside the edits add
up. Emu Edit compares each result with its source, averages the difference over a neighbourhood so
that a single noisy pixel decides nothing, and keeps the source where little changed. Pure functions
of uint8 pictures: this file knows no network.
Source: Sheynin et al. 2023, arXiv:2311.10089, "sequential edit thresholding". The paper does not
name the low-pass filter; the box below is ours.
"""

import math
from enum import Enum

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from emu_edit.editing.task_mix import TaskChoice, task_names
from emu_edit.errors import InputError

ALPHA = 0.03  # Emu Edit; of a difference summed over RGB, so 2.55 grey levels in each channel
MOST = 3.0  # black against white in all three channels

# Ours. Five pixels: wide enough that one stray pixel (d = 0.5 / 25 = 0.02) is not an edit, narrow
# enough that a line of one pixel (d * 5 / 25) is one, and that the soft edge of an object, two
# pixels either side, comes along with it.
RADIUS = 2

# Tasks that repaint every pixel: keeping the odd one that happens to be similar would only put
# spots of the old picture into the new. `background` is not among them: its objects must stay, and
# thresholding keeps them bit-identical.
WHOLE_PICTURE: frozenset[str] = frozenset({
    "global",
    "style",
    "color",
    "sketch",
    "depth",
    "normal",
    "pose",
    "segmap",
})


class Threshold(Enum):
    """`default`: the session decides, by turn and task, whether an edit is thresholded."""

    default = "default"


def keep_unchanged(
    before: UInt8[Tensor, "3 h w"],
    after: UInt8[Tensor, "3 h w"],
    *,
    alpha: float = ALPHA,
    radius: int = RADIUS,
) -> UInt8[Tensor, "3 h w"]:
    """Take `before` where the two hardly differ, else `after`.

    d[p] = sum over RGB of |before[p] - after[p]| / 255, from 0 to 3
    d_bar[p] = mean of d over the (2 radius + 1)^2 pixels around p that lie inside the picture
    result[p] = before[p] if d_bar[p] < alpha, else after[p]

    The comparison is made in whole numbers: the same pixels are kept on every device and with any
    number of threads. Alpha 0 keeps nothing, alpha above 3 everything.

    Args:
        before: the picture that was edited.
        after: the result of the edit, on the same device.
        alpha: mean difference below which a pixel counts as unchanged, 0 to 3.
        radius: of the square that is averaged over, in pixels.

    Raises:
        InputError: if `alpha` is negative or no finite number.

    Source: Sheynin et al. 2023, arXiv:2311.10089; the filter is ours.
    """
    return torch.where(is_unchanged(before, after, alpha=alpha, radius=radius), before, after)


def is_unchanged(
    before: UInt8[Tensor, "3 h w"],
    after: UInt8[Tensor, "3 h w"],
    *,
    alpha: float = ALPHA,
    radius: int = RADIUS,
) -> Bool[Tensor, "h w"]:
    """Say where `keep_unchanged` keeps `before`."""
    check_alpha(alpha)
    total, count = _differences(before, after, radius)
    return total < count * (255 * alpha)


def mean_difference(
    before: UInt8[Tensor, "3 h w"], after: UInt8[Tensor, "3 h w"]
) -> Float[Tensor, "h w"]:
    """Return d_bar of `keep_unchanged`, from 0 to 3."""
    total, count = _differences(before, after, RADIUS)
    return total / (255 * count)


def _differences(
    before: UInt8[Tensor, "3 h w"], after: UInt8[Tensor, "3 h w"], radius: int
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    levels = (before.short() - after.short()).abs().sum(0, dtype=torch.float32)
    return _box_sum(levels, radius), _box_sum(torch.ones_like(levels), radius)


def check_alpha(alpha: float) -> None:
    """Refuse a threshold that is negative or no finite number."""
    if not math.isfinite(alpha) or alpha < 0:
        raise InputError(
            f"the threshold must be a number of at least 0, got {alpha!r}; Emu Edit uses {ALPHA}"
        )


def default_alpha(task: TaskChoice, turn: int) -> float | None:
    """Choose the threshold of a session's turn, counted from 1; None means off.

    Off in the first turn, whose picture has lost nothing yet, and for tasks that repaint the whole
    picture; a mix counts as such when one of its two tasks does. A task the program does not know,
    one that was learned by inversion, is thresholded.
    """
    return None if turn < 2 or WHOLE_PICTURE.intersection(task_names(task)) else ALPHA


def _box_sum(levels: Float[Tensor, "h w"], radius: int) -> Float[Tensor, "h w"]:
    # float32 holds these sums exactly: at most 25 * 765 < 2**24 at the usual radius, so their
    # order does not matter.
    # Two passes of one dimension: ten additions a pixel instead of twenty-five.
    side = 2 * radius + 1
    rows = functional.avg_pool2d(
        levels[None], (side, 1), stride=1, padding=(radius, 0), divisor_override=1
    )
    return functional.avg_pool2d(
        rows, (1, side), stride=1, padding=(0, radius), divisor_override=1
    )[0]
