"""The page of results: everything an evaluation found, to look at, as one file.

OUT/index.html opens without a server and loads nothing: style, script and pictures are in it, and
its content policy forbids the rest. `page.html` lays out what is computed here. Instructions,
captions and names are strangers' texts: the template escapes them, and only the page's own script
may run.
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from emu_edit.evaluation import gallery
from emu_edit.evaluation.compare import OWN, compare, numbers
from emu_edit.evaluation.figures import (
    COPY,
    MODEL,
    ORACLE,
    STILL,
    WORLD_CAPTIONS,
    Block,
    Figure,
    Figures,
    blocks_of,
    metric,
    noun_of,
    read_items,
    read_results,
)
from emu_edit.evaluation.gallery import Item
from emu_edit.evaluation.outputs import ItemPictures, ItemVideos
from emu_edit.evaluation.sets import HEAD, distance_cells, world_notes
from emu_edit.files import write_text
from emu_edit.images import read_image, to_pil
from emu_edit.metrics.published import PublishedRow
from emu_edit.terminal import plural

PAGE = "index.html"
GRID = "grid.png"  # of the world benchmark, which writes no items
MOST_ITEMS = 200
# shown in percent
SHARES = frozenset({"clean", "success", *WORLD_CAPTIONS, "moves", "stays", "kept"})
FINE = frozenset({"l2"})  # too small for three digits
NONE = "\N{EN DASH}"
EDITORS = {
    MODEL: (OWN, ""),
    COPY: ("copy-input", "nothing edited"),
    STILL: ("still", "the true first frame all the time"),
    ORACLE: ("oracle", "the ground truth itself"),
}
# of results.json; all else is listed at the end of the page
BIG = (
    "blocks",
    "distances",
    "report",
    "failed",
    "filtered",
    "resampled",
    "inputs",
    "directions",
    "format",
    "noun",
)


@dataclass(frozen=True)
class Scale:
    """What the left and the right end of a column's bars stand for."""

    low: float
    high: float

    @staticmethod
    def over(figures: Iterable[Figure]) -> "Scale":
        """Find the scale that all of the figures lie on."""
        ends = [end for one in figures for end in (one.mean, one.low, one.high) if end is not None]
        return Scale(min(ends, default=0.0), max(ends, default=0.0))

    def place(self, value: float) -> float:
        """Say where a value lies, in percent of the width; the ends must differ."""
        return 100 * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class TableRow:
    """A row of a table of scores.

    Attributes:
        title: of the row.
        words: below the title.
        figures: its scores.
        others: scores of the other editors, marked on the same bars.
        is_own: whether it is this run beside others.
    """

    title: str
    words: str
    figures: Figures
    others: Mapping[str, Figures] = field(default_factory=dict)
    is_own: bool = False

    @property
    def ranges(self) -> dict[str, str]:
        """The intervals as texts, "" for those that have no width to speak of."""
        ends = {
            name: (number(name, figure.low), number(name, figure.high))
            for name, figure in self.figures.items()
        }
        return {
            name: "" if low == high else f"{low} to {high}" for name, (low, high) in ends.items()
        }


@dataclass(frozen=True)
class Table:
    """A table of scores: a row per editor ("overall"), or per part of a kind.

    Attributes:
        kind: "overall", "task", "family" or "turn".
        scales: of the columns, by metric.
        rows: from top to bottom.
    """

    kind: str
    scales: Mapping[str, Scale]
    rows: Sequence[TableRow]


