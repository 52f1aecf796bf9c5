"""The pictures of the page of results: which edits are shown, and each as a card.

Pictures are made at most 256 px large. A small file stays PNG, so that synthetic pictures are shown
bit for bit; a photograph becomes JPEG without chroma subsampling, since two hundred photographs
times three as PNG would be a page of 80 MB. The files that were scored lie in images/.
"""

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from emu_edit.evaluation.figures import metric
from emu_edit.evaluation.markup import Markup, tag
from emu_edit.evaluation.page_tables import NONE, number
from emu_edit.images import read_image, to_pil

SIDE = 256  # of a shown picture at most
SINGLE = "single edits"
MOST_PNG = 24 * 1024  # bytes; larger ones become JPEG
QUALITY = 90
TINY = 96  # px; below, pixels are shown as squares
CHOSEN_BY = ("clip_dir", "dino", "clip_i")  # the first that is there says which edits are worst

Shown = Sequence[tuple[str, UInt8[Tensor, "3 _ _"]]]  # what a picture is, and the picture
Item = Mapping[str, Any]  # a line of items.jsonl


def pictures_in(folder: Path) -> Callable[[str], Shown]:
    """Return what finds an edited picture among the files that `evaluate` wrote."""

    def find(key: str) -> Shown:
        path = folder / "images" / f"{key}.png"
        is_there = Path(key).name == key and path.is_file()
        return [("edited", read_image(path))] if is_there else []

    return find


def chosen_metric(metrics: Iterable[str]) -> str | None:
    """Return the metric that says which edits are the worst and the best."""
    names = tuple(metrics)
    return next((name for name in (*CHOSEN_BY, *names) if name in names), None)


def choose(items: Sequence[Item], name: str | None, most: int) -> list[Item]:
    """Return at most so many edits: of every task the worst, the best, the second worst and so on.

    Those that have no score of the metric come last; without a metric the order is the file's.
    """
    by_task: dict[str, list[Item]] = {}
    for item in items:
        by_task.setdefault(item["task"], []).append(item)
    groups = [group if name is None else _by_turns(group, name) for group in by_task.values()]
    rounds = chain.from_iterable(zip_longest(*groups))
    return [item for item in rounds if item is not None][:most]


def _by_turns(items: Iterable[Item], name: str) -> list[Item]:
    """Return the worst, the best, the second worst, …, then those without the score."""
    scored = [(item["scores"].get(name), item) for item in items]
    sign = -1 if metric(name).is_up is False else 1
    known = [(sign * score, item) for score, item in scored if score is not None]
    order = [item for _, item in sorted(known, key=lambda pair: pair[0])]
    half = (len(order) + 1) // 2
    pairs = zip_longest(order[:half], reversed(order[half:]))
    turns = [item for pair in pairs for item in pair if item is not None]
    return [*turns, *(item for score, item in scored if score is None)]


def card(item: Item, pictures: Shown) -> Markup:
    """Return one edit: its pictures, its instruction, where it belongs, its scores."""
    figures = [_figure(label, to_pil(picture)) for label, picture in pictures]
    missing = tag("p", {"class": "missing"}, "no picture")
    has_failed = item["status"] == "failed"
    scores = {name: value for name, value in item["scores"].items() if value is not None}
    place = {
        "id": anchor(item["key"]),
        "class": "edit",
        "data-task": item["task"],
        "data-blocks": json.dumps(item["block"]),
        "data-scores": json.dumps(scores),
    }
    return tag("article", place,
        tag("div", {"class": "pictures"}, *(figures or [missing])),
        tag("p", {"class": "instruction"}, item["instruction"] or "(no instruction)"),
        tag("p", {"class": "place"}, *_place(item)),
        tag("p", {"class": "failed"}, f"failed, scored as copy-input: {item['reason']}")
        if has_failed else Markup(),
        _scores(item["scores"]))  # fmt: skip


def anchor(key: str) -> str:
    """Return the place of an edit's card in the page."""
    return f"edit-{key}"


def _place(item: Item) -> list[Markup]:
    texts = [item["task"]] if item["task"] else []
    if item["block"] != [SINGLE]:
        texts.append(f"turn {item['turn']}")
    return [
        *(tag("span", {"class": "chip"}, text) for text in texts),
        tag("code", None, item["key"]),
    ]


def _scores(scores: Mapping[str, float | None]) -> Markup:
    lines = [
        tag("div", {"data-metric": name},
            tag("dt", None, metric(name).label),
            tag("dd", None, NONE if value is None else number(name, value)))
        for name, value in scores.items()
    ]  # fmt: skip
    return tag("dl", {"class": "scores"}, *lines)


def _figure(label: str, picture: Image.Image) -> Markup:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)  # never enlarges
    look = {
        "src": data_uri(small),
        "alt": label,
        "width": str(small.width),
        "height": str(small.height),
        "loading": "lazy",
        "decoding": "async",
    }
    if max(small.size) <= TINY:
        look["class"] = "tiny"
    return tag("figure", None, tag("img", look), tag("figcaption", None, label))


def data_uri(picture: Image.Image) -> str:
    """Return a picture as text that a page can hold: PNG, or JPEG where that is much smaller."""
    data, kind = _encoded(picture, "PNG", optimize=True), "png"
    if len(data) > MOST_PNG:
        data, kind = _encoded(picture, "JPEG", quality=QUALITY, subsampling=0), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
