"""Fetch shards before they are read: a thread of each loader process looks ahead in the order.

It changes when a shard comes, never what is read: the order is asked what lies some thousand
positions ahead, shards that are missing are fetched, and those that are there are marked as needed,
so that the cache removes others first. What fails is left to the reader, which tries again and
says what is wrong.
"""

import copy
import logging
import threading
from collections.abc import Callable, Sequence

from datamodules.remote.folder import RemoteFolder
from datamodules.remote.node_cache import GIB
from datamodules.stream.mixing import Lane
from datamodules.stream.order import Order, Position, Stretch
from emu_edit.errors import InputError

SPAN = 4096  # positions ahead
STRIDE = 4  # looks at every fourth: the samples of a window are mixed, each shard comes up soon
STEP = 512  # positions to move on before looking again

logger = logging.getLogger(__name__)


class FetchAhead:
    """The thread that fetches; call it with the position that is about to be read.

    The thread starts at the first call and ends with the process. Call it in processes that do not
    fork, as the workers of a loader: a fork would copy the thread's locks and not the thread.
    """

    def __init__(self, lanes: Sequence[Lane], order: Callable[[int], Position]) -> None:
        self._lanes = lanes
        self._order = copy.deepcopy(order)  # it keeps tables that only one thread may fill
        self._at: tuple[int, Stretch | None] = (0, None)
        self._moved: threading.Event | None = None

    def __getstate__(self) -> dict[str, object]:
        # another process starts its own thread
        return {**self.__dict__, "_moved": None}

    def __call__(self, position: int, stretch: Stretch | None) -> None:
        """Note where reading is."""
        self._at = position, stretch
        if self._moved is None:
            self._moved = threading.Event()
            threading.Thread(
                target=self._run, args=(self._moved,), name="fetch ahead", daemon=True
            ).start()
        self._moved.set()

    def look(self, begin: int, end: int) -> None:
        """Fetch or mark the shards of some positions, each once."""
        seen: set[tuple[int, int]] = set()
        for position in range(begin, end, STRIDE):
            where = self._order(position)
            if (where.lane, where.shard) in seen:
                continue
            seen.add((where.lane, where.shard))
            lane = self._lanes[where.lane]
            if not isinstance(lane.folder, RemoteFolder):
                continue
            try:
                lane.folder.expect(lane.shards[where.shard])
            except InputError as error:
                logger.debug("not fetched ahead: %s", error)

    def _run(self, moved: threading.Event) -> None:
        done = 0
        while moved.wait():
            moved.clear()
            position, stretch = self._at
            order = self._order if isinstance(self._order, Order) else None
            if order is not None and stretch is not None and order.follow(stretch):
                done = 0  # what comes next is not what was looked at
            begin, end = max(done, position), position + SPAN
            if end - begin >= STEP:
                self.look(begin, end)
                done = end


def fetch_ahead(lanes: Sequence[Lane], order: Callable[[int], Position]) -> FetchAhead | None:
    """Return a `FetchAhead`, None if nothing is remote."""
    if any(isinstance(lane.folder, RemoteFolder) for lane in lanes):
        return FetchAhead(lanes, order)
    return None


def refuse_small_cache(lanes: Sequence[Lane], window: int) -> None:
    """Refuse a download cache that cannot hold what is mixed: shards would come again and again."""
    caches = [lane.folder.cache for lane in lanes if isinstance(lane.folder, RemoteFolder)]
    if not caches:
        return
    needed = 0
    for lane in lanes:
        if isinstance(lane.folder, RemoteFolder):
            needed += sum(sorted(entry.bytes for entry in lane.shards)[-window:])
    if needed > caches[0].max_bytes:
        raise InputError(
            f"data.cache.max_gb={caches[0].max_bytes / GIB:.3g} is less than the "
            f"{needed / GIB:.3g} GB of shards that are mixed at a time ({window} of each of "
            f"{len(caches)} tasks); raise it, or lower data.window"
        )


def retry_metrics(lanes: Sequence[Lane]) -> dict[str, float]:
    """Return the number to log of fetches that were tried again; none if nothing is remote."""
    folders = {lane.folder for lane in lanes if isinstance(lane.folder, RemoteFolder)}
    return {"data/retries": float(sum(folder.retries for folder in folders))} if folders else {}
