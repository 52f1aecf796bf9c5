"""Fetch one file through fsspec, with retries and error messages that hold no secrets.

Timeouts, broken connections, short answers and the statuses 408, 425, 429 and 5xx are tried again,
with pauses that double and a jitter that differs between machines and processes. Other 4xx are the
server's last word. No message repeats the text of a library's error: it may hold the whole address,
secrets included.
"""

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync

from datamodules.remote.address import WEB, Address
from datamodules.remote.redirects import RedirectError, redirect_trace
from emu_edit.errors import InputError, ShardError, StorageError
from emu_edit.randomness import keyed_generator

CHUNK = 2**20  # bytes asked for at a time
FIRST_PAUSE = 0.5  # seconds before the second attempt; ours
LONGEST_PAUSE = 30.0
TRY_AGAIN = {408, 425, 429}  # and all from 500
MEANING = {401: "not authorized", 403: "forbidden", 404: "not found", 410: "gone"}
T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on. `deadline` and `stall` are seconds, of one file and without any data.

    Headers are no data. Both are kept whatever a server sends, the stall by the web alone.
    """

    attempts: int
    deadline: float
    stall: float
    insecure_http: bool = False


class AttemptError(Exception):
    """One attempt failed.

    Args:
        reason: in words of ours.
        is_final: whether another attempt would only bring the same.
        is_content: whether everything arrived, but it was not what the manifest says.
    """

    def __init__(self, reason: str, *, is_final: bool = False, is_content: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final
        self.is_content = is_content


def fetch(
    address: Address,
    name: str,
    receive: Callable[[Iterator[bytes]], T],
    policy: RetryPolicy,
    on_retry: Callable[[str], None],
) -> T:
    """Read a file of a folder elsewhere, as often as the policy allows.

    Args:
        address: the folder.
        name: the file in it.
        receive: reads the chunks of one attempt to their end and returns what they made; it raises
            `AttemptError` for content that is wrong.
        policy: attempts and seconds.
        on_retry: called before each attempt after the first, with a line that says why.

    Raises:
        StorageError: if the file cannot be had; the message lists the attempts.
        ShardError: if wrong content arrived twice, or the same short content in every attempt.
        InputError: if the protocol needs a package that is not installed.
    """
    start = time.monotonic()
    failures: list[AttemptError] = []
    while True:
        try:
            with closing(_chunks(address, name, policy, start + policy.deadline)) as chunks:
                return receive(chunks)
        except AttemptError as error:
            failures.append(error)
        waited = time.monotonic() - start
        pause = _pause(name, len(failures))
        is_over = (
            failures[-1].is_final
            or len(failures) >= policy.attempts
            or sum(failure.is_content for failure in failures) >= 2
            or waited + pause > policy.deadline
        )
        # from None: the cause's text may hold secrets of the address
        if is_over:
            raise _final_error(address.shown(name), failures, waited) from None
        on_retry(
            f"{address.shown(name)}: {failures[-1].reason}; attempt {len(failures) + 1} of "
            f"{policy.attempts} in {pause:.1f} s"
        )
        time.sleep(pause)


def _pause(name: str, attempt: int) -> float:
    """Return the seconds to wait after a failed attempt: 0.5, 1, 2, ... times 0.5 to 1.5."""
    where = f"pause {socket.gethostname()} {os.getpid()} {name}"
    jitter = 0.5 + keyed_generator(0, where, attempt).random()
    return min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * jitter


def _final_error(shown: str, failures: list[AttemptError], waited: float) -> InputError:
    last = failures[-1]
    reasons = [failure.reason for failure in failures]
    counted = f"{len(failures)} attempt{'s' * (len(failures) > 1)} in {waited:.1f} s"
    log = "" if len(failures) == 1 else f"; before: {', '.join(reasons[:-1])}"
    is_always_short = len(failures) > 1 and last.reason.startswith("ended") and len({*reasons}) == 1
    if last.is_content or is_always_short:
        return ShardError(
            f"{shown}: {last.reason} ({counted}{log}); it was replaced or damaged since the "
            "manifest was written: upload shard and manifest again"
        )
    if last.is_final:
        return StorageError(
            f"{shown}: {last.reason} ({counted}{log}); correct the address or the rights to read it"
        )
    return StorageError(
        f"{shown}: {last.reason} ({counted}{log}); see whether the server can be reached, or raise "
        "data.cache.attempts and data.cache.deadline"
    )


def _chunks(
    address: Address, name: str, policy: RetryPolicy, end: float
) -> Generator[bytes, None, None]:
    """Yield the bytes of a file as they come; what goes wrong is an AttemptError.

    Args:
        address: the folder.
        name: the file in it.
        policy: seconds.
        end: of the policy's deadline, in seconds of `time.monotonic`.
    """
    try:
        system = _file_system(address, policy)
        reading = _of_web if address.protocol in WEB else _of_others
        with closing(reading(system, address.file(name), policy.stall, end)) as chunks:
            yield from chunks
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  each file system has errors of its own
        if isinstance(error, TimeoutError) and time.monotonic() >= end:
            reason = f"slower than the deadline of {policy.deadline:g} s"
            raise AttemptError(reason) from None
        raise describe(error) from None


def _of_web(system: Any, url: str, stall: float, end: float) -> Generator[bytes, None, None]:
    """Yield what a web server sends; no wait for data is longer than `stall`, or goes beyond `end`.

    aiohttp's limits are for a silence (`sock_read`), and a server that sends headers byte by byte,
    `102 Processing` without end or long extensions of chunks is never silent. So it is the wait for
    data that is bounded, the first from before the connection is made. What is cut off is cancelled
    in the thread of fsspec's event loop, and the connection closed.
    """

    def in_time(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return sync(system.loop, call, *args, timeout=min(stall, _left(end)), **options)

    # makes no request yet; giving a size spares a HEAD request
    stream = in_time(system.open_async, url, size=1)
    try:
        while chunk := in_time(stream.read, CHUNK):
            yield chunk
    finally:
        asyncio.run_coroutine_threadsafe(stream.close(), system.loop)


def _of_others(system: Any, url: str, stall: float, end: float) -> Generator[bytes, None, None]:
    """Yield a file of another protocol; its package sees to stalls, `end` is seen to here."""
    del stall

    def read() -> Iterator[bytes]:
        # hf would read ahead in blocks
        options = {"block_size": 0} if system.protocol == "hf" else {}
        with system.open(url, "rb", **options) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    chunks = read()
    while chunk := _in_thread(lambda: next(chunks, b""), end):
        yield chunk


def _in_thread(call: Callable[[], T], end: float) -> T:
    """Return what a call returns; at `end` it is left behind, in a thread that holds nobody up."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001  raised again by `result`
            outcome.set_exception(error)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    return outcome.result(timeout=_left(end))


