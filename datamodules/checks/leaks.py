"""The leak guard: a training picture that is an evaluation picture is found and refused.

A number on a benchmark says nothing when its pictures were trained on. The guard is given
evaluation pictures (folders of pictures, shards, parquet files), keeps of each a hash of 64 bits
and a thumbnail, and is asked for every source and target that is about to become training data.
It decides in two steps: the hash finds candidates among all evaluation pictures at once, then
thumbnails must agree up to brightness and contrast. One hash alone would not do: pictures with
much plain background share low frequencies (on the procedural world one pair in 40 is a candidate,
one in 10,000 is a leak). Robust to JPEG, resizing, slight changes of colour, narrow crops and
mirroring; not to large crops, rotation or removed colour. Measured: `benchmarks/leaks_recall.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8, UInt64
from PIL import Image

from datamodules.convert.parquet import read_columns, read_parquet
from datamodules.convert.picture import MissingPictureError, Picture
from datamodules.listing import list_entries
from datamodules.shards.manifest import MANIFEST, read_manifest
from datamodules.shards.writer import PairRecord
from datamodules.stream.reader import OpenShard
from emu_edit.errors import InputError
from emu_edit.pictures import EXTENSIONS

BITS = 64
THUMBNAIL = 16  # side
_SIDE = 32  # of the grey picture that is transformed
_SHRUNK = 64  # side of what both are made from, so that a large picture is read once
_PARQUET = ".parquet"
_PLAIN = 2.0  # grey levels: what varies less in every channel is a plain area, a hash of noise

# Chosen together on 2000 pictures of the world (64 px): recognised are 99.9 % after JPEG at quality
# 50, all at half the size and mirrored, 97.0 % after a crop of one pixel a side; a tenth of its
# pictures shows one of 2000 of another seed, as far as the guard can tell. Of 207 crops of
# photographs (256 px): 99.5 %, 100 %, 97.6 %, and none is taken for another.
MAX_BITS = 16  # of 64, for a candidate
MIN_CORRELATION = 0.95  # of two thumbnails, for a leak


# the matrix of the cosine transform (DCT-II, not scaled)
_DCT = np.cos(np.pi * (2 * np.arange(_SIDE) + 1) * np.arange(_SIDE)[:, None] / (2 * _SIDE))
_PLACES = sorted(product(range(_SIDE), repeat=2), key=lambda place: (sum(place), place))
_ROWS, _COLUMNS = np.array(_PLACES[1 : BITS + 1]).T  # the lowest frequencies, the mean left out
_MIRROR = np.where(_COLUMNS % 2 == 1, -1.0, 1.0)
_BIT_COUNTS = np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)


@dataclass(frozen=True)
class Fingerprint:
    """What stays nearly the same when a picture is saved again, resized or slightly recoloured.

    The hash: the picture becomes 32 x 32 grey levels and their cosine transform; a bit says whether
    one of the 64 lowest frequencies (without the mean) lies above the median of these. Mirroring
    turns the sign of the odd horizontal frequencies, so the mirrored hash costs no second
    transform. The thumbnail: 16 x 16 colours of mean 0 and length 1, so that the product of two is
    their correlation.

    Source: the DCT hash of Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash
    Functions"; the library imagehash has it, too, and needs scipy and PyWavelets. Taking the
    frequencies of the smallest sums, as JPEG's zigzag does, in place of the square 1..8 x 1..8 is
    ours: of 246 crops of photographs saved at quality 50 all stay within 16 bits, with the square
    98.8 %; the plain pictures of the world have more chance neighbours for it.
    """

    hash: np.uint64
    mirrored: np.uint64
    thumbnail: Float32[np.ndarray, "16 16 3"]


def fingerprint(picture: UInt8[np.ndarray, "h w 3"]) -> Fingerprint | None:
    """Return the fingerprint of a picture, None for a plain area, which has none."""
    image = Image.fromarray(picture).resize((_SHRUNK, _SHRUNK), Image.Resampling.BOX)
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    colours = np.asarray(small, dtype=np.float32)
    if colours.std(axis=(0, 1)).max() < _PLAIN:
        return None
    # one mean for all channels: the colours of a picture tell it from others of its shape
    colours = colours - colours.mean()
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    frequencies = _DCT @ np.asarray(grey, dtype=np.float64) @ _DCT.T
    lowest = frequencies[_ROWS, _COLUMNS]
    return Fingerprint(
        hash=_hash(lowest),
        mirrored=_hash(lowest * _MIRROR),
        thumbnail=colours / np.linalg.norm(colours),
    )


def _hash(frequencies: Float64[np.ndarray, "64"]) -> np.uint64:
    return np.packbits(frequencies > np.median(frequencies)).view(np.uint64)[0]


def hamming(hashes: UInt64[np.ndarray, " n"], other: np.uint64) -> UInt8[np.ndarray, " n"]:
    """Return in how many of the 64 bits each hash differs from another."""
    counts = _BIT_COUNTS[(hashes ^ other).view(np.uint16)]
    first, second, third, fourth = counts.reshape(-1, 4).T  # a sum over an axis of 4 is slow
    return first + second + third + fourth


@dataclass(frozen=True)
class Leak:
    """An evaluation picture that a training picture shows."""

    name: str  # the place of the evaluation picture
    bits: int  # in how many of 64 bits the hashes differ
    is_mirrored: bool

    def __str__(self) -> str:
        """Say what was found, as the end of a sentence."""
        what = "the mirror image of " if self.is_mirrored else ""
        differ = f"hashes differ in {self.bits} of {BITS} bits"
        return f"shows {what}the evaluation picture {self.name} ({differ})"


class LeakGuard:
    """Evaluation pictures by hash and thumbnail; about 3.2 kB each."""

    def __init__(self, pictures: Iterable[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]) -> None:
        marked = ((name, fingerprint(picture)) for name, picture in pictures)
        known = [(name, mark) for name, mark in marked if mark is not None]
        self._names = [name for name, _ in known]
        self._hashes = np.array([mark.hash for _, mark in known], dtype=np.uint64)
        self._thumbnails = np.array([mark.thumbnail for _, mark in known], dtype=np.float32)

    @staticmethod
    def of(paths: Sequence[Path], on_picture: Callable[[int], None] | None = None) -> "LeakGuard":
        """Build the guard from evaluation data, read as by `evaluation_pictures`.

        Raises:
            InputError: if a path has no pictures, or one of them cannot be read: a guard that
                misses pictures would be a false promise.
        """
        guard = LeakGuard(evaluation_pictures(paths, on_picture))
        if not guard.size:
            raise InputError(
                f"{', '.join(map(str, paths))}: all evaluation pictures are plain areas, which "
                "cannot be recognised; give the folder with the benchmark's inputs"
            )
        return guard

    @property
    def size(self) -> int:
        """The number of evaluation pictures known."""
        return len(self._names)

    def find(self, picture: UInt8[np.ndarray, "h w 3"]) -> Leak | None:
        """Return the evaluation picture which this one shows; of several the nearest by hash."""
        mark = fingerprint(picture)
        if mark is None or not self.size:
            return None
        found = [*self._matches(mark, is_mirrored=False), *self._matches(mark, is_mirrored=True)]
        return min(found, key=lambda leak: leak.bits, default=None)

    def _matches(self, mark: Fingerprint, *, is_mirrored: bool) -> list[Leak]:
        bits = hamming(self._hashes, mark.mirrored if is_mirrored else mark.hash)
        candidates = np.flatnonzero(bits <= MAX_BITS)
        shown = mark.thumbnail[:, ::-1] if is_mirrored else mark.thumbnail
        agreement = np.einsum("nhwc,hwc->n", self._thumbnails[candidates], shown)
        return [
            Leak(self._names[i], int(bits[i]), is_mirrored)
            for i in candidates[agreement >= MIN_CORRELATION]
        ]

    def __call__(self, record: PairRecord) -> str | None:
        """Return why a pair must not be trained on, or None."""
        for side, picture in record.views():
            leak = self.find(picture)
            if leak is not None:
                return f"the {side} {leak}"
        return None


def evaluation_pictures(
    paths: Sequence[Path], on_picture: Callable[[int], None] | None = None
) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
    """Yield the place and the pixels of every picture, decoded one at a time.

    One that cannot be read is an error and not skipped: what the guard does not know, it cannot
    find.

    Args:
        paths: pictures, parquet files (every column of pictures), shards (sources and targets),
            and folders of them, searched to the bottom.
        on_picture: called with the number of pictures read so far.

    Raises:
        InputError: if a path is missing or holds no picture, or a picture cannot be decoded.
    """
    count = 0
    for path in paths:
        before = count
        for picture in _pictures(path):
            yield picture.where, picture.decode().permute(1, 2, 0).contiguous().numpy()
            count += 1
            if on_picture is not None:
                on_picture(count)
        if count == before:
            raise InputError(
                f"{path}: holds no pictures (looked for {', '.join(EXTENSIONS)}, {_PARQUET} and "
                f"shards); give the folder with the benchmark's pictures"
            )


def _pictures(path: Path) -> Iterator[Picture]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give the evaluation pictures' place")
    if path.is_file():
        yield from _of_file(path)
        return
    shards: set[Path] = set()
    for entry in list_entries(path):
        if entry.why:  # what the guard does not know, it cannot find
            raise InputError(f"{entry.path}: {entry.why}; take it away or name it by itself")
        if not entry.is_file or shards & {*entry.path.parents}:
            continue
        if (entry.path.parent / MANIFEST).is_file():
            shards.add(entry.path.parent)
            yield from _of_shards(entry.path.parent)
        elif entry.path.suffix.lower() in {*EXTENSIONS, _PARQUET}:
            yield from _of_file(entry.path)


def _of_file(path: Path) -> Iterator[Picture]:
    if path.suffix.lower() != _PARQUET:
        yield Picture.at(path)
        return
    columns = read_columns(path, str(path))
    for _, _, pictures in read_parquet(path, str(path), columns, lambda _columns, _where: None):
        for column, picture in pictures.items():
            try:
                data = picture.fetch()
            except MissingPictureError:  # an empty cell, or a column of something else
                continue
            yield Picture.of(data, f"{picture.where}, {column}")


def _of_shards(folder: Path) -> Iterator[Picture]:
    for entry in read_manifest(folder).entries:
        shard = OpenShard(folder / entry.file, entry)
        for sample in range(entry.samples):
            for role in ("source", "target"):
                where = f"{folder / entry.file}: {role} of {shard.key(sample)!r}"
                yield Picture.of(shard.member(sample, role) or b"", where)
