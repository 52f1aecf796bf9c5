"""First noise of a video's frames: a pure function of seed and frame number.

No frame's noise depends on which window it is edited in, on the process, or on where a job was
resumed; overlapping windows agree by construction.
"""

import math
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.randomness import normals

PURPOSE = "video frame"
EVERY = -1  # the position of what all frames share
ALPHA = 1.0  # of mixed noise: shared and own part of the same weight, as PYoCo found best
LAGS = 32  # frames after which progressive noise has forgotten


class NoiseMode(Enum):
    """shared: one noise for all frames; independent; mixed and progressive: between the two."""

    shared = "shared"
    independent = "independent"
    mixed = "mixed"
    progressive = "progressive"


def frame_noise(
    mode: NoiseMode, seed: int, frames: list[int], shape: tuple[int, ...], alpha: float = ALPHA
) -> Float[Tensor, "f ..."]:
    """Draw standard normal noise of `shape` for frames of these numbers (float32, CPU).

        shared       eps[f] = xi
        independent  eps[f] = xi[f]
        mixed        eps[f] = (a xi + xi[f]) / sqrt(1 + a²)
        progressive  eps[f] = sum over k = 0 ... K - 1 of r^k xi[f - k] / norm, r = a / sqrt(1 + a²)

    All have unit variance. Neighbours correlate by 1, 0, a² / (1 + a²) and r. The progressive sum
    is PYoCo's recursion eps[f] = r eps[f - 1] + sqrt(1 - r²) xi[f] written out and cut after K
    terms, so that a frame does not need all before it.
    Source: Ge et al. 2023 (PYoCo), arXiv:2305.10474, eqs. 4 and 5.

    Args:
        mode: which of the four.
        seed: same seed, same noise.
        frames: absolute frame numbers, from 0.
        shape: of one frame's latents.
        alpha: a above, at least 0.
    """

    def own(numbers: list[int]) -> Tensor:
        return normals(seed, PURPOSE, torch.tensor(numbers, dtype=torch.int64), shape)

    match mode:
        case NoiseMode.shared:
            return own([EVERY]).expand(len(frames), *shape)
        case NoiseMode.independent:
            return own(frames)
        case NoiseMode.mixed:
            return (alpha * own([EVERY]) + own(frames)) / math.sqrt(1 + alpha**2)
        case NoiseMode.progressive:
            r = alpha / math.sqrt(1 + alpha**2)
            weights = [r**k for k in range(LAGS)]
            norm = math.sqrt(sum(weight**2 for weight in weights))
            first = min(frames) - LAGS + 1
            # numbers before the first frame are far from EVERY's
            drawn = own([_lagged(number) for number in range(first, max(frames) + 1)])
            rows = [
                sum(weights[k] * drawn[frame - first - k] for k in range(LAGS)) for frame in frames
            ]
            return torch.stack([torch.as_tensor(row) for row in rows]) / norm


def _lagged(number: int) -> int:
    return number if number >= 0 else number - 1  # EVERY's place stays free
