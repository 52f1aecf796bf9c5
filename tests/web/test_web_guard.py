import asyncio
import json
from pathlib import Path

import pytest

from emu_edit.web.guard import API, Limits, Message, Receive, RequestGuard, Send

FOLDER = Path("/tmp/page")
LIMITS = Limits(upload_bytes=1000, message_bytes=200)


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Answer with the body that came."""
    body = b""
    if scope["method"] == "POST":
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
    headers = [(b"content-type", b"text/plain"), (b"Referrer-Policy", b"unsafe-url")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def ask(method: str, path: str, *parts: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request whose body comes in parts, with a Content-Length that lies."""
    waiting, sent = list(parts) or [b""], []

    async def receive() -> Message:
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)

    guard = RequestGuard(echo, LIMITS, FOLDER)
    scope = {"type": "http", "method": method, "path": path, "headers": [(b"content-length", b"1")]}
    asyncio.run(guard(scope, receive, send))
    start, body = sent
    assert len({name.lower() for name, _ in start["headers"]}) == len(start["headers"])
    return start["status"], dict(start["headers"]), body["body"]


def test_a_body_is_counted_whatever_its_length_is_said_to_be() -> None:
    join, upload = f"{API}/queue/join", f"{API}/upload"
    assert ask("POST", join, b"x" * 100, b"y" * 100)[2] == b"x" * 100 + b"y" * 100
    assert ask("POST", join, b"x" * 100, b"y" * 101)[0] == 413
    # an upload streams, and may have the file's bytes and some for its envelope
    assert ask("POST", upload, b"x" * 500, b"y" * 500)[0] == 200
    status, _, line = ask("POST", upload, *[b"x" * 1000] * 67)
    assert (status, line) == (413, b"the request has more than 66536 bytes")


@pytest.mark.parametrize(
    "named",
    [
        "https://example.org/a.png",
        "http://127.0.0.1:22/",
        "/etc/passwd",
        "/tmp/page/../../etc/passwd",
        "/tmp/pages/a.png",
    ],
)
def test_no_request_names_a_file_outside_the_pages_folder(named: str) -> None:
    assert ask("GET", f"{API}/file={named}")[0] == 404
    body = {"data": ["text", {"deep": [{"path": named, "meta": {"_type": "gradio.FileData"}}]}]}
    assert ask("POST", f"{API}/queue/join", json.dumps(body).encode())[0] == 400
    escaped = json.dumps(body).replace("h", "\\u0068").replace("/", "\\/").encode()
    if b'"pat\\u0068"' in escaped:
        assert ask("POST", f"{API}/queue/join", escaped)[0] == 400


def test_files_of_the_page_are_served_and_named() -> None:
    assert ask("GET", f"{API}/file=/tmp/page/abc/edited.png")[0] == 200
    body = json.dumps({"data": [{"path": "/tmp/page/abc/in.png"}]}).encode()
    assert ask("POST", f"{API}/queue/join", body)[::2] == (200, body)


def test_the_proxy_of_the_web_library_is_closed() -> None:
    assert ask("GET", f"{API}/proxy=https://example.org/")[0] == 404


def test_every_answer_tells_browsers_to_load_nothing_from_elsewhere() -> None:
    for path in ("/", f"{API}/proxy=x"):
        headers = ask("GET", path)[1]
        assert headers[b"content-security-policy"].startswith(b"default-src 'self'; ")
        assert headers[b"referrer-policy"] == b"no-referrer"
