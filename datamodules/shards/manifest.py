"""The manifest of a shard folder: the tars of each task, their lengths and their hashes.

The order of training is computed from these counts alone (`datamodules.stream.order`); the sizes
and hashes tell a run that its data changed since they were written. The file is JSON, so that
people can read it.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.listing import how_to_convert
from datamodules.shards.shapes import SHAPES
from emu_edit.errors import ShardError
from emu_edit.files import read_regular, sha256_of, write_json

MANIFEST = "manifest.json"
CONTACT_SHEET = "contact_sheet.png"  # of the world: what the shards show
NEW_TASK = "new_task"  # entry of `made_by`: the task of a folder that no training has
_FIELDS = ("file", "bytes", "sha256", "samples")
_MORE_FIELDS = ("kind", "shape")  # absent where they are not told apart
# names and hashes become paths, and a manifest may come from anywhere
_FILE = re.compile(r"[^./\\][^/\\]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
VERSION = 1
MAX_BYTES = 64 * 2**20  # of a manifest; a quarter of a million shards fit
# parsing takes many times the memory of a text that is all brackets and commas: what is written
# here has one in 30 bytes
_DENSEST = 16  # bytes to a bracket or comma, on average
_SOME_MARKS = 10_000  # which are let be in a short file
_LONGEST_TASK = 100  # characters
_MOST = 2**63  # of bytes and samples
_LEAST_SAMPLE = 3 * 512  # bytes: the headers of its members
MAKE_AGAIN = "write the folder again with `python -m emu_edit shards world` or `shards convert`"


@dataclass(frozen=True)
class ShardEntry:
    """One tar of one task; `file` is a plain name inside the folder, `sha256` of its bytes.

    All its pairs are of one `kind` of edit and one `shape` of `SHAPES`, or it does not tell them
    apart ("").
    """

    task: str
    file: str
    bytes: int
    sha256: str
    samples: int
    kind: str = ""
    shape: str = ""


@dataclass(frozen=True)
class Manifest:
    """All shards of a folder, in the order in which they were written, and what made them."""

    entries: tuple[ShardEntry, ...]
    made_by: dict[str, object]

    @property
    def tasks(self) -> list[str]:
        """The task names, in order of appearance."""
        return list(dict.fromkeys(entry.task for entry in self.entries))

    @property
    def num_samples(self) -> int:
        """The number of samples in all shards."""
        return sum(entry.samples for entry in self.entries)

    def of_task(self, task: str) -> tuple[ShardEntry, ...]:
        """Return the shards of one task."""
        return tuple(entry for entry in self.entries if entry.task == task)

    def kinds(self, task: str) -> dict[str, tuple[ShardEntry, ...]]:
        """Return the shards of each kind of a task, kinds in order of appearance."""
        of_task = self.of_task(task)
        return {
            kind: tuple(entry for entry in of_task if entry.kind == kind)
            for kind in dict.fromkeys(entry.kind for entry in of_task)
        }


def write_manifest(
    folder: Path, entries: Sequence[ShardEntry], *, made_by: dict[str, object]
) -> Manifest:
    """Write `manifest.json`, the last file of a shard folder: a folder without one is not complete.

    Args:
        folder: where the shards are.
        entries: what `write_task_shards` returned, of all tasks together.
        made_by: anything JSON can hold that says how the data were made (program, seed, size, ...).

    Raises:
        ShardError: if there are no shards, or two entries name one file.
    """
    manifest = Manifest(tuple(entries), made_by)
    _refuse_odd_entries(manifest.entries, str(folder / MANIFEST))
    tasks = {task: [_row(entry) for entry in manifest.of_task(task)] for task in manifest.tasks}
    write_json(folder / MANIFEST, {"version": VERSION, "made_by": made_by, "tasks": tasks})
    return manifest


def _row(entry: ShardEntry) -> dict[str, object]:
    """Return what the file says of a shard, under its task."""
    row = asdict(entry)
    return {name: row[name] for name in (*_FIELDS, *_MORE_FIELDS) if row[name] != ""}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest and check that every shard it names is there and has the size it had.

    Hashes take a pass over all the bytes and are checked by `verify_hash`.

    Raises:
        ShardError: if there is no manifest, it is damaged, or a shard is missing or changed its
            size since.
    """
    manifest = load_manifest(folder)
    for entry in manifest.entries:
        verify_size(folder / entry.file, entry)
    return manifest


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest alone, without a look at the shards.

    Raises:
        ShardError: if there is no manifest, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise ShardError(
            f"{folder} is not a shard folder: {path.name} cannot be read ({error.strerror}); "
            f"{MAKE_AGAIN}{how_to_convert(folder)}"
        ) from error
    return parse_manifest(data, str(path))


def verify_hash(path: Path, entry: ShardEntry) -> None:
    """Refuse a shard (ShardError) whose bytes changed since the manifest was written."""
    found = sha256_of(path)
    if found != entry.sha256:
        raise ShardError(
            f"{path} changed since the manifest was written: its sha256 is {found[:12]}..., "
            f"the manifest says {entry.sha256[:12]}...; restore the file, or {MAKE_AGAIN}"
        )


