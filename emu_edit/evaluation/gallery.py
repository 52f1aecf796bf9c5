"""The pictures of the page of results: which edits are shown, and what stands on each card.

Pictures are made at most 256 px large. A small file stays PNG, so that synthetic pictures are shown
bit for bit; a photograph becomes JPEG without chroma subsampling, since two hundred photographs
times three as PNG would be a page of 80 MB. The files that were scored lie in images/.
"""

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from emu_edit.evaluation.figures import metric
from emu_edit.evaluation.outputs import ItemPictures, ItemVideos
from emu_edit.images import read_image, to_pil
from emu_edit.video.clip import Video
from emu_edit.video.preview import preview

SIDE, MOVIE_SIDE = 256, 192  # px, of a shown picture and of a shown video at most
MOST_PNG = 24 * 1024  # bytes; larger ones become JPEG
QUALITY = 90
TINY = 96  # px; below, pixels are shown as squares
CHOSEN_BY = ("clip_dir", "dino", "clip_i")  # the first that is there says which edits are worst

Item = Mapping[str, Any]  # a line of items.jsonl
Option = tuple[str, str]  # of a list to choose from: value and text


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a card, in the page itself.

    Attributes:
        label: what it is: "input", "edited", "ground truth".
        address: the picture as a data URI.
        width: in px.
        height: in px.
        is_movie: whether it is an mp4, to be played.
    """

    label: str
    address: str
    width: int
    height: int
    is_movie: bool = False

    @property
    def is_tiny(self) -> bool:
        """Whether its pixels are to be seen as squares."""
        return max(self.width, self.height) <= TINY


def thumbnails(
    key: str, folder: Path, pictures: Callable[[str], ItemPictures | ItemVideos] | None
) -> list[Thumbnail]:
    """Shrink the pictures or videos of an edit.

    Args:
        key: of the edit.
        folder: what `evaluate` wrote.
        pictures: of an edit, by its key; None means the edited one in images/, if there is one.
    """
    if pictures is None:
        path = folder / "images" / f"{key}.png"
        is_there = Path(key).name == key and path.is_file()
        return [_thumbnail("edited", read_image(path))] if is_there else []
    found = pictures(key)
    made = "drawn" if found.source is None else "edited"
    shown = {"input": found.source, made: found.output, "ground truth": found.target}
    return [_thumbnail(label, one) for label, one in shown.items() if one is not None]


def _thumbnail(label: str, one: UInt8[Tensor, "3 _ _"] | Video) -> Thumbnail:
    if not isinstance(one, Tensor):
        movie, (height, width) = preview(one, MOVIE_SIDE)
        address = f"data:video/mp4;base64,{base64.b64encode(movie).decode('ascii')}"
        return Thumbnail(label, address, width, height, is_movie=True)
    small = to_pil(one)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)  # never enlarges
    return Thumbnail(label, data_uri(small), *small.size)


def data_uri(picture: Image.Image) -> str:
    """Write a picture as text that a page can hold: PNG, or JPEG where that is much smaller."""
    data, kind = _encoded(picture, "PNG", optimize=True), "png"
    if len(data) > MOST_PNG:
        data, kind = _encoded(picture, "JPEG", quality=QUALITY, subsampling=0), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chosen_metric(metrics: Sequence[str]) -> str | None:
    """Name the metric that says which edits are the worst and the best."""
    return next((name for name in (*CHOSEN_BY, *metrics) if name in metrics), None)


def choose(items: Sequence[Item], name: str | None, most: int) -> list[Item]:
    """Take at most so many edits: of every task the worst, the best, the second worst and so on.

    Those that have no score of the metric come last; without a metric the order is the file's.
    """
    by_task: dict[str, list[Item]] = {}
    for item in items:
        by_task.setdefault(item["task"], []).append(item)
    groups = [group if name is None else _by_turns(group, name) for group in by_task.values()]
    rounds = chain.from_iterable(zip_longest(*groups))
    return [item for item in rounds if item is not None][:most]


def _by_turns(items: Iterable[Item], name: str) -> list[Item]:
    """Order: the worst, the best, the second worst, …, then those without the score."""
    scored = [(item["scores"].get(name), item) for item in items]
    sign = -1 if metric(name).is_up is False else 1
    known = [(sign * score, item) for score, item in scored if score is not None]
    order = [item for _, item in sorted(known, key=lambda pair: pair[0])]
    half = (len(order) + 1) // 2
    pairs = zip_longest(order[:half], reversed(order[half:]))
    turns = [item for pair in pairs for item in pair if item is not None]
    return [*turns, *(item for score, item in scored if score is None)]


def orders(metrics: Iterable[str]) -> Iterator[Option]:
    """List the orders that the cards can be shown in; `page.js` reads the values."""
    yield json.dumps(["", 1]), "alternately worst and best"
    for name in metrics:
        shown = metric(name)
        sign = -1 if shown.is_up is False else 1
        first, last = ("lowest", "highest") if shown.is_up is None else ("worst", "best")
        yield json.dumps([name, sign]), f"{shown.label}, {first} first"
        yield json.dumps([name, -sign]), f"{shown.label}, {last} first"


def parts(blocks: Sequence[str], items: Iterable[Item]) -> Iterator[Option]:
    """List the parts that can be shown alone: blocks and tasks, where there are several."""
    yield json.dumps(["", ""]), "all"
    tasks = list(dict.fromkeys(item["task"] for item in items))
    if len(blocks) > 1:
        yield from ((json.dumps(["block", block]), block) for block in blocks)
    if len(tasks) > 1:
        yield from ((json.dumps(["task", task]), task or "no task") for task in tasks)
