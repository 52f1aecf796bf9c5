"""What CLIP and PickScore say about the frames of a video, in one pass and constant memory.

Every mean over frames, and over pairs of frames, follows from the sum of the frames' unit features,
so no frame and no feature is kept but the last. Sums are float64.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass
class FrameSums:
    """The sums that the features of frames are added to, one after the other.

    Attributes:
        count: how many frames were added.
    """

    count: int = 0
    _total: Float64[Tensor, "*d"] = field(
        default_factory=lambda: torch.zeros((), dtype=torch.double)
    )
    _last: Float64[Tensor, "*d"] | None = None
    _next: float = 0.0

    def add(self, feature: Float[Tensor, " d"]) -> None:
        """Take in the next frame's feature, of any length."""
        unit = _unit(feature)
        if self._last is not None:
            self._next += (self._last @ unit).item()
        self._total = self._total + unit
        self._last = unit
        self.count += 1

    def all_pairs(self) -> float:
        """Average the cosine over all pairs of different frames; NaN of fewer than two.

            (|sum of unit features|² - N) / (N (N - 1)), N frames

        Source: CLIPFrame of TGVE (Wu et al. 2023, arXiv:2310.16003), its scripts/run_eval.py.
        """
        n = self.count
        return (self._total.square().sum().item() - n) / (n * (n - 1)) if n > 1 else math.nan

    def consecutive(self) -> float:
        """Average the cosine of each frame with the next one; NaN of fewer than two.

        Many papers print this one as CLIPFrame. It is higher wherever a video changes slowly.
        """
        return self._next / (self.count - 1) if self.count > 1 else math.nan

    def mean_cosine(self, text: Float[Tensor, " d"]) -> float:
        """Average the cosine of the frames with a text's feature; NaN without a frame.

        Times the network's `logit_scale` it is TGVE's CLIPText, and with PickScore's network its
        PickScore.
        """
        return (self._total @ _unit(text)).item() / self.count if self.count else math.nan


def _unit(feature: Float[Tensor, " d"]) -> Float64[Tensor, " d"]:
    return feature.double() / feature.double().norm()
