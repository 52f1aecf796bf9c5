"""Reading marks back from a picture: the rectangle or the painted region that an edit drew.

A pixel counts as marked when the edit moved it more than half of the way from its source colour to
the stated colour. The rule has no colour threshold, so it is as fair to a soft mark on grey as to a
hard one on black, and a picture that was not edited has no marked pixel.
"""

from typing import cast

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the last two exclusive
Rgb = tuple[int, int, int]  # 0..255

HALF_WAY = 0.5


def marked(
    edited: UInt8[Tensor, "3 h w"], source: UInt8[Tensor, "3 h w"], rgb: Rgb
) -> Bool[Tensor, "h w"]:
    """Return where the edit drew in a colour.

    |edited - rgb| < |source - rgb| / 2, Euclidean, per pixel

    Source: ours.
    """
    colour = torch.tensor(rgb, dtype=torch.float64).view(3, 1, 1)
    left = (edited.double() - colour).norm(dim=0)
    way = (source.double() - colour).norm(dim=0)
    return left < HALF_WAY * way


def drawn_box(where: Bool[Tensor, "h w"]) -> Box | None:
    """Return the smallest box around marked pixels, or None when there is no rectangle.

    Rows and columns with a single marked pixel are stray: a rectangle has two sides in each.
    """
    rows = (where.sum(1) > 1).nonzero().flatten().tolist()
    columns = (where.sum(0) > 1).nonzero().flatten().tolist()
    if not rows or not columns:
        return None
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def box_iou(first: Box | None, second: Box) -> float:
    """Return the shared area of two boxes over the area of their union; 0 without a first box."""
    if first is None:
        return 0.0
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (_area(first) + _area(second) - shared)


def region_iou(first: Bool[Tensor, "h w"], second: Bool[Tensor, "h w"]) -> float:
    """Return the shared pixels of two regions over those of their union; 1 when both are empty."""
    union = cast(int, (first | second).sum().item())
    return cast(int, (first & second).sum().item()) / union if union else 1.0


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
