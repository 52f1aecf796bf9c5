"""A web server on loopback that serves a folder and misbehaves as a test tells it to."""

import os
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

Behaviour = Callable[["Handler", bytes], None]


def well(handler: "Handler", data: bytes) -> None:
    handler.begin(length=len(data))
    handler.wfile.write(data)


def status(code: int) -> Behaviour:
    def answer(handler: "Handler", data: bytes) -> None:
        del data
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def redirect(target: str, *, header: str = "Location") -> Behaviour:
    def answer(handler: "Handler", data: bytes) -> None:
        del data
        handler.send_response(302)
        handler.send_header(header, target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def drop(handler: "Handler", data: bytes) -> None:
    """Announce everything, send half, close."""
    handler.begin(length=len(data))
    handler.wfile.write(data[: len(data) // 2])


def reset(handler: "Handler", data: bytes) -> None:
    """Announce everything, send half, and reset the connection."""
    drop(handler, data)
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def short(handler: "Handler", data: bytes) -> None:
    """Announce half and send half: a proper answer, but not the whole file."""
    well(handler, data[: len(data) // 2])


def short_without_length(handler: "Handler", data: bytes) -> None:
    """Send half without announcing a length; the end of the connection is the end of the file."""
    handler.begin(length=None)
    handler.wfile.write(data[: len(data) // 2])


def without_length(handler: "Handler", data: bytes) -> None:
    handler.begin(length=None)
    handler.wfile.write(data)


def stall(handler: "Handler", data: bytes) -> None:
    """Send half and then nothing, until the server is closed."""
    drop(handler, data)
    handler.wfile.flush()
    handler.site.closing.wait(30)


def silent(handler: "Handler", data: bytes) -> None:
    """Send nothing at all."""
    del data
    handler.site.closing.wait(30)


def slow(handler: "Handler", data: bytes) -> None:
    """Send everything, a hundredth at a time with short pauses."""
    handler.begin(length=len(data))
    step = -(-len(data) // 100)
    for start in range(0, len(data), step):
        handler.wfile.write(data[start : start + step])
        handler.wfile.flush()
        handler.site.closing.wait(0.01)


def endless(head: bytes, again: bytes, pause: float = 0.02) -> Behaviour:
    """Send a beginning, and then the same again and again: never silent, and never any data."""

    def answer(handler: "Handler", data: bytes) -> None:
        del data
        handler.wfile.write(head)
        end = time.monotonic() + 20
        while time.monotonic() < end and not handler.site.closing.wait(pause):
            handler.wfile.write(again)

    return answer


OK = b"HTTP/1.1 200 OK\r\n"
dripped_header = endless(OK + b"X-Slow: ", b"x")
dripped_headers = endless(OK, b"X-Slow: x\r\n")
dripped_extension = endless(OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x")
dripped_trailer = endless(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Slow: ", b"x")
processing = endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n")
flood = endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 100, pause=0.0)


def flipped(handler: "Handler", data: bytes) -> None:
    """Send everything, one bit of it changed."""
    middle = len(data) // 2
    well(handler, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def longer(handler: "Handler", data: bytes) -> None:
    well(handler, data + b"x" * 1000)


@dataclass
class Site:
    """What a test sees of the server.

    Args:
        folder: what is served.
        url: its address.
        plan: for a file, what to do at the next requests; afterwards they are answered well.
        always: for a file, what to do at all requests.
        requests: how often each file was asked for.
        headers: of the last request.
    """

    folder: Path
    url: str = ""
    plan: dict[str, list[Behaviour]] = field(default_factory=lambda: defaultdict(list))
    always: dict[str, Behaviour] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    headers: dict[str, str] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, name: str) -> Behaviour:
        with self.lock:
            self.requests[name] += 1
            if name in self.always:
                return self.always[name]
            return self.plan[name].pop(0) if self.plan[name] else well


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name = unquote(parts.path).lstrip("/")
        self.site.headers = dict(self.headers)
        self.site.queries.append(parts.query)
        behave = self.site.next(name)
        path = self.site.folder / name
        if not path.is_file():
            behave = status(404)
        try:
            behave(self, path.read_bytes() if path.is_file() else b"")
        except (BrokenPipeError, ConnectionResetError):  # the client left
            self.close_connection = True

    def begin(self, *, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:  # after a reset
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextmanager
def serve(folder: Path) -> Iterator[Site]:
    """Serve a folder on a free port of 127.0.0.1."""
    site = Site(folder)
    handler = type("BoundHandler", (Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with mock.patch.dict(os.environ, {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}):
            yield site
    finally:
        site.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
