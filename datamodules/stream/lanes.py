"""A lane: the samples of one task in one data set, the unit in which training is mixed.

The order function gives each lane its own draws and its own epochs, so a lane neither knows nor
cares how many others there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from datamodules.shards.folder import ShardFolder
from datamodules.shards.manifest import ShardEntry


@dataclass(frozen=True)
class DataSet:
    """A shard folder under the name it is mixed by; the name is empty for a folder alone."""

    name: str
    folder: ShardFolder


@dataclass(frozen=True)
class Lane:
    """One task of one data set.

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
