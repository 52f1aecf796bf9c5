"""A map-style data set over shards: position -> EditSample, read by offset from the tar.

`os.pread` reads a member without a shared file position, so forked workers cannot disturb each
other; length and CRC-32 of what was read are compared with the index. Which sample a position
means is decided by the order that is passed in: `datamodules.order.Order` for training, `InOrder`
for evaluation.
"""

import os
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.index import ROLES, check_text, load_index
from datamodules.manifest import ShardEntry
from datamodules.order import Position
from datamodules.transforms import Noops, SquareCrop
from emu_edit.batch import EditSample
from emu_edit.errors import BadImageError, BadSampleError, ShardError
from emu_edit.images import decode_mask, decode_rgb
from emu_edit.tasks import TaskTable

MAX_OPEN_SHARDS = 64  # per process; each holds a file descriptor and the map of an index


class InOrder:
    """The order of evaluation: tasks one after another, each shard from its first sample on."""

    def __init__(self, shard_sizes: Sequence[Sequence[int]]) -> None:
        self._places = [(t, s) for t, sizes in enumerate(shard_sizes) for s in range(len(sizes))]
        self._ends = list(accumulate(n for sizes in shard_sizes for n in sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __call__(self, index: int) -> Position:
        """Return where sample `index` of the whole set is."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        i = bisect_right(self._ends, index)
        task, shard = self._places[i]
        return Position(task, 0, shard, index - (self._ends[i - 1] if i else 0))


class OpenShard:
    """One shard opened for reading: its file descriptor and its index."""

    def __init__(self, path: Path, entry: ShardEntry) -> None:
        self.path = path
        self.task = entry.task
        self.index = load_index(path, entry)
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror})") from error

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def key(self, sample: int) -> str:
        """Return the key of a sample."""
        return self.index["key"][sample].decode()

    def member(self, sample: int, role: str) -> bytes | None:
        """Return the bytes of a member, or None for a mask the sample does not have.

        Raises:
            ShardError: if the bytes are not those that were indexed.
        """
        column = ROLES.index(role)
        row = self.index[sample]
        size = int(row["size"][column])
        if size == 0:
            return None
        try:
            data = os.pread(self._descriptor, size, int(row["offset"][column]))
        except OSError as error:
            raise ShardError(f"{self.path}: cannot be read ({error.strerror})") from error
        if len(data) != size or zlib.crc32(data) != row["crc32"][column]:
            raise ShardError(
                f"{self.path}: {role} of sample {self.key(sample)!r} changed since the shard was "
                "indexed; check the folder with `python -m emu_edit shards check`"
            )
        return data

    def text(self, sample: int) -> dict[str, Any]:
        """Return the json of a sample, its instruction cleaned."""
        where = f"{self.path.name}: sample {self.key(sample)!r}"
        return check_text(self.member(sample, "json") or b"", self.task, where=where)


def decode_pair(shard: OpenShard, sample: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Decode source, target and mask of a sample and compare their sizes.

    Raises:
        BadSampleError: naming shard and key.
    """
    where = f"{shard.path.name}: sample {shard.key(sample)!r}"
    try:
        source = decode_rgb(shard.member(sample, "source") or b"", where="source")
        target = decode_rgb(shard.member(sample, "target") or b"", where="target")
        data = shard.member(sample, "mask")
        mask = None if data is None else decode_mask(data, where="mask")
    except BadImageError as error:
        raise BadSampleError(f"{where}: {error}") from error
    sizes = {"source": source.shape[1:], "target": target.shape[1:]}
    if mask is not None:
        sizes["mask"] = mask.shape
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{role} {w}x{h}" for role, (h, w) in sizes.items())
        raise BadSampleError(f"{where}: pictures differ in size ({listed}); they need to be equal")
    return source, target, mask


class ShardDataset(Dataset[EditSample]):
    """Read samples by their position in an order.

    Args:
        folder: where the shards are.
        shards: the shards of each task, in the order in which `order` counts them.
        order: what position means which sample.
        tasks: gives each task its index.
        crop: brings the pictures to the training size.
        noops: which pairs are shown as already edited; by default none.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Sequence[ShardEntry]],
        *,
        order: Callable[[int], Position],
        tasks: TaskTable,
        crop: SquareCrop,
        noops: Noops | None = None,
    ) -> None:
        self._folder = folder
        self._shards = shards
        self._order = order
        self._tasks = tasks
        self._crop = crop
        self._noops = Noops() if noops is None else noops
        self._open: OrderedDict[str, OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        # a spawned worker opens its own files
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, position: int) -> EditSample:
        """Read one sample.

        Raises:
            BadSampleError: if its pictures cannot be used.
            ShardError: if its shard changed since it was indexed.
        """
        where = self._order(position)
        shard = self._shard(self._shards[where.task][where.shard])
        text = shard.text(where.sample)
        source, target, mask = self._crop(*decode_pair(shard, where.sample), position)
        target_caption = text.get("target_caption", "")
        source_caption = text.get("source_caption", "")
        if self._noops(shard.task, position):
            source, source_caption = target, target_caption
            mask = None if mask is None else torch.zeros_like(mask)
        return EditSample(
            key=shard.key(where.sample),
            source=source,
            target=target,
            instruction=text["instruction"],
            task=self._tasks.index(shard.task),
            mask=mask,
            source_caption=source_caption,
            target_caption=target_caption,
            position=position,
        )

    def _shard(self, entry: ShardEntry) -> OpenShard:
        shard = self._open.pop(entry.file, None)
        if shard is None:
            shard = OpenShard(self._folder / entry.file, entry)
            if len(self._open) >= MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open[entry.file] = shard
        return shard
