"""What `evaluate` wrote, as records: for the page and for the comparison with published rows.

Reads both kinds of results.json: those of benchmarks with backbones (rows → all, by_task, by_turn)
and that of the world benchmark (report → tasks, families, overall).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu_edit.errors import InputError
from emu_edit.files import read_regular
from emu_edit.metrics.protocols import METRICS, Metric

RESULTS, ITEMS = "results.json", "items.jsonl"
MODEL, COPY, STILL, ORACLE = "model", "copy-input", "still", "oracle"


WORLD = {
    "clean": Metric("clean", True, "at most a quarter of the error left, below 0.01 outside"),
    "success": Metric("success", True, "nearer the target inside the mask, untouched outside"),
    "relative_error": Metric("error/copy", False, "error inside relative to not editing"),
    "inside_l1": Metric("L1 inside", False, "mean absolute difference to the target in the mask"),
    "outside_l1": Metric("L1 outside", False, "mean absolute difference outside the mask"),
    "l1": Metric("L1", False, "mean absolute difference to the target, in [0, 1]"),
}
VISION = {  # of the world's tasks that can be measured otherwise
    "detection_ap": Metric("AP@0.5", True, "detect: precision times recall of the rectangles"),
    "detection_iou": Metric("box IoU", True, "detect: of the rectangle with the right one"),
    "segmentation_miou": Metric("mIoU", True, "segment: over kinds of things, pixels summed"),
    "segmentation_iou": Metric("region IoU", True, "segment: of the region, averaged over edits"),
    "depth_rmse": Metric("depth RMSE", False, "picture to depth map, depth in [0, 1]"),
    "normal_degrees": Metric("normals °", False, "picture to normal map: angle in degrees"),
    "normal_median": Metric("median °", False, "median angle of an edit, averaged"),
    "normal_within_11": Metric("below 11.25°", True, "share of pixels whose normal is so near"),
    "normal_within_22": Metric("below 22.5°", True, "share of pixels whose normal is so near"),
    "normal_within_30": Metric("below 30°", True, "share of pixels whose normal is so near"),
}

EDITED_CLIPS = {  # of edits of the moving world; `clean` counts frames
    "clean": WORLD["clean"],
    "relative_error": WORLD["relative_error"],
    "identity": Metric("identity", True, "figures that the scene reader finds as in the truth"),
    "warp_error": METRICS["warp_error"],
    "flicker_error": Metric(
        "flicker", False, "change from frame to frame that the truth does not have, in levels"
    ),
    "colour_drift": Metric(
        "colour drift", False, "levels a frame by which the worst channel leaves the truth"
    ),
    "psnr_outside": Metric("PSNR outside", True, "of result and source outside the mask, in dB"),
}

WORLD_CAPTIONS = {  # of pictures drawn from captions, by what the scene reader sees
    "right": Metric("right", True, "all that was asked for is there, and nothing else"),
    "figures": Metric("figures", True, "share of the figures asked for, whole"),
    "colours": Metric("colours", True, "share of the colours asked for, whatever has them"),
    "shapes": Metric("shapes", True, "share of the shapes asked for, in whatever colour"),
    "number": Metric("number", True, "whether there are as many figures as asked for"),
    "background": Metric("background", True, "whether it is the one asked for"),
}

GENERATED_CLIPS = {  # of clips drawn from captions; what `right` is not about stands at the end
    **WORLD_CAPTIONS,
    "moves": Metric("moves", True, "figures that go where they should, of those that should go"),
    "stays": Metric("stays", True, "figures that stay where they are, of those that should"),
    "kept": Metric("kept", True, "figures that are the same thing in all frames that are read"),
    "first_frame": Metric(
        "first frame", False, "mean difference to the picture that was given, in levels"
    ),
    "way": Metric("way", None, "mean way of a figure, in fractions of the side"),
}


def metric(name: str) -> Metric:
    """Look up how a metric is shown; one that is not known is shown by its name."""
    return {**WORLD, **VISION, **EDITED_CLIPS, **GENERATED_CLIPS, **METRICS}.get(
        name, Metric(name, None)
    )


def noun_of(results: Mapping[str, Any]) -> str:
    """Return what results.json calls what it scored: an edit, unless it says otherwise."""
    return results.get("noun", "edit")


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval.

    Attributes:
        mean: None when no edit has the metric.
        low: lower end; None where there is no interval.
        high: upper end.
        n: number of edits averaged.
        undefined: number of edits that have no such score.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    undefined: int = 0


Figures = Mapping[str, Figure]  # by metric


@dataclass(frozen=True)
class Row:
    """The scores of one editor, over all edits and over parts of them.

    Attributes:
        all: over all edits.
        parts: by kind of part ("task", "family", "turn") and by its name.
    """

    all: Figures
    parts: Mapping[str, Mapping[str, Figures]] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """One table's worth: a name ("single edits", "all turns", …) and a row per editor."""

    name: str
    items: int
    rows: Mapping[str, Row]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, in the order of the file."""
        return tuple(dict.fromkeys(name for row in self.rows.values() for name in row.all))


def read_results(folder: Path) -> dict[str, Any]:
    """Read results.json.

    Raises:
        InputError: if it is missing or not a JSON object.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(f"{folder} has no {RESULTS}; give the folder that `evaluate` wrote")
    try:
        results = json.loads(read_regular(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); run `evaluate` again") from error
    if not isinstance(results, dict):
        raise InputError(f"{path} holds a {type(results).__name__}, needs an object")
    return results


def read_items(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of items.jsonl, none if there is no such file.

    Raises:
        InputError: if a line is not a JSON object; a half line at the end too.
    """
    path = folder / ITEMS
    if not path.is_file():
        return []
    # not splitlines(): an instruction may hold U+2028, which ends a line there but not in JSON
    lines = read_regular(path).decode().rstrip("\n").split("\n")
    items: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            item = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{path}:{number} is not JSON ({error}); run `evaluate` again"
            ) from error
        if not isinstance(item, dict):
            raise InputError(f"{path}:{number} is no object; run `evaluate` again")
        items.append(item)
    return items


def blocks_of(results: Mapping[str, Any]) -> tuple[Block, ...]:
    """Take the tables out of results.json."""
    if "report" in results:
        report = results["report"]
        rows = {editor: _world_row(summary) for editor, summary in report.items()}
        block = Block("single edits", report[MODEL]["overall"]["count"], rows)
        return (block, *_vision_blocks(report))
    return tuple(
        Block(name, block["items"], {editor: _row(row) for editor, row in block["rows"].items()})
        for name, block in results["blocks"].items()
    )


def _row(row: Mapping[str, Any]) -> Row:
    parts = {
        kind: {name: _figures(figures) for name, figures in row[f"by_{kind}"].items()}
        for kind in ("task", "turn")
    }
    return Row(_figures(row["all"]), parts)


def _figures(figures: Mapping[str, Mapping[str, Any]]) -> Figures:
    return {
        name: Figure(one["mean"], one["low"], one["high"], one["n"], one["undefined"])
        for name, one in figures.items()
    }


def _vision_blocks(report: Mapping[str, Any]) -> tuple[Block, ...]:
    """Make the table of the tasks that are measured otherwise, where there are any."""
    overall, tasks = report[MODEL]["overall"], report[MODEL]["tasks"]
    names = [name for name in VISION if overall.get(name) is not None]
    if not names:
        return ()
    rows = {
        editor: Row({name: Figure(row[name], None, None, row["count"]) for name in names})
        for editor, row in ((editor, summary["overall"]) for editor, summary in report.items())
    }
    edits = sum(row["count"] for row in tasks if any(row[name] is not None for name in names))
    return (Block("vision tasks", edits, rows),)


def _world_row(summary: Mapping[str, Any]) -> Row:
    kinds = {"task": summary["tasks"], "family": summary["families"]}
    parts = {
        kind: {row["name"].replace("_", " "): _world_figures(row) for row in rows}
        for kind, rows in kinds.items()
    }
    return Row(_world_figures(summary["overall"]), parts)


def _world_figures(row: Mapping[str, Any]) -> Figures:
    return {
        name: Figure(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"), row["count"])
        for name in WORLD
        if name in row  # results from before `clean`
    }
