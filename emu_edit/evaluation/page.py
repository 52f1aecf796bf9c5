"""The page of results: everything an evaluation found, to look at, as one file.

OUT/index.html opens without a server and loads nothing: style, script and pictures are in it, and
its content policy forbids the rest. Instructions, captions and names are strangers' texts; all of
them are escaped (`emu_edit.evaluation.markup`), and only the page's own script may run.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_edit.evaluation.compare import Group, compare
from emu_edit.evaluation.figures import Block, blocks_of, metric, read_items, read_results
from emu_edit.evaluation.gallery import (
    SIDE,
    Item,
    Shown,
    card,
    choose,
    chosen_metric,
    data_uri,
    pictures_in,
)
from emu_edit.evaluation.markup import Markup, join, tag
from emu_edit.evaluation.page_tables import (
    NONE,
    comparison,
    edits_text,
    legend,
    meanings,
    overall_table,
    part_table,
)
from emu_edit.files import write_text
from emu_edit.images import read_image, to_pil
from emu_edit.metrics.published import PublishedRow

if TYPE_CHECKING:
    from emu_edit.evaluation.results import ItemPictures

PAGE = "index.html"
GRID = "grid.png"  # of the world benchmark, which writes no items
MOST_ITEMS = 200
TITLES = {
    "emu-edit": "Emu Edit test set",
    "magicbrush": "MagicBrush test set",
    "world": "World benchmark",
}
BLOCKS = {
    "all turns": "All turns (single-turn)",
    "final turns": "Final turns (multi-turn)",
    "single edits": "Scores",
    "vision tasks": "Vision tasks, measured",
}
FAILED, PUBLISHED, EDITS, SETTINGS = "failed", "published", "pictures", "settings"  # places
BIG = ("blocks", "report", "failed", "filtered", "resampled", "inputs", "directions", "format")


def write_page(
    folder: Path,
    results: Mapping[str, Any] | None = None,
    items: Sequence[Item] | None = None,
    pictures: "Callable[[str], ItemPictures] | None" = None,
    published: Sequence[PublishedRow] = (),
) -> Path:
    """Write index.html and return where it is.

    Args:
        folder: what `evaluate` wrote.
        results: what results.json holds; None means to read it.
        items: what items.jsonl holds; None means to read it.
        pictures: of an item, by its key; None means the edited ones in images/, alone.
        published: rows to show below one's own; none means that nobody asked.

    Raises:
        InputError: if results.json, items.jsonl or a picture cannot be read.
    """
    results = read_results(folder) if results is None else results
    items = read_items(folder) if items is None else items
    find = pictures_in(folder) if pictures is None else _labelled(pictures)
    path = folder / PAGE
    write_text(path, _page(folder, results, items, find, published))
    return path


def _labelled(pictures: "Callable[[str], ItemPictures]") -> Callable[[str], Shown]:
    def find(key: str) -> Shown:
        found = pictures(key)
        truth = [] if found.target is None else [("ground truth", found.target)]
        return [("input", found.source), ("edited", found.output), *truth]

    return find


def _page(
    folder: Path,
    results: Mapping[str, Any],
    items: Sequence[Item],
    find: Callable[[str], Shown],
    published: Sequence[PublishedRow],
) -> str:
    blocks = blocks_of(results)
    rest = [
        _comparisons(results, published),
        _failed(results, items),
        _gallery(blocks, items, find) if items else _grid(folder),
        _details(results),
    ]
    body = [
        _header(results, blocks),
        _contents(join(rest)),
        *(_block(block) for block in blocks),
        _key(blocks),
        *rest,
        tag("footer", None, "One file: it loads nothing from elsewhere."),
    ]
    title = f"{_name(results)} · {_benchmark(results)}"
    head = [
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": _policy()}),
        tag("title", None, title),
        tag("style", None, Markup(_asset("css"))),
    ]
    script = tag("script", None, Markup(_asset("js"))) if items else Markup()
    page = tag("html", {"lang": "en"}, tag("head", None, *head), tag("body", None, *body, script))
    return f"<!doctype html>\n{page}\n"


def _contents(sections: str) -> Markup:
    """Return links to the sections there are; scores stand right below."""
    places = {
        PUBLISHED: "Published numbers",
        FAILED: "Failed edits",
        EDITS: "Edits",
        SETTINGS: "What the numbers depend on",
    }
    found = [place for place in places if f'<section id="{place}"' in sections]
    return tag("nav", None, *(tag("a", {"href": f"#{one}"}, places[one]) for one in found))


def _asset(kind: str) -> str:
    path = files("emu_edit.evaluation").joinpath(f"page.{kind}")
    return path.read_bytes().decode("utf-8")  # bytes: the hash is of these line ends


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_asset("js").encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _name(results: Mapping[str, Any]) -> str:
    model = results["model"]
    return str(model["name"] if isinstance(model, Mapping) else Path(model).name)


def _benchmark(results: Mapping[str, Any]) -> str:
    name: str = results["benchmark"]
    return TITLES.get(name, name)


def _header(results: Mapping[str, Any], blocks: Sequence[Block]) -> Markup:
    facts = tag("dl", {"class": "facts"}, *(
        tag("div", None, tag("dt", None, name), value)
        for name, value in _facts(results, blocks)))  # fmt: skip
    return tag("header", None,
        tag("p", {"class": "over"}, _benchmark(results)),
        tag("h1", None, _name(results)),
        facts,
        *(tag("p", {"class": "notice"}, *notice) for notice in _notices(results)))  # fmt: skip


def _facts(results: Mapping[str, Any], blocks: Sequence[Block]) -> Iterator[tuple[str, Markup]]:
    protocol, data, model = results.get("protocol"), results.get("data"), results["model"]
    if protocol is not None:
        yield "protocol", _fact(protocol["name"])
        yield "compared with", _fact(f"the {protocol['reference']}")
    if data is None:
        yield "split", _fact(results["split"])
        yield "edits", _fact(f"{blocks[0].items:,}")
    else:
        yield "edits", _fact(f"{data['items']:,} of {data['of']:,}")
        if data["split"]:
            yield "split", _fact(data["split"])
        yield "data, sha256", _hash(data["sha256"])
    if isinstance(model, Mapping):
        yield f"{model['kind']}, sha256", _hash(model["sha256"])
    seconds = results["seconds"]
    yield "time", _fact(f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min")


def _fact(text: str) -> Markup:
    return tag("dd", None, text)


def _hash(text: str) -> Markup:
    return tag("dd", {"class": "hash", "title": text}, text[:12])


def _notices(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Say what a reader must know before the numbers."""
    data, failed = results.get("data"), results.get("failed", [])
    if data is not None and data["items"] < data["of"]:
        yield [
            f"A part of the benchmark: {data['items']:,} of {data['of']:,} edits. Not comparable "
            "with published numbers."
        ]
    if failed:
        link = tag("a", {"href": f"#{FAILED}"}, edits_text(len(failed)))
        yield [link, " failed and were scored as copy-input."]


