"""Write a world as shards: a folder of tars with manifest, and a contact sheet to look at.

Tasks are written by several processes, each its own shards; since every pair is a pure function of
its index, the bytes do not depend on how many processes there are. The contact sheet shows some
pairs of every task, source beside target under the instruction.
"""

import json
import multiprocessing
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datamodules.shards.manifest import (
    CONTACT_SHEET,
    MANIFEST,
    NEW_TASK,
    Manifest,
    ShardEntry,
    write_manifest,
)
from datamodules.shards.writer import PairRecord, write_task_shards
from datamodules.world import captions
from datamodules.world.captions import make_caption
from datamodules.world.new_tasks import make_new_pair
from datamodules.world.pair import VERSION, make_pair
from datamodules.world.photographs import Photos
from datamodules.world.sessions import NOOPS, make_noop
from datamodules.world.studio import WorldPair
from emu_edit.errors import InputError
from emu_edit.files import write_text
from emu_edit.tasks import CAPTION, SIXTEEN

PROGRAM = "emu_edit shards world"
SHOWN = 5  # pairs of a task in the contact sheet
PHOTOGRAPHS = "photographs.jsonl"  # those that the pairs show: package, licence, author, hash
SKIPPED = "skipped.jsonl"  # photographs that cannot be used
MIN_FOR_PROCESSES = 2000  # pairs; fewer are written before other processes have started

_Written = tuple[list[ShardEntry], dict[Path, str]]  # shards of a task, and bad photographs met

# kinds of edit that a small model learns last, and that share a task with easy ones
HARD: dict[str, frozenset[str]] = {
    "local": frozenset({"swap"}),
    "texture": frozenset({"pattern"}),
    "text": frozenset({"add", "replace"}),
    "style": frozenset({"comic", "mosaic", "poster"}),
    "color": frozenset({"sharpen"}),
}


@dataclass(frozen=True)
class Extras:
    """What a world to train on may have beside its plain pairs.

    Attributes:
        noops: how many pairs that ask for nothing come with each task that has such, see `NOOPS`.
        hard: how many more pairs of the kinds that are learnt last come with each task of `HARD`.
        paraphrased: also ask in the many more ways of `phrasings.PARAPHRASES`.
        by_kind: each kind of edit of a task has shards of its own, to be drawn apart.
        flat: of one or two plain figures on a plain backdrop; without other extra pairs.
    """

    noops: int = 0
    hard: int = 0
    paraphrased: bool = False
    by_kind: bool = False
    flat: bool = False

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        for name, value in (("noop_pairs", self.noops), ("hard_pairs", self.hard)):
            if value < 0:
                raise InputError(f"data.{name}={value} must be at least 0")
            if value and self.flat:
                raise InputError(
                    f"data.{name}={value} are pairs of the whole world, and data.flat asks for "
                    "flat ones; leave one of the two out"
                )


