"""What strangers may ask of the web page, and the layer that keeps other requests from it.

The page answers strangers as soon as someone starts it with `--host`: whatever costs memory or time
has a bound in `Limits`, so that none is forgotten, and what goes beyond it is refused in one line
before the work begins. Web libraries trust their own pages: gradio runs any function past its queue
for who asks by `/run`, believes what a request says of its origin, keeps what is left of an upload
that broke off, and fetches addresses that a request names. So `RequestGuard`, an ASGI layer, passes
on only what the page itself asks for, from its own origin, with bodies that have come whole; lets
files be named in the page's own folder only, and keeps that folder small (`Store`).
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from emu_edit.errors import InputError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

API = "/gradio_api"
UPLOAD = f"{API}/upload"
FILE = f"{API}/file="
JOIN = f"{API}/queue/join"

# Requests of the page itself, found by watching it in a browser; gradio 6 knows eighty more. With a
# name that ends in / or = whatever is below it is meant.
READ = (
    "/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/static/", "/assets/", "/svelte/",
    f"{API}/theme.css", f"{API}/info", f"{API}/app_id", f"{API}/startup-events", FILE,
    f"{API}/queue/data", f"{API}/upload_progress", f"{API}/heartbeat/",
)  # fmt: skip
WRITTEN = (UPLOAD, JOIN, f"{API}/cancel", f"{API}/reset")

# what a proxy says of a request; anyone can say it, and gradio builds addresses of it
FORWARDED = {b"forwarded", b"x-forwarded-host", b"x-gradio-server"}

# gradio's page needs inline scripts and styles; what matters is that nothing comes from elsewhere,
# nothing is sent elsewhere, and no other site can frame the page
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'; object-src 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


MEBI = 2**20
# beside the file, a multipart upload carries boundaries and names
MULTIPART_OVERHEAD = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """The bounds of the web page; all at least 1.

    Attributes:
        upload_bytes: size of an uploaded file.
        upload_pixels: pixels of an uploaded picture, read from its header; a phone's photo fits.
        edited_pixels: pixels of the picture that is edited, after resizing if that was asked for.
            A session of `turns` turns holds `3 * (turns + 1)` bytes for each. Of a video, the
            frames that are edited at once have so many together.
        times_larger: how many times longer a side may be than the model's training pictures; the
            network knows nothing of such sizes, and time grows with their fourth power.
        frames: of an uploaded video.
        job_seconds: time that one video may take; others wait for it.
        message_bytes: size of any other request; they hold an instruction and some numbers.
        characters: length of an instruction.
        steps: sampler steps of one edit.
        turns: edits in a row.
        branches: lines of turns a visitor keeps side by side.
        queue: edits that wait for their turn; one is made at a time.
        uploads: uploads that come at the same time; each is kept in memory until it is whole.
        body_seconds: time a body may take to come.
        stored_bytes: size of all temporary files together; the oldest go first.
        visitors: sessions kept in memory; the one idle for longest goes first.
        idle_seconds: age at which sessions and temporary files are deleted.
    """

    upload_bytes: int = 20 * MEBI
    upload_pixels: int = 32 * MEBI
    edited_pixels: int = 2 * MEBI
    times_larger: int = 16  # `images.MOST_TIMES_LARGER`, which help pages must not import
    frames: int = 600
    job_seconds: int = 1800
    message_bytes: int = 256 * 1024
    characters: int = 1000
    steps: int = 100
    turns: int = 20
    branches: int = 8
    queue: int = 8
    uploads: int = 4
    body_seconds: int = 120
    stored_bytes: int = 1024 * MEBI
    visitors: int = 16
    idle_seconds: int = 3600

    def __post_init__(self) -> None:
        """Refuse a bound that would refuse everything."""
        for name, value in asdict(self).items():
            if value < 1:
                raise InputError(f"the limit {name} must be at least 1, got {value}")

    @property
    def body_bytes(self) -> int:
        """Size of the request that carries an upload."""
        return self.upload_bytes + MULTIPART_OVERHEAD


class BodyTooLargeError(Exception):
    """More bytes came than a request of its kind may have."""


class Store:
    """The page's temporary files: uploads, pictures that are shown, downloads.

    gradio forgets what an upload that failed has written; whatever it counts or forgets is bounded
    here by size and by age. What lies in the folder at the start is the page's own and stays.

    Args:
        folder: holds nothing else.
        limits: bounds of size and age.
        clock: tells the time of files, in seconds.
    """

    def __init__(
        self, folder: Path, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.limits = limits
        self.clock = clock
        self.own = set(folder.rglob("*"))

    def has(self, name: str) -> bool:
        """Whether a path lies in the folder."""
        return name.startswith(f"{self.folder}/") and ".." not in Path(name).parts

    def sweep(self) -> None:
        """Remove what is too old, then the oldest until the rest is small enough."""
        files = []
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):
                if path not in self.own and path.is_file():
                    about = path.lstat()
                    # a file takes a block at least, and many empty ones fill a disk, too
                    files.append((about.st_mtime, max(about.st_size, 4096), path))
        total = sum(size for _, size, _ in files)
        for when, size, path in sorted(files):
            if total <= self.limits.stored_bytes and when > self.clock() - self.limits.idle_seconds:
                return
            path.unlink(missing_ok=True)
            total -= size
            with suppress(OSError):  # not empty, or the folder itself
                if path.parent != self.folder:
                    path.parent.rmdir()

    def drop_parts(self) -> None:
        """Remove what failed uploads have left: whole ones are moved into folders by their hash."""
        for path in self.folder.glob("*"):
            if path.is_file():
                path.unlink(missing_ok=True)


class RequestGuard:
    """ASGI layer around the page's application.

    Args:
        app: what answers the requests that pass.
        limits: bounds of bodies.
        folder: the page's temporary files; no request may name a file outside.
    """

    def __init__(self, app: App, limits: Limits, folder: Path) -> None:
        self.app = app
        self.limits = limits
        self.store = Store(folder, limits)
        self.uploads = 0  # that are coming
        self.writing = asyncio.Lock()  # held while gradio writes an upload down

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse the request in one line, or pass it on."""
        if scope["type"] == "websocket":  # the page has none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with_headers(message.get("headers", []))}
            await send(message)

        if refusal := self._refusal(scope):
            await _refuse(send_with_headers, *refusal)
            return
        kept = [(name, value) for name, value in scope["headers"] if name not in FORWARDED]
        scope = {**scope, "headers": kept}
        if scope["method"] == "POST":
            await self._post(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Say why a request is refused whatever its body is."""
        path, method = scope["path"], scope["method"]
        known = {"GET": READ, "HEAD": READ, "POST": WRITTEN}.get(method, ())
        if not any(
            path.startswith(name) if name[-1] in "/=" and name != "/" else path == name
            for name in known
        ):
            return 404, "the page has no such address"
        if path.startswith(FILE) and not self.store.has(path.removeprefix(FILE)):
            return 404, "no such file"
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc != headers.get(b"host"):
            return 403, "the page takes requests from its own address only"
        return None

    async def _post(self, scope: Message, receive: Receive, send: Send) -> None:
        """Wait for the body, which must come whole, in time and within its bound; pass it on."""
        is_upload = scope["path"] == UPLOAD
        most = self.limits.body_bytes if is_upload else self.limits.message_bytes
        if is_upload and self.uploads >= self.limits.uploads:
            await _refuse(send, 503, "too many uploads at the same time; try again in a moment")
            return
        self.uploads += is_upload
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await _whole_body(receive, most)
            if body is None:  # the sender has gone: nobody waits for an answer
                return
            if not is_upload and not self._names_only_our_files(body):
                await _refuse(send, 400, "no such file")
                return
            await asyncio.to_thread(self.store.sweep)
            if not is_upload:
                await self.app(scope, _replay(body, receive), send)
                return
            async with self.writing:
                try:
                    await self.app(scope, _replay(body, receive), send)
                finally:
                    await asyncio.to_thread(self.store.drop_parts)
        except BodyTooLargeError:
            await _refuse(send, 413, f"the request has more than {most} bytes")
        except TimeoutError:
            await _refuse(send, 408, f"the request took more than {self.limits.body_seconds} s")
        finally:
            self.uploads -= is_upload

    def _names_only_our_files(self, body: bytes) -> bool:
        """Whether every file a JSON body names is in the folder; what is no JSON names none."""
        try:
            waiting = [json.loads(body)]
        except (ValueError, RecursionError):
            return True
        while waiting:
            value = waiting.pop()
            if isinstance(value, list):
                waiting.extend(value)
            elif isinstance(value, dict):
                path = value.get("path")
                if isinstance(path, str) and not self.store.has(path):
                    return False
                waiting.extend(value.values())
        return True


async def _whole_body(receive: Receive, most: int) -> bytes | None:
    """Count what really comes: a Content-Length is only what the sender says; None: he has gone."""
    parts, count = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        count += len(parts[-1])
        if count > most:
            raise BodyTooLargeError
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once more, then whatever comes after it (the end of the connection)."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _with_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() not in HEADERS]
    return [*kept, *HEADERS.items()]


async def _refuse(send: Send, status: int, line: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": line.encode()})