def _block(block: Block) -> Markup:
    title = BLOCKS.get(block.name, block.name)
    parts = [tag("h2", None, title, tag("small", None, edits_text(block.items)))]
    parts.append(overall_table(block))
    for kind in ("task", "family", "turn"):
        table = part_table(block, kind)
        if table:
            parts += [tag("h3", None, f"By {kind}"), table]
    return tag("section", None, *parts)


def _key(blocks: Sequence[Block]) -> Markup:
    """Say how the tables are read."""
    names = dict.fromkeys(name for block in blocks for name in block.metrics)
    return tag("section", None, legend(blocks),
        tag("details", None, tag("summary", None, "What the metrics mean"), meanings(names)),
    )  # fmt: skip


def _comparisons(results: Mapping[str, Any], published: Sequence[PublishedRow]) -> Markup:
    groups = compare(results, published) if "protocol" in results else ()
    if not groups:
        return Markup()
    lead = (
        "As their sources print them, in the order of names. Numbers made by different protocols "
        "cannot be ranked: the same pictures score 0.22 or 0.28 in CLIPout with another CLIP."
    )
    parts = [part for group in groups for part in (_group_heading(group), comparison(group))]
    return tag("section", {"id": PUBLISHED},
        tag("h2", None, "Published numbers"),
        tag("p", {"class": "lead"}, lead),
        *parts)  # fmt: skip


def _group_heading(group: Group) -> Markup:
    text = f"not comparable: {group.why_not}" if group.why_not else "same benchmark and protocol"
    state = tag("span", {"class": "state" if group.why_not else "state same"}, text)
    title = group.title
    return tag("h3", None, title[:1].upper() + title[1:], " ", state)


