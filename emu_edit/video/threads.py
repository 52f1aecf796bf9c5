"""Decoding, editing and encoding side by side: two threads that wait for each other at a bound."""

import threading
from collections.abc import Callable, Iterator
from queue import Queue
from typing import TypeVar

AHEAD = (
    8  # frames that are decoded ahead, and that may wait for the encoder: what is edited at once
)

Item = TypeVar("Item")


class Encoder:
    """A thread that encodes; its error is raised where the next frame is given."""

    def __init__(self, work: Callable[[tuple], None]) -> None:
        self._work = work
        self._queue: Queue[tuple | None] = Queue(AHEAD)
        self._error: BaseException | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, item: tuple) -> None:
        """Give it a frame; waits while too many are waiting."""
        self._check()
        self._queue.put(item)

    def finish(self) -> None:
        """Wait until everything is encoded."""
        self._queue.put(None)
        self._thread.join()
        self._check()

    def abandon(self) -> None:
        """Stop without encoding what is waiting."""
        self._stop = True
        self._queue.put(None)
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._stop or self._error is not None:
                continue  # the other side must never wait for room
            try:
                self._work(item)
            except BaseException as error:  # noqa: BLE001 - raised in the other thread
                self._error = error


def ahead(items: Iterator[Item], most: int = AHEAD) -> Iterator[Item]:
    """Make items in a thread of their own, at most so many ahead of who takes them."""
    queue: Queue[tuple[Item | None, BaseException | None]] = Queue(most)
    stop = threading.Event()

    def make() -> None:
        try:
            for item in items:
                queue.put((item, None))
                if stop.is_set():
                    return
            queue.put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001 - raised in the other thread
            queue.put((None, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType]
    finally:
        stop.set()
        while thread.is_alive():  # it may be waiting for room
            while not queue.empty():
                queue.get_nowait()
            thread.join(0.01)
