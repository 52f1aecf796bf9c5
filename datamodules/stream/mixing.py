"""From weights to quotas: which lanes training draws from, how often, and how often it has.

A weight is of a task (`local`) or of one task of one data set (`magic/local`). That of a task is
shared out over the data sets that have it by their numbers of samples, as if these lay in one
folder: a further data set adds to its tasks and leaves the mixture of tasks as it was. Without
weights all tasks come equally often. A task whose shards are of several kinds has a lane for each,
which share its draws by their numbers of samples until training is steered; so has one whose
pictures are of several buckets (`datamodules.buckets`), which share always. What was drawn
is counted from the position alone; what takes the place of a bad sample is of the same lane.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from datamodules.shards.folder import ShardFolder
from datamodules.shards.manifest import ShardEntry
from datamodules.stream.order import (
    IN_BUCKET,
    PERIOD,
    LaneOrder,
    OrderSpec,
    quotas,
    refuse_not_positive,
)
from datamodules.stream.resume import data_hash
from emu_edit.errors import InputError, closest

FINE_PERIOD = 16 * PERIOD  # with buckets: there are many lanes, and small ones
_LEAST = 2  # draws in a period: a share that is drawn even after all are scaled to sum to 1
_NAME = re.compile(r"[\w.-]*")  # a part of names in weights and logs


@dataclass(frozen=True)
class DataSet:
    """A shard folder under the name it is mixed by; the name is empty for a folder alone."""

    name: str
    folder: ShardFolder


@dataclass(frozen=True)
class Lane:
    """The samples of one task in one data set, or one kind or bucket of them: what is mixed.

    A lane has draws and epochs of its own, however many others there are.

    Args:
        data_set: name of the data set, empty for a folder alone.
        task: what all its samples are pairs of.
        kind: which pairs of the task they are; empty where kinds are not told apart.
        folder: where the shards lie.
        shards: in the order in which the order function counts them.
        bucket: the shape its pictures are brought to; empty where that is a square.
    """

    data_set: str
    task: str
    kind: str
    folder: ShardFolder
    shards: tuple[ShardEntry, ...]
    bucket: str = ""

    @property
    def group(self) -> str:
        """`task`, or `task:kind`: what is steered and measured as one, whatever set it is from."""
        return f"{self.task}:{self.kind}" if self.kind else self.task

    @property
    def name(self) -> str:
        """`task`, `dataset/task`, `dataset/task:kind@bucket`: the name in checkpoints and logs."""
        name = f"{self.data_set}/{self.group}" if self.data_set else self.group
        return f"{name}{IN_BUCKET}{self.bucket}" if self.bucket else name

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of samples of each shard."""
        return tuple(entry.samples for entry in self.shards)

    @property
    def num_samples(self) -> int:
        """The number of samples in all shards."""
        return sum(self.sizes)


def lanes_of(data_sets: Iterable[DataSet], buckets: Mapping[str, str] | None = None) -> list[Lane]:
    """Return the lanes of some data sets: by name of the set, then as its manifest lists them.

    `buckets` says which bucket each shape of shards is in; without, all are in one.
    """
    return [
        Lane(data.name, task, kind, data.folder, part, bucket)
        for data in sorted(data_sets, key=lambda data: data.name)
        for task in data.folder.manifest.tasks
        for kind, shards in data.folder.manifest.kinds(task).items()
        for bucket, part in _by_bucket(shards, buckets or {}).items()
    ]


def groups_of(lanes: Sequence[Lane]) -> tuple[tuple[str, ...], Int64[Tensor, " n"]]:
    """Return the groups of some lanes, and which of them each of their samples is of, in order."""
    names = tuple(dict.fromkeys(lane.group for lane in lanes))
    of_lanes = torch.tensor([names.index(lane.group) for lane in lanes], dtype=torch.int64)
    sizes = torch.tensor([lane.num_samples for lane in lanes], dtype=torch.int64)
    return names, of_lanes.repeat_interleave(sizes)


