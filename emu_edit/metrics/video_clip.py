"""What CLIP and PickScore say about the frames of a video, in one pass and constant memory.

Every mean over frames, and over pairs of frames, follows from the sum of the frames' unit features,
so no frame and no feature is kept but the last. Sums are float64.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.metrics.backbones import ClipBackbone


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
        """Average the cosine of the frames with a text's or picture's feature; NaN without a frame.

        Times the network's `logit_scale` it is TGVE's CLIPText, and with PickScore's network its
        PickScore.
        """
        return (self._total @ _unit(text)).item() / self.count if self.count else math.nan


@dataclass(frozen=True)
class Consistency:
    """What CLIP says of a picture that was set in motion; each 100 times a cosine.

    Source: Emu Video (arXiv:2311.10709), its table of image animation, with CLIP ViT-B/32. That FC
    is of neighbours, and IC and TC are means over frames, is how such names are mostly meant.

    Attributes:
        frames: FC, of each frame with the next one; NaN of fewer than two. A still has 100.
        picture: IC, of the frames with the picture that was given.
        text: TC, of the frames with what was asked for.
    """

    frames: float
    picture: float
    text: float


def consistency(
    frames: Iterable[UInt8[Tensor, "3 h w"]],
    picture: UInt8[Tensor, "3 _ _"],
    caption: str,
    clip: ClipBackbone,
) -> Consistency:
    """Score a video that begins with a picture; frames are read once and not kept.

    Raises:
        InputError: if there is no frame, the caption is not Unicode, or the network returns NaN.
    """
    sums = FrameSums()
    for frame in frames:
        sums.add(clip.images([frame])[0])
    if sums.count == 0:
        raise InputError("a video without frames cannot be scored; it needs at least one")
    given, asked = clip.images([picture])[0], clip.texts([caption])[0]
    return Consistency(
        *(100 * v for v in (sums.consecutive(), sums.mean_cosine(given), sums.mean_cosine(asked)))
    )


def _unit(feature: Float[Tensor, " d"]) -> Float64[Tensor, " d"]:
    return feature.double() / feature.double().norm()
