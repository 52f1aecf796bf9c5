"""Buckets: which sizes the pictures of a training are brought to, so that they keep their shape.

Shards that were sorted by shape (`datamodules.shards.shapes`) say so in their manifest, and the
order of training is known before a picture is read. A bucket is a shape that a step is of: the
common ones. Shapes of which there are hardly any join the nearest bucket, because a step takes all
its pictures from one, and would show a few again and again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from datamodules.encoded.reader import CacheHeader
from datamodules.shards.manifest import ShardEntry
from datamodules.shards.shapes import SHAPES, nearest_shape
from datamodules.stream.mixing import DataSet, Lane, lanes_of, mixture_of
from datamodules.stream.sampler import evaluation_batches
from datamodules.stream.transforms import Crop
from emu_edit.errors import InputError

RARE = 100  # ours: a shape that fewer than one in so many pictures have is no bucket


def sort_by_bucket(
    data_sets: Sequence[DataSet],
    crop: Crop,
    *,
    least: int,
    weights: Mapping[str, float] | None = None,
) -> tuple[Crop, list[Lane]]:
    """Return the lanes of data sets, and the crop that brings their pictures to their buckets.

    Args:
        data_sets: all that are read together.
        crop: says whether there are to be buckets.
        least: samples a bucket needs: those of a step.
        weights: of tasks; what is not drawn has no say in which buckets there are.

    Raises:
        InputError: if the crop is to have buckets and shards do not say of which shape their
            pictures are; or as `mixture_of`.
    """
    lanes = lanes_of(data_sets)
    if crop.buckets is None or not lanes:
        return crop, lanes
    drawn = lanes if weights is None else mixture_of(lanes, weights).lanes
    for lane in drawn:
        _refuse_unsorted(lane)
    buckets = buckets_of([entry for lane in drawn for entry in lane.shards], least=least)
    return replace(crop, buckets=buckets), lanes_of(data_sets, buckets)


def buckets_of(shards: Sequence[ShardEntry], *, least: int) -> dict[str, str]:
    """Return the bucket of each shape; one needs so many samples, and one in `RARE` of all."""
    counts: Counter[str] = Counter()
    for entry in shards:
        counts[entry.shape] += entry.samples
    needed = max(least, counts.total() / RARE)
    most = max(SHAPES, key=counts.__getitem__)
    common = [shape for shape in SHAPES if counts[shape] >= needed] or [most]
    return {shape: nearest_shape(shape, common) for shape in SHAPES}


def _refuse_unsorted(lane: Lane) -> None:
    folder = lane.folder
    if CacheHeader.of(folder.manifest, folder) is not None:
        raise InputError(
            f"data.buckets: true needs pictures, and {folder} is a cache of latents of squares; "
            "set data.buckets: false, or train on the pictures"
        )
    for entry in lane.shards:
        if not entry.shape:
            raise InputError(
                f"{folder}: {entry.file} does not say of which shape its pictures are, as "
                "data.buckets: true needs; convert again with --by-shape (`shards world` writes "
                "squares and says so), or set data.buckets: false"
            )


def bucket_batches(
    lanes: Sequence[Lane], micro: int, world: int, rank: int, most: int | None = None
) -> list[list[int]]:
    """Return the batches of one rank for one pass over a set, each of one bucket.

    Bucket after bucket, each as `evaluation_batches` deals a whole set. Of a set with more than
    `most` samples about so many are taken, see `spread`; their positions stay what they are.

    Raises:
        InputError: if a bucket has fewer samples than there are processes.
    """
    positions: dict[str, list[int]] = {}
    first, total = 0, sum(lane.num_samples for lane in lanes)
    for lane in lanes:
        last = first + lane.num_samples
        taken = range(first, last) if most is None else spread(first, last, total, most, world)
        positions.setdefault(lane.bucket, []).extend(taken)
        first = last
    return [
        [own[i] for i in batch]
        for own in positions.values()
        for batch in evaluation_batches(len(own), micro, world, rank)
    ]


def spread(first: int, last: int, total: int, most: int, world: int) -> list[int]:
    """Return the positions from `first` to `last`, not included, that are taken of `total`.

    At equal distances over the whole set, so that a mean over `most` is one over all of it, but of
    each stretch at least one for each process: no kind of edit is missing. Ours.
    """
    count = last - first
    share = min(max(-(-count * most // total), world), count) if most < total else count
    return [first + i * count // share for i in range(share)]