def verify_size(path: Path, entry: ShardEntry) -> None:
    """Refuse a shard (ShardError) that is missing or has another size than the manifest says."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ShardError(
            f"{path} is named in the manifest but cannot be read ({error.strerror}); "
            f"restore the file, or {MAKE_AGAIN}"
        ) from error
    if size != entry.bytes:
        raise ShardError(
            f"{path} changed since the manifest was written: it has {size} bytes, the manifest "
            f"says {entry.bytes}; restore the file, or {MAKE_AGAIN}"
        )


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read the text of a manifest; `where` is its place, for messages.

    Raises:
        ShardError: if it is damaged.
    """
    marks = sum(map(data.count, (b"[", b"{", b",")))
    if len(data) > MAX_BYTES or marks > _SOME_MARKS + len(data) // _DENSEST:
        raise ShardError(
            f"{where} has {len(data)} bytes with {marks} brackets and commas, more than the list "
            f"of any shards; {MAKE_AGAIN}"
        )
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter from ten thousand brackets
        raise ShardError(f"{where} is not JSON ({error}); {MAKE_AGAIN}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ShardError(f"{where} is not a manifest of version {VERSION}; {MAKE_AGAIN}")
    tasks, made_by = content.get("tasks"), content.get("made_by")
    if not isinstance(tasks, dict) or not isinstance(made_by, dict):
        raise ShardError(f"{where} has no tasks or no made_by; {MAKE_AGAIN}")
    entries = []
    _refuse_odd_maker(made_by, where)
    for task, shards in tasks.items():
        _refuse_odd_task(task, where)
        for shard in shards if isinstance(shards, list) else [shards]:
            if not isinstance(shard, dict) or not set(_FIELDS) <= shard.keys():
                raise ShardError(f"{where}: a shard of {task!r} lacks {_FIELDS}; {MAKE_AGAIN}")
            more = (shard.get(name, "") for name in _MORE_FIELDS)
            entries.append((task, *(shard[name] for name in _FIELDS), *more))
    _refuse_odd_fields(entries, where)
    manifest = Manifest(tuple(ShardEntry(*fields) for fields in entries), made_by)
    _refuse_odd_entries(manifest.entries, where)
    return manifest


def _refuse_odd_task(task: str, where: str) -> None:
    # printable: no lone surrogate, which no file can hold, and nothing that moves the cursor
    if not task.isprintable() or not 0 < len(task) <= _LONGEST_TASK:
        raise ShardError(
            f"{where}: a task is called {_short(task)}, needs 1..{_LONGEST_TASK} printable "
            f"characters; {MAKE_AGAIN}"
        )


def _refuse_odd_maker(made_by: dict[str, object], where: str) -> None:
    new_task = made_by.get(NEW_TASK)
    if new_task is not None and not isinstance(new_task, str):
        raise ShardError(
            f"{where}: {NEW_TASK} in made_by is {_short(new_task)}, needs the name of a task"
        )


def _short(value: object) -> str:
    """Return a value as a line of a message can hold it."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _MOST:
        return "a number of 2^63 or more"  # Python does not write those of 4300 digits
    return ascii(value)[:80]


def _refuse_odd_fields(entries: list[tuple[Any, ...]], where: str) -> None:
    for _, file, size, sha256, samples, kind, shape in entries:
        if not isinstance(kind, str) or not kind.isprintable() or len(kind) > _LONGEST_TASK:
            raise ShardError(
                f"{where}: a shard is of the kind {_short(kind)}, needs at most {_LONGEST_TASK} "
                f"printable characters; {MAKE_AGAIN}"
            )
        if shape not in ("", *SHAPES):
            raise ShardError(
                f"{where}: a shard has pictures of the shape {_short(shape)}, known are "
                f"{', '.join(SHAPES)}; {MAKE_AGAIN}"
            )
        if not isinstance(file, str) or not _FILE.fullmatch(file) or not file.isprintable():
            raise ShardError(
                f"{where}: shard {_short(file)} is not a plain file name that ends in .tar"
            )
        if not all(type(number) is int and 0 < number < _MOST for number in (size, samples)):
            raise ShardError(
                f"{where}: shard {file!r} has {_short(size)} bytes and {_short(samples)} samples, "
                "needs positive integers"
            )
        if samples * _LEAST_SAMPLE > size:
            raise ShardError(
                f"{where}: shard {file!r} has {size} bytes, too few for {samples} samples; "
                f"{MAKE_AGAIN}"
            )
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ShardError(
                f"{where}: shard {file!r} has the sha256 {_short(sha256)}, needs 64 hexadecimal "
                "digits"
            )


def _refuse_odd_entries(entries: tuple[ShardEntry, ...], where: str) -> None:
    if not entries:
        raise ShardError(f"{where} names no shards; {MAKE_AGAIN}")
    for file, count in Counter(entry.file for entry in entries).items():
        if count > 1:
            raise ShardError(f"{where} names shard {file!r} twice; {MAKE_AGAIN}")
