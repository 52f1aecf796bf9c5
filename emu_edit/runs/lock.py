"""One training per run folder: a lock file that says who holds it.

The lock is the kernel's (POSIX record locks), so a process that died gives it back at once. Some
shared disks do not pass locks between machines; so the holder touches the file every few seconds,
and a process that finds the name of another machine in it watches the file's time for a while.
"""

import errno
import fcntl
import json
import os
import socket
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from emu_edit.errors import InputError, StorageError

LOCK = "run.lock"
BEAT = 10.0  # seconds between two signs of life
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}
MISSED = 3  # beats without one, then the holder on another machine is gone


class RunLock:
    """Holds a run folder, made if needed, from `acquire` until the end of the `with` block."""

    def __init__(self, folder: Path, beat: float = BEAT) -> None:
        self.folder = folder
        self.path = folder / LOCK
        self._beat = beat
        self._file: int | None = None
        self._owner = 0  # process id
        self._end = threading.Event()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the folder.

        Raises:
            InputError: if another training has it.
            StorageError: if nothing can be written there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file, is_sure = self._opened()
            holder = _holder(file)
            is_here = holder is not None and holder["host"] == socket.gethostname()
            if holder is not None and not (is_sure and is_here) and self._is_touched():
                os.close(file)
                raise self._taken(holder)
            self._sign(file)
        except OSError as error:
            raise StorageError(
                f"the run's folder {self.folder} cannot be written ({error.strerror}); free space "
                "or give --run a folder you may write"
            ) from error
        self._file, self._owner = file, os.getpid()
        self._end.clear()
        threading.Thread(target=self._touch, daemon=True).start()

    def release(self) -> None:
        """Give the folder back; does nothing if it is not held, or by the parent of a fork."""
        if self._file is None or self._owner != os.getpid():
            return
        self._end.set()
        self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    def _opened(self) -> tuple[int, bool]:
        """Open and lock the file; return its descriptor, and whether the disk knows locks."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return file, False
                holder = _holder(file)
                os.close(file)
                raise self._taken(holder) from None
            with suppress(FileNotFoundError):
                # its holder may have deleted it meanwhile
                if os.path.samestat(os.fstat(file), self.path.stat()):
                    return file, True
            os.close(file)

    def _sign(self, file: int) -> None:
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        os.ftruncate(file, 0)
        os.pwrite(file, (json.dumps(me) + "\n").encode(), 0)
        os.fsync(file)

    def _taken(self, holder: dict[str, str | int] | None) -> InputError:
        who = "another process"
        if holder is not None:
            who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        return InputError(
            f"{self.folder} is in use by {who}; wait for it, stop it, or choose another --run "
            "folder"
        )

    def _touch(self) -> None:
        while not self._end.wait(self._beat):
            with suppress(OSError):
                os.utime(self.path)

    def _is_touched(self) -> bool:
        """Watch for a sign of life of somebody whose lock this machine may not see."""
        before = self.path.stat().st_mtime_ns
        for _ in range(MISSED):
            self._end.wait(self._beat)
            if self.path.stat().st_mtime_ns != before:
                return True
        return False


def _holder(file: int) -> dict[str, str | int] | None:
    """Return the process, machine and time written in the file; None if they are not whole."""
    try:
        signed = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return None
    is_whole = isinstance(signed, dict) and {"pid", "host", "since"} <= signed.keys()
    return signed if is_whole else None
