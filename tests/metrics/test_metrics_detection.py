"""Boxes and regions of many pictures, against counts made by hand."""

import numpy as np
import pytest
import torch

from emu_edit.metrics.detection import (
    UNLABELLED,
    Overlap,
    average_precision_at,
    kind_counts,
    matched_ious,
    mean_iou,
    region_counts,
)

LEFT, RIGHT, BOTH = (0, 0, 4, 4), (4, 0, 8, 4), (0, 0, 8, 4)


def test_each_box_is_matched_once_and_the_most_alike_first():
    assert matched_ious([LEFT, RIGHT], [RIGHT, LEFT]) == [1.0, 1.0]
    # both want LEFT: the exact one gets it, the other has nothing left
    assert matched_ious([BOTH, LEFT], [LEFT]) == [0.0, 1.0]
    assert matched_ious([LEFT], [BOTH, RIGHT]) == [0.5]
    assert matched_ious([LEFT, LEFT], [LEFT]) == [1.0, 0.0]
    assert matched_ious([LEFT], []) == [0.0]
    assert matched_ious([], [LEFT]) == []


def test_boxes_that_do_not_touch_are_matched_without_worth():
    assert matched_ious([LEFT], [RIGHT]) == [0.0]


def test_average_precision_by_hand():
    # three boxes, two of them hits, of four: precision 2/3, recall 2/4
    assert average_precision_at([0.9, 0.5, 0.49], 4) == pytest.approx(2 / 3 * 2 / 4)
    assert average_precision_at([0.9, 0.5, 0.49], 4, threshold=0.75) == pytest.approx(1 / 3 * 1 / 4)
    assert average_precision_at([1.0, 1.0], 2) == 1
    assert average_precision_at([0.1], 2) == average_precision_at([], 2) == 0


def test_average_precision_is_the_area_below_the_curve_of_boxes_of_one_confidence():
    ious, num_truth = [0.8, 0.2, 0.7, 0.6, 0.0], 6
    hits = sum(iou >= 0.5 for iou in ious)
    precision, recall = hits / len(ious), hits / num_truth
    grid = np.linspace(0, 1, 100_001)
    area = np.where(grid <= recall, precision, 0.0).mean()
    assert average_precision_at(ious, num_truth) == pytest.approx(area, abs=1e-4)


def test_the_order_of_boxes_does_not_matter():
    assert average_precision_at([0.9, 0.1, 0.8], 3) == average_precision_at([0.1, 0.8, 0.9], 3)


@pytest.mark.parametrize(("ious", "num_truth"), [([], 0), ([0.1], 0), ([0.9, 0.9], 1)])
def test_average_precision_without_enough_right_boxes_is_refused(ious: list[float], num_truth: int):
    with pytest.raises(ValueError, match="hits need at least as many right boxes and one, got"):
        average_precision_at(ious, num_truth)


TRUTH = torch.tensor([[0, 0, 1], [1, 2, UNLABELLED]])
GUESS = torch.tensor([[0, 1, 1], [UNLABELLED, 2, 0]])


def test_regions_are_counted_by_hand():
    expected = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    assert torch.equal(region_counts(GUESS, TRUTH, 4), expected)


def test_mean_iou_by_hand():
    # 0: 1 of 2, 1: 1 of 3, 2: 1 of 1, 3 is nowhere
    assert mean_iou(region_counts(GUESS, TRUTH, 4)) == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)


def test_a_class_that_is_only_predicted_scores_0():
    counts = region_counts(torch.tensor([[0, 3]]), torch.tensor([[0, 0]]), 4)
    assert mean_iou(counts) == pytest.approx((1 / 2 + 0) / 2)


def test_pictures_are_summed_before_dividing(cpu_generator: torch.Generator):
    pairs = [torch.randint(-1, 5, (2, 7, 9), generator=cpu_generator) for _ in range(4)]
    total = sum(
        (region_counts(guess, truth, 5) for guess, truth in pairs), torch.zeros(5, 6).long()
    )
    guess, truth = (torch.cat([pair[i] for pair in pairs]).numpy() for i in (0, 1))
    guess, truth = guess[truth >= 0], truth[truth >= 0]
    by_numpy = np.mean([
        ((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in range(5)
    ])
    assert mean_iou(total) == pytest.approx(by_numpy, abs=1e-12)


def test_without_any_class_there_is_no_mean():
    nothing = torch.full((2, 2), UNLABELLED)
    assert mean_iou(region_counts(torch.zeros(2, 2).long(), nothing, 3)) is None


def test_regions_of_one_kind_each_have_the_mean_iou_of_whole_label_maps(
    cpu_generator: torch.Generator,
):
    """Each picture asks for one kind; all else in it is the rest, which is not averaged."""
    kinds, rest = ["circle", "star", "cross"], 3
    total, overlaps = torch.zeros(4, 5).long(), []
    for number in range(7):
        own = number % 3
        painted, right = torch.rand(2, 6, 8, generator=cpu_generator) < 0.4
        guess, truth = (torch.where(where, own, rest) for where in (painted, right))
        total += region_counts(guess, truth, 4)
        overlaps.append(Overlap.of(kinds[own], painted, right))
    counts, judged = kind_counts(overlaps)
    assert judged == 3
    assert mean_iou(counts, judged) == pytest.approx(mean_iou(total, 3), abs=1e-12)
    assert mean_iou(total, 3) != pytest.approx(mean_iou(total), abs=1e-3)


def test_an_overlap_counts_pixels():
    painted, right = torch.tensor([[1, 1, 0, 0]]).bool(), torch.tensor([[0, 1, 1, 1]]).bool()
    assert Overlap.of("star", painted, right) == Overlap("star", shared=1, missed=2, wrong=1)


def test_painting_everything_is_no_perfect_segmentation():
    right = torch.zeros(4, 4, dtype=torch.bool)
    right[0, :2] = True
    assert mean_iou(*kind_counts([Overlap.of("", torch.ones_like(right), right)])) == 2 / 16


def test_classes_outside_the_table_are_refused():
    with pytest.raises(ValueError, match="the truth map has classes 0 to 255, needs -1 to 2"):
        region_counts(torch.tensor([[0, 1]]), torch.tensor([[0, 255]]), 3)
    with pytest.raises(ValueError, match="the predicted map has classes -2 to 1, needs -1 to 2"):
        region_counts(torch.tensor([[-2, 1]]), torch.tensor([[0, 2]]), 3)
