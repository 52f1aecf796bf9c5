"""The tables of the page of results: scores with their intervals, published rows, failed edits."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from emu_edit.evaluation.compare import OWN, Group, numbers
from emu_edit.evaluation.figures import COPY, MODEL, ORACLE, Block, Figure, Figures, metric
from emu_edit.evaluation.markup import Markup, join, tag

SHARES = frozenset({"success"})  # shown in percent
FINE = frozenset({"l2"})  # too small for three digits
NONE = "\N{EN DASH}"
EDITORS = {
    MODEL: "this run",
    COPY: "copy-input: nothing edited",
    ORACLE: "oracle: the ground truth itself",
}


@dataclass(frozen=True)
class Scale:
    """What the left and the right end of a column's bars stand for."""

    low: float
    high: float

    @staticmethod
    def over(figures: Iterable[Figure]) -> "Scale":
        """Return the scale that all of the figures lie on."""
        ends = [end for one in figures for end in (one.mean, one.low, one.high) if end is not None]
        return Scale(min(ends, default=0.0), max(ends, default=0.0))

    def place(self, value: float) -> float:
        """Return where a value lies, in percent of the width."""
        return 100 * (value - self.low) / (self.high - self.low) if self.high > self.low else 50.0


def number(name: str, value: float | None) -> str:
    """Return a metric's value as text."""
    if value is None or not math.isfinite(value):
        return NONE
    if name in SHARES:
        return f"{100 * value:.0f} %"
    return f"{value:.{4 if name in FINE else 3}f}"


def overall_table(block: Block) -> Markup:
    """Return one row per editor: the run between its floor and its ceiling."""
    scales = {
        name: Scale.over(row.all[name] for row in block.rows.values() if name in row.all)
        for name in block.metrics
    }
    rows = [
        tag("tr", {"class": "own"} if editor == MODEL else None,
            _editor(editor),
            *_cells(row.all, scales, {}))
        for editor, row in block.rows.items()
    ]  # fmt: skip
    return _table("", block.metrics, rows)


def part_table(block: Block, kind: str) -> Markup:
    """Return one row per part of a kind (task, family, turn), "" when there are not two of them."""
    parts = {editor: row.parts.get(kind, {}) for editor, row in block.rows.items()}
    own = parts[MODEL]
    if len(own) < 2:
        return Markup()
    scales = {
        name: Scale.over(
            figures[name] for each in parts.values() for figures in each.values() if name in figures
        )
        for name in block.metrics
    }
    rows = []
    for name, figures in own.items():
        others = {editor: each[name] for editor, each in parts.items() if editor != MODEL}
        rows.append(_part_row(name, figures, others, scales))
    return _table(kind, block.metrics, rows)


def _part_row(
    name: str, figures: Figures, others: Mapping[str, Figures], scales: Mapping[str, Scale]
) -> Markup:
    edits = max((one.n + one.undefined for one in figures.values()), default=0)
    label = tag("th", {"scope": "row"}, name or "none given", _small(edits_text(edits)))
    return tag("tr", None, label, *_cells(figures, scales, others))


def edits_text(count: int) -> str:
    """Return "1 edit", "1,053 edits"."""
    return f"{count:,} edit{'' if count == 1 else 's'}"


def _editor(name: str) -> Markup:
    title, _, words = EDITORS.get(name, name).partition(": ")
    return tag("th", {"scope": "row"}, title, _small(words) if words else Markup())


def _cells(
    figures: Figures, scales: Mapping[str, Scale], others: Mapping[str, Figures]
) -> Iterator[Markup]:
    """Yield a row's cells: mean, interval, bar; their bars on one line."""
    ranges = {name: _range(name, figure) for name, figure in figures.items()}
    for name, scale in scales.items():
        figure = figures.get(name)
        if figure is None or figure.mean is None:
            yield tag("td", {"class": "figure"}, NONE, *_undefined(figure))
            continue
        parts = [tag("span", {"class": "mean"}, number(name, figure.mean))]
        if any(ranges.values()):
            parts.append(tag("span", {"class": "range"}, ranges[name]))
        if scale.high > scale.low:
            beside = {editor: each[name] for editor, each in others.items() if name in each}
            parts.append(_track(figure, scale, beside))
        yield tag("td", {"class": "figure"}, *parts, *_undefined(figure))


