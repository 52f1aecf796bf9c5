"""The quality gates that every converter shares: what can be read but should not be trained on.

Each gate has a reason of the report, a threshold, and a default that public sets and a user's own
pairs share: a pair is judged by its pixels, not by where it came from. All are computed from the
pair alone; what needs a network (CLIP, DINO) is taken from the scores that the data bring along.
Only the gate of duplicates has a memory, 64 bits of each pair's content and of its key.
"""

import hashlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from datamodules.convert.pair import RawItem, Reason, RefusedPairError, key_of
from datamodules.shards.clips import MOTION
from datamodules.shards.writer import PairRecord
from emu_edit.tasks import CAPTION

_BLOCK = 8  # pixels; an edit of a single 8x8 block, one latent pixel, is still an edit
_THUMBNAIL = 16  # cells a side; finer, and a moved edge would make good pairs unlike each other
_KEPT = 12  # levels of 255; codecs move the mean of a cell by less
_OUTSIDE = 2.0  # ours: JPEG and codecs change what lies outside a mask, but less than the edit


@dataclass(frozen=True)
class Gates:
    """Thresholds; None (or False) switches a gate off.

    Attributes:
        min_side: pixels that both sides need; the data plane itself needs 8.
        resize: take a target of another size than its source, resampled, if the ratios of their
            sides differ by at most this share (0.02 is 2 %); off refuses other sizes.
        near_identical: levels of 255; the mean difference of some 8x8 block has to be at least
            this. Two JPEG copies of one picture differ by 1 or so; a visible edit, however small,
            by more than 10 somewhere.
        blank: levels of 255; a picture whose lightest and darkest values are no further apart is
            one colour: black, as safety filters answer, or white.
        captions: refuse pairs whose two captions are equal: nothing was to change.
        duplicates: refuse a pair with the pictures and the instruction of an earlier one.
        mask_fit: refuse a pair that changes more than twice as much outside its mask as inside (an
            inverted or shifted mask), or has an empty mask.
        similarity: the correlation, -1 to 1, that 16x16 grey thumbnails of the pictures need; finds
            rows whose pictures do not belong together. Off: a style or a map may be unlike.
        likeness: refuse pairs whose edit leaves less of the picture than their converter says for
            such an edit (`kept_share`); where it says nothing, so does this gate.
        min_motion: the least motion score of a clip, see `emu_edit.video.motion`.
        scores: the least value of scores that the data bring along, by name.
        excluded: names and keys of pairs that are listed as bad: watermarks, takedowns.
    """

    min_side: int | None = None
    resize: float | None = None
    near_identical: float | None = 2.0
    blank: int | None = 8
    captions: bool = True
    duplicates: bool = True
    mask_fit: bool = True
    similarity: float | None = None
    likeness: bool = True
    min_motion: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()

    def check_listed(self, pair: RawItem) -> None:
        """Refuse a pair, before its pictures are read, that is listed as bad or scores too low."""
        if self.excluded & {pair.name, pair.identity, key_of(pair.identity)}:
            raise RefusedPairError(Reason.listed_bad, f"{pair.name} is in the list given")
        for name, least in self.scores.items():
            score = pair.scores.get(name)
            if score is None or not score >= least:
                found = "none" if score is None else f"{score:g}"
                detail = f"{pair.name}: {name} is {found}, needs {least:g}"
                raise RefusedPairError(Reason.low_score, detail)

    def check_record(self, record: PairRecord, pair: RawItem) -> None:
        """Refuse a pair by its pixels and captions; what nobody edited, by size and colour."""
        height, width = record.size
        if self.min_side is not None and min(height, width) < self.min_side:
            detail = f"is {width}x{height}, both sides need {self.min_side}"
            raise RefusedPairError(Reason.too_small, detail)
        _refuse_still(record, self.min_motion)
        captions = (record.source_caption.casefold(), record.target_caption.casefold())
        if self.captions and captions[0] and captions[0] == captions[1]:
            detail = f"both captions are {record.source_caption[:80]!r}"
            raise RefusedPairError(Reason.equal_captions, detail)
        if self.blank is not None:
            _refuse_blank(record, self.blank)
        if record.task == CAPTION:
            return
        difference = _difference(record)
        if self.near_identical is not None:
            most = _largest_block(difference)
            if most < self.near_identical:
                detail = f"no block differs by more than {most:.1f} levels of 255, needs "
                detail += f"{self.near_identical:g}"
                raise RefusedPairError(Reason.near_identical, detail)
        if self.mask_fit and record.mask is not None:
            _refuse_misfit(difference, record.mask)
        if self.similarity is not None:
            _refuse_unlike(record, self.similarity)
        if self.likeness and pair.likeness is not None:
            _refuse_little_kept(record, pair.likeness)


class Duplicates:
    """The contents and keys of all pairs so far."""

    def __init__(self) -> None:
        self._contents, self._keys = Digests(), Digests()

    def check(self, record: PairRecord, *, with_content: bool) -> None:
        """Remember the pair; refuse it if its key, or with content its pictures, came before."""
        key = digest(record.key.encode())
        if key in self._keys:
            detail = f"the key {record.key} came before: the data name this pair twice"
            raise RefusedPairError(Reason.duplicate, detail)
        if with_content:
            pictures = (record.source, record.target)
            shapes = repr([picture.shape for picture in pictures]).encode()
            pixels = (np.ascontiguousarray(picture).data for picture in pictures)
            content = digest(shapes, *pixels, record.instruction.encode())
            if content in self._contents:
                detail = "the same pictures and instruction came before"
                raise RefusedPairError(Reason.duplicate, detail)
            self._contents.add(content)
        self._keys.add(key)