def _by_bucket(
    shards: Iterable[ShardEntry], buckets: Mapping[str, str]
) -> dict[str, tuple[ShardEntry, ...]]:
    found: dict[str, tuple[ShardEntry, ...]] = {}
    for entry in shards:
        bucket = buckets.get(entry.shape, "")
        found[bucket] = (*found.get(bucket, ()), entry)
    return found


@dataclass(frozen=True)
class Mixture:
    """The lanes training draws from, and how often it draws from each in a period.

    Where lanes are of several buckets, so many draws in a row, a `step`, are of one.
    """

    lanes: tuple[Lane, ...]
    quotas: tuple[int, ...]
    step: int = 1

    def spec(
        self,
        *,
        seed: int,
        window: int,
        start: int = 0,
        drawn: Mapping[str, int] | None = None,
        steered: Mapping[str, int] | None = None,
    ) -> OrderSpec:
        """Return the order of this mixture.

        Args:
            seed: of the order.
            window: number of shards of a lane whose samples are mixed.
            start: the position from which this mixture holds.
            drawn: draws of each lane before `start`, by name; none for those it lacks.
            steered: quotas of all lanes in place of its own.
        """
        before, present = drawn or {}, steered or self.by_name()
        lanes = (
            LaneOrder(
                lane.name, present[lane.name], lane.sizes, before.get(lane.name, 0), lane.bucket
            )
            for lane in self.lanes
        )
        return OrderSpec(seed, tuple(lanes), window=window, start=start, step=self.step)

    def by_name(self) -> dict[str, int]:
        """Return the quota of each lane."""
        return dict(zip((lane.name for lane in self.lanes), self.quotas, strict=True))

    def shares(self) -> dict[str, float]:
        """Return the share of the draws of each group; their sum is 1."""
        return {group: quota / sum(self.quotas) for group, quota in self._by_group().items()}

    def steered(self, shares: Mapping[str, float]) -> dict[str, int]:
        """Return the quotas with which the groups have other shares of the draws.

        Lanes of one group share as they did. No share is so small that nothing would be drawn.
        """
        of_group = self._by_group()
        wanted = {
            lane.name: Fraction(shares[lane.group]) * quota / of_group[lane.group]
            for lane, quota in zip(self.lanes, self.quotas, strict=True)
        }
        period = sum(self.quotas)
        least = Fraction(_LEAST, period)
        return quotas({name: max(share, least) for name, share in wanted.items()}, period)

    def _by_group(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for lane, quota in zip(self.lanes, self.quotas, strict=True):
            found[lane.group] += quota
        return found

    def hashes(self) -> dict[str, str]:
        """Return a hash of the shards of each lane."""
        return {lane.name: data_hash(lane.shards) for lane in self.lanes}


def named_folders(train: str | Mapping[str, str]) -> dict[str, str]:
    """Return the folder of each data set; a folder alone has the empty name.

    Raises:
        InputError: if there is none, or a name could not stand in `dataset/task`.
    """
    if isinstance(train, str):
        return {"": train}
    if not train:
        raise InputError("data.train is empty; give a folder of shards, or NAME: FOLDER of several")
    for name in train:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"data.train names a data set {name!r}; a name is letters, digits, '_', '-', '.'"
            )
    return dict(train)


def mixture_of(
    lanes: Sequence[Lane], weights: Mapping[str, float] | None, step: int = 1
) -> Mixture:
    """Return the lanes that have a weight, and their quotas.

    Raises:
        InputError: if weights name what there is not, name something twice, are not above 0 or too
            small, or leave a whole data set without any.
    """
    _refuse_doubled_shards(lanes)
    if weights is None:
        weights = dict.fromkeys((lane.task for lane in lanes), 1.0)
    else:
        check_weights(weights, _known_names(lanes), where_of(lanes))
    shares = _shares(lanes, weights)
    _refuse_idle_sets(lanes, shares)
    drawn = [lane for lane in lanes if lane.name in shares]
    period = FINE_PERIOD if any(lane.bucket for lane in drawn) else PERIOD
    # nobody gave a kind or bucket its weight, so it is not refused
    least = Fraction(_LEAST, period) * sum(shares.values())
    in_period = quotas(
        {
            lane.name: max(shares[lane.name], least if lane.kind or lane.bucket else Fraction(0))
            for lane in drawn
        },
        period,
    )
    return Mixture(tuple(drawn), tuple(in_period[lane.name] for lane in drawn), step)


