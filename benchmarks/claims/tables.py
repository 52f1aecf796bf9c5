"""From what was measured to a JSON file, a table and a plot."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student

from benchmarks.claims.arms import BATCH, SIDE, Study
from benchmarks.claims.measures import Measured, Numbers
from emu_edit.editing.sheets import new_figure
from emu_edit.files import write_json, write_text
from emu_edit.terminal import markdown_table

SHARES = {"made", "closer", "clean"}
TOLD, GUESSED = "given", "predicted"
LEAST = 1e-6  # of a change outside that is divided by


def write_claim(study: Study, name: str, measured: Sequence[Measured]) -> str:
    """Write NAME.json, NAME.md and NAME.png; return the table."""
    rows = by_row(measured)
    budget = {**asdict(study), "folder": "DIR", "side": SIDE, "batch": BATCH}
    records = [{"row": row, "seed": seed, **numbers} for row, seed, numbers in measured]
    write_json(study.folder / f"{name}.json", {"claim": name, "study": budget, "rows": records})
    table = table_of(rows) + "".join(f"\n{line}\n" for line in conclusions(rows))
    write_text(study.folder / f"{name}.md", table)
    draw(study.folder / f"{name}.png", name, rows)
    return table


def by_row(measured: Sequence[Measured]) -> dict[str, list[Numbers]]:
    """Group by row, in the order of their first appearance."""
    rows: dict[str, list[Numbers]] = defaultdict(list)
    for row, _, numbers in measured:
        rows[row].append(numbers)
    return dict(rows)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean over seeds and its 95 % interval by Student's t; of one seed no width."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    mean = fmean(values)
    reach = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean, mean - reach, mean + reach


def table_of(rows: dict[str, list[Numbers]]) -> str:
    """Lay out mean and interval of every number of every row."""
    names = list(dict.fromkeys(name for seeds in rows.values() for name in seeds[0]))
    lines = [[row, *(_cell(name, seeds) for name in names)] for row, seeds in rows.items()]
    return markdown_table(["", *names], lines)


def _cell(name: str, seeds: Sequence[Numbers]) -> str:
    if name not in seeds[0]:
        return "-"
    mean, low, high = interval([each[name] for each in seeds])
    if name in SHARES:
        return f"{mean:.0%} ({max(low, 0):.0%} to {min(high, 1):.0%})"
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"


def conclusions(rows: dict[str, list[Numbers]]) -> list[str]:
    """Say what follows from pairs of rows, seed by seed."""
    lines = []
    if {TOLD, GUESSED, "none"} <= rows.keys():
        gaps = [
            (given["error/copy"], guessed["error/copy"], none["error/copy"])
            for given, guessed, none in zip(rows[TOLD], rows[GUESSED], rows["none"], strict=True)
        ]
        gain = interval([none - given for given, _, none in gaps])
        lines.append("error/copy, none less given: {:.3f} ({:.3f} to {:.3f})".format(*gain))
        total = sum(none - given for given, _, none in gaps)
        closed = sum(none - guessed for _, guessed, none in gaps)
        if total > 0:
            lines.append(f"share of that gap which the predictor closes: {closed / total:.0%}")
    elif "outside" in rows.get("none", [{}])[0]:
        for row, seeds in rows.items():
            damage = [
                (a["outside"], b["outside"]) for a, b in zip(rows["none"], seeds, strict=True)
            ]
            times = [before / max(after, LEAST) for before, after in damage]
            all_in_all = sum(a for a, _ in damage) / max(sum(b for _, b in damage), LEAST)
            spread = f"{min(times):.1f} to {max(times):.1f} by seed"
            lines.append(f"{row}: {all_in_all:.1f} times less outside ({spread})")
    return lines


def draw(file: Path, name: str, rows: dict[str, list[Numbers]]) -> None:
    """Plot every number with its interval, a panel each, a line for each row."""
    names = list(dict.fromkeys(key for seeds in rows.values() for key in seeds[0]))
    figure = new_figure(2.6 * len(names) + 2, 0.35 * len(rows) + 1.2)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, names, strict=True):
        for place, seeds in enumerate(rows.values()):
            values = [each[key] for each in seeds if key in each]
            if not values:
                continue
            mean, low, high = interval(values)
            panel.plot([low, high], [place, place], color="tab:blue")
            panel.plot(values, [place] * len(values), ".", color="0.6")
            panel.plot(mean, place, "o", color="tab:blue")
        panel.set_title(key)
        panel.set_yticks(range(len(rows)), list(rows))
        panel.invert_yaxis()
    figure.suptitle(name)
    figure.savefig(file, dpi=100)