def _difference(record: PairRecord) -> Float[np.ndarray, "h w"]:
    """Return the mean absolute difference of the three channels, in levels of 255."""
    levels = np.abs(record.source.astype(np.int16) - record.target)
    # channel by channel: a mean along so short an axis takes most of the gates' time
    return (levels[..., 0] + levels[..., 1] + levels[..., 2]) / np.float32(3)


def _refuse_still(record: PairRecord, least: float | None) -> None:
    motion = record.extra.get(MOTION)
    if least is not None and isinstance(motion, float) and motion < least:
        detail = f"its motion score is {motion:g}, needs {least:g}"
        raise RefusedPairError(Reason.little_motion, detail)


def _refuse_blank(record: PairRecord, levels: int) -> None:
    for side, picture in (("source", record.source), ("target", record.target)):
        if _span(picture[::_BLOCK, ::_BLOCK]) <= levels and _span(picture) <= levels:
            colour = tuple(int(level) for level in picture[0, 0])
            detail = f"the {side} is one colour, {colour} within {levels} levels"
            raise RefusedPairError(Reason.blank_picture, detail)


def _span(picture: UInt8[np.ndarray, "h w 3"]) -> int:
    """Return the largest range of a channel."""
    return max(int(np.ptp(picture[..., channel])) for channel in range(3))


def _largest_block(difference: Float[np.ndarray, "h w"]) -> float:
    """Return the largest mean of a block; blocks at the border may be smaller."""
    height, width = difference.shape
    rows, columns = range(0, height, _BLOCK), range(0, width, _BLOCK)
    sums = np.add.reduceat(np.add.reduceat(difference, rows, axis=0), columns, axis=1)
    heights = np.minimum(_BLOCK, height - np.array(rows))
    widths = np.minimum(_BLOCK, width - np.array(columns))
    return float((sums / np.outer(heights, widths)).max())


def _refuse_misfit(difference: Float[np.ndarray, "h w"], mask: np.ndarray) -> None:
    if not mask.any():
        raise RefusedPairError(Reason.mask_misfit, "the mask is empty, but the pictures differ")
    if mask.all():
        return
    inside, outside = float(difference[mask].mean()), float(difference[~mask].mean())
    if outside > _OUTSIDE * inside:
        detail = f"the pictures differ by {outside:.1f} levels outside the mask and by "
        detail += f"{inside:.1f} inside"
        raise RefusedPairError(Reason.mask_misfit, detail)


def _refuse_unlike(record: PairRecord, least: float) -> None:
    before, after = (_thumbnail(picture) for picture in (record.source, record.target))
    spread = float(before.std() * after.std())
    likeness = 0.0 if spread == 0 else float((before * after).mean()) / spread
    if likeness < least:
        detail = f"their correlation is {likeness:.2f}, needs {least:g}"
        raise RefusedPairError(Reason.unlike_pair, detail)


def kept_share(record: PairRecord) -> float:
    """Return the share of 16 x 16 cells whose mean colour the edit left, within 12 levels of 255.

    A local edit leaves most of a picture, however bold it is; of pictures that have nothing to do
    with each other hardly a cell agrees. Of 207 crops of photographs (ours): half of the picture
    painted over, at least 0.43 is kept; of unrelated pairs 95 % keep less than 0.15.
    """
    before, after = (
        np.asarray(
            Image.fromarray(picture).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX),
            dtype=np.int16,
        )
        for picture in (record.source, record.target)
    )
    return float((np.abs(before - after).max(axis=2) <= _KEPT).mean())


def _refuse_little_kept(record: PairRecord, least: float) -> None:
    share = kept_share(record)
    if share < least:
        detail = f"the edit leaves {share:.0%} of the picture, such an edit needs {least:.0%}"
        raise RefusedPairError(Reason.unlike_pair, detail)


def _thumbnail(picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "m n"]:
    """Return the picture's grey values in a coarse grid, around their mean."""
    grey = picture.mean(axis=2)
    rows, columns = (
        np.unique(np.linspace(0, side, _THUMBNAIL, endpoint=False, dtype=int))
        for side in grey.shape
    )
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=0), columns, axis=1)
    heights, widths = (
        np.diff(np.append(starts, side))
        for starts, side in zip((rows, columns), grey.shape, strict=True)
    )
    cells = sums / np.outer(heights, widths)
    return cells - cells.mean()


_FIRST = 1024  # places; a power of two, as all sizes are


def digest(*parts: bytes | memoryview) -> int:
    """Return 64 bits of BLAKE2b; two of four million numbers agree with a chance of 10^-6."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return int.from_bytes(found.digest(), "little")


class Digests:
    """A set of 64-bit numbers in 16 to 32 bytes each, where Python's set takes some 80.

    Open addressing with linear probing; 0 is an empty place, so the number 0 is stored as 1, which
    of digests nobody will notice.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * _FIRST))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return self._table[self._place(number or 1)] != 0

    def add(self, number: int) -> None:
        """Remember the number."""
        number = number or 1
        place = self._place(number)
        if self._table[place]:
            return
        self._table[place] = number
        self._count += 1
        if 2 * self._count > len(self._table):
            self._grow()

    def _place(self, number: int) -> int:
        """Return where the number is, or the empty place where it would be."""
        table, last = self._table, len(self._table) - 1
        place = number & last
        while table[place] not in {0, number}:
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        old, self._table = self._table, array("Q", bytes(16 * len(self._table)))
        for number in old:
            if number:
                self._table[self._place(number)] = number
