import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from emu_edit.metrics.detection import NormalErrors, Overlap
from emu_edit.metrics.table import format_table, report, summarise
from emu_edit.metrics.world import EditScore, Truth


def made(task: str, *, success: bool = True, **numbers) -> EditScore:
    values: dict[str, Any] = {"l1": 0.1, "inside_l1": 0.1, "copy_l1": 0.4, "outside_l1": 0.0}
    return EditScore(key="k", task=task, is_closer=success, **values | numbers)


def test_rows_are_means_over_the_edits_that_have_the_number():
    row = summarise([
        made("depth", inside_l1=0.1, copy_l1=0.2, outside_l1=None, depth_rmse=0.5),
        made("depth", inside_l1=0.5, copy_l1=0.6, outside_l1=0.02, success=False),
    ]).tasks[0]
    assert (row.name, row.count, row.success) == ("depth", 2, 0.5)
    assert row.inside_l1 == pytest.approx(0.3)
    assert row.copy_l1 == pytest.approx(0.4)
    assert row.relative_error == pytest.approx(0.75)  # of the means: not (0.5 + 0.83) / 2
    assert row.outside_l1 == 0.02
    assert row.depth_rmse == 0.5
    assert row.normal_degrees is None


def test_tasks_come_in_the_order_of_the_sixteen_and_appended_ones_last():
    scores = [made(task) for task in ("zoom", "segmap", "color", "local", "add")]
    summary = summarise(scores)
    assert [row.name for row in summary.tasks] == ["local", "add", "color", "segmap", "zoom"]


def test_families_collect_their_tasks_and_leave_appended_ones_out():
    summary = summarise([
        made("local"),
        made("add", success=False),
        made("color"),
        made("zoom"),
    ])
    assert [(row.name, row.count, row.success) for row in summary.families] == [
        ("region", 2, 0.5),
        ("vision", 1, 1.0),
    ]
    assert (summary.overall.count, summary.overall.success) == (4, 0.75)


def test_the_average_precision_of_a_task_counts_the_edits_without_a_rectangle():
    # three rectangles, two of them hits, for four edits: precision 2/3, recall 2/4
    drawn = [(0.9, True), (0.5, True), (0.49, True), (0.0, False)]
    scores = [made("detect", detection_iou=iou, has_box=has_box) for iou, has_box in drawn]
    summary = summarise([*scores, made("add")])
    assert summary.tasks[1].detection_ap == pytest.approx(2 / 3 * 2 / 4)
    assert summary.overall.detection_ap == pytest.approx(2 / 3 * 2 / 4)
    assert summary.tasks[0].detection_ap is None
    nowhere = summarise([made("detect", detection_iou=0.0, has_box=False)])
    assert nowhere.overall.detection_ap == 0


def test_the_mean_iou_of_a_task_is_over_kinds_of_things():
    overlaps = [
        Overlap("circle", shared=8, missed=0, wrong=0),
        Overlap("circle", shared=0, missed=2, wrong=6),
        Overlap("star", shared=3, missed=3, wrong=0),
    ]
    row = summarise([made("segment", overlap=o) for o in overlaps]).overall
    assert row.segmentation_miou == pytest.approx((8 / 16 + 3 / 6) / 2)
    assert summarise([made("add")]).overall.segmentation_miou is None


def test_angular_errors_are_averaged_over_the_edits_that_have_them():
    first, second = NormalErrors(10.0, 8.0, 0.5, 0.75, 1.0), NormalErrors(20.0, 9.0, 0.0, 0.25, 0.5)
    row = summarise([
        made("normal", normals=first),
        made("normal"),
        made("normal", normals=second),
    ]).overall
    found = (row.normal_within_11, row.normal_within_22, row.normal_within_30)
    assert (row.normal_degrees, row.normal_median, *found) == (15.0, 8.5, 0.25, 0.5, 0.75)


def edits() -> list[tuple[torch.Tensor, Truth]]:
    source = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    target = source + 100
    everywhere = torch.ones(8, 8, dtype=torch.bool)
    truth = [
        Truth(f"k{i}", task, source, target, everywhere) for i, task in enumerate(("add", "style"))
    ]
    return [(source + 80, truth[0]), (source + 20, truth[1])]


