"""The DataLoader of this project: positions in, batches out, errors in one line.

An exception in a worker process normally arrives as its text with the worker's traceback around
it. Errors a user can cause are shown as one line here, so they travel as values and are raised in
the main process. What befalls the workers themselves (killed, no memory, nothing coming any more)
is worded here, too, with what was due and what usually helps. Workers outlive a signal that is
meant for the training: Ctrl-C, SLURM and systemd signal every process of a job, and training then
makes one more optimizer step, for which it needs its loader.
"""

import logging
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from datamodules.stream.order import Stretch
from datamodules.stream.reader import ShardDataset
from datamodules.stream.sampler import GlobalBatchSampler
from emu_edit.batch import (
    Batch,
    ClipBatch,
    ClipSample,
    EditBatch,
    EncodedBatch,
    EncodedSample,
    Sample,
)
from emu_edit.errors import InputError, StorageError

SHARED_MEMORY = Path("/dev/shm")
NUM_NAMED = 4  # shards named in a message
GRACE = 2.0  # seconds in which the system tells how a process ended
BEGINS = 30.0  # seconds a forked process has to begin; it needs some milliseconds
TRIES = 3

Batches = list[list[int]] | GlobalBatchSampler

log = logging.getLogger(__name__)

_MEMORY = "lower data.num_workers, or give the machine or container more memory"


class LoaderError(StorageError):
    """The loader's processes died, ran out of memory, or give nothing any more."""


Ahead = Callable[[int, Stretch | None], None]


class Deal(NamedTuple):
    """What to read of a batch: its positions, and the stretch of the stream they are on.

    Workers read some batches ahead, so they cannot be told of another mixture in between: each
    batch says by which it is drawn. None is the one the samples have.
    """

    positions: list[int]
    stretch: Stretch | None


class _ErrorsAsValues(Dataset[Sample]):
    def __init__(self, samples: ShardDataset, ahead: Ahead | None) -> None:
        self._samples = samples
        self._ahead = ahead

    def __getitems__(self, deal: Deal) -> list[Sample] | InputError:
        """Read one micro-batch; torch's loader prefers this method to `__getitem__`."""
        positions, stretch = deal
        if stretch is not None:
            self._samples.follow(stretch)
        if self._ahead is not None and get_worker_info() is not None:
            self._ahead(positions[0], stretch)
        try:
            return [self._samples[position] for position in positions]
        except InputError as error:
            return error
        except MemoryError:
            return LoaderError(f"no memory was left to read a batch; {_MEMORY}")


def _collate(samples: list[Any] | InputError) -> Batch | InputError:
    if isinstance(samples, InputError):
        return samples
    # a batch is of one kind: `open_caches` refuses caches beside pictures
    match samples[0]:
        case EncodedSample():
            batch = EncodedBatch.collate(samples)
        case ClipSample():
            batch = ClipBatch.collate(samples)
        case _:
            batch = EditBatch.collate(samples)
    if get_worker_info() is None:
        return batch
    try:
        # torch would do so while it sends the batch, in a thread whose errors nobody gets to see
        return batch.share_memory()
    except RuntimeError as error:
        if re.search("shared memory|</torch_", str(error)) is None:
            raise
        return LoaderError(f"no shared memory was left for a batch; {_shared_memory_hint()}")


class _Dealt(Sampler[Deal]):
    """The batches of a sampler, and a note of those that were dealt and have not arrived."""

    def __init__(self, batches: Batches, stretch: Callable[[], Stretch] | None) -> None:
        self._batches = batches
        self._stretch = stretch
        self._due: deque[Deal] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Deal]:
        self._due.clear()
        stretch = None if self._stretch is None else self._stretch()
        for positions in self._batches:
            deal = Deal(positions, stretch)
            self._due.append(deal)
            yield deal

    def arrived(self) -> None:
        """Strike out the batch that was due."""
        if self._due:
            self._due.popleft()

    def due(self) -> Deal:
        """Return the batch that is waited for."""
        return self._due[0] if self._due else Deal([], None)


