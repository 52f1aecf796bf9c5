import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from emu_edit.errors import InputError, StorageError
from emu_edit.runs.lock import LOCK, RunLock
from tests.training.disks import read_only

REPOSITORY = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from emu_edit.runs.lock import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    lock.acquire()
    print("held", flush=True)
    sys.stdin.read()
"""
# Python 3.12 warns that a fork has no threads; the child of these tests needs none
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
BEAT = 0.2  # seconds; a lock nobody touches is watched for three of them


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder until its input ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


def sign(folder: Path, host: str) -> Path:
    """Write the lock file of a process that is not there."""
    file = folder / LOCK
    file.write_text(json.dumps({"pid": 1, "host": host, "since": "2025-01-31 10:00:00"}))
    return file


def test_a_folder_somebody_trains_in_is_refused_with_process_host_and_time(tmp_path):
    with held(tmp_path / "r") as holder, RunLock(tmp_path / "r") as lock:
        who = rf"process {holder.pid} on {socket.gethostname()} since 20\d\d-"
        with pytest.raises(InputError, match=rf"r is in use by {who}.*; wait for it, stop it, or"):
            lock.acquire()


def test_a_lock_is_given_back_at_the_end_and_leaves_no_file(tmp_path):
    with held(tmp_path / "r") as holder:
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.wait() == 0
        assert list((tmp_path / "r").iterdir()) == []
        for _ in range(2):
            with RunLock(tmp_path / "r") as lock:
                lock.acquire()
                signed = json.loads((tmp_path / "r" / LOCK).read_text())
                assert (signed["pid"], signed["host"]) == (os.getpid(), socket.gethostname())
        assert list((tmp_path / "r").iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    with held(tmp_path) as holder:
        holder.kill()
        holder.wait()
        assert (tmp_path / LOCK).exists()
        with RunLock(tmp_path, beat=1e9) as lock:  # it would watch for ever
            lock.acquire()
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_forked_child_that_outlives_a_killed_process_does_not_keep_its_lock(tmp_path):
    child = 'import os\n    os.fork() or os._exit(len(os.read(0, 1)))\n    print("held"'
    script = HOLD.replace('print("held"', child)
    assert script != HOLD
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"  # said by the parent; the child waits
        holder.kill()
        holder.wait()
        with RunLock(tmp_path, beat=1e9) as lock:
            lock.acquire()


def test_a_lock_of_another_machine_counts_as_long_as_it_shows_signs_of_life(tmp_path):
    file, end = sign(tmp_path, "elsewhere"), Event()

    def live() -> None:
        while not end.wait(BEAT / 20):
            os.utime(file)

    other = Thread(target=live)
    other.start()
    try:
        with (
            RunLock(tmp_path, beat=BEAT) as lock,
            pytest.raises(InputError, match=r"process 1 on elsewhere since 2025-01-31 10:00:00"),
        ):
            lock.acquire()
    finally:
        end.set()
        other.join()
    with RunLock(tmp_path, beat=BEAT) as lock:
        lock.acquire()
    assert not file.exists()


def test_a_disk_without_locks_is_watched_instead(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with RunLock(tmp_path, beat=BEAT / 20) as first:
        first.acquire()
        with (
            RunLock(tmp_path, beat=BEAT) as second,
            pytest.raises(InputError, match="is in use by"),
        ):
            second.acquire()
        assert (tmp_path / LOCK).exists()
    with RunLock(tmp_path, beat=BEAT) as third:
        third.acquire()


def test_a_forked_child_does_not_give_back_its_parents_lock(tmp_path):
    with RunLock(tmp_path) as lock:
        lock.acquire()
        if (child := os.fork()) == 0:
            lock.release()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}'])
def test_a_lock_file_nobody_signed_is_nobodys(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with RunLock(tmp_path, beat=1e9) as lock:
        lock.acquire()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_run_folder_nobody_may_write_is_a_matter_of_storage(tmp_path):
    (tmp_path / "r").mkdir()
    with (
        read_only(tmp_path / "r") as folder,
        RunLock(folder) as lock,
        pytest.raises(StorageError, match=r"the run's folder .*r cannot be written \(.*\); free"),
    ):
        lock.acquire()
