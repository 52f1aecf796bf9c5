"""Verify shard folders from their manifests down to every pixel, and say all that is wrong.

Indexing reads bytes and texts; here every picture is decoded as training will decode it, and what
no reader refuses but no training wants is looked for, too: the same pair twice, a target equal to
its source, black or transparent pictures, pictures of a benchmark. One finding does not hide the
next. In an encoder cache (`datamodules.encoded.reader`) latents are read in place of pictures.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from datamodules.checks.leaks import LeakGuard
from datamodules.checks.report import (
    CheckReport,
    Doubles,
    Place,
    Problem,
    TaskSummary,
    hash_of,
)
from datamodules.encoded.reader import Cache, CacheHeader, open_caches
from datamodules.listing import list_entries
from datamodules.remote.address import parse_place
from datamodules.remote.folder import open_folder
from datamodules.shards.clips import ClipFacts, is_movie
from datamodules.shards.folder import LocalFolder, ShardFolder
from datamodules.shards.index import ROLES, index_shard, load_index
from datamodules.shards.manifest import (
    NEW_TASK,
    ShardEntry,
    load_manifest,
    verify_hash,
    verify_size,
)
from datamodules.shards.shapes import shape_of
from datamodules.stream.limits import too_long
from datamodules.stream.mixing import DataSet, lanes_of
from datamodules.stream.reader import OpenShard, decode_clip, decode_pair, wordings_of
from datamodules.stream.transforms import Crop
from emu_edit.errors import InputError, ShardError, closest
from emu_edit.images import decode_rgb
from emu_edit.models.interfaces import TextLimit
from emu_edit.pictures import BLACK, FORMATS, WHITE
from emu_edit.tasks import SIXTEEN, TaskTable

_BLACKEST = 8  # of 255; JPEG leaves a black picture a little above 0
_PAIR = [ROLES.index(role) for role in ("source", "target")]

OnStep = Callable[[int, int], None]


def check_folder(
    folder: str | Path,
    progress: OnStep | None = None,
    *,
    table: TaskTable = SIXTEEN,
    guard: LeakGuard | None = None,
    limit: TextLimit | None = None,
) -> CheckReport:
    """Read everything in one shard folder and report all findings, as `check_folders` does."""
    return check_folders([folder], progress, table=table, guard=guard, limit=limit)


def check_folders(
    folders: Sequence[str | Path],
    progress: OnStep | None = None,
    *,
    table: TaskTable = SIXTEEN,
    guard: LeakGuard | None = None,
    limit: TextLimit | None = None,
) -> CheckReport:
    """Read everything in shard folders that are to be trained on together; report all findings.

    Args:
        folders: where each `manifest.json` is, a path or an address; shards from elsewhere go
            through the node's cache, and are compared with the manifest on their way.
        progress: called with the samples done and their total.
        table: the tasks that may occur.
        guard: knows evaluation pictures, each of which is an error here.
        limit: how long an instruction may be; training cuts or skips longer ones.

    Raises:
        ShardError: if there is no manifest to start from, or it is damaged.
        StorageError: if what lies elsewhere cannot be fetched.
    """
    opened = [_folder_at(place) for place in folders]
    check = _Check(opened, progress, table, guard, limit)
    for folder in opened:
        cache = _cache_of(folder)
        for entry in folder.manifest.entries:
            check.add_shard(folder, entry, cache)
        check.report.problems += _strays(folder)
    check.add_doubles()
    return check.report


class _Check:
    """The pass over some folders, with what has to be compared across shards."""

    def __init__(
        self,
        folders: Sequence[ShardFolder],
        progress: OnStep | None,
        table: TaskTable,
        guard: LeakGuard | None,
        limit: TextLimit | None,
    ) -> None:
        self.report = CheckReport([str(folder) for folder in folders])
        self._progress, self._table, self._guard = progress, table, guard
        self._limit = limit
        self._done = 0
        self._total = sum(folder.manifest.num_samples for folder in folders)
        self._shards: list[tuple[ShardFolder, ShardEntry]] = []
        self._keys, self._contents = Doubles(), Doubles()

    def add_shard(self, folder: ShardFolder, entry: ShardEntry, cache: Cache | None) -> None:
        """Check one shard; a broken one is reported and left."""
        self._shards.append((folder, entry))
        place = (str(folder), entry.task)
        summary = self.report.tasks.setdefault(place, TaskSummary(*place))
        summary.shards += 1
        summary.samples += entry.samples
        summary.bytes += entry.bytes
        # a new task is one that no table has, on purpose
        if entry.task not in {*self._table.names, folder.manifest.made_by.get(NEW_TASK)}:
            hint = closest(entry.task, list(self._table.names))
            self._add("", f"unknown task {entry.task!r}.{hint}")
        try:
            shard = _opened(folder, entry)
        except ShardError as error:
            self._add("", str(error))
            self._advance(entry.samples)
            return
        self._note_hashes(shard, entry)
        for sample in range(entry.samples):
            try:
                if cache is None:
                    self._look_at(shard, sample)
                else:
                    cache.decode(shard, sample)
                self._measure(shard, sample)
            except InputError as error:
                self._add(shard.key(sample), str(error))
            self._advance(1)

    def add_doubles(self) -> None:
        """Report keys that occur more than once in a task, and pairs that do so anywhere."""
        for places in self._keys.groups():
            files = [self._shards[shard][1].file for shard, _ in places]
            folder, entry = self._shards[places[1][0]]
            message = (
                f"task {entry.task} has this key in {len(files)} shards: {', '.join(files[:4])}"
            )
            self._add(self._key(places[1]), message, at=(folder, entry))
        for first, *others in self._contents.groups():
            at, entry = self._shards[first[0]]
            for other in others:
                folder, _ = self._shards[other[0]]
                name = entry.file if folder == at else f"{at}/{entry.file}"
                message = f"is the same pair and instruction as {self._key(first)} of {name}"
                self._add(self._key(other), message, is_error=False, at=self._shards[other[0]])

    def _note_hashes(self, shard: OpenShard, entry: ShardEntry) -> None:
        number, (folder, _) = len(self._shards) - 1, self._shards[-1]
        keys, contents = [], []
        for sample in range(entry.samples):
            row = shard.index[sample]
            pair = [(row.crc32[role], row.size[role]) for role in _PAIR]
            keys.append(hash_of(str(folder), entry.task, shard.key(sample)))
            contents.append(hash_of(pair, shard.text(sample)["instruction"]))
        self._keys.add(number, keys)
        self._contents.add(number, contents)

    def _measure(self, shard: OpenShard, sample: int) -> None:
        """Name instructions that are too long; they are text in caches, too."""
        limit = self._limit
        if limit is None:
            return
        for text in wordings_of(shard.text(sample)):
            if not limit.fits(text):
                self._add(shard.key(sample), too_long(text, limit), is_error=False)

    def _look_at(self, shard: OpenShard, sample: int) -> None:
        key = shard.key(sample)
        facts = ClipFacts.of(shard.text(sample))
        if facts is None:
            source, target, mask = decode_pair(shard, sample)
        else:
            source, target, mask = decode_clip(shard, sample, facts)
        parts = {"target": target} if source is None else {"source": source, "target": target}
        folder, entry = self._shards[-1]
        summary = self.report.tasks[str(folder), entry.task]
        summary.add_size(*target.shape[-2:])
        summary.masks += mask is not None
        height, width = target.shape[-2:]
        if entry.shape not in ("", found := shape_of(height, width)):
            told = f"is {width}x{height}, of the shape {found}; the manifest says {entry.shape}"
            self._add(key, told)
        is_empty = mask is not None and not bool(mask.any())
        # identical pictures with an empty mask are no mistake: the pair says so itself
        is_same = source is not None and torch.equal(source, target)
        if is_empty and not is_same:
            self._add(key, "the mask is empty: nothing may change", is_error=False)
        if is_same and not is_empty:
            self._add(key, "target and source are identical", is_error=False)
        for message in (*_blacks(parts), *_transparent(shard, sample, parts)):
            self._add(key, message, is_error=False)
        for name, pictures in parts.items() if self._guard is not None else ():
            self._look_for_leaks(key, name, pictures)

    def _look_for_leaks(self, key: str, name: str, pictures: UInt8[Tensor, "*f 3 h w"]) -> None:
        """Name a picture of the guard's that is shown, once in a clip."""
        for picture in pictures.reshape(-1, *pictures.shape[-3:]):
            pixels = picture.permute(1, 2, 0).contiguous().numpy()
            leak = None if self._guard is None else self._guard.find(pixels)
            if leak is not None:
                self._add(key, f"the {name} {leak}")
                return

    def _key(self, place: Place) -> str:
        shard, sample = place
        folder, entry = self._shards[shard]
        return folder.index(entry)["key"][sample].decode()

    def _add(
        self,
        key: str,
        message: str,
        *,
        is_error: bool = True,
        at: tuple[ShardFolder, ShardEntry] | None = None,
    ) -> None:
        folder, entry = self._shards[-1] if at is None else at
        self.report.add(Problem(is_error, str(folder), entry.file, key, message), entry.task)

    def _advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _folder_at(place: str | Path) -> ShardFolder:
    """Open a folder; in one that is read in place, shards may be missing, which is a finding."""
    address = parse_place(place)
    if isinstance(address, Path):
        return LocalFolder(address, load_manifest(address))
    return open_folder(place)


