"""From weights to quotas: which lanes training draws from, how often, and how often it has.

A weight is of a task (`local`) or of one task of one data set (`magic/local`). That of a task is
shared out over the data sets that have it by their numbers of samples, as if these lay in one
folder: a further data set adds to its tasks and leaves the mixture of tasks as it was. Without
weights all tasks come equally often. What was drawn is counted from the position alone; what takes
the place of a bad sample is of the same lane.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from datamodules.shards.folder import ShardFolder
from datamodules.shards.manifest import ShardEntry
from datamodules.stream.order import LaneOrder, Order, OrderSpec, quotas, refuse_not_positive
from datamodules.stream.resume import data_hash
from emu_edit.errors import InputError, closest
from emu_edit.terminal import aligned

_NAME = re.compile(r"[\w.-]*")  # a part of names in weights and logs


@dataclass(frozen=True)
class DataSet:
    """A shard folder under the name it is mixed by; the name is empty for a folder alone."""

    name: str
    folder: ShardFolder


@dataclass(frozen=True)
class Lane:
    """The samples of one task in one data set, the unit in which training is mixed.

    A lane has draws and epochs of its own, however many others there are.

    Args:
        data_set: name of the data set, empty for a folder alone.
        task: what all its samples are pairs of.
        folder: where the shards lie.
        shards: in the order in which the order function counts them.
    """

    data_set: str
    task: str
    folder: ShardFolder
    shards: tuple[ShardEntry, ...]

    @property
    def name(self) -> str:
        """`task`, or `dataset/task`: the name in weights, checkpoints and logs."""
        return f"{self.data_set}/{self.task}" if self.data_set else self.task

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of samples of each shard."""
        return tuple(entry.samples for entry in self.shards)

    @property
    def num_samples(self) -> int:
        """The number of samples in all shards."""
        return sum(self.sizes)


def lanes_of(data_sets: Iterable[DataSet]) -> list[Lane]:
    """Return the lanes of some data sets: by name of the set, then as its manifest lists them."""
    return [
        Lane(data.name, task, data.folder, data.folder.manifest.of_task(task))
        for data in sorted(data_sets, key=lambda data: data.name)
        for task in data.folder.manifest.tasks
    ]


@dataclass(frozen=True)
class Mixture:
    """The lanes training draws from, and how often it draws from each in a period."""

    lanes: tuple[Lane, ...]
    quotas: tuple[int, ...]

    def spec(
        self, *, seed: int, window: int, start: int = 0, drawn: Mapping[str, int] | None = None
    ) -> OrderSpec:
        """Return the order of this mixture.

        Args:
            seed: of the order.
            window: number of shards of a lane whose samples are mixed.
            start: the position from which this mixture holds.
            drawn: draws of each lane before `start`, by name; none for those it lacks.
        """
        before = drawn or {}
        lanes = (
            LaneOrder(lane.name, quota, lane.sizes, before.get(lane.name, 0))
            for lane, quota in zip(self.lanes, self.quotas, strict=True)
        )
        return OrderSpec(seed, tuple(lanes), window=window, start=start)

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


def mixture_of(lanes: Sequence[Lane], weights: Mapping[str, float] | None) -> Mixture:
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
    in_period = quotas({lane.name: shares[lane.name] for lane in drawn})
    return Mixture(tuple(drawn), tuple(in_period[lane.name] for lane in drawn))


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
            shares[lane.name] = Fraction(weights[_full_name(lane)])
        if task in weights:
            total = sum(lane.num_samples for lane in of_task)
            for lane in of_task:
                shares[lane.name] = Fraction(weights[task]) * Fraction(lane.num_samples, total)
    return shares


def _refuse_idle_sets(lanes: Sequence[Lane], shares: Mapping[str, Fraction]) -> None:
    tasks: dict[str, list[str]] = defaultdict(list)
    for lane in lanes:
        tasks[lane.data_set].append(lane.task)
    drawn = {lane.data_set for lane in lanes if lane.name in shares}
    idle = [f"{name!r} ({', '.join(of)})" for name, of in tasks.items() if name not in drawn]
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


MANY_EPOCHS = 100  # ours: a lane gone through so often is learnt by heart


@dataclass(frozen=True)
class LaneCount:
    """The numbers of one lane.

    Attributes:
        name: `task` or `dataset/task`.
        samples: how many it has.
        drawn: how often it was drawn from since training began.
        wanted: its share of the draws by weight.
        share: its share of the draws since the present weights hold; the wanted one before any.
    """

    name: str
    samples: int
    drawn: int
    wanted: float
    share: float

    @property
    def epochs(self) -> float:
        """How often its samples were gone through."""
        return self.drawn / self.samples


def count_lanes(mixture: Mixture, spec: OrderSpec, position: int) -> list[LaneCount]:
    """Return the numbers of each lane for a stream trained on up to `position`."""
    drawn = Order(spec).drawn_before(position)
    since = position - spec.start
    counts = []
    for lane, ordered in zip(mixture.lanes, spec.lanes, strict=True):
        wanted = ordered.quota / spec.period
        share = (drawn[lane.name] - ordered.drawn) / since if since else wanted
        counts.append(LaneCount(lane.name, lane.num_samples, drawn[lane.name], wanted, share))
    return counts


def lane_metrics(counts: Sequence[LaneCount]) -> dict[str, float]:
    """Return `data/share/<lane>` and `data/epochs/<lane>`."""
    shares = {f"data/share/{count.name}": count.share for count in counts}
    return shares | {f"data/epochs/{count.name}": count.epochs for count in counts}


def lane_table(counts: Sequence[LaneCount]) -> str:
    """Return the numbers as a table, one row for each lane."""
    rows = [("lane", "samples", "drawn", "wanted", "share", "epochs")]
    rows += [
        (
            count.name,
            str(count.samples),
            str(count.drawn),
            f"{count.wanted:.2%}",
            f"{count.share:.2%}",
            f"{count.epochs:.2f}",
        )
        for count in counts
    ]
    return "\n".join(aligned(rows, numbers=True))


def repeated_often(counts: Sequence[LaneCount], *, until: str) -> str:
    """Return one line naming the lanes gone through more than `MANY_EPOCHS` times, or ""."""
    often = [
        f"{count.name} {count.epochs:.0f} times ({count.samples} samples)"
        for count in counts
        if count.epochs > MANY_EPOCHS
    ]
    if not often:
        return ""
    return (
        f"{until} training goes through {', '.join(often)}, more than {MANY_EPOCHS} times; such "
        "few samples are learnt by heart: lower their data.weights, or add samples"
    )