@dataclass(frozen=True)
class World:
    """Everything that the pairs of a world are a function of; see `write_world`."""

    pairs: int
    seed: int
    size: int
    split: str
    photos: Photos | None = None
    extras: Extras = field(default_factory=Extras)

    @property
    def total(self) -> int:
        """The number of pairs with the extra ones."""
        return self.pairs + self.extras.noops * len(NOOPS) + self.extras.hard * len(HARD)

    def records(self, task: str) -> Iterator[PairRecord]:
        """Yield the pairs of a task: the plain ones, those that ask for nothing, the hard ones."""
        step, first = len(SIXTEEN), SIXTEEN.index(task)
        options = {"size": self.size, "split": self.split, "photos": self.photos}
        paraphrased = self.extras.paraphrased
        flat = self.extras.flat
        make = partial(make_pair, self.seed, paraphrased=paraphrased, flat=flat, **options)
        yield from map(make, range(first, self.pairs, step))
        if task in NOOPS:
            noop = partial(make_noop, self.seed, task=task, paraphrased=paraphrased, **options)
            yield from map(noop, range(self.extras.noops))
        if task in HARD:
            # the same stream of pairs, beyond the plain ones
            beyond = map(make, count(first + -(-self.pairs // step) * step, step))
            hard = (pair for pair in beyond if pair.extra["kind"] in HARD[task])
            yield from islice(hard, self.extras.hard)

    def made_by(self) -> dict[str, object]:
        """Return what a manifest says about a world: enough to write it again or tell it apart."""
        return {
            "program": PROGRAM,
            "world_version": VERSION,
            "seed": self.seed,
            "pairs": self.pairs,
            "size": self.size,
            "split": self.split,
            "photos": None if self.photos is None else self.photos.description,
            # absent without them, as in the folders of before there were any
            **{name: value for name, value in asdict(self.extras).items() if value},
            **({"hard_kinds": {t: sorted(HARD[t]) for t in HARD}} if self.extras.hard else {}),
        }


def write_world(
    folder: Path,
    pairs: int,
    *,
    seed: int = 0,
    size: int = 64,
    split: str = "train",
    photos: Photos | None = None,
    extras: Extras | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write pairs 0 to `pairs` - 1 of a world into a folder, and the extra pairs behind them.

    Args:
        folder: made if missing; must have no manifest yet.
        pairs: at least 16, one for each task.
        seed: of the world.
        size: side of the pictures in pixels.
        split: "train" or "heldout", see `make_pair`.
        photos: photographs used as backgrounds and edited; listed in PHOTOGRAPHS.
        extras: what it has beside its plain pairs; by default nothing.
        workers: processes; by default one for each core. Changes speed only.
        progress: called with (pairs written, pairs in all) after each task.

    Raises:
        InputError: if there are fewer pairs than tasks, or the folder holds shards already.
    """
    if pairs < len(SIXTEEN):
        raise InputError(
            f"pairs={pairs} is too few for a world; give {len(SIXTEEN)} or more, one for each task"
        )
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} must be at least 1")
    _make_empty(folder)
    world = World(pairs, seed, size, split, photos, Extras() if extras is None else extras)
    write = partial(_write_task, world, folder)
    entries: list[ShardEntry] = []
    done = 0
    for written, bad in _in_order(write, workers=1 if pairs < MIN_FOR_PROCESSES else workers):
        entries.extend(written)
        if photos is not None:
            photos.add_bad(bad)
        done += sum(entry.samples for entry in written)
        if progress is not None:
            progress(done, world.total)
    # scenes do not depend on the size, and pictures larger than a tile could not be seen
    flat = world.extras.flat
    rows = sample_rows(seed, size=min(size, TILE), split=split, photos=photos, flat=flat)
    contact_sheet(rows).save(folder / CONTACT_SHEET)
    _list_photographs(folder, photos)
    return write_manifest(folder, entries, made_by=world.made_by())


def write_new_task(
    task: str,
    folder: Path,
    pairs: int,
    *,
    seed: int = 0,
    size: int = 64,
    split: str = "train",
    photos: Photos | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write pairs 0 to `pairs` - 1 of a task that is in no training world, see `make_new_pair`.

    Raises:
        InputError: if the task, split or size is none, or the folder holds shards already.
    """
    make = partial(make_new_pair, seed, task=task, size=size, split=split, photos=photos)
    entries = _write_one(folder, task, make, pairs, progress)
    _list_photographs(folder, photos)
    maker = {**World(pairs, seed, size, split, photos).made_by(), NEW_TASK: task}
    return write_manifest(folder, entries, made_by=maker)


def write_captions(
    folder: Path,
    pictures: int,
    *,
    seed: int = 0,
    size: int = 32,
    split: str = "train",
    flat: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write pictures 0 to `pictures` - 1 of the world with their captions, see `make_caption`.

    Raises:
        InputError: if the split or size is none, or the folder holds shards already.
    """
    make = partial(make_caption, seed, size=size, split=split, flat=flat)
    entries = _write_one(folder, CAPTION, make, pictures, progress)
    return write_manifest(
        folder, entries, made_by=captions_made_by(pictures, seed, size, split, flat)
    )


def captions_made_by(
    pictures: int, seed: int, size: int, split: str, flat: bool
) -> dict[str, object]:
    """Return what a manifest says about such pictures: enough to tell them apart."""
    maker = {**World(pictures, seed, size, split).made_by(), NEW_TASK: CAPTION}
    return {**maker, "captions_version": captions.VERSION, "flat": flat}


def _write_one(
    folder: Path,
    task: str,
    make: Callable[[int], PairRecord],
    pairs: int,
    progress: Callable[[int, int], None] | None,
) -> list[ShardEntry]:
    """Write the shards and the contact sheet of one task."""
    shown = [make(index) for index in range(min(pairs, SHOWN))]  # refused before anything is made
    _make_empty(folder)

    def records() -> Iterator[PairRecord]:
        for index in range(pairs):
            yield make(index)
            if progress is not None:
                progress(index + 1, pairs)

    entries = write_task_shards(folder, task, records(), by_shape=True)
    contact_sheet([(task, shown)]).save(folder / CONTACT_SHEET)
    return entries


def _make_empty(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds shards already; give another folder or delete this one")
    folder.mkdir(parents=True, exist_ok=True)


def _write_task(world: World, folder: Path, task: str) -> _Written:
    by_kind = world.extras.by_kind
    records = world.records(task)
    entries = write_task_shards(folder, task, records, by_kind=by_kind, by_shape=True)
    return entries, {} if world.photos is None else world.photos.bad


def _list_photographs(folder: Path, photos: Photos | None) -> None:
    """List the photographs, and those that others took the place of, a line of JSON each."""
    if photos is None:
        return
    rows = [json.dumps(row, ensure_ascii=False) for row in photos.table()]
    write_text(folder / PHOTOGRAPHS, "\n".join(rows))
    if photos.bad:
        bad = [{"file": str(path), "reason": why} for path, why in sorted(photos.bad.items())]
        write_text(folder / SKIPPED, "\n".join(json.dumps(row) for row in bad))


def _in_order(write: Callable[[str], _Written], workers: int | None) -> Iterator[_Written]:
    """Yield what each task came to, in the order of the tasks."""
    number = min((os.cpu_count() or 1) if workers is None else workers, len(SIXTEEN))
    if number == 1:
        yield from map(write, SIXTEEN.names)
        return
    # spawn: torch has threads by now, and a forked process may wait forever for one of their locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, mp_context=context) as pool:
        yield from pool.map(write, SIXTEEN.names)


TILE = 128  # side of a shown picture
TEXT = 42  # height of the text above it
GAP = 10
LETTERS = 44  # per line of text
NAME = 88  # width of the column with the task's name


def contact_sheet(rows: Sequence[tuple[str, Sequence[PairRecord]]]) -> Image.Image:
    """Return a sheet of named rows of pairs; pictures are enlarged without smoothing."""
    columns = max(len(pairs) for _, pairs in rows)
    cell = 2 * TILE + GAP
    width = NAME + columns * (cell + GAP)
    sheet = Image.new("RGB", (width, len(rows) * (TEXT + TILE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for r, (name, pairs) in enumerate(rows):
        top = GAP + r * (TEXT + TILE + GAP)
        beside = (GAP, top + TEXT + TILE // 2)
        draw.text(beside, name, fill="black", font=ImageFont.load_default(size=13))
        for c, pair in enumerate(pairs):
            left = NAME + c * (cell + GAP)
            lines = textwrap.wrap(pair.instruction, LETTERS)[:3]
            draw.multiline_text((left, top), "\n".join(lines), fill="black", font=font, spacing=2)
            sheet.paste(_enlarged(pair.source), (left, top + TEXT))
            sheet.paste(_enlarged(pair.target), (left + TILE + 2, top + TEXT))
    return sheet


def sample_rows(
    seed: int, *, size: int, split: str, photos: Photos | None, flat: bool = False
) -> list[tuple[str, list[WorldPair]]]:
    """Return pairs of each task, of as many kinds of edit as fit, both directions among them."""
    rows = []
    for number, task in enumerate(SIXTEEN.names):
        make = partial(make_pair, task=task, size=size, split=split, photos=photos, flat=flat)
        candidates = [make(seed, number + 16 * i) for i in range(2 * SHOWN)]
        firsts = {pair.extra["kind"]: pair for pair in reversed(candidates)}
        # stable: first one pair of each kind, then the others, in their order
        pairs = sorted(candidates, key=lambda pair: pair is not firsts[pair.extra["kind"]])
        rows.append((task, pairs[:SHOWN]))
    return rows


def _enlarged(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.NEAREST)
