"""From the cells of a study to curves: numbers as JSON, a plot, and a table for the README."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, BinaryIO

from benchmarks.inversion.cells import BASE
from benchmarks.inversion.methods import EXPERT, FULL, INVERSION, LORA
from emu_edit.editing.sheets import new_figure
from emu_edit.files import atomic_file, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JSON_FILE, PLOT_FILE, TABLE_FILE = "curves.json", "curves.png", "table.md"
NAMES = {
    BASE: "base, task predicted",
    INVERSION: "inverted vector",
    LORA: "LoRA",
    FULL: "full fine-tune",
    EXPERT: "expert",
}
COLOURS = {INVERSION: "tab:blue", LORA: "tab:green", FULL: "tab:red"}
LEVELS = {BASE: ("0.5", ":"), EXPERT: ("0.2", "--")}  # methods drawn as a level: colour, style
PANEL = (3.6, 3.0)  # inches

# task -> method -> pairs -> the cells of all seeds
Grouped = dict[str, dict[str, dict[int, list[dict]]]]


def write_curves(folder: Path, cells: Sequence[dict], study: dict[str, object]) -> str:
    """Write curves.json, curves.png and table.md; return the table."""
    grouped = group(cells)
    curves = {
        task: {
            method: {str(pairs): _numbers(found) for pairs, found in by_pairs.items()}
            for method, by_pairs in by_method.items()
        }
        for task, by_method in grouped.items()
    }
    table = format_table(grouped, study)
    # whole or not at all: several processes may end at once
    write_text(folder / JSON_FILE, json.dumps({"study": study, "curves": curves}, indent=1))
    write_text(folder / TABLE_FILE, table)
    with atomic_file(folder / PLOT_FILE) as stream:
        draw_curves(stream, grouped)
    return table


def group(cells: Sequence[dict]) -> Grouped:
    """Group cells by task, method and pairs; methods in the order of `NAMES`, pairs rising."""
    found: Grouped = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    order = list(NAMES)
    for cell in sorted(cells, key=lambda c: (order.index(c["cell"]["method"]), c["cell"]["pairs"])):
        what = cell["cell"]
        found[what["task"]][what["method"]][what["pairs"]].append(cell)
    return found


def _numbers(cells: Sequence[dict]) -> dict[str, object]:
    """Return each measure of the seeds: mean, lowest, highest."""
    return {
        "seeds": sorted(cell["cell"]["seed"] for cell in cells),
        "error": _spread([cell["new"]["error"] for cell in cells]),
        "success": _spread([cell["new"]["success"] for cell in cells]),
        "old_success_change": _spread([cell["old"]["success_change"] for cell in cells]),
        "old_error_change": _spread([cell["old"]["error_change"] for cell in cells]),
        "old_identical": min(cell["old"]["identical"] for cell in cells),
        "steps": _spread([cell["steps"] for cell in cells]),
        "seconds": _spread([cell["seconds"] for cell in cells]),
        "weights": cells[0]["weights"],
        **{
            name: _spread([cell["new"][name] for cell in cells])
            for name in ("box_iou", "count_right")
            if name in cells[0]["new"]
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "min": min(values), "max": max(values)}


def draw_curves(stream: BinaryIO, grouped: Grouped) -> None:
    """Draw a panel for each task, its error over the pairs, and a last one for what is forgotten.

    Lines are means of the seeds, bands their range.
    """
    count = len(grouped) + 1
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = new_figure(PANEL[0] * columns, PANEL[1] * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes, (task, by_method) in zip(panels, grouped.items(), strict=False):
        axes.set_title(task)
        axes.set_ylabel("error relative to copying")
        _draw(axes, by_method, ("new", "error"))
        axes.set_ylim(bottom=0)
    pooled: dict[str, dict[int, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for by_method in grouped.values():
        for method, by_pairs in by_method.items():
            for pairs, cells in by_pairs.items():
                pooled[method][pairs] += cells
    last = panels[len(grouped)]
    last.set_title("the 16 old tasks")
    last.set_ylabel("change of success")
    _draw(last, pooled, ("old", "success_change"))
    for axes in panels[count:]:
        axes.set_axis_off()
    panels[0].legend(fontsize=8)
    figure.savefig(stream, dpi=120, format="png")


def _draw(
    axes: "Axes", by_method: dict[str, dict[int, list[dict]]], measure: tuple[str, str]
) -> None:
    part, name = measure
    for method, by_pairs in by_method.items():
        values = {pairs: [cell[part][name] for cell in cells] for pairs, cells in by_pairs.items()}
        if method in LEVELS:
            colour, style = LEVELS[method]
            level = fmean(value for found in values.values() for value in found)
            axes.axhline(level, color=colour, linestyle=style, label=NAMES[method])
            continue
        pairs, colour = list(values), COLOURS[method]
        means = [fmean(found) for found in values.values()]
        low, high = ([f(found) for found in values.values()] for f in (min, max))
        axes.plot(pairs, means, marker="o", markersize=3, color=colour, label=NAMES[method])
        axes.fill_between(pairs, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(pairs, [str(number) for number in pairs])
        axes.minorticks_off()
    axes.set_xlabel("pairs")
    axes.grid(alpha=0.3)


def format_table(grouped: Grouped, study: dict[str, object]) -> str:
    """Return the study as a Markdown table: error and success by pairs, and what was forgotten."""
    columns = sorted({
        pairs
        for by_method in grouped.values()
        for method, by_pairs in by_method.items()
        for pairs in by_pairs
        if method not in LEVELS
    })
    header = ["new task", "method", *(_pairs_of(n) for n in columns), "old tasks", "learnt", "time"]
    rows = [header, ["---"] * len(header)]
    for task, by_method in grouped.items():
        for method, by_pairs in by_method.items():
            rows.append([task, *_row(method, by_pairs, columns)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", _footer(study)])


def _row(method: str, by_pairs: dict[int, list[dict]], columns: Sequence[int]) -> list[str]:
    """Return the texts of one method of one task, without the task."""
    everything = [cell for cells in by_pairs.values() for cell in cells]
    if method in LEVELS:
        # one number for all columns: the base learns from none, the expert from its own many pairs
        texts = [_cell_text(everything)] + [""] * (len(columns) - 1)
        most = max(by_pairs)
        name = NAMES[method] + (f", {most} pairs" if most else "")
    else:
        texts = [_cell_text(by_pairs[n]) if n in by_pairs else "" for n in columns]
        name = NAMES[method]
    change, error = (
        fmean(cell["old"][name] for cell in everything)
        for name in ("success_change", "error_change")
    )
    same = min(cell["old"]["identical"] for cell in everything)
    return [
        name,
        *texts[: max(len(columns), 1)],
        "same bits" if same == 1 else f"{100 * change:+.0f} points, error {error:+.2f}",
        f"{everything[0]['weights']:,}",
        f"{fmean(cell['seconds'] for cell in everything):.0f} s",
    ]


def _cell_text(cells: Sequence[dict]) -> str:
    error, success = (fmean(cell["new"][name] for cell in cells) for name in ("error", "success"))
    return f"{error:.2f} ({100 * success:.0f} %)"


def _pairs_of(number: int) -> str:
    return "1 pair" if number == 1 else f"{number} pairs"


def _footer(study: dict[str, object]) -> str:
    photos = study.get("photos")
    scenes = (
        f" The new task's pairs show {photos['pictures']} photographs, a third of them for the "
        "held-out pairs alone."
        if isinstance(photos, dict)
        else ""
    )
    return (
        "Error inside the mask relative to copying the source (share of edits that succeeded), on "
        f"{study['test_pairs']} held-out pairs of the new task, mean over the seeds. Old tasks: "
        f"change of the success, and of the error, on {study['old_pairs']} held-out pairs of each "
        "of the sixteen. Time: core-seconds on a CPU. "
        f"Every method makes at most {study['steps']} steps of {study['batch_size']} samples and "
        f"keeps what is best on held-out pairs (from 5 pairs on); the expert "
        f"{study['expert_steps']}.{scenes}"
    )
