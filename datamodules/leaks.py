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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from datamodules.fingerprint import BITS, Fingerprint, fingerprint, hamming
from datamodules.leak_pictures import evaluation_pictures
from datamodules.writer import PairRecord
from emu_edit.errors import InputError

# Chosen together on 2000 pictures of the world (64 px): recognised are 99.9 % after JPEG at quality
# 50, all at half the size and mirrored, 97.0 % after a crop of one pixel a side; a tenth of its
# pictures shows one of 2000 of another seed, as far as the guard can tell. Of 207 crops of
# photographs (256 px): 99.5 %, 100 %, 97.6 %, and none is taken for another.
MAX_BITS = 16  # of 64, for a candidate
MIN_CORRELATION = 0.95  # of two thumbnails, for a leak


@dataclass(frozen=True)
class Leak:
    """An evaluation picture that a training picture shows.

    Attributes:
        name: the place of the evaluation picture.
        bits: in how many of 64 bits the hashes differ.
        is_mirrored: whether the training picture is its mirror image.
    """

    name: str
    bits: int
    is_mirrored: bool

    def __str__(self) -> str:
        """Say what was found, as the end of a sentence."""
        what = "the mirror image of " if self.is_mirrored else ""
        differ = f"hashes differ in {self.bits} of {BITS} bits"
        return f"shows {what}the evaluation picture {self.name} ({differ})"


class LeakGuard:
    """Knows evaluation pictures by hash and thumbnail; about 3.2 kB each."""

    def __init__(self, pictures: Iterable[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]) -> None:
        marked = ((name, fingerprint(picture)) for name, picture in pictures)
        known = [(name, mark) for name, mark in marked if mark is not None]
        self._names = [name for name, _ in known]
        self._hashes = np.array([mark.hash for _, mark in known], dtype=np.uint64)
        self._thumbnails = np.array([mark.thumbnail for _, mark in known], dtype=np.float32)

    @staticmethod
    def of(paths: Sequence[Path], on_picture: Callable[[int], None] | None = None) -> "LeakGuard":
        """Build the guard from evaluation data.

        Args:
            paths: folders of pictures, folders of shards (sources and targets), parquet files or
                folders of them (every column of pictures), searched to the bottom.
            on_picture: called with the number of pictures read so far.

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
        for side, picture in (("source", record.source), ("target", record.target)):
            leak = self.find(picture)
            if leak is not None:
                return f"the {side} {leak}"
        return None
