"""Boxes and regions of many pictures: average precision and mean IoU.

One picture's marks are read in `marks`, depth and normals compared in `maps`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from emu_edit.metrics.marks import Box, box_iou

THRESHOLD = 0.5  # PASCAL VOC's, Everingham et al. 2010
UNLABELLED = -1  # a pixel without a class: not judged in the truth, wrong in a prediction


@dataclass(frozen=True)
class Overlap:
    """How a painted region and the right one lie over each other, in pixels.

    Attributes:
        kind: what kind of thing was to be painted.
        shared: in both.
        missed: in the right one only.
        wrong: in the painted one only.
    """

    kind: str
    shared: int
    missed: int
    wrong: int

    @staticmethod
    def of(kind: str, painted: Bool[Tensor, "h w"], right: Bool[Tensor, "h w"]) -> "Overlap":
        """Count the pixels of two regions."""
        parts = (painted & right, right & ~painted, painted & ~right)
        return Overlap(kind, *(int(part.sum()) for part in parts))


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


def kind_counts(overlaps: Sequence[Overlap]) -> tuple[Int64[Tensor, "n n_and_1"], int]:
    """Return the counts of `region_counts` for pictures that each ask for one kind of thing.

    A class per kind and, last, one for the rest of the pictures; and the number of kinds. The rest
    that was left alone is not counted: it would be a class that not editing has almost right.
    """
    kinds = sorted({overlap.kind for overlap in overlaps})
    rest = len(kinds)
    counts = torch.zeros(rest + 1, rest + 2, dtype=torch.int64)
    for overlap in overlaps:
        own = kinds.index(overlap.kind)
        counts[own, own] += overlap.shared
        counts[own, rest] += overlap.missed
        counts[rest, own] += overlap.wrong
    return counts, rest


def mean_iou(counts: Int64[Tensor, "n n_and_1"], judged: int | None = None) -> float | None:
    """Return the mean over classes of shared pixels over pixels that are in either.

    IoU_i = counts[i, i] / (of class i + taken for class i - counts[i, i])

    Pixels are summed over all pictures before dividing. Classes that neither occur nor were
    predicted are left out; None if that is all of them.
    Source: the ADE20K benchmark, Zhou et al. 2017.

    Args:
        counts: of pixels, from `region_counts` or `kind_counts`.
        judged: average over the first so many classes; the others are only what these are mistaken
            for. None means all.
    """
    numbers = counts.double()
    shared = numbers.diagonal()
    either = numbers.sum(1) + numbers[:, :-1].sum(0) - shared
    shared, either = shared[:judged], either[:judged]
    occurs = either > 0
    return (shared[occurs] / either[occurs]).mean().item() if occurs.any() else None
