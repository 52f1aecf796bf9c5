"""How good a classifier is, and whether its probabilities mean what they say.

A predictor is calibrated when, of all answers it gives with confidence 0.9, nine in ten are right.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BINS = 15  # of confidence; Guo et al. 2017, section 5
SHARPEST, FLATTEST = 0.05, 20.0  # temperatures to choose from
HALVINGS = 50  # of that interval: to the last bits of a double


def confusion_matrix(
    asked: Int64[Tensor, " b"], predicted: Int64[Tensor, " b"], num_classes: int
) -> Int64[Tensor, "n n"]:
    """Count how often class i (row) was taken for class j (column)."""
    flat = torch.bincount(asked * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def expected_calibration_error(
    probabilities: Float[Tensor, "b n"], asked: Int64[Tensor, " b"]
) -> float:
    """Average |accuracy - mean confidence| over bins of confidence, weighted by their size.

    ECE = sum_m |B_m| / b · |acc(B_m) - conf(B_m)|, in [0, 1]; the bins are ((m-1)/15, m/15].
    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Raises:
        ValueError: if there are no samples.
    """
    if len(asked) == 0:
        raise ValueError("the calibration error of no samples is undefined")
    confidence, predicted = probabilities.double().max(dim=1)
    is_right = (predicted == asked).double()
    bins = (confidence * BINS).ceil().clamp(1, BINS).long() - 1
    gaps = torch.zeros(BINS, dtype=torch.float64)
    # the sum of (right - confidence) over a bin is its size times (accuracy - mean confidence)
    gaps.index_add_(0, bins, is_right - confidence)
    return float(gaps.abs().sum() / len(asked))


def nll_temperature(logits: Float[Tensor, "b n"], asked: Int64[Tensor, " b"]) -> float:
    """Return the temperature T under which softmax(logits / T) is most likely.

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