def _range(name: str, figure: Figure) -> str:
    """Return the interval, "" where it has no width to speak of."""
    low, high = number(name, figure.low), number(name, figure.high)
    return "" if low == high else f"{low} to {high}"


def _undefined(figure: Figure | None) -> list[Markup]:
    count = 0 if figure is None else figure.undefined
    return [_small(f"undefined for {count:,}")] if count else []


def _track(figure: Figure, scale: Scale, others: Mapping[str, Figure]) -> Markup:
    parts: list[Markup] = []
    if figure.low is not None and figure.high is not None:
        left, right = scale.place(figure.low), scale.place(figure.high)
        parts.append(_placed("bar", f"left:{left:.1f}%;width:{right - left:.1f}%"))
    parts += [
        _placed(f"tick {editor}", f"left:{scale.place(one.mean):.1f}%")
        for editor, one in others.items()
        if one.mean is not None
    ]
    if figure.mean is not None:
        parts.append(_placed("dot", f"left:{scale.place(figure.mean):.1f}%"))
    return tag("span", {"class": "track", "aria-hidden": "true"}, *parts)


def _placed(look: str, style: str) -> Markup:
    return tag("i", {"class": look, "style": style})


def comparison(group: Group) -> Markup:
    """Return the table of one group of published rows."""
    head = [*map(_heading, group.metrics), tag("th", {"class": "source"}, "source")]
    lines = [_published(OWN, numbers(group, group.own), "", is_own=True)] if group.own else []
    lines += [
        _published(row.model, numbers(group, row.values), row.source, row.note)
        for row in group.rows
    ]
    table = tag("table", {"class": "published", "style": f"--columns:{len(group.metrics)}"},
        tag("thead", None, tag("tr", None, tag("th", None, "model"), *head)),
        tag("tbody", None, *lines))  # fmt: skip
    return tag("div", {"class": "wide"}, table)


def _published(
    model: str, values: Sequence[str], source: str, note: str = "", *, is_own: bool = False
) -> Markup:
    cells = [tag("td", {"class": "plain"}, NONE if text == "-" else text) for text in values]
    where = tag("td", {"class": "source"}, source, *([_small(note)] if note else []))
    row = {"class": "own"} if is_own else None
    return tag("tr", row, tag("th", {"scope": "row"}, model), *cells, where)


def legend(blocks: Sequence[Block]) -> Markup:
    """Return the key to the bars."""
    editors = {editor for block in blocks for editor in block.rows}
    keys = [
        ("dot", "mean"),
        ("bar", "its 95 % interval (bootstrap)"),
        *((f"tick {name}", name) for name in (COPY, ORACLE) if name in editors),
    ]
    parts = [
        tag("span", None, tag("span", {"class": "key"}, tag("i", {"class": look})), text)
        for look, text in keys
    ]
    ends = "The ends of a bar's line are the least and the greatest value of its column."
    return tag("p", {"class": "legend"}, *parts, tag("span", None, ends))


def meanings(metrics: Iterable[str]) -> Markup:
    """Return what the metrics mean, one line each."""
    known = [one for one in map(metric, metrics) if one.meaning]
    lines = [(tag("dt", None, str(one)), tag("dd", None, one.meaning)) for one in known]
    return tag("dl", {"class": "meanings"}, *(part for line in lines for part in line))


def _heading(name: str) -> Markup:
    shown = metric(name)
    better = {True: "more is better", False: "less is better", None: ""}[shown.is_up]
    hint = ". ".join(text for text in (shown.meaning, better) if text)
    return tag("th", {"scope": "col", **({"title": hint} if hint else {})}, str(shown))


def _table(corner: str, metrics: Iterable[str], rows: Iterable[Markup]) -> Markup:
    headings = [_heading(name) for name in metrics]
    head = tag("thead", None, tag("tr", None, tag("th", None, corner), *headings))
    looks = {"class": "scored", "style": f"--columns:{len(headings)}"}
    table = tag("table", looks, head, tag("tbody", None, join(rows)))
    return tag("div", {"class": "wide"}, table)


def _small(text: str) -> Markup:
    return tag("small", None, text)
