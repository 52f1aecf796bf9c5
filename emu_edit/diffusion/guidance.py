"""Classifier-free guidance with two conditions, text and source image, in one batched forward.

The combination is linear with weights that sum to 1, so it is the same in eps, v and z_0 space.
A branch whose weight is exactly zero is not run: without image guidance, two branches are enough.
Some bases were published with a guided output that keeps its length, cell by cell.
"""

import math
from dataclasses import dataclass
from itertools import compress

import torch
from jaxtyping import Float, Real
from torch import Tensor

from emu_edit.diffusion.prediction import Predict
from emu_edit.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """How strongly the output is pushed towards instruction and source image; 1 is no push.

    Source: both defaults, Emu Edit, arXiv:2311.10089.
    """

    text: float = 5.0
    image: float = 1.5

    def __post_init__(self) -> None:
        """Refuse scales that are not numbers."""
        if not (math.isfinite(self.text) and math.isfinite(self.image)):
            raise InputError(
                f"guidance scales must be finite, got text={self.text!r}, image={self.image!r}"
            )

    @property
    def needed(self) -> tuple[bool, bool, bool]:
        """Which of the branches (full, image only, nothing) have a weight other than zero.

        The weights are s_text, s_image - s_text and 1 - s_image, so a branch is idle when its scale
        equals the one before it.
        """
        return self.text != 0, self.image != self.text, self.image != 1


def guided(predict_branches: Predict, guidance: Guidance, *, keeps_norm: bool = False) -> Predict:
    """Combine the needed branches of one forward pass into one prediction.

    output = nothing + s_image (image_only - nothing) + s_text (full - image_only)

    The terms of branches of weight zero are left out.

    Args:
        predict_branches: gets z_t and t once for each branch that `guidance.needed` names; their
            conditions are stacked in the order (full, image only, nothing).
        guidance: the scales.
        keeps_norm: give each cell of the output the length, over channels, of the full branch's,
            where that one runs; then it is no longer linear.

    Source: InstructPix2Pix, Brooks et al. 2023, arXiv:2211.09800, eq. 3; the length, the
    Qwen-Image pipelines of diffusers.
    """
    scales = list(compress((guidance.text, guidance.image, 1.0), guidance.needed))

    def predict(z_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        n = len(scales)
        outputs = predict_branches(torch.cat([z_t] * n), torch.cat([t] * n)).chunk(n)
        combined = outputs[-1]
        for i in reversed(range(n - 1)):
            combined = combined + scales[i] * (outputs[i] - outputs[i + 1])
        if keeps_norm and n > 1 and guidance.needed[0]:
            was, now = (each.norm(dim=1, keepdim=True) for each in (outputs[0], combined))
            combined = combined * (was / now.clamp(min=torch.finfo(now.dtype).tiny))
        return combined

    return predict
