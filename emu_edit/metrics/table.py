"""Summing up scores: a row per task, per family and over all, with intervals for shares.

A report always holds the model beside copy-input (nothing edited) and the oracle (the target), both
scored by the same function: an average says little without the floor and the ceiling it lives in.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.metrics.detection import average_precision_at, kind_counts, mean_iou
from emu_edit.metrics.intervals import wilson_share
from emu_edit.metrics.world import (
    CLEAN_ERROR,
    CLEAN_OUTSIDE,
    READ_DEGREES,
    READ_DEPTH,
    READ_IOU,
    EditScore,
    Truth,
    score,
)
from emu_edit.tasks import SIXTEEN, TASKS, Family
from emu_edit.terminal import markdown_table

Record = TypeVar("Record")


@dataclass(frozen=True)
class Row:
    """The means over a set of edits; a number is None where no edit of the set has it.

    Attributes:
        name: of the task or family, or "overall".
        count: number of edits.
        clean: share of clean edits, see `EditScore`.
        clean_low: lower end of its 95 % interval, see `wilson_share`.
        clean_high: upper end.
        read: share of edits off which what was asked for can be read, see `EditScore`.
        read_low: lower end of its interval.
        read_high: upper end.
        success: share of successful edits, see `EditScore`.
        success_low: lower end of its interval.
        success_high: upper end.
        l1: mean of `EditScore.l1`; so the others below.
        inside_l1: see `EditScore`.
        copy_l1: see `EditScore`.
        outside_l1: see `EditScore`.
        relative_error: mean inside_l1 over mean copy_l1; below 1 beats not editing.
        detection_iou: see `EditScore`.
        detection_ap: average precision at IoU 0.5 of the rectangles, see `average_precision_at`.
        segmentation_iou: mean of `EditScore.overlap`'s IoU.
        segmentation_miou: mean IoU over kinds of things, pixels summed over all edits.
        depth_rmse: see `EditScore`.
        normal_degrees: see `EditScore`.
        normal_median: mean of the edits' median angular errors, in degrees; so the shares below.
        normal_within_11: see `NormalErrors`.
        normal_within_22: see `NormalErrors`.
        normal_within_30: see `NormalErrors`.
    """

    name: str
    count: int
    clean: float
    clean_low: float
    clean_high: float
    read: float
    read_low: float
    read_high: float
    success: float
    success_low: float
    success_high: float
    l1: float
    inside_l1: float
    copy_l1: float
    outside_l1: float | None
    relative_error: float
    detection_iou: float | None
    detection_ap: float | None
    segmentation_iou: float | None
    segmentation_miou: float | None
    depth_rmse: float | None
    normal_degrees: float | None
    normal_median: float | None
    normal_within_11: float | None
    normal_within_22: float | None
    normal_within_30: float | None


@dataclass(frozen=True)
class Summary:
    """The rows of one editor."""

    tasks: list[Row]
    families: list[Row]
    overall: Row


@dataclass(frozen=True)
class Report:
    """A model between its floor and its ceiling, on the same pairs."""

    model: Summary
    copy_input: Summary
    oracle: Summary

    def to_dict(self) -> dict[str, object]:
        """Give the report as results.json holds it."""
        return {name: asdict(summary) for name, summary in self._named()}

    def _named(self) -> list[tuple[str, Summary]]:
        return [("model", self.model), ("copy-input", self.copy_input), ("oracle", self.oracle)]


Shown = tuple[bool | None, bool | None]  # of the edited picture and of the target


def report(
    edits: Iterable[tuple[UInt8[Tensor, "3 h w"], Truth]], shown: Iterable[Shown] | None = None
) -> Report:
    """Score edited pictures with their truths, and copy-input and oracle on the same pairs.

    Args:
        edits: pictures and truths.
        shown: of each, whether a reader finds the target's scene in it and in the target itself,
            see `EditScore.is_shown`; a source never shows it. None if nobody read them.

    Raises:
        ValueError: if there is no edit.
    """
    scores = [
        (
            replace(score(edited, truth), is_shown=ours),
            replace(score(truth.source, truth), is_shown=None if ours is None else False),
            replace(score(truth.target, truth), is_shown=right),
        )
        for (edited, truth), (ours, right) in zip(
            edits, repeat((None, None)) if shown is None else shown, strict=shown is not None
        )
    ]
    if not scores:
        raise ValueError("a report needs at least one edit, got none")
    model, copy_input, oracle = (summarise(column) for column in zip(*scores, strict=True))
    return Report(model, copy_input, oracle)


def summarise(scores: Sequence[EditScore]) -> Summary:
    """Average scores per task (in the order of the sixteen, then by name), family, and over all.

    Families and the whole are averages over edits, not over tasks; tasks appended to the sixteen
    belong to no family.
    """
    order = {name: i for i, name in enumerate(SIXTEEN.names)}
    tasks = sorted({s.task for s in scores}, key=lambda name: (order.get(name, len(order)), name))
    family = {task.name: task.family for task in TASKS}
    families = [f for f in Family if any(family.get(name) is f for name in tasks)]
    return Summary(
        tasks=[_row(name, [s for s in scores if s.task == name]) for name in tasks],
        families=[_row(f.name, [s for s in scores if family.get(s.task) is f]) for f in families],
        overall=_row("overall", scores),
    )


def format_table(result: Report) -> str:
    """Write the report as a Markdown table that also reads well as plain text.

    A row per task and family with the model's numbers, then model, copy-input and oracle over all.
    """
    head = ["task", "edits", "clean", "95 %", "read", "95 %", "made", "95 %", "error/copy"]
    head += ["inside", "copy", "outside", "picture", "measured"]
    model = result.model
    body = [_cells(row.name, row) for row in (*model.tasks, *model.families)]
    body += [_cells(name, summary.overall) for name, summary in result._named()]
    notes = (
        f"clean: error/copy at most {CLEAN_ERROR}, outside below {CLEAN_OUTSIDE}. "
        "read: a reader finds exactly the scene asked for; of marks and maps: IoU from "
        f"{READ_IOU}, error of depth to {READ_DEPTH}, normals to {READ_DEGREES}°; others "
        f"error/copy to {CLEAN_ERROR}. made (success): inside the mask closer to the "
        "target than to the source, outside untouched. "
        "error/copy: error inside relative to not editing (below 1 is better than copying). "
        "inside, copy, outside, picture: mean absolute differences in [0, 1]. "
        "AP@0.5: precision times recall of rectangles, a hit from IoU 0.5 on. "
        "mIoU: over kinds of things, pixels summed."
    )
    return f"{markdown_table(head, body)}\n\n{notes}"


def _row(name: str, scores: Sequence[EditScore]) -> Row:
    cleans, successes = sum(s.clean for s in scores), sum(s.success for s in scores)
    clean_low, clean_high = wilson_share(cleans, len(scores))
    success_low, success_high = wilson_share(successes, len(scores))
    reads = sum(s.read for s in scores)
    read_low, read_high = wilson_share(reads, len(scores))
    l1, inside_l1, copy_l1 = np.mean(
        [(s.l1, s.inside_l1, s.copy_l1) for s in scores], axis=0
    ).tolist()
    normals = [s.normals for s in scores if s.normals is not None]
    overlaps = [s.overlap for s in scores if s.overlap is not None]
    return Row(
        name=name,
        count=len(scores),
        clean=cleans / len(scores),
        clean_low=clean_low,
        clean_high=clean_high,
        read=reads / len(scores),
        read_low=read_low,
        read_high=read_high,
        success=successes / len(scores),
        success_low=success_low,
        success_high=success_high,
        l1=l1,
        inside_l1=inside_l1,
        copy_l1=copy_l1,
        outside_l1=_mean(scores, lambda s: s.outside_l1),
        relative_error=inside_l1 / copy_l1,
        detection_iou=_mean(scores, lambda s: s.detection_iou),
        detection_ap=_detection_ap(scores),
        segmentation_iou=_mean(overlaps, lambda o: o.iou),
        segmentation_miou=mean_iou(*kind_counts(overlaps)),
        depth_rmse=_mean(scores, lambda s: s.depth_rmse),
        normal_degrees=_mean(normals, lambda n: n.mean),
        normal_median=_mean(normals, lambda n: n.median),
        normal_within_11=_mean(normals, lambda n: n.within_11),
        normal_within_22=_mean(normals, lambda n: n.within_22),
        normal_within_30=_mean(normals, lambda n: n.within_30),
    )


def _detection_ap(scores: Sequence[EditScore]) -> float | None:
    """Score rectangles, of which an edit of `detect` asks for one; None without such an edit."""
    asked = [s for s in scores if s.detection_iou is not None]
    ious = [s.detection_iou for s in asked if s.detection_iou is not None and s.has_box]
    return average_precision_at(ious, len(asked)) if asked else None


def _mean(records: Sequence[Record], number: Callable[[Record], float | None]) -> float | None:
    """Average a number over the records that have it."""
    values = [value for record in records if (value := number(record)) is not None]
    return sum(values) / len(values) if values else None


def _percents(share: float, low: float, high: float) -> tuple[str, str]:
    return f"{100 * share:.0f} %", f"{100 * low:.0f}-{100 * high:.0f}"


def _cells(name: str, row: Row) -> list[str]:
    measured = {
        "box IoU {:.2f}": row.detection_iou,
        "AP@0.5 {:.2f}": row.detection_ap,
        "region IoU {:.2f}": row.segmentation_iou,
        "mIoU {:.2f}": row.segmentation_miou,
        "depth RMSE {:.3f}": row.depth_rmse,
        "normals {:.1f}°": row.normal_degrees,
        "median {:.1f}°": row.normal_median,
    }
    return [
        name,
        str(row.count),
        *_percents(row.clean, row.clean_low, row.clean_high),
        *_percents(row.read, row.read_low, row.read_high),
        *_percents(row.success, row.success_low, row.success_high),
        f"{row.relative_error:.2f}",
        f"{row.inside_l1:.3f}",
        f"{row.copy_l1:.3f}",
        "-" if row.outside_l1 is None else f"{row.outside_l1:.3f}",
        f"{row.l1:.3f}",
        ", ".join(text.format(value) for text, value in measured.items() if value is not None),
    ]