def _left(end: float) -> float:
    """Return the seconds until `end`, which are never none: to fsspec 0 means without limit."""
    if (left := end - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def describe(error: Exception) -> AttemptError:
    """Say in words of ours what a file system's error means, and whether to try again."""
    import aiohttp  # takes a while: only where something is remote

    status = _status_of(error)
    if status is not None:
        meaning = f" ({MEANING[status]})" if status in MEANING else ""
        is_final = 400 <= status < 500 and status not in TRY_AGAIN
        return AttemptError(f"status {status}{meaning}", is_final=is_final)
    match error:
        case RedirectError():
            return AttemptError(f"redirected {error}", is_final=True)
        case aiohttp.ClientSSLError():
            return AttemptError(f"no trusted encryption ({type(error).__name__})", is_final=True)
        case TimeoutError():
            return AttemptError("timed out")
        case aiohttp.ClientPayloadError():
            return AttemptError("connection lost in the middle")
        case OSError() if error.errno is not None and error.errno in errno.errorcode:
            return AttemptError(f"request failed ({os.strerror(error.errno)})")
        case _:
            return AttemptError(f"request failed ({type(error).__name__})")


def _status_of(error: Exception) -> int | None:
    import aiohttp
    from huggingface_hub.errors import HfHubHTTPError

    match error:
        case FileNotFoundError():
            return 404
        case PermissionError():
            return 403
        case aiohttp.ClientResponseError():
            return error.status or None
        case HfHubHTTPError():
            return error.response.status_code
        case _:
            return None


def _file_system(address: Address, policy: RetryPolicy) -> fsspec.AbstractFileSystem:
    """Return the file system of an address; fsspec keeps one for each process and setting."""
    options = {}
    if address.protocol in WEB:
        options = {"client_kwargs": _web_options(policy.insecure_http)}
    try:
        return fsspec.url_to_fs(address.url, **options)[0]
    except ImportError as error:
        raise InputError(
            f"{address.shown()}: {address.protocol}:// needs a package that is not installed "
            f"({error.name or error}); pip install 'emu-edit[remote]' has those of s3 and gs"
        ) from error


@cache
def _web_options(insecure_http: bool) -> dict[str, object]:
    """Return the settings of aiohttp, always the same object: fsspec would open a new session."""
    import aiohttp
    from aiohttp.http import SERVER_SOFTWARE

    return {
        "timeout": aiohttp.ClientTimeout(),  # none: see `_of_web`
        "trace_configs": [redirect_trace(insecure_http=insecure_http)],
        "trust_env": True,  # proxies, as clusters need them, and ~/.netrc for passwords
        # the bytes as they lie on the server: the manifest counts those
        "headers": {"Accept-Encoding": "identity", "User-Agent": f"emu-edit {SERVER_SOFTWARE}"},
    }
