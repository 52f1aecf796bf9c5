"""A map-style data set over shards: position -> sample, read by offset from the tar.

`os.pread` reads a member without a shared file position, so forked workers cannot disturb each
other; length and CRC-32 of what was read are compared with the index. Which sample a position
means is decided by the order that is passed in: `datamodules.stream.order.Order` for training,
`InOrder` for evaluation. In training a sample that cannot be used gives its position to another
(`datamodules.stream.transforms`) and travels along as a record; evaluation stops at it, because its
numbers would be of other samples than they say.
"""

import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.shards.clips import CLIP, ClipFacts, decode_strip
from datamodules.shards.folder import CacheFullError, ShardFolder, open_descriptor
from datamodules.shards.index import ROLES, IndexFile, check_text
from datamodules.shards.manifest import ShardEntry
from datamodules.stream.kept import Kept
from datamodules.stream.limits import TextRule
from datamodules.stream.mixing import Lane
from datamodules.stream.order import Order, Position, Stretch
from datamodules.stream.transforms import MAX_ATTEMPTS, Crop, Noops, Substitutes, Wordings
from emu_edit.batch import BadSample, CutText, EditSample, Sample
from emu_edit.errors import BadDataError, BadImageError, BadSampleError, ShardError
from emu_edit.images import decode_mask, decode_rgb
from emu_edit.tasks import CAPTION, TaskTable

IN_ORDER = 8  # shards of a lane that stay open where one after another is read


class InOrder:
    """The order of evaluation: lanes one after another, each shard from its first sample on."""

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
        lane, shard = self._places[i]
        return Position(lane, 0, shard, index - (self._ends[i - 1] if i else 0))


class OpenShard:
    """One shard opened for reading: its file descriptor and its index, both read where asked."""

    def __init__(self, path: Path, entry: ShardEntry, descriptor: int | None = None) -> None:
        self.path = path
        self.task, self.shape = entry.task, entry.shape
        self._descriptor = open_descriptor(path) if descriptor is None else descriptor
        self.index = IndexFile(path, entry)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def key(self, sample: int) -> str:
        """Return the key of a sample."""
        return self.index[sample].key

    def member(self, sample: int, role: str) -> bytes | None:
        """Return the bytes of a member, or None for a mask the sample does not have.

        Raises:
            ShardError: if the bytes are not those that were indexed.
        """
        column = ROLES.index(role)
        row = self.index[sample]
        size = row.size[column]
        if size == 0:
            return None
        try:
            data = os.pread(self._descriptor, size, row.offset[column])
        except OSError as error:
            raise ShardError(f"{self.path}: cannot be read ({error.strerror})") from error
        if len(data) != size or zlib.crc32(data) != row.crc32[column]:
            raise ShardError(
                f"{self.path}: {role} of sample {self.key(sample)!r} changed since the shard was "
                "indexed; check the folder with `python -m emu_edit shards check`"
            )
        return data

    def text(self, sample: int) -> dict[str, Any]:
        """Return the json of a sample, its instruction cleaned.

        Raises:
            BadSampleError: if it says nothing usable, naming shard and key.
            ShardError: if the bytes are not those that were indexed.
        """
        data = self.member(sample, "json") or b""
        try:
            return check_text(data, self.task, where=self.where(sample))
        except ShardError as error:  # of this sample: the shard's bytes are what was indexed
            raise BadSampleError(str(error), "text_unusable") from error

    def where(self, sample: int) -> str:
        """Return how messages name a sample."""
        return f"{self.path.name}: sample {self.key(sample)!r}"


def refuse_long_texts(folder: ShardFolder, texts: TextRule) -> None:
    """Look at every instruction of a folder; what is bad otherwise is left to who reads it.

    Raises:
        BadDataError: naming the first that `texts` refuses.
    """
    for entry in folder.manifest.entries:
        descriptor = folder.open(entry)  # before its path: while open, it stays
        shard = OpenShard(folder.path(entry), entry, descriptor)
        for sample in range(entry.samples):
            with suppress(BadSampleError):
                texts(wordings_of(shard.text(sample)), shard.where(sample))


def wordings_of(text: dict[str, Any]) -> list[str]:
    """Return the instruction and its other wordings, of a json that `check_text` accepted."""
    return [text["instruction"], *text.get("instruction_alt", [])]