class PositionLoader(DataLoader[Sample]):
    """Load micro-batches of positions, in order, whatever the number of workers.

    `state_dict` and `load_state_dict` tell Lightning that resuming mid-epoch is taken care of; the
    state itself is in the data module, because Lightning does not restore a loader's in all cases.

    Args:
        samples: what a position means.
        batches: the positions of each batch.
        num_workers: processes that read; 0 reads here.
        start_method: how they start: fork, spawn or forkserver; by default the system's way.
        timeout: seconds to wait for a batch of the workers; 0 waits for ever.
        ahead: called in the workers with the position about to be read, and its stretch.
        stretch: called at the start of every iteration, returns the stretch of the stream that its
            batches are on; by default the one the samples have.
    """

    def __init__(
        self,
        samples: ShardDataset,
        batches: Batches,
        *,
        num_workers: int = 0,
        start_method: str | None = None,
        timeout: float = 0.0,
        ahead: Ahead | None = None,
        stretch: Callable[[], Stretch] | None = None,
    ) -> None:
        self._samples = samples
        self._dealt = _Dealt(batches, stretch)
        super().__init__(
            _ErrorsAsValues(samples, ahead),
            batch_sampler=self._dealt,  # pyright: ignore[reportArgumentType]  any index goes
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            multiprocessing_context=start_method,
            worker_init_fn=shield,
            timeout=timeout if num_workers else 0.0,  # torch refuses one without workers
        )

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # workers start now, not at the first batch
        if not self._will_fork():
            batches = super().__iter__()
            _word_deaths()
            return self._checked(batches)
        for _ in range(TRIES):
            began = self.worker_init_fn = _Began()
            batches = super().__iter__()
            _word_deaths()
            if began.all(self.num_workers):
                return self._checked(batches)
            log.warning(
                "a loader process has not begun after %g s and is replaced: a copy of a process "
                "made while a thread of it holds a lock can wait for ever",
                BEGINS,
            )
            _end(batches)
            self._iterator = None
        raise LoaderError(
            f"the loader's processes do not begin, {TRIES} times in {BEGINS:g} s; look whether the "
            "machine is overloaded, or set data.num_workers to 0"
        )

    def _will_fork(self) -> bool:
        context = self.multiprocessing_context or multiprocessing
        is_new = self.num_workers > 0 and self._iterator is None  # they are kept for all epochs
        return is_new and context.get_start_method() == "fork"

    def state_dict(self) -> dict[str, object]:
        """Return nothing: the position is in the data module's state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Take nothing."""

    def _checked(self, batches: Iterator[Any]) -> Iterator[Batch]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (LoaderError, RuntimeError, ConnectionError, EOFError) as error:
                worded = self._worded(error)
                if worded is None:
                    raise
                raise worded from error
            self._dealt.arrived()
            if isinstance(batch, InputError):
                raise batch
            yield batch

    def _worded(self, error: Exception) -> LoaderError | None:
        if "DataLoader timed out" in str(error):
            return LoaderError(
                f"the data loader gave nothing for {self.timeout:g} s; due is {self._what_is_due()}"
                "; look whether the disk or server of these files answers, or raise "
                "data.loader_timeout (0 waits for ever)"
            )
        death = self._death(error)
        return None if death is None else LoaderError(f"{death}; due was {self._what_is_due()}")

    def _death(self, error: Exception) -> LoaderError | None:
        """Return what the end of a worker is to be called; None if the error is another.

        The news comes in three ways: from the system, as `_OnDeath` words it; from torch, whose
        waiting was interrupted by that; or as a connection that broke, before the system tells.
        """
        if isinstance(error, LoaderError):
            return error
        if isinstance(error.__cause__, LoaderError):
            return error.__cause__
        if isinstance(error, RuntimeError):
            # torch may know no more than that it is gone, when the system's report was lost
            worded = _death(str(error))
            return None if worded is None else _reported() or worded
        if not self.num_workers or "Caught" in str(error):
            return None  # what the data set raised
        with suppress(LoaderError):
            time.sleep(GRACE)
        return _reported() or LoaderError(f"a loader process is gone; {_MEMORY}")

    def _what_is_due(self) -> str:
        positions, stretch = self._dealt.due()
        if not positions:
            return "nothing"
        if stretch is not None:
            self._samples.follow(stretch)
        places = list(dict.fromkeys(self._samples.place(position) for position in positions))
        more = f" and {len(places) - NUM_NAMED} more" if len(places) > NUM_NAMED else ""
        return f"position {positions[0]} of the stream: {', '.join(places[:NUM_NAMED])}{more}"


