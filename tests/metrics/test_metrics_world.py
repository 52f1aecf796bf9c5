from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules.world.pair import WorldPair, make_pair
from datamodules.world.palette import SHAPES
from emu_edit.errors import InputError
from emu_edit.metrics.detection import Overlap, normal_errors
from emu_edit.metrics.world import EditScore, Truth, dilated, score
from emu_edit.tasks import SIXTEEN


def flat(level: int) -> torch.Tensor:
    return torch.full((3, 16, 16), level, dtype=torch.uint8)


def square() -> torch.Tensor:
    """A mask of 4 x 4; grown by the margin of 2 it is 8 x 8, which leaves 192 pixels outside."""
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[6:10, 6:10] = True
    return mask


def paint(picture: torch.Tensor, where: torch.Tensor, level: int) -> torch.Tensor:
    out = picture.clone()
    out[:, where] = level
    return out


def recolour() -> Truth:
    """A grey square that must become 51 levels, a fifth of the range, brighter."""
    return Truth("k", "local", flat(100), paint(flat(100), square(), 151), square())


def test_every_number_of_a_half_made_edit_is_as_computed_by_hand():
    truth = recolour()
    edited = paint(truth.source, square(), 134)  # two thirds of the way
    edited[:, 0, :12] = 116  # 12 of 192 outside pixels moved by 16 levels
    result = score(edited, truth)
    assert result.inside_l1 == pytest.approx(17 / 255, abs=1e-15)
    assert result.copy_l1 == pytest.approx(51 / 255, abs=1e-15)
    assert result.relative_error == pytest.approx(1 / 3, abs=1e-14)
    assert result.outside_l1 == pytest.approx(12 / 192 * 16 / 255, abs=1e-15)
    assert result.l1 == pytest.approx((16 * 17 + 12 * 16) / 256 / 255, abs=1e-15)
    assert result.is_closer
    assert result.is_untouched
    assert result.success


@pytest.mark.parametrize(
    ("level", "closer"), [(124, False), (127, True), (100, False), (151, True)]
)
def test_an_edit_succeeds_when_it_is_nearer_to_the_target_than_to_the_source(level, closer):
    truth = recolour()
    result = score(paint(truth.source, square(), level), truth)
    assert result.is_closer is result.success is closer


@pytest.mark.parametrize(("change", "untouched"), [(7, True), (8, False)])
def test_an_edit_that_spoils_the_outside_fails(change, untouched):
    """0.03 of 255 levels are 7.65."""
    truth = recolour()
    edited = paint(paint(truth.source, ~square(), 100 + change), square(), 151)
    result = score(edited, truth)
    assert result.is_closer
    assert result.is_untouched is result.success is untouched


@pytest.mark.parametrize(
    ("left", "spoilt", "clean"),
    [(0, 0, True), (10, 2, True), (11, 0, False), (0, 3, False), (20, 0, False)],
)
def test_an_edit_is_clean_when_a_quarter_at_most_is_left_and_the_outside_looks_the_same(
    left, spoilt, clean
):
    """A quarter of 40 levels are 10, 0.01 of 255 are 2.55; all of them succeed."""
    truth = Truth("k", "local", flat(100), paint(flat(100), square(), 140), square())
    edited = paint(paint(truth.source, ~square(), 100 + spoilt), square(), 140 - left)
    result = score(edited, truth)
    assert result.clean is clean
    assert result.success is (left < 20)


def test_the_fringe_of_the_mask_is_not_outside():
    truth = recolour()
    edited = paint(truth.source, dilated(square(), 2), 151)
    assert score(edited, truth).outside_l1 == 0
    assert score(paint(truth.source, dilated(square(), 3), 151), truth).outside_l1 != 0


def test_dilation_grows_a_pixel_into_a_square():
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[4, 1] = True
    grown = dilated(mask, 2)
    assert grown[2:7, 0:4].all()
    assert grown.sum() == 20


def test_an_edit_of_the_whole_picture_has_no_outside_and_counts_as_untouched():
    everywhere = torch.ones(16, 16, dtype=torch.bool)
    truth = Truth("k", "style", flat(0), flat(255), everywhere)
    result = score(flat(200), truth)
    assert result.outside_l1 is None
    assert result.success
    assert result.clean