def decode_pair(shard: OpenShard, sample: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Decode source, target and mask of a pair of pictures and compare their sizes.

    Raises:
        BadSampleError: naming shard and key, if one cannot be decoded or there is no source.
    """
    source, target, mask = _decode(shard, sample, decode_rgb, decode_mask)
    if source is None:
        raise BadSampleError(
            f"{shard.where(sample)}: has no source, it is a caption and what it describes; edits "
            "need pairs",
            "no_source",
        )
    return source, target, mask


def decode_clip(
    shard: OpenShard, sample: int, facts: ClipFacts
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Decode source, target and mask of a clip, frame by frame; a caption has no source.

    Raises:
        BadSampleError: naming shard and key.
    """
    decode_region = partial(decode_mask, is_strip=True)
    source, target, mask = _decode(shard, sample, decode_strip, decode_region)
    rows = target.shape[-2]
    if rows % facts.frames:
        raise BadSampleError(
            f"{shard.where(sample)}: a strip of {rows} rows does not have {facts.frames} frames",
            "frames_missing",
        )

    def frames(strip: Tensor) -> Tensor:
        return strip.unflatten(-2, (facts.frames, -1)).movedim(-3, 0)

    return (
        None if source is None else frames(source),
        frames(target),
        None if mask is None else frames(mask),
    )


def _decode(
    shard: OpenShard,
    sample: int,
    picture: Callable[..., Tensor],
    mask: Callable[..., Tensor],
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    where = shard.where(sample)
    found: dict[str, Tensor] = {}
    for role in ("source", "target")[shard.task == CAPTION :]:
        found[role] = _decoded(picture, shard.member(sample, role) or b"", where, role)
    if (data := shard.member(sample, "mask")) is not None:
        found["mask"] = _decoded(mask, data, where, "mask")
    sizes = {role: pixels.shape[-2:] for role, pixels in found.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{role} {w}x{h}" for role, (h, w) in sizes.items())
        raise BadSampleError(
            f"{where}: pictures differ in size ({listed}); they need to be equal",
            "sizes_differ",
        )
    return found.get("source"), found["target"], found.get("mask")


def _decoded(decode: Callable[..., Tensor], data: bytes, where: str, role: str) -> Tensor:
    try:
        return decode(data, where=role)
    except BadImageError as error:
        if isinstance(error.__cause__, MemoryError):
            # of this machine at this moment: what is read must not depend on it
            raise error.__cause__ from error
        raise BadSampleError(f"{where}: {error}", f"{role}_unreadable") from error


Decode = Callable[[OpenShard, int, int, int], Callable[..., Sample]]
"""From (shard, sample, position, wording) to a sample that lacks what the json says of it."""


@dataclass(frozen=True)
class PictureDecoder:
    """Decode pictures and bring them to the training size."""

    crop: Crop

    def __call__(
        self,
        shard: OpenShard,
        sample: int,
        position: int,
        wording: int,  # noqa: ARG002  pictures have no words
    ) -> Callable[..., Sample]:
        """Decode source, target and mask of a sample; a caption has no source.

        Raises:
            BadSampleError: naming shard and key.
        """
        if CLIP in shard.text(sample):
            raise BadSampleError(
                f"{shard.where(sample)}: is a clip, its frames below each other; data of clips are "
                "read by ClipDataModule",
                "is_clip",
            )
        source, target, mask = _decode(shard, sample, decode_rgb, decode_mask)
        seen = target if source is None else source
        seen, target, mask = self.crop(seen, target, mask, position, shard.shape)
        source = None if source is None else seen
        return partial(EditSample, source=source, target=target, mask=mask)


def already_edited(sample: Sample) -> Sample:
    """Show the target as source, too: what the instruction asks for holds, nothing may change."""
    return replace(
        sample,
        source=sample.target,
        source_caption=sample.target_caption,
        mask=None if sample.mask is None else torch.zeros_like(sample.mask),
    )


class ShardDataset(Dataset[Sample]):
    """Read samples by their position in an order.

    Args:
        lanes: in the order in which `order` counts them.
        order: what position means which sample.
        tasks: gives each task its index.
        decode: makes a sample of the members of a shard.
        noops: which pairs are shown as already edited; by default none.
        wordings: which wording is read where there are several; by default the first.
        substitutes: what is read in place of a bad sample; by default nothing, it is an error.
        texts: what becomes of instructions that are too long; by default they are read whole.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        order: Callable[[int], Position],
        tasks: TaskTable,
        decode: Decode,
        noops: Noops | None = None,
        wordings: Wordings | None = None,
        substitutes: Substitutes | None = None,
        texts: TextRule | None = None,
    ) -> None:
        self._lanes = lanes
        self._order = order
        self._tasks = tasks
        self._decode = decode
        self._noops = Noops() if noops is None else noops
        self._wordings = wordings
        self._substitutes = substitutes
        self._texts = TextRule() if texts is None else texts
        self._open = self._nothing_open()

    def __getstate__(self) -> dict[str, object]:
        # a spawned worker opens its own files
        return {**self.__dict__, "_open": self._nothing_open()}

    def _nothing_open(self) -> Kept[OpenShard]:
        return Kept(self._order.spec.window if isinstance(self._order, Order) else IN_ORDER)

    def __getitem__(self, position: int) -> Sample:
        """Read the sample of a position, or a substitute of the same lane that names the bad ones.

        Raises:
            BadSampleError: if it cannot be used and there are no substitutes.
            BadDataError: if none of the substitutes can be used either, or a text is refused.
            ShardError: if a shard changed since it was indexed; nothing takes its place.
        """
        where = place = self._order(position)
        lane = self._lanes[where.lane]
        bad: list[BadSample] = []
        for attempt in range(1, MAX_ATTEMPTS + 2):
            try:
                sample = self.read(place, position)
            except BadSampleError as error:
                if self._substitutes is None:
                    raise
                bad.append(self._bad(place, position, error))
            else:
                return replace(sample, bad=tuple(bad)) if bad else sample
            place = self._substitutes(where, lane.sizes, position=position, attempt=attempt)
        raise BadDataError(
            f"position {position} of the stream: {len(bad)} samples of {lane.name} in a row cannot "
            f"be used, the last {bad[-1].key!r} of {bad[-1].shard} ({bad[-1].reason}); check the "
            "folder with `emu-edit shards check`"
        )

    def read(self, where: Position, position: int) -> Sample:
        """Read the sample at a place in the shards, for a position of the stream."""
        lane = self._lanes[where.lane]
        shard = self._shard(where)
        text = shard.text(where.sample)
        wordings = self._texts(wordings_of(text), shard.where(where.sample))
        wording = 0
        if self._wordings is not None and len(wordings) > 1:
            wording = self._wordings(len(wordings), position)
        sample = self._decode(shard, where.sample, position, wording)(
            key=shard.key(where.sample),
            instruction=wordings[wording].text,
            task=self._tasks.index(shard.task),
            source_caption=text.get("source_caption", ""),
            target_caption=text.get("target_caption", ""),
            position=position,
            cut=self._cut(lane, shard, where, wordings[wording].reason),
        )
        return already_edited(sample) if self._noops(shard.task, position) else sample

    def follow(self, stretch: Stretch) -> None:
        """Read by the mixture of another stretch of the stream from now on."""
        if not isinstance(self._order, Order):
            raise TypeError(f"only an Order can be followed, got {type(self._order).__name__}")
        self._order.follow(stretch)

    def place(self, position: int) -> str:
        """Return shard and task of a position, for messages: "local-000001.tar (local)"."""
        where = self._order(position)
        lane = self._lanes[where.lane]
        return f"{lane.shards[where.shard].file} ({lane.name})"

    def _cut(self, lane: Lane, shard: OpenShard, where: Position, reason: str) -> CutText | None:
        file = f"{lane.folder.name}/{lane.shards[where.shard].file}"
        return CutText(lane.name, file, shard.key(where.sample), reason) if reason else None

    def _bad(self, where: Position, position: int, error: BadSampleError) -> BadSample:
        lane = self._lanes[where.lane]
        entry = lane.shards[where.shard]
        shard = self._shard(where)
        return BadSample(
            position=position,
            task=lane.name,
            shard=f"{lane.folder.name}/{entry.file}",
            index=where.sample,
            samples=entry.samples,
            key=shard.key(where.sample),
            kind=error.kind,
            reason=str(error).removeprefix(f"{shard.where(where.sample)}: "),
        )

    def _shard(self, where: Position) -> OpenShard:
        lane = self._lanes[where.lane]
        opened = partial(self._opened, lane.folder, lane.shards[where.shard])
        return self._open.get(where.lane, where.shard, opened)

    def _opened(self, folder: ShardFolder, entry: ShardEntry) -> OpenShard:
        while True:
            try:
                descriptor = folder.open(entry)
            except CacheFullError:
                if not self._open.drop():  # what is no longer read here makes room
                    raise
            else:
                return OpenShard(folder.path(entry), entry, descriptor)
