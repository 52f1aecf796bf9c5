"""Curves of a run from the metrics of the CSV logger: loss, tasks, learning rate, speed."""

import csv
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.editing.sheets import new_figure
from emu_edit.tasks import SIXTEEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[int, float]]  # (optimizer step, value)


@dataclass(frozen=True)
class Panel:
    """One set of axes: its title, which metrics it shows, and whether values are shown as logs."""

    title: str
    shows: Callable[[str], bool]
    is_log: bool


def _task_of(name: str) -> str | None:
    """Return the task of a metric `val/<task>`, None for any other metric."""
    group, _, task = name.partition("/")
    return task if group == "val" and task in SIXTEEN.names else None


PANELS = (
    Panel("loss", lambda name: name in {"train/loss", "val/loss"}, is_log=True),
    Panel("validation error by task", lambda name: _task_of(name) is not None, is_log=True),
    Panel("learning rate", lambda name: name.startswith("lr"), is_log=False),
    Panel("samples per second", lambda name: name == "throughput/samples_per_s", is_log=False),
)


def read_curves(metrics: Path) -> dict[str, Curve]:
    """Read Lightning's metrics.csv: for each metric, the steps it was logged at and its values."""
    curves: dict[str, Curve] = defaultdict(list)
    with metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            for name, value in row.items():
                if value and name != "epoch":
                    curves[name].append((step, float(value)))
    return dict(curves)


def draw_curves(curves: dict[str, Curve], path: Path) -> bool:
    """Draw the panels that have something to show; return whether there were any."""
    panels = [panel for panel in PANELS if any(panel.shows(name) for name in curves)]
    if not panels:
        return False
    rows = (len(panels) + 1) // 2
    figure = new_figure(12.0, 4.0 * rows)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, 2, number)
        _draw(axes, panel, {name: c for name, c in curves.items() if panel.shows(name)})
    figure.savefig(path, dpi=100)
    return True


def _draw(axes: "Axes", panel: Panel, curves: dict[str, Curve]) -> None:
    for name, curve in sorted(curves.items()):
        steps, values = zip(*curve, strict=True)
        axes.plot(steps, values, label=_task_of(name) or name, linewidth=1, marker=".")
    if panel.is_log:
        axes.set_yscale("log")
    axes.set_title(panel.title)
    axes.set_xlabel("optimizer step")
    axes.grid(visible=True, alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize="x-small", ncols=2)