def _strays(folder: ShardFolder) -> Iterator[Problem]:
    """Warn of shards that lie in a folder and that no training reads."""
    if isinstance(folder, LocalFolder):
        known = {entry.file for entry in folder.manifest.entries}
        for entry in list_entries(folder.root, deep=False):
            if entry.path.suffix == ".tar" and entry.path.name not in known:
                message = "is not named in the manifest, so nothing reads it"
                yield Problem(False, str(folder), entry.path.name, "", message)


def _cache_of(folder: ShardFolder) -> Cache | None:
    """Return what the samples of an encoder cache share, None for a folder of pictures."""
    header = CacheHeader.of(folder.manifest, folder)
    if header is None:
        return None
    return open_caches(lanes_of([DataSet("", folder)]), Crop(header.image_size))


def _opened(folder: ShardFolder, entry: ShardEntry) -> OpenShard:
    """Open a shard of which size, hash, index and every member's place are right."""
    path = folder.path(entry)
    if not isinstance(folder, LocalFolder):  # compared and indexed when it was fetched
        return OpenShard(path, entry, folder.open(entry))
    verify_size(path, entry)
    verify_hash(path, entry)
    found = index_shard(path, task=entry.task)
    if not np.array_equal(found, load_index(path, entry)):
        raise ShardError(f"{path}: its index file does not describe it; write the shard again")
    return OpenShard(path, entry)


def _blacks(parts: Mapping[str, UInt8[Tensor, "*f 3 _ _"]]) -> Iterator[str]:
    for name, picture in parts.items():
        if int(picture.max()) <= _BLACKEST:
            yield f"the {name} is black"


def _transparent(shard: OpenShard, sample: int, roles: Iterable[str]) -> Iterator[str]:
    """Yield a line for each picture with parts that show the background."""
    for role in roles:
        data = shard.member(sample, role) or b""
        if is_movie(data):
            continue
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            may_be = image.has_transparency_data
        if not may_be:
            continue
        on_white, on_black = (
            decode_rgb(data, background=colour, is_strip=True) for colour in (WHITE, BLACK)
        )
        if not torch.equal(on_white, on_black):
            yield f"the {role} has transparent pixels; they are shown white"