def _failed(results: Mapping[str, Any], items: Iterable[Item]) -> Markup:
    """List what failed, what the protocol left out and what had another size."""
    instructions = {item["key"]: item["instruction"] for item in items}
    failed = [
        tag("li", None,
            tag("code", None, one["key"]), " ", instructions.get(one["key"], ""),
            tag("small", None, one["reason"]))
        for one in results.get("failed", [])
    ]  # fmt: skip
    heading = tag("h2", None, "Failed edits", tag("small", None, "scored as copy-input"))
    return join([
        tag("section", {"id": FAILED}, heading, tag("ul", {"class": "list"}, *failed))
        if failed else Markup(),
        _keys("left out by the protocol (captions equal or known to be wrong)",
            results.get("filtered", [])),
        _keys("of another size than their reference, resampled",
            results.get("resampled", {}).get("keys", [])),
    ])  # fmt: skip


def _keys(what: str, keys: Sequence[str]) -> Markup:
    if not keys:
        return Markup()
    return tag("details", None,
        tag("summary", None, f"{edits_text(len(keys))} {what}"),
        tag("p", {"class": "keys"}, tag("code", None, ", ".join(keys))))  # fmt: skip


def _gallery(
    blocks: Sequence[Block], items: Sequence[Item], find: Callable[[str], Shown]
) -> Markup:
    names = list(dict.fromkeys(name for block in blocks for name in block.metrics))
    by = chosen_metric(names)
    chosen = choose(items, by, MOST_ITEMS)
    has_tasks = len({item["task"] for item in items}) > 1
    whose = " of every task" if has_tasks else ""
    how = "" if by is None else f", the worst and the best{whose} by {metric(by).label} first"
    lead = f"{len(chosen):,} of {edits_text(len(items))}{how}. Shown at most {SIDE} px large."
    cards = [card(item, find(item["key"])) for item in chosen]
    return tag("section", {"id": EDITS},
        tag("h2", None, "Edits"),
        tag("p", {"class": "lead"}, lead),
        _choice(names, [block.name for block in blocks], chosen),
        tag("div", {"class": "edits", "id": "edits"}, *cards))  # fmt: skip


def _choice(names: Iterable[str], blocks: Sequence[str], items: Iterable[Item]) -> Markup:
    orders: list[tuple[object, str]] = [(["", 1], "alternately worst and best")]
    for name in names:
        is_up = metric(name).is_up
        ends = ("lowest", "highest") if is_up is None else ("worst", "best")
        sign = -1 if is_up is False else 1
        orders += [
            ([name, s], f"{metric(name).label}, {end} first")
            for s, end in zip((sign, -sign), ends, strict=True)
        ]
    tasks = list(dict.fromkeys(item["task"] for item in items))
    parts = [(["", ""], "all")]
    parts += [(["block", block], block) for block in blocks if len(blocks) > 1]
    parts += [(["task", task], task or "no task") for task in tasks if len(tasks) > 1]
    return tag("div", {"class": "choice", "id": "choice", "hidden": ""},
        tag("label", None, "Order", _select("order", orders)),
        tag("label", None, "Show", _select("part", parts)),
        tag("label", {"id": "count"}))  # fmt: skip


def _select(place: str, options: Iterable[tuple[object, str]]) -> Markup:
    made = [tag("option", {"value": json.dumps(value)}, text) for value, text in options]
    return tag("select", {"id": place}, *made)


def _grid(folder: Path) -> Markup:
    path = folder / GRID
    if not path.is_file():
        return Markup()
    look = {"class": "grid", "src": data_uri(to_pil(read_image(path))), "alt": "some of the edits"}
    picture = tag("div", {"class": "wide"}, tag("img", look))
    return tag("section", {"id": EDITS}, tag("h2", None, "Edits"), picture)


def _details(results: Mapping[str, Any]) -> Markup:
    given = {name: value for name, value in results.items() if name not in BIG}
    lines = [
        part
        for name, value in _flat("", given)
        for part in (tag("dt", None, name), tag("dd", {"class": "hash"}, value))
    ]
    return tag("section", {"id": SETTINGS},
        tag("h2", None, "What the numbers depend on"),
        tag("details", None, tag("summary", None, "Protocol, hashes, settings, versions"),
            tag("dl", {"class": "settings"}, *lines)))  # fmt: skip


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
