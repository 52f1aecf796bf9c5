"""What a turn changed, as a picture: black where nothing did, brighter where more did."""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

# Level of the smallest change, of 255. Ours: one grey level in one channel must be told from black.
FAINTEST = 48


def changed(before: UInt8[Tensor, "3 h w"], after: UInt8[Tensor, "3 h w"]) -> Bool[Tensor, "h w"]:
    """Return where the two pictures differ at all, in any channel by one level."""
    return (before != after).any(0)


def difference(
    before: UInt8[Tensor, "3 h w"], after: UInt8[Tensor, "3 h w"]
) -> Float[Tensor, "h w"]:
    """Return the mean absolute difference over RGB, 0 (the same) to 1 (black against white)."""
    return (before.short() - after.short()).abs().float().mean(0) / 255


def draw_difference(
    before: UInt8[Tensor, "3 h w"], after: UInt8[Tensor, "3 h w"]
) -> UInt8[Tensor, "3 h w"]:
    """Draw the difference in colours: exactly black is exactly the same, yellow is the most.

    The colour goes with the square root of the difference (ours): most edits change a few tenths,
    and small errors outside them are what people look for here.
    """
    from matplotlib import colormaps

    levels = FAINTEST + difference(before, after).sqrt() * (255 - FAINTEST)
    colours = colormaps["inferno"](levels.round().to(torch.uint8).numpy(), bytes=True)
    drawn = torch.from_numpy(np.ascontiguousarray(colours[..., :3])).permute(2, 0, 1)
    return torch.where(changed(before, after), drawn, 0)