def rectangle(box: tuple[int, int, int, int]) -> torch.Tensor:
    x0, y0, x1, y1 = box
    where = torch.zeros(16, 16, dtype=torch.bool)
    where[y0:y1, x0:x1] = True
    where[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = False
    return where


def in_lime(where: torch.Tensor) -> torch.Tensor:
    return torch.where(where, torch.tensor((0, 255, 0), dtype=torch.uint8).view(3, 1, 1), flat(100))


def region_iou(result: EditScore) -> float | None:
    return None if result.overlap is None else result.overlap.iou


def degrees(result: EditScore) -> float | None:
    return None if result.normals is None else result.normals.mean


def test_detection_compares_the_rectangle_one_can_see_with_the_right_one():
    box = (4, 4, 12, 12)
    truth = Truth(
        "k", "detect", flat(100), in_lime(rectangle(box)), rectangle(box), None, box, (0, 255, 0)
    )
    assert score(truth.target, truth).detection_iou == 1
    assert score(truth.source, truth).detection_iou == 0
    assert [score(p, truth).has_box for p in (truth.target, truth.source)] == [True, False]
    shifted = in_lime(rectangle((6, 4, 14, 12)))
    assert score(shifted, truth).detection_iou == pytest.approx(48 / 80)
    assert region_iou(score(shifted, truth)) is None


def test_segmentation_compares_the_painted_pixels_with_the_right_ones():
    truth = Truth("k", "segment", flat(100), in_lime(square()), square(), mark_rgb=(0, 255, 0))
    half = square()
    half[:, 8:] = False
    assert region_iou(score(in_lime(half), truth)) == 0.5
    assert region_iou(score(truth.source, truth)) == 0
    assert region_iou(score(truth.target, truth)) == 1
    assert score(in_lime(half), truth).overlap == Overlap("", shared=8, missed=8, wrong=0)
    assert score(truth.target, recolour()).overlap is None


@pytest.mark.parametrize("direction", ["to_map", "from_map"])
def test_map_errors_are_measured_only_when_the_answer_is_a_map(direction):
    everywhere = torch.ones(16, 16, dtype=torch.bool)
    truth = Truth("k", "depth", flat(0), flat(255), everywhere, direction)
    assert score(flat(204), truth).depth_rmse == (
        pytest.approx(0.2, abs=1e-15) if direction == "to_map" else None
    )
    assert score(flat(204), truth).normals is None
    normal = replace(truth, task="normal")
    assert score(flat(204), normal).depth_rmse is None
    assert (score(flat(204), normal).normals is None) is (direction == "from_map")
    if direction == "to_map":
        assert score(flat(204), normal).normals == normal_errors(flat(204), normal.target)


def made_pairs(task: str) -> list[tuple[WorldPair, Truth]]:
    made = [make_pair(3, i, task=task, size=32, split="heldout") for i in range(6)]
    truths = [
        Truth.from_arrays(
            p.key, p.task, source=p.source, target=p.target, mask=p.mask, extra=p.extra
        )
        for p in made
    ]
    return list(zip(made, truths, strict=True))


def pairs(task: str) -> list[Truth]:
    return [truth for _, truth in made_pairs(task)]


@pytest.mark.parametrize("task", SIXTEEN.names)
def test_on_every_task_of_the_world_the_oracle_is_perfect(task):
    for truth in pairs(task):
        result = score(truth.target, truth)
        assert result.success
        assert result.l1 == result.inside_l1 == result.relative_error == 0
        assert result.detection_iou in {None, 1.0}
        assert region_iou(result) in {None, 1.0}
        assert result.depth_rmse in {None, 0.0}
        assert (degrees(result) or 0) < 1e-12  # atan2 of a rounded cross product
        assert (result.detection_iou is not None) is (task == "detect")
        assert (region_iou(result) is not None) is (task == "segment")


@pytest.mark.parametrize("task", SIXTEEN.names)
def test_on_every_task_of_the_world_copying_the_input_never_succeeds(task):
    for truth in pairs(task):
        result = score(truth.source, truth)
        assert not result.success
        assert result.is_untouched
        assert result.relative_error == 1
        assert not result.detection_iou
        assert not region_iou(result)


def test_the_kind_of_a_thing_to_segment_is_the_last_word_of_its_name():
    found = [(pair.extra["thing"], truth.kind) for pair, truth in made_pairs("segment")]
    assert len({kind for _, kind in found}) > 1
    assert {kind for _, kind in found} <= {*SHAPES, "person"}
    for thing, kind in found:
        assert str(thing).endswith(f" {kind}")


def test_map_directions_of_the_world_are_understood():
    found = [score(t.target, t).depth_rmse for t in pairs("depth")]
    assert None in found
    assert 0.0 in found


def test_a_pair_is_taken_from_arrays_with_its_extra():
    source = np.zeros((4, 6, 3), dtype=np.uint8)
    target = source.copy()
    target[1, 2] = (1, 2, 3)
    truth = Truth.from_arrays(
        "k",
        "detect",
        source=source,
        target=target,
        mask=np.ones((4, 6), dtype=np.bool_),
        extra={"box": [0, 0, 2, 2], "mark_rgb": [0, 255, 0], "kind": "detect"},
    )
    assert truth.target.shape == (3, 4, 6)
    assert truth.target[:, 1, 2].tolist() == [1, 2, 3]
    assert truth.box == (0, 0, 2, 2)
    assert truth.mark_rgb == (0, 255, 0)
    assert truth.direction is None


@pytest.mark.parametrize("value", [[0, 1, 2], "0123", [0.5, 1, 2, 3], 7])
def test_a_broken_box_is_refused_by_name(value):
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="pair-7: box must be 4 whole numbers, got"):
        Truth.from_arrays(
            "pair-7",
            "detect",
            source=picture,
            target=picture + np.uint8(1),
            mask=np.ones((4, 4), dtype=np.bool_),
            extra={"box": value, "mark_rgb": [0, 255, 0]},
        )


def test_a_pair_without_an_edit_is_refused():
    with pytest.raises(InputError, match="k: source and target are equal inside the mask"):
        Truth("k", "local", flat(1), flat(1), square())


def test_a_vision_pair_without_its_colour_or_box_is_refused():
    with pytest.raises(InputError, match="k: a segment pair needs mark_rgb"):
        Truth("k", "segment", flat(1), flat(2), square())
    with pytest.raises(InputError, match="k: a detect pair needs box"):
        Truth("k", "detect", flat(1), flat(2), square(), mark_rgb=(0, 255, 0))
