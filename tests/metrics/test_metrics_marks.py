import math

import pytest
import torch

from emu_edit.metrics.detection import (
    Overlap,
    box_iou,
    depth_rmse,
    drawn_box,
    marked,
    normal_angles,
    normal_errors,
)

LIME = (0, 255, 0)


def grey(level: int, side: int = 8) -> torch.Tensor:
    return torch.full((3, side, side), level, dtype=torch.uint8)


def test_an_unedited_picture_has_no_marks():
    picture = torch.randint(
        0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    picture[:, 3:6, 3:6] = torch.tensor(LIME, dtype=torch.uint8).view(3, 1, 1)  # already lime
    assert not marked(picture, picture, LIME).any()


@pytest.mark.parametrize(("share", "expected"), [(0.45, False), (0.55, True), (1.0, True)])
def test_a_pixel_is_marked_when_it_went_more_than_half_of_the_way(share, expected):
    source = grey(100)
    lime = torch.tensor(LIME).view(3, 1, 1)
    edited = (source + share * (lime - source.float())).round().to(torch.uint8)
    assert marked(edited, source, LIME).all().item() is expected
    assert marked(edited, source, LIME).any().item() is expected


def test_another_colour_is_not_a_mark():
    edited = torch.tensor((255, 0, 255), dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    assert not marked(edited, grey(100), LIME).any()


def frame(side: int, x0: int, y0: int, x1: int, y1: int, line: int = 1) -> torch.Tensor:
    where = torch.zeros(side, side, dtype=torch.bool)
    where[y0:y1, x0:x1] = True
    where[y0 + line : y1 - line, x0 + line : x1 - line] = False
    return where


@pytest.mark.parametrize("box", [(2, 3, 9, 7), (0, 0, 16, 16), (4, 4, 6, 6)])
@pytest.mark.parametrize("line", [1, 2])
def test_a_drawn_rectangle_is_read_back(box, line):
    assert drawn_box(frame(16, *box, line=line)) == box


def test_single_stray_pixels_do_not_move_the_rectangle():
    where = frame(16, 5, 6, 12, 11)
    where[0, 0] = where[14, 15] = True
    assert drawn_box(where) == (5, 6, 12, 11)


def test_no_marks_are_no_rectangle():
    where = torch.zeros(8, 8, dtype=torch.bool)
    assert drawn_box(where) is None
    where[2, 3] = True
    assert drawn_box(where) is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 4, 4), (0, 0, 4, 4), 1.0),
        ((0, 0, 4, 4), (2, 2, 6, 6), 4 / 28),
        ((0, 0, 4, 4), (0, 2, 4, 6), 8 / 24),
        ((0, 0, 2, 2), (2, 0, 4, 2), 0.0),
        ((0, 0, 2, 2), (5, 5, 9, 9), 0.0),
        ((1, 1, 3, 3), (0, 0, 4, 4), 4 / 16),
        (None, (0, 0, 4, 4), 0.0),
    ],
)
def test_box_overlap_is_shared_over_union(first, second, expected):
    assert box_iou(first, second) == expected


def test_region_overlap_is_shared_over_union():
    first, second = (torch.zeros(4, 4, dtype=torch.bool) for _ in range(2))
    assert Overlap.of("", first, second).iou == 1
    first[:2] = True
    assert Overlap.of("", first, second).iou == 0
    second[1:4] = True
    assert Overlap.of("", first, second).iou == 4 / 16


def test_depth_error_is_the_root_mean_square_of_grey_in_the_unit_interval():
    edited = grey(100)
    edited[:, :4] = 151  # 51 levels off in half of the pixels
    assert depth_rmse(edited, grey(100)) == pytest.approx(0.2 * math.sqrt(0.5), abs=1e-15)
    assert depth_rmse(grey(7), grey(7)) == 0


def test_depth_reads_a_coloured_answer_as_its_grey():
    edited = grey(100)
    edited[0], edited[2] = 70, 130
    assert depth_rmse(edited, grey(100)) == 0


def directions(*rgb: int) -> torch.Tensor:
    return torch.tensor(rgb, dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)


@pytest.mark.parametrize(
    ("edited", "target", "degrees"),
    [
        ((128, 128, 255), (128, 128, 255), 0),
        ((255, 128, 128), (128, 128, 255), 90),
        ((128, 128, 0), (128, 128, 255), 180),
        ((255, 128, 255), (128, 128, 255), 45),
    ],
)
def test_normal_error_is_the_angle_between_directions(edited, target, degrees):
    # byte 128 is 0.004 off zero: up to 0.64 degrees between opposite directions
    angle = normal_angles(directions(*edited), directions(*target)).mean().item()
    assert angle == pytest.approx(degrees, abs=0.7)


def test_normal_error_ignores_lengths_and_averages_pixels():
    target = directions(255, 255, 255).clone()
    edited = directions(200, 200, 200).clone()
    assert normal_angles(edited, target).mean().item() == pytest.approx(0, abs=1e-12)
    edited[:, :2] = 0  # the opposite direction in half of the pixels
    assert normal_angles(edited, target).mean().item() == pytest.approx(90, abs=1e-12)


def tilted(*degrees: float) -> torch.Tensor:
    """A row of normals that are tilted from the viewer by so many degrees."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    normals = torch.stack([angle.sin(), torch.zeros_like(angle), angle.cos()])
    return ((normals + 1) * 127.5).round().to(torch.uint8)[:, None]


def test_normal_errors_are_summed_up_by_mean_median_and_shares():
    tilts = (0, 5, 12, 20, 25, 40)
    facing = tilted(*[0] * 6)
    errors = normal_errors(tilted(*tilts), facing)
    # colours of 8 bits keep a direction to within half a degree
    assert normal_angles(tilted(*tilts), facing)[0].tolist() == pytest.approx(tilts, abs=0.5)
    assert errors.mean == normal_angles(tilted(*tilts), facing).mean().item()
    assert errors.mean == pytest.approx(17, abs=0.5)
    assert errors.median == pytest.approx(16, abs=0.5)
    assert (errors.within_11, errors.within_22, errors.within_30) == (2 / 6, 4 / 6, 5 / 6)


def test_equal_normals_have_no_error():
    errors = normal_errors(tilted(10, 50), tilted(10, 50))
    # the arc cosine of a dot product that is one up to rounding
    assert errors.mean == pytest.approx(0, abs=1e-4)
    assert (errors.within_11, errors.within_30) == (1, 1)