def test_a_report_holds_the_model_between_copy_input_and_oracle():
    result = report(edits())
    for row, share in ((result.copy_input.overall, 0), (result.oracle.overall, 1)):
        assert row.clean == row.success == share
        assert (row.clean_low, row.clean_high) == (row.success_low, row.success_high)
        assert row.clean_low < row.clean_high  # two edits leave nearly everything open
    assert result.copy_input.overall.relative_error == 1
    assert result.oracle.overall.relative_error == 0
    assert result.model.overall.success == 0.5
    assert result.model.overall.relative_error == pytest.approx(0.5)
    assert [row.success for row in result.model.tasks] == [1, 0]
    assert [row.clean for row in result.model.tasks] == [1, 0]


def test_a_report_becomes_json_and_back():
    plain = report(edits()).to_dict()
    again = json.loads(json.dumps(plain, allow_nan=False))
    assert again == plain
    assert set(again) == {"model", "copy-input", "oracle"}
    assert again["model"]["overall"]["count"] == 2
    assert again["model"]["tasks"][0]["name"] == "add"


def test_a_report_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one edit, got none"):
        report([])


def test_the_table_has_a_line_for_every_row_and_equal_widths():
    lines = format_table(report(edits())).splitlines()
    table = [line for line in lines if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in table]
    assert names[2:] == ["add", "style", "region", "free_form", "model", "copy-input", "oracle"]
    assert len({len(line) for line in table}) == 1
    add = [cell.strip() for cell in table[2].split("|")]
    shares = ["100 %", "21-100"]  # one of one says little
    assert add[1:14] == ["add", "1", *shares * 3, "0.20", "0.078", "0.392", "-", "0.078"]
    assert "clean: error/copy at most 0.25, outside below 0.01." in lines[-1]


@pytest.mark.parametrize(
    ("task", "measured", "read"),
    [
        ("add", {"is_shown": True}, True),
        ("add", {"is_shown": False}, False),
        ("detect", {"detection_iou": 0.5, "has_box": True}, True),
        ("detect", {"detection_iou": 0.49, "has_box": True}, False),
        ("detect", {"detection_iou": None, "has_box": False}, False),
        ("segment", {"overlap": Overlap("star", shared=1, missed=1, wrong=0)}, True),
        ("segment", {"overlap": Overlap("star", shared=1, missed=1, wrong=1)}, False),
        ("depth", {"depth_rmse": 0.05}, True),
        ("depth", {"depth_rmse": 0.051}, False),
        ("normal", {"normals": NormalErrors(11.2, 9.0, 0.5, 0.75, 1.0)}, True),
        ("normal", {"normals": NormalErrors(11.3, 9.0, 0.5, 0.75, 1.0)}, False),
        ("style", {"inside_l1": 0.05, "copy_l1": 0.2}, True),
        ("style", {"inside_l1": 0.06, "copy_l1": 0.2}, False),
    ],
)
def test_what_was_asked_for_is_read_by_each_tasks_own_measure(
    task: str, measured: dict, read: bool
):
    # everything else says the opposite
    scored = replace(made(task), **{"inside_l1": 0.0 if not read else 0.3, "copy_l1": 0.3})
    scored = replace(scored, **measured)
    assert scored.read is read
    row = summarise([scored]).overall
    assert (row.read, row.read_low < row.read_high) == (float(read), True)


def test_a_source_never_shows_what_was_asked_for_and_readers_may_miss_a_target():
    found = report([*edits(), edits()[1]], [(True, True), (False, False), (None, None)])
    rows = [found.model.overall, found.copy_input.overall, found.oracle.overall]
    assert [row.read for row in rows] == [1 / 3, 0, 2 / 3]  # the last is by its error, 0.8 of it


def test_the_table_prints_what_was_measured_for_a_task():
    normals = NormalErrors(12.34, 9.96, 0.5, 0.75, 1.0)
    summary_of = [made("detect", detection_iou=0.5, has_box=True), made("normal", normals=normals)]
    result = report(edits())
    text = format_table(type(result)(summarise(summary_of), result.copy_input, result.oracle))
    assert "box IoU 0.50, AP@0.5 1.00" in text
    assert "normals 12.3°, median 10.0°" in text
    assert "depth RMSE" not in text
