"""What edits of the vision tasks drew, read back from the picture and compared with the truth.

`detect` draws a rectangle and `segment` paints a region; a pixel counts as marked when the edit
moved it more than half of the way from its source colour to the stated colour. The rule has no
colour threshold, so it is as fair to a soft mark on grey as to a hard one on black, and a picture
that was not edited has no marked pixel. `depth` and `normal` code a map as a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the last two exclusive
Rgb = tuple[int, int, int]  # 0..255

HALF_WAY = 0.5
HIT = 0.5  # IoU from which on a box is a hit; PASCAL VOC's, Everingham et al. 2010
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

    @property
    def iou(self) -> float:
        """The shared pixels over those in either; 1 when both regions are empty."""
        union = self.shared + self.missed + self.wrong
        return self.shared / union if union else 1.0


def marked(
    edited: UInt8[Tensor, "3 h w"], source: UInt8[Tensor, "3 h w"], rgb: Rgb
) -> Bool[Tensor, "h w"]:
    """Find where the edit drew in a colour.

    |edited - rgb| < |source - rgb| / 2, Euclidean, per pixel

    Source: ours.
    """
    colour = torch.tensor(rgb, dtype=torch.float64).view(3, 1, 1)
    left = (edited.double() - colour).norm(dim=0)
    way = (source.double() - colour).norm(dim=0)
    return left < HALF_WAY * way


def drawn_box(where: Bool[Tensor, "h w"]) -> Box | None:
    """Find the smallest box around marked pixels; None when there is no rectangle.

    Rows and columns with a single marked pixel are stray: a rectangle has two sides in each.
    """
    rows = (where.sum(1) > 1).nonzero().flatten().tolist()
    columns = (where.sum(0) > 1).nonzero().flatten().tolist()
    if not rows or not columns:
        return None
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def box_iou(first: Box | None, second: Box) -> float:
    """Divide the shared area of two boxes by the area of their union; 0 without a first box."""
    if first is None:
        return 0.0
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (_area(first) + _area(second) - shared)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def matched_ious(predicted: Sequence[Box], truth: Sequence[Box]) -> list[float]:
    """Match boxes with right ones; the IoU of each predicted box, 0 without a partner.

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


def average_precision_at(ious: Sequence[float], num_truth: int, *, threshold: float = HIT) -> float:
    """Average the precision of boxes that come without a confidence.

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
    # imported here: it takes seconds, which only this function needs to wait for
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    taken_for = torch.where(predicted == UNLABELLED, num_classes, predicted)
    columns = num_classes + 1
    return multiclass_confusion_matrix(taken_for, truth, columns, ignore_index=UNLABELLED)[:-1]


def kind_counts(overlaps: Sequence[Overlap]) -> tuple[Int64[Tensor, "n n_and_1"], int]:
    """Count as `region_counts` does, in pictures that each ask for one kind of thing.

    Gives a class per kind and, last, one for the rest of the pictures; and the number of kinds. The
    rest that was left alone is not counted: it would be a class that not editing has almost right.
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
    """Average over classes: shared pixels over pixels that are in either.

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


@dataclass(frozen=True)
class NormalErrors:
    """The angles between two fields of normals, summed up as the surface-normal papers do.

    Attributes:
        mean: in degrees in [0, 180].
        median: in degrees; of an even number of pixels the mean of the middle two.
        within_11: share of pixels off by less than 11.25 degrees, 0 to 1.
        within_22: by less than 22.5 degrees.
        within_30: by less than 30 degrees.
    """

    mean: float
    median: float
    within_11: float
    within_22: float
    within_30: float


def depth_rmse(edited: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]) -> float:
    """Compute the root mean squared error of depth in [0, 1], coded as grey (the mean channel)."""
    difference = edited.double().mean(0) - target.double().mean(0)
    return (difference / 255).square().mean().sqrt().item()


def normal_errors(edited: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]) -> NormalErrors:
    """Sum up the angles between two fields of normals.

    Source: Fouhey et al. 2013, "Data-driven 3D primitives for single image understanding".
    """
    angles = normal_angles(edited, target)
    within = ((angles < limit).double().mean().item() for limit in (11.25, 22.5, 30.0))
    return NormalErrors(angles.mean().item(), angles.flatten().quantile(0.5).item(), *within)


def normal_angles(
    edited: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]
) -> Float64[Tensor, "h w"]:
    """Measure the angle between two fields of normals at each pixel, in degrees in [0, 180].

    angle = atan2(|a x b|, a · b), exact for equal normals where arccos(a · b) is not
    """
    # colours are directions, n = 2 c / 255 - 1; their lengths do not matter
    a, b = (picture.double() / 127.5 - 1 for picture in (edited, target))
    angle = torch.atan2(torch.linalg.cross(a, b, dim=0).norm(dim=0), (a * b).sum(0))
    return angle.rad2deg()
