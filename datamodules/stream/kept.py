"""Which shards stay open: those in use, for as long as the system lets a process open files.

An order reads a lane window by window, sample by sample from any of the window's shards; then it is
done with them. So of each lane its last `window` shards are kept, and every shard is opened once.
With fewer allowed, the one that was read longest ago is closed and opened again when its turn
comes. Ours.
"""

import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Opened = TypeVar("Opened")

FILES = 2  # of an open shard: the tar and its index


def most_open() -> int:
    """Return how many shards this process keeps open at most.

    Half of the files that the system lets a process open (`ulimit -n`; 1024 are 256 shards): the
    rest is for sockets, pipes and the libraries'.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if soft == resource.RLIM_INFINITY else max(soft // 2 // FILES, 1)


class Kept(Generic[Opened]):
    """What is open, by lane and shard, that read longest ago first.

    Args:
        window: shards of a lane that are in use at a time.
        most: of all lanes together; None asks the system.
    """

    def __init__(self, window: int, most: int | None = None) -> None:
        self._window = window
        self._most = most_open() if most is None else most
        self._open: OrderedDict[tuple[int, int], Opened] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, lane: int, shard: int, opened: Callable[[], Opened]) -> Opened:
        """Return a shard of a lane, opened by `opened` unless it is open."""
        found = self._open.pop((lane, shard), None)
        if found is None:
            own = [place for place in self._open if place[0] == lane]
            if len(own) >= self._window:
                del self._open[own[0]]
            if len(self._open) >= self._most:
                self.drop()
            found = opened()
        self._open[lane, shard] = found
        return found

    def drop(self) -> bool:
        """Close what was read longest ago; False if nothing is open."""
        if not self._open:
            return False
        self._open.popitem(last=False)
        return True
