"""What a benchmark is to the evaluator: items with pictures that are read when they are needed.

An item is one edit. The keys name its files, its noise and its row everywhere; how a benchmark's
own files are laid out is known to its loader alone.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamodules.convert.picture import Picture
from emu_edit.errors import InputError

SINGLE, ALL_TURNS, FINAL_TURNS = "single edits", "all turns", "final turns"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAMED = 3  # of the names in a message


@dataclass(frozen=True, kw_only=True)
class Item:
    """What an edit is, whatever is edited.

    Attributes:
        key: unique, and safe as the name of a file.
        task: as the benchmark calls it, "" if it does not.
        session: edits of one session have the same; they are not independent of each other.
        turn: in its session, from 1.
        instruction: as it stands in the benchmark.
        source_caption: of what it was before this edit, "" if there is none.
        target_caption: of what it is after it.
    """

    key: str
    task: str
    session: str
    turn: int = 1
    instruction: str
    source_caption: str
    target_caption: str


@dataclass(frozen=True, kw_only=True)
class BenchmarkItem(Item):
    """One edit of a picture.

    Attributes:
        source: what is edited; with `follows`, where its session began.
        target: the ground truth, None where there is none.
        follows: key of the item whose result is edited; None means `source` is.
    """

    source: Picture
    target: Picture | None = None
    follows: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """Items, and which of them a table is about.

    Attributes:
        name: as on the command line.
        folder: name of the folder it was read from, without the way to it.
        split: of the benchmark, "" if it has none.
        items: in the benchmark's order; an item stands behind the one it follows.
        blocks: keys by table; an item may be in several or, a turn in between, in none.
        known: the keys of all items of the folder, also those of other splits.
        hashes: the keys of all items by the hash that the benchmark itself gives them, where it
            gives one; a hash of several items tells none of them.
    """

    name: str
    folder: str
    split: str
    items: tuple[BenchmarkItem, ...]
    blocks: Mapping[str, tuple[str, ...]]
    known: frozenset[str]
    hashes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def scored(self) -> tuple[BenchmarkItem, ...]:
        """List the items that are in a block."""
        keys = {key for block in self.blocks.values() for key in block}
        return tuple(item for item in self.items if item.key in keys)

    def limited(self, sessions: int | None) -> "Benchmark":
        """Keep the first so many sessions (single edits are sessions of one)."""
        if sessions is None:
            return self
        first = set(list(dict.fromkeys(item.session for item in self.items))[:sessions])
        return self.keep(lambda item: item.session in first)

    def keep(self, is_wanted: Callable[[BenchmarkItem], bool]) -> "Benchmark":
        """Keep the wanted items alone, and those their pictures come from."""
        items = {item.key: item for item in self.items}
        scored = {item.key for item in self.items if is_wanted(item)}
        needed: set[str] = set()
        for key in scored:
            before: str | None = key
            while before is not None:
                needed.add(before)
                before = items[before].follows
        blocks = {
            name: tuple(key for key in keys if key in scored) for name, keys in self.blocks.items()
        }
        left = tuple(item for item in self.items if item.key in needed)
        return replace(self, items=left, blocks=blocks)

    def without(self, block: str) -> "Benchmark":
        """Leave out a block, and the items only it had."""
        blocks = {name: keys for name, keys in self.blocks.items() if name != block}
        keys = {key for block in blocks.values() for key in block}
        return replace(self, blocks=blocks).keep(lambda item: item.key in keys)


def check_text(text: str, where: str) -> str:
    """Refuse a text that is no Unicode; return it.

    JSON can write half of a character as an escape, which no tokenizer and no file takes.

    Raises:
        InputError: for a lone surrogate, starting with `where`.
    """
    for position, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise InputError(
                f"{where} has the lone surrogate U+{ord(character):04X} at position {position}, "
                "which stands for no character; save its file as UTF-8"
            )
    return text


def as_unicode(name: str) -> str:
    """Make text that can be written of a file's name; some file systems allow other names."""
    return name.encode("utf-8", "backslashreplace").decode()


def check_keys(items: Iterable[Item], where: str) -> None:
    """Refuse keys that occur twice or cannot be the names of files.

    Raises:
        InputError: naming the first.
    """
    seen: set[str] = set()
    for item in items:
        if not _SAFE.fullmatch(item.key):
            raise InputError(
                f"{where}: {item.key!r} cannot name a file, needs letters, digits, '.', '_' or '-' "
                "(at most 100); correct the benchmark's names"
            )
        if item.key in seen:
            raise InputError(
                f"{where}: {item.key!r} occurs twice, needs a name of its own for each edit; "
                "is the benchmark in the folder twice?"
            )
        seen.add(item.key)


def check_files(paths: Iterable[Path], where: str) -> None:
    """Refuse a folder some of whose picture files are not there.

    Raises:
        InputError: with how many and the first names.
    """
    missing = [path.name for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        raise InputError(
            f"{where}: {len(missing)} of its pictures are missing ({some(missing)}); download it "
            "again"
        )


def some(names: list[str]) -> str:
    """Write the first few names, and whether there are more."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