def _known_names(lanes: Sequence[Lane]) -> list[str]:
    tasks = [lane.task for lane in lanes]
    of_sets = [_full_name(lane) for lane in lanes if any(lane.data_set for lane in lanes)]
    return list(dict.fromkeys([*tasks, *of_sets]))


def where_of(lanes: Sequence[Lane]) -> str:
    """Return what to call the data in messages."""
    folders = list(dict.fromkeys(str(lane.folder) for lane in lanes))
    return folders[0] if len(folders) == 1 else "data.train"


def check_weights(weights: Mapping[str, float], known: Sequence[str], where: Path | str) -> None:
    """Refuse weights that name unknown tasks, or none, or are not above 0."""
    if not weights:
        raise InputError("data.weights is empty; leave it out to draw all tasks equally")
    check_named(weights, known, where, setting="data.weights")
    refuse_not_positive(weights)


def check_named(
    numbers: Mapping[str, float], known: Sequence[str], where: Path | str, *, setting: str
) -> None:
    """Refuse numbers for tasks there are not, with the nearest names."""
    unknown = [name for name in numbers if name not in known]
    if unknown:
        hints = "".join(dict.fromkeys(closest(name, list(known)) for name in unknown))
        raise InputError(
            f"{setting} names task {', '.join(map(repr, unknown))}, {where} has "
            f"{', '.join(known)}.{hints}"
        )


def _full_name(lane: Lane) -> str:
    return f"{lane.data_set}/{lane.task}"  # also of the set without a name: "/local"


def _shares(lanes: Sequence[Lane], weights: Mapping[str, float]) -> dict[str, Fraction]:
    """Return the weight of each lane that has one, by its name."""
    by_task: dict[str, list[Lane]] = defaultdict(list)
    for lane in lanes:
        by_task[lane.task].append(lane)
    shares: dict[str, Fraction] = {}
    for task, of_task in by_task.items():
        own = [lane for lane in of_task if _full_name(lane) in weights]
        if own and task in weights:
            raise InputError(
                f"data.weights names both {task!r} and {_full_name(own[0])!r}; give task {task!r} "
                "one weight, or one for each data set"
            )
        for lane in own:
            of_set = [other for other in own if other.data_set == lane.data_set]
            shares[lane.name] = Fraction(weights[_full_name(lane)]) * _part(lane, of_set)
        if task in weights:
            for lane in of_task:
                shares[lane.name] = Fraction(weights[task]) * _part(lane, of_task)
    return shares


def _part(lane: Lane, lanes: Sequence[Lane]) -> Fraction:
    return Fraction(lane.num_samples, sum(lane.num_samples for lane in lanes))


def _refuse_idle_sets(lanes: Sequence[Lane], shares: Mapping[str, Fraction]) -> None:
    tasks: dict[str, list[str]] = defaultdict(list)
    for lane in lanes:
        tasks[lane.data_set].append(lane.task)
    drawn = {lane.data_set for lane in lanes if lane.name in shares}
    idle = [
        f"{name!r} ({', '.join(dict.fromkeys(of))})"
        for name, of in tasks.items()
        if name not in drawn
    ]
    if idle:
        raise InputError(
            f"data.weights draws nothing from data set {', '.join(idle)}; give a task of it a "
            "weight, or leave it out of data.train"
        )


def _refuse_doubled_shards(lanes: Sequence[Lane]) -> None:
    found: dict[str, Lane] = {}
    for lane in lanes:
        for entry in lane.shards:
            other = found.setdefault(entry.sha256, lane)
            if other.data_set != lane.data_set:
                raise InputError(
                    f"data sets {other.data_set!r} and {lane.data_set!r} of data.train hold the "
                    f"same shard {entry.file}; leave one out, and give data.weights to draw it more"
                )
