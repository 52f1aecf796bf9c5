"""What befalls the loader's processes, and what a user reads then."""

import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from torch.utils.data import get_worker_info

from datamodules.edit import EditDataModule
from datamodules.remote.folder import open_folder
from datamodules.stream.loader import LoaderError, PositionLoader
from datamodules.stream.mixing import DataSet, lanes_of
from datamodules.stream.order import Position
from datamodules.stream.reader import InOrder, PictureDecoder, ShardDataset
from datamodules.stream.transforms import Crop
from emu_edit.batch import Sample
from emu_edit.errors import ExitStatus, InputError
from emu_edit.tasks import SIXTEEN
from tests.datamodules.toy_shards import make_folder

FATE_AT = 6  # the position at which a worker meets its fate: the third sample of the second shard


class Fateful(ShardDataset):
    """Something happens to the worker that reads one position."""

    def fate(self) -> None:
        raise NotImplementedError

    def read(self, where: Position, position: int) -> Sample:
        if position == FATE_AT and get_worker_info() is not None:
            self.fate()
        return super().read(where, position)


class Killed(Fateful):
    def fate(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class BusError(Fateful):
    def fate(self) -> None:
        os.kill(os.getpid(), signal.SIGBUS)


class Terminated(Fateful):
    def fate(self) -> None:
        os.kill(os.getpid(), signal.SIGABRT)


class Left(Fateful):
    def fate(self) -> None:
        os._exit(3)


class Stalled(Fateful):
    def fate(self) -> None:
        threading.Event().wait()


class WithoutSharedMemory(Fateful):
    def fate(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))


def loader(folder: Path, kind: type[ShardDataset], *, timeout: float = 0.0) -> PositionLoader:
    if not (folder / "manifest.json").exists():
        make_folder(folder, {"local": 12})
    lanes = lanes_of([DataSet("", open_folder(folder))])
    order = InOrder([lane.sizes for lane in lanes])
    samples = kind(lanes, order=order, tasks=SIXTEEN, decode=PictureDecoder(Crop(16)))
    plan = [[i, i + 1] for i in range(0, 12, 2)]
    return PositionLoader(samples, plan, num_workers=1, timeout=timeout)


DUE = r"due (was|is) position \d+ of the stream: local-00000\d\.tar \(local\)"
FATES = {
    Killed: r"a loader process \(\d+\) was killed, most often because memory ran out .*lower data",
    BusError: r"found no shared memory; /dev/shm has \d+ of \d+ MiB free; .*--shm-size",
    Terminated: r"ended by signal: Aborted; lower data\.num_workers",
    Left: r"a loader process \(\d+\) was killed",
}


# torch raises wherever the program is when the system reports: also where Python can only print it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", FATES)
def test_the_end_of_a_worker_is_one_line_with_what_was_due_and_a_hint(
    tmp_path: Path, kind: type[Fateful]
):
    with pytest.raises(LoaderError, match=rf"{FATES[kind]}.*; {DUE}") as caught:
        list(loader(tmp_path, kind))
    assert "\n" not in str(caught.value)
    assert caught.value.status is ExitStatus.storage


def copies_that_wait(monkeypatch: pytest.MonkeyPatch, ever: int) -> list[int]:
    """Let the first `ever` forks give a process that never begins and hears no SIGTERM."""
    forked: list[int] = []
    real = os.fork

    def fork() -> int:
        forked.append(0)
        pid = real()
        if pid == 0 and len(forked) <= ever:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            threading.Event().wait()
        forked[-1] = pid
        return pid

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr("datamodules.stream.loader.BEGINS", 0.5)
    return forked


@pytest.mark.slow  # torch waits five seconds for a worker to end by itself
def test_a_worker_that_never_begins_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    there = list(loader(tmp_path, ShardDataset))
    forked = copies_that_wait(monkeypatch, 1)
    batches = loader(tmp_path, ShardDataset)
    assert [b.position.tolist() for b in batches] == [b.position.tolist() for b in there]
    assert "a loader process has not begun after 0.5 s and is replaced" in caplog.text
    assert len(forked) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(forked[0], 0)


@pytest.mark.slow
def test_workers_that_never_begin_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copies_that_wait(monkeypatch, 99)
    with pytest.raises(LoaderError, match=r"processes do not begin, 3 times in 0\.5 s; look"):
        list(loader(tmp_path, ShardDataset))


def test_a_report_that_was_raised_where_nobody_hears_it_is_used_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    batches = loader(tmp_path, ShardDataset)
    iterator = iter(batches)
    next(iterator)
    handler = signal.getsignal(signal.SIGCHLD)
    lost = LoaderError("a loader process (7) ended by signal: Aborted")
    monkeypatch.setattr(handler, "latest", lost)

    def gone() -> None:
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    monkeypatch.setattr(batches._iterator, "_next_data", gone)
    with pytest.raises(LoaderError, match=rf"\(7\) ended by signal: Aborted; {DUE}"):
        next(iterator)


def test_a_worker_that_gives_nothing_is_waited_for_only_so_long(tmp_path: Path):
    batches = iter(loader(tmp_path, Stalled, timeout=1.0))
    assert [next(batches).position.tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(
        LoaderError,
        match=r"gave nothing for 1 s; due is position 6 of the stream: local-000001\.tar \(local\)"
        r"; look whether the disk .* raise data\.loader_timeout",
    ):
        next(batches)


def test_no_shared_memory_is_said_instead_of_waiting_for_ever(tmp_path: Path):
    with pytest.raises(LoaderError, match=r"no shared memory was left for a batch; /dev/shm has"):
        list(loader(tmp_path, WithoutSharedMemory, timeout=60.0))


def test_the_end_of_a_worker_is_worded_wherever_the_program_is(tmp_path: Path):
    batches = loader(tmp_path, ShardDataset)
    next(iter(batches))
    worker = batches._iterator._workers[0]  # type: ignore[union-attr]

    def kill_and_do_something_else() -> None:
        os.kill(worker.pid, signal.SIGKILL)
        threading.Event().wait(60)  # not asking the loader for anything

    with pytest.raises(LoaderError, match="was killed, most often because memory ran out"):
        kill_and_do_something_else()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_time_allowed_is_an_option_of_the_data(tmp_path: Path, workers: int):
    make_folder(tmp_path, {"local": 12})
    data = EditDataModule(
        str(tmp_path), global_batch=4, image_size=8, num_workers=workers, loader_timeout=7.0
    )
    data.setup("fit")
    # without workers there is nobody to wait for
    assert data.train_dataloader().timeout == (7.0 if workers else 0.0)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(tmp_path: Path, seconds: float):
    with pytest.raises(InputError, match=r"data\.loader_timeout=.* must be at least 0"):
        EditDataModule(str(tmp_path), loader_timeout=seconds)


def test_a_loader_goes_through_its_plan_again_after_it_was_left_in_the_middle(tmp_path: Path):
    batches = loader(tmp_path, ShardDataset, timeout=60.0)
    next(iter(batches))
    assert [batch.position.tolist() for batch in batches] == [[i, i + 1] for i in range(0, 12, 2)]
