"""Boxes and regions of many pictures: average precision and mean IoU.

One picture's marks are read in `marks`, depth and normals compared in `maps`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from emu_edit.metrics.marks import Box, box_iou

THRESHOLD = 0.5  # PASCAL VOC's, Everingham et al. 2010
UNLABELLED = -1  # a pixel without a class: not judged in the truth, wrong in a prediction


def matched_ious(predicted: Sequence[Box], truth: Sequence[Box]) -> list[float]:
    """Return for each predicted box the IoU with the right box it is matched to, 0 without one.

    One to one, the most alike first. (VOC and COCO let the most confident choose first; boxes that
    were painted into a picture have no confidence.) Ties go to the earlier box.
    """
    pairs = [
        (box_iou(box, right), i, j)
        for i, box in enumerate(predicted)
        for j, right in enumerate(truth)
    ]
    ious = [0.0] * len(predicted)
    free_predicted, free_truth = set(range(len(predicted))), set(range(len(truth)))
    for iou, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if i in free_predicted and j in free_truth:
            free_predicted.remove(i)
            free_truth.remove(j)
            ious[i] = iou
    return ious


def average_precision_at(
    ious: Sequence[float], num_truth: int, *, threshold: float = THRESHOLD
) -> float:
    """Return the average precision of boxes that come without a confidence.

    AP = precision · recall = (hits / boxes) · (hits / num_truth)

    Boxes that cannot be ranked give one point of the precision-recall curve: its precision holds
    for every recall up to its own, beyond it is 0, and the area below is their product. Summing
    after any one ranking instead, as COCO's tool would do with equal confidences, would let the
    order of the files decide. Comparable with published AP only in that a perfect detector has 1:
    a ranked list of many boxes reaches more recall than one guess.

    Args:
        ious: of every predicted box of all pictures, from `matched_ious`.
        num_truth: number of right boxes in all pictures, also of those without a predicted one.
        threshold: IoU from which on a box is a hit.

    Raises:
        ValueError: if there are no right boxes, or fewer than hits.
    """
    hits = sum(iou >= threshold for iou in ious)
    if num_truth < max(hits, 1):
        raise ValueError(f"{hits} hits need at least as many right boxes and one, got {num_truth}")
    return hits / len(ious) * hits / num_truth if ious else 0.0


def region_counts(
    predicted: Int64[Tensor, "h w"], truth: Int64[Tensor, "h w"], num_classes: int
) -> Int64[Tensor, "n n_and_1"]:
    """Count pixels of class i (row) that were taken for class j; the last column is no class.

    Counts of several pictures add up. Pixels whose truth is `UNLABELLED` are not judged.

    Raises:
        ValueError: if a class is neither `UNLABELLED` nor in 0 to num_classes - 1.
    """
    for name, labels in (("predicted", predicted), ("truth", truth)):
        if labels.numel() and not (labels.min() >= UNLABELLED and labels.max() < num_classes):
            raise ValueError(
                f"the {name} map has classes {int(labels.min())} to {int(labels.max())}, "
                f"needs {UNLABELLED} to {num_classes - 1}"
            )
    judged = truth != UNLABELLED
    columns = num_classes + 1
    taken_for = torch.where(predicted == UNLABELLED, num_classes, predicted)[judged]
    flat = torch.bincount(truth[judged] * columns + taken_for, minlength=num_classes * columns)
    return flat.reshape(num_classes, columns)


def mean_iou(counts: Int64[Tensor, "n n_and_1"]) -> float | None:
    """Return the mean over classes of shared pixels over pixels that are in either.

    IoU_i = counts[i, i] / (of class i + taken for class i - counts[i, i])

    Pixels are summed over all pictures before dividing. Classes that neither occur nor were
    predicted are left out; None if that is all of them.
    Source: the ADE20K benchmark, Zhou et al. 2017.
    """
    numbers = counts.double()
    shared = numbers.diagonal()
    either = numbers.sum(1) + numbers[:, :-1].sum(0) - shared
    occurs = either > 0
    return (shared[occurs] / either[occurs]).mean().item() if occurs.any() else None
