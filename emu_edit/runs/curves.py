"""Pictures of a run from the metrics of the CSV logger.

Curves of loss, tasks, learning rate and speed; and, where a mixture steered itself, its schedule.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emu_edit.editing.sheets import new_figure
from emu_edit.tasks import SIXTEEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[int, float]]  # (optimizer step, value)
SMOOTHED = ("train/", "throughput/")  # metrics of single steps, which jump
SMOOTH_FROM = 20  # points; fewer can be seen as they are
SHARE, ERROR = "mixture/share/", "mixture/error/"  # by group, see `callbacks.mixture`
MOST_TIMES = 12  # named below a schedule


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
    grid = figure.add_gridspec(rows, 2)
    for number, panel in enumerate(panels):
        is_alone = number % 2 == 0 and number == len(panels) - 1
        axes = figure.add_subplot(grid[number // 2, slice(None) if is_alone else number % 2])
        _draw(axes, panel, {name: c for name, c in curves.items() if panel.shows(name)})
    figure.savefig(path, dpi=100)
    return True


def draw_mixture(curves: dict[str, Curve], path: Path) -> bool:
    """Draw how a mixture steered itself, a row for each group: its shares, and what it acted upon.

    Returns whether there was anything to draw.
    """
    shares, errors = (
        {name.removeprefix(group): c for name, c in curves.items() if name.startswith(group)}
        for group in (SHARE, ERROR)
    )
    if not shares:
        return False
    # as factors of two, for the eye: twice as often is as far from 0 as half as often
    factors = {
        name: [(step, math.log2(share / curve[0][1])) for step, share in curve]
        for name, curve in shares.items()
    }
    most = max(1.0, *(abs(value) for curve in factors.values() for _, value in curve))
    figure = new_figure(12.0, 1.5 + 0.2 * len(shares))
    left, right = figure.subplots(1, 2, sharey=True)
    _heat(left, factors, list(shares), ("RdBu_r", -most, most))
    left.set_title("share of the draws, in factors of two of the first")
    left.set_yticks(range(len(shares)), list(shares), fontsize="x-small")
    if errors:
        _heat(right, errors, list(shares), ("viridis", 0.0, 1.0))
        right.set_title("held-out error, relative to copying")
    figure.savefig(path, dpi=100)
    return True


def _heat(
    axes: "Axes", curves: dict[str, Curve], rows: list[str], colours: tuple[str, float, float]
) -> None:
    times = sorted({step for curve in curves.values() for step, _ in curve})
    values = np.full((len(rows), len(times)), np.nan)
    for row, name in enumerate(rows):
        for step, value in curves.get(name, []):
            values[row, times.index(step)] = value
    colour_map, low, high = colours
    shown = axes.imshow(
        values, aspect="auto", cmap=colour_map, vmin=low, vmax=high, interpolation="nearest"
    )
    named = range(0, len(times), -(-len(times) // MOST_TIMES))
    axes.set_xticks(list(named), [str(times[i]) for i in named], fontsize="x-small")
    axes.set_xlabel("optimizer step")
    axes.figure.colorbar(shown, ax=axes)


def smoothed(values: Sequence[float]) -> list[float]:
    """Average each value with those before it, a twentieth of all; NaN and infinity left out."""
    window = math.ceil(len(values) / 20)
    is_finite = np.isfinite(values)
    sums = np.cumsum([0.0, *np.where(is_finite, values, 0.0)])
    counts = np.cumsum([0, *is_finite])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    with np.errstate(invalid="ignore"):  # nothing finite in a window: NaN, which is not drawn
        return ((sums[ends] - sums[starts]) / (counts[ends] - counts[starts])).tolist()


def without_doubles(curves: dict[str, Curve]) -> dict[str, Curve]:
    """Keep one of equal curves: the groups of an optimizer mostly have one learning rate."""
    first: dict[tuple[tuple[int, float], ...], str] = {}
    for name, curve in sorted(curves.items()):
        first.setdefault(tuple(curve), name)
    return {name: list(curve) for curve, name in first.items()}


def _draw(axes: "Axes", panel: Panel, curves: dict[str, Curve]) -> None:
    curves = without_doubles(curves)
    for name, curve in curves.items():
        steps, values = zip(*curve, strict=True)
        label, style = _task_of(name) or name, {"linewidth": 1, "marker": "."}
        if name.startswith(SMOOTHED) and len(values) > SMOOTH_FROM:
            (faint,) = axes.plot(steps, values, linewidth=0.5, alpha=0.35)
            style = {"linewidth": 1.5, "color": faint.get_color()}
            label, values = f"{label}, smoothed", smoothed(values)
        axes.plot(steps, values, label=label, **style)
    if panel.is_log:
        axes.set_yscale("log")
    axes.set_title(panel.title)
    axes.set_xlabel("optimizer step")
    axes.grid(visible=True, alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(fontsize="x-small", ncols=2)
