"""Start the training of `kill_test_run.py` or the program itself, strike it, wait for its end."""

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.kill_test_run import DIARY, Layout, train
from emu_edit.cli.main import describe
from emu_edit.errors import InputError, status_of

How = Literal["forked", "cli"]

ALONE = 15.0  # seconds until a launcher ends the ranks of a job that has lost one while it started
PATIENCE = 600.0  # seconds, of a busy machine, until a process that should end counts as hanging
POLL = 0.01
ROOT = Path(__file__).parents[1]
SMALL_FIT = (
    "--config=smoke",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=3",
    "--trainer.check_val_every_n_epoch=2",
    "--trainer.callbacks+=benchmarks.kill_test_run.Diary",
    "--data.pairs=32",
    "--data.global_batch=8",
    "--data.steps_per_epoch=6",
    "--score_pairs=0",
    "--no_predictor",
)


class HangsError(RuntimeError):
    """A process did not end after its signal, or after another rank was gone."""


@dataclass(frozen=True)
class Blow:
    """One interruption.

    Attributes:
        signal: its name.
        rank: the process that gets it; None for all.
        after: seconds after the start.
    """

    signal: str
    rank: int | None
    after: float

    def __str__(self) -> str:
        target = "all" if self.rank is None else f"rank {self.rank}"
        return f"{self.signal} to {target} after {self.after:.2f} s"


class Forked:
    """The ranks of a training as forked processes, as torchrun or srun would start them.

    As those do, it ends the other ranks when one is lost, but only while they wait for it to
    connect: from the first step on they have to end by themselves.
    """

    def __init__(self, folder: Path, data: Path, layout: Layout) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        self._pids = [_fork(folder, data, layout, rank, port) for rank in range(layout.ranks)]
        self._statuses: dict[int, int] = {}
        self._lost_at: float | None = None
        self._folder = folder
        self._trained_before = _trained_so_far(folder)

    def alive(self) -> list[int]:
        """Return the processes that have not ended."""
        now = time.monotonic()
        for pid in self._pids:
            if pid not in self._statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self._statuses[pid] = os.waitstatus_to_exitcode(status)
                    if self._statuses[pid] != 0 and self._lost_at is None:
                        self._lost_at = now
        left = [pid for pid in self._pids if pid not in self._statuses]
        is_lost_long = self._lost_at is not None and now > self._lost_at + ALONE
        if is_lost_long and _trained_so_far(self._folder) == self._trained_before:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        return left

    def rank(self, number: int) -> int:
        """Return the process of a rank."""
        return self._pids[number]

    def statuses(self) -> list[int]:
        """Return the exit statuses by rank."""
        return [self._statuses[pid] for pid in self._pids]


class Program:
    """`python -m emu_edit fit`, which starts its other ranks itself."""

    def __init__(self, folder: Path, data: Path, layout: Layout) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = [
            f"--run={folder}",
            "--resume=auto",
            f"--trainer.callbacks.folder={folder}",
            f"--data.folder={data / 'world'}",
            f"--data.num_workers={layout.workers}",
            f"--data.micro_batch={8 // (layout.ranks * layout.accumulate)}",
            f"--trainer.devices={layout.ranks}",
            *(["--trainer.strategy=ddp"] if layout.ranks > 1 else []),
        ]
        with _log(folder).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "emu_edit", "fit", *SMALL_FIT, *options],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def alive(self) -> list[int]:
        """Return the process if it has not ended, and the ranks it has started."""
        if self._process.poll() is not None:
            return []
        return [self._process.pid, *_children(self._process.pid, "emu_edit")]

    def rank(self, number: int) -> int:
        """Return the process of a rank; the first one while there are no others."""
        found = self.alive()
        return found[min(number, len(found) - 1)]

    def statuses(self) -> list[int]:
        """Return the exit status."""
        return [self._process.wait()]


def run_once(how: How, folder: Path, data: Path, layout: Layout) -> list[int]:
    """Start a training, or go on with it, to its end; return the exit statuses."""
    return _ended(_start(how, folder, data, layout), "it was left alone")


def strike(how: How, folder: Path, data: Path, layout: Layout, blow: Blow) -> list[int] | None:
    """Start, interrupt, and wait; return the exit statuses, None if it was done before."""
    running = _start(how, folder, data, layout)
    end = time.monotonic() + blow.after
    while time.monotonic() < end and running.alive():
        time.sleep(POLL)
    pids = running.alive()
    if len(pids) == 0:
        return None
    targets = pids if blow.rank is None else [running.rank(blow.rank)]
    for pid in set(targets) & set(pids):
        os.kill(pid, signal.Signals[blow.signal])
    return _ended(running, str(blow))


def _start(how: How, folder: Path, data: Path, layout: Layout) -> Forked | Program:
    return (Forked if how == "forked" else Program)(folder, data, layout)


def _ended(running: Forked | Program, after: str) -> list[int]:
    """Wait for all processes; return their exit statuses.

    Raises:
        HangsError: if some are there after `PATIENCE`; they are killed.
    """
    end = time.monotonic() + PATIENCE
    while pids := running.alive():
        if time.monotonic() > end:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            raise HangsError(f"hangs after {after}: {len(pids)} processes after {PATIENCE:g} s")
        time.sleep(POLL)
    return running.statuses()


def _fork(folder: Path, data: Path, layout: Layout, rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with _log(folder).open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = _trained(folder, data, layout, rank, port)
    finally:
        # nothing of the parent's is to be run here at the end
        os._exit(status)


def _trained(folder: Path, data: Path, layout: Layout, rank: int, port: int) -> int:
    """Be a rank; return the exit status `emu-edit` would have."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if layout.ranks > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "WORLD_SIZE": str(layout.ranks),
        }
    return answered(lambda: train(folder, data, layout))


def answered(run: Callable[[], int]) -> int:
    """Run; return the exit status as the program would."""
    try:
        return run()
    except (InputError, OSError) as error:
        sys.stderr.write(f"{describe(error) or error}\n")
        return status_of(error, verb="fit")
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  whatever it is, this process ends here
        traceback.print_exc()
        return 1


def _trained_so_far(folder: Path) -> int:
    """Return how many bytes the diaries have."""
    return sum(file.stat().st_size for file in folder.glob(f"{DIARY}-*.jsonl"))


def _log(folder: Path) -> Path:
    return folder.with_name(folder.name + ".log")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _children(parent: int, word: str) -> list[int]:
    """Return the further ranks a process has started; its loader processes are none."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_bytes().decode()
            environment = status.with_name("environ").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent and word in command and b"LOCAL_RANK=1" in environment:
            found.append(int(status.parent.name))
    return found
