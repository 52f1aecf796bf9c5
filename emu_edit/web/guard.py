"""What stands between the network and the web library: sizes, addresses and headers.

Web libraries trust their own pages. gradio counts the bytes of uploads but of no other request, and
it fetches addresses that a request names (`file=https://…`, or a file whose path is an address).
Neither is for strangers to decide, so this ASGI layer counts every body, lets files be named in the
page's own temporary folder only, and tells browsers to load nothing from anywhere else.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from emu_edit.web.limits import Limits

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
