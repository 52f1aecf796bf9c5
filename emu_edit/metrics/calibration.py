"""Whether a classifier's probabilities mean what they say, and the temperature that makes them.

A classifier is calibrated when, of all answers it gives with confidence 0.9, nine in ten are right.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

BINS = 15  # of confidence; Guo et al. 2017, section 5
SHARPEST, FLATTEST = 0.05, 20.0  # temperatures to choose from
HALVINGS = 50  # of that interval: to the last bits of a double
DECILES = 10  # of confidence, to be shown
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


def expected_calibration_error(
    probabilities: Float[Tensor, "b n"], asked: Int64[Tensor, " b"]
) -> float:
    """Average |accuracy - mean confidence| over bins of confidence, weighted by their size.

    ECE = sum_m |B_m| / b · |acc(B_m) - conf(B_m)|, in [0, 1], computed in float32
    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Raises:
        ValueError: if there are no samples.
    """
    # imported here: it takes seconds, which only this function needs to wait for
    from torchmetrics.functional.classification import multiclass_calibration_error

    if len(asked) == 0:
        raise ValueError("the calibration error of no samples is undefined")
    # torchmetrics' bins are closed below, so that it counts a confidence of 1 in a bin of its own
    below_one = probabilities.clamp(max=BELOW_ONE)
    num_classes = probabilities.shape[1]
    return float(multiclass_calibration_error(below_one, asked, num_classes, n_bins=BINS))


@dataclass(frozen=True)
class ConfidenceBin:
    """Answers given with about the same confidence: how many, its mean, and the share right."""

    count: int
    confidence: float
    accuracy: float


def reliability(
    confidence: Float[Tensor, " b"] | Float64[Tensor, " b"], is_right: Bool[Tensor, " b"]
) -> list[ConfidenceBin]:
    """Return the answers in ten bins of confidence, lowest first; empty bins are left out.

    Source: reliability diagrams, Guo et al. 2017, arXiv:1706.04599, figure 1.
    """
    place = (confidence * DECILES).long().clamp(max=DECILES - 1)
    bins = []
    for i in range(DECILES):
        chosen = place == i
        if chosen.any():
            mean, right = confidence[chosen].mean(), is_right[chosen].float().mean()
            bins.append(ConfidenceBin(int(chosen.sum()), float(mean), float(right)))
    return bins


def nll_temperature(logits: Float[Tensor, "b n"], asked: Int64[Tensor, " b"]) -> float:
    """Find the temperature T under which softmax(logits / T) is most likely.

    The negative log-likelihood is convex in 1/T; its derivative, the mean of
    sum_k p_k z_k - z_asked, rises with 1/T, so its root is found by halving an interval of log 1/T.
    Source: temperature scaling, Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Args:
        logits: of samples that the classifier was not trained on.
        asked: their classes.

    Returns:
        T in [0.05, 20]; the bounds are reached when all, or almost none, of the answers are right.
    """
    z = logits.double()
    of_asked = z.gather(1, asked[:, None])[:, 0]
    low, high = -math.log(FLATTEST), -math.log(SHARPEST)  # of log 1/T
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        p = torch.softmax(z * math.exp(middle), dim=1)
        is_too_sharp = bool(((p * z).sum(dim=1) - of_asked).mean() > 0)
        low, high = (low, middle) if is_too_sharp else (middle, high)
    return math.exp(-(low + high) / 2)