def _death(message: str) -> LoaderError | None:
    """Word what torch says when a worker is gone; None for anything else."""
    found = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", message)
    if found is None:
        return None
    pid, what = found.groups()
    by = re.match(r"is killed by signal: ([^.]*)\.", what)
    if by is not None and "Bus error" in by[1]:
        return LoaderError(
            f"a loader process ({pid}) found no shared memory; {_shared_memory_hint()}"
        )
    if by is not None and by[1] != "Killed":
        return LoaderError(f"a loader process ({pid}) ended by signal: {by[1]}; {_MEMORY}")
    return LoaderError(
        f"a loader process ({pid}) was killed, most often because memory ran out (`dmesg` tells); "
        f"{_MEMORY}"
    )


def _shared_memory_hint() -> str:
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
        size = f"{SHARED_MEMORY} has {usage.free >> 20} of {usage.total >> 20} MiB free; "
    except OSError:
        size = ""
    return f"{size}start the container with more (--shm-size), or lower data.num_workers"


class _OnDeath:
    """What to do when the system reports a dead worker: what torch does, in our words.

    It raises wherever the program is, so the error may be lost in a place that catches everything;
    `latest` keeps it.
    """

    def __init__(self, torchs: Callable[[int, Any], object]) -> None:
        self._torchs = torchs
        self.latest: LoaderError | None = None

    def __call__(self, number: int, frame: Any) -> None:
        try:
            self._torchs(number, frame)
        except RuntimeError as error:
            self.latest = _death(str(error))
            raise self.latest or error from error


def _reported() -> LoaderError | None:
    """Return what the system last reported of a worker; None if it did not."""
    handler = signal.getsignal(signal.SIGCHLD)
    return handler.latest if isinstance(handler, _OnDeath) else None


def _word_deaths() -> None:
    """Reword what torch raises wherever the program is; it does so once workers have started."""
    current = signal.getsignal(signal.SIGCHLD)
    if isinstance(current, _OnDeath):
        current.latest = None
    elif callable(current) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, _OnDeath(current))


class _Began:
    """A `worker_init_fn` by which the parent learns that a forked worker has begun.

    CPython 3.11 forks a process that never begins if at that moment a thread of C++, such as one of
    gloo's or NCCL's, enters or leaves the interpreter: the lock on the list of threads is copied as
    taken, and `PyOS_AfterFork_Child` waits for it. Seen in one of some hundred validations on two
    ranks.
    """

    def __init__(self) -> None:
        self._count = multiprocessing.Semaphore(0)

    def __call__(self, worker: int) -> None:
        shield(worker)
        self._count.release()

    def all(self, count: int) -> bool:
        """Wait until so many have begun; return whether they have."""
        end = time.monotonic() + BEGINS
        return all(
            self._count.acquire(timeout=max(end - time.monotonic(), 0)) for _ in range(count)
        )


def _end(batches: Any) -> None:
    """End the workers of torch's iterator, also one that does nothing at a signal."""
    batches._shutdown_workers()
    for worker in batches._workers:
        worker.kill()
        worker.join()


def shield(_worker: int) -> None:
    """Let this process end by its parent's SIGTERM only (a `worker_init_fn` of torch's loader).

    It also ends when its parent is gone, which torch's loop looks for every few seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # a handler is not told who sends, a thread that waits for the signal is
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
