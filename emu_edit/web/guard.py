"""What strangers may ask of the web page, and the layer that keeps other requests from it.

The page answers strangers as soon as someone starts it with `--host`: whatever costs memory or time
has a bound in `Limits`, so that none is forgotten, and what goes beyond it is refused in one line
before the work begins. Web libraries trust their own pages: gradio counts the bytes of uploads but
of no other request, and it fetches addresses that a request names (`file=https://…`, or a file
whose path is an address). So `RequestGuard`, an ASGI layer, counts every body, lets files be named
in the page's own temporary folder only, and tells browsers to load nothing from anywhere else.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emu_edit.errors import InputError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

API = "/gradio_api"
UPLOAD = f"{API}/upload"
FILE = f"{API}/file="
PROXY = f"{API}/proxy="

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
            A session of `turns` turns holds `3 * (turns + 1)` bytes for each.
        times_larger: how many times longer a side may be than the model's training pictures; the
            network knows nothing of such sizes, and time grows with their fourth power.
        message_bytes: size of any other request; they hold an instruction and some numbers.
        characters: length of an instruction.
        steps: sampler steps of one edit.
        turns: edits in a row.
        branches: lines of turns a visitor keeps side by side.
        queue: edits that wait for their turn; one is made at a time.
        visitors: sessions kept in memory; the one idle for longest goes first.
        idle_seconds: age at which sessions and temporary files are deleted.
    """

    upload_bytes: int = 20 * MEBI
    upload_pixels: int = 32 * MEBI
    edited_pixels: int = 2 * MEBI
    times_larger: int = 16  # `images.MOST_TIMES_LARGER`, which help pages must not import
    message_bytes: int = 256 * 1024
    characters: int = 1000
    steps: int = 100
    turns: int = 20
    branches: int = 8
    queue: int = 8
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
        self.folder = folder

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse the request in one line, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                message = {**message, "headers": _with_headers(message.get("headers", []))}
            await send(message)

        path: str = scope["path"]
        if path.startswith(PROXY) or (path.startswith(FILE) and not self._is_ours(path)):
            await _refuse(send_with_headers, 404, "no such file")
            return
        most = self.limits.body_bytes if path == UPLOAD else self.limits.message_bytes
        try:
            if path != UPLOAD and scope["method"] == "POST":
                body = await _whole_body(receive, most)
                if not self._names_only_our_files(body):
                    await _refuse(send_with_headers, 400, "no such file")
                    return
                receive = _replay(body, receive)
            await self.app(scope, _counted(receive, most), send_with_headers)
        except BodyTooLargeError:
            if is_started:
                raise
            await _refuse(send_with_headers, 413, f"the request has more than {most} bytes")

    def _is_ours(self, path: str) -> bool:
        name = path.removeprefix(FILE)
        return name.startswith(f"{self.folder}/") and ".." not in Path(name).parts

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
                if isinstance(path, str) and not self._is_ours(FILE + path):
                    return False
                waiting.extend(value.values())
        return True


def _counted(receive: Receive, most: int) -> Receive:
    """Count what really comes: a Content-Length is only what the sender says."""
    count = 0

    async def counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > most:
            raise BodyTooLargeError
        return message

    return counted


async def _whole_body(receive: Receive, most: int) -> bytes:
    receive, parts = _counted(receive, most), []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
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
