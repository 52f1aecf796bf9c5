"""Classifier-free guidance with two conditions, text and source image, in one batched forward.

The combination is linear with weights that sum to 1, so it is the same in eps, v and z_0 space.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emu_edit.diffusion.prediction import Predict
from emu_edit.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """How strongly the output is pushed towards instruction and source image; 1 is no push.

    Args:
        text: scale of the instruction. Emu Edit uses 5.
        image: scale of the source image. Emu Edit uses 1.5.
    """

    text: float = 5.0  # Emu Edit, arXiv:2311.10089
    image: float = 1.5

    def __post_init__(self) -> None:
        """Refuse scales that are not numbers.

        Raises:
            InputError: if a scale is infinite or NaN.
        """
        if not (math.isfinite(self.text) and math.isfinite(self.image)):
            raise InputError(
                f"guidance scales must be finite, got text={self.text!r}, image={self.image!r}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether guidance does nothing, so that running the full branch alone is enough."""
        return self.text == 1 and self.image == 1


def guided(predict_branches: Predict, guidance: Guidance) -> Predict:
    """Combine three branches of one forward pass into one prediction.

    output = nothing + s_image (image_only - nothing) + s_text (full - image_only)

    Args:
        predict_branches: gets 3b rows, z_t and t repeated, whose conditions are stacked as
            (full, image only, nothing).
        guidance: the scales.

    Source: InstructPix2Pix, Brooks et al. 2023, arXiv:2211.09800, eq. 3.
    """

    def predict(z_t: Float[Tensor, "b c h w"], t: Int64[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        full, image_only, nothing = predict_branches(
            torch.cat([z_t] * 3), torch.cat([t] * 3)
        ).chunk(3)
        return (
            nothing + guidance.image * (image_only - nothing) + guidance.text * (full - image_only)
        )

    return predict