def write_page(
    folder: Path,
    results: Mapping[str, Any] | None = None,
    items: Sequence[Item] | None = None,
    pictures: Callable[[str], ItemPictures | ItemVideos] | None = None,
    published: Sequence[PublishedRow] = (),
    most: int = MOST_ITEMS,
) -> Path:
    """Write index.html and return where it is.

    Args:
        folder: what `evaluate` wrote.
        results: what results.json holds; None means to read it.
        items: what items.jsonl holds; None means to read it.
        pictures: of an item, or its videos, by its key; None means the edited pictures in images/,
            alone.
        published: rows to show below one's own; none means that nobody asked.
        most: edits to show.

    Raises:
        InputError: if results.json, items.jsonl or a picture cannot be read.
    """
    results = read_results(folder) if results is None else results
    items = read_items(folder) if items is None else items
    blocks = blocks_of(results)
    metrics = list(dict.fromkeys(name for block in blocks for name in block.metrics))
    by = gallery.chosen_metric(metrics)
    chosen = gallery.choose(items, by, most)
    noun = noun_of(results)
    page = _template(noun).render(
        policy=_policy(),
        style=_asset("css"),
        script=_asset("js"),
        name=_name(results["model"]),
        results=results,
        noun=noun,
        blocks=[(block, list(tables(block, noun))) for block in blocks],
        metrics=metrics,
        marked=[
            name for name in (COPY, STILL, ORACLE) if any(name in block.rows for block in blocks)
        ],
        distances=_distances(results),
        distance_head=HEAD,
        distance_notes=world_notes(results) if results.get("distances") else (),
        groups=compare(results, published) if "protocol" in results else (),
        items=items,
        instructions={item["key"]: item["instruction"] for item in items},
        cards=[(item, gallery.thumbnails(item["key"], folder, pictures)) for item in chosen],
        chosen_by=by,
        orders=gallery.orders(metrics),
        parts=gallery.parts([block.name for block in blocks], chosen),
        grid=None if items else _grid(folder),
        details=_flat("", {name: value for name, value in results.items() if name not in BIG}),
    )
    path = folder / PAGE
    write_text(path, page)
    return path


def _distances(results: Mapping[str, Any]) -> list[tuple[str, list[str], bool]]:
    """Return title, cells and whether it is the model's of each row of distances between sets."""
    return [
        (EDITORS[row["editor"]][0], distance_cells(row), row["editor"] == MODEL)
        for row in results.get("distances", ())
    ]


def _template(noun: str) -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"json": json.dumps, "counted": partial(plural, noun=noun)}
    environment.globals |= {
        "metric": metric,
        "number": number,
        "numbers": numbers,
        "dash": NONE,
        "own": OWN,
        "side": gallery.SIDE,
    }
    return environment.from_string(_asset("html"))


def _asset(kind: str) -> str:
    path = files("emu_edit.evaluation").joinpath(f"page.{kind}")
    return path.read_bytes().decode("utf-8")  # bytes: the hash is of these line ends


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_asset("js").encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _name(model: Mapping[str, str] | str) -> str:
    return model["name"] if isinstance(model, Mapping) else Path(model).name


def _grid(folder: Path) -> str | None:
    path = folder / GRID
    return gallery.data_uri(to_pil(read_image(path))) if path.is_file() else None


def number(name: str, value: float | None) -> str:
    """Write a metric's value as text."""
    if value is None or not math.isfinite(value):
        return NONE
    if name in SHARES:
        return f"{100 * value:.0f} %"
    return f"{value:.{4 if name in FINE else 3}f}"


def tables(block: Block, noun: str = "edit") -> Iterator[Table]:
    """Lay out the overall table, then one for each kind that has at least two parts."""
    whole = [
        TableRow(*EDITORS.get(editor, (editor, "")), row.all, is_own=editor == MODEL)
        for editor, row in block.rows.items()
    ]
    yield Table("overall", _scales(block, [row.figures for row in whole]), whole)
    for kind in ("task", "family", "turn"):
        parts = {editor: row.parts.get(kind, {}) for editor, row in block.rows.items()}
        own = parts.pop(MODEL)
        if len(own) > 1:
            rows = [
                TableRow(
                    name or "none given",
                    plural(max((f.n + f.undefined for f in figures.values()), default=0), noun),
                    figures,
                    {editor: part[name] for editor, part in parts.items()},
                )
                for name, figures in own.items()
            ]
            everything = [*own.values(), *(f for part in parts.values() for f in part.values())]
            yield Table(kind, _scales(block, everything), rows)


def _scales(block: Block, rows: Sequence[Figures]) -> dict[str, Scale]:
    return {
        name: Scale.over(figures[name] for figures in rows if name in figures)
        for name in block.metrics
    }


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield ("protocol.clip", "openai/…") and so on: nested values under their full names."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    elif isinstance(value, list):
        yield prefix, ", ".join(map(_plain, value)) or NONE
    else:
        yield prefix, _plain(value) or NONE


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
