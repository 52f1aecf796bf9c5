"""The guard by itself, with an application behind it that answers whatever is asked."""

import asyncio
import fcntl
import json
import os
from pathlib import Path

import pytest

from emu_edit.web.guard import (
    API,
    JOIN,
    UPLOAD,
    Limits,
    Message,
    Receive,
    RequestGuard,
    Send,
    Store,
)
from emu_edit.web.server import PREFIX, held_folder, remove_abandoned

FOLDER = Path("/tmp/page")
LIMITS = Limits(upload_bytes=1000, message_bytes=200)
HOST = (b"host", b"127.0.0.1:7860")


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


class Asker:
    """Sends requests to a guard; counts those that come through."""

    def __init__(self, folder: Path = FOLDER, limits: Limits = LIMITS) -> None:
        self.folder, self.seen = folder, []
        self.guard = RequestGuard(self.app, limits, folder)

    async def app(self, scope: Message, receive: Receive, send: Send) -> None:
        self.seen.append(scope)
        (self.folder / "part").write_bytes(b"x") if self.folder.is_dir() else None
        await echo(scope, receive, send)

    async def ask(
        self, method: str, path: str, *parts: bytes | None, headers: tuple = ()
    ) -> tuple[int, dict[bytes, bytes], bytes] | None:
        """Send a request whose body comes in parts, with a Content-Length that lies.

        None as a part: the sender goes.
        """
        waiting, sent = list(parts) or [b""], []

        async def receive() -> Message:
            if not waiting:
                await asyncio.sleep(3600)
            part = waiting.pop(0)
            if part is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}

        async def send(message: Message) -> None:
            sent.append(message)

        said = [HOST, (b"content-length", b"1"), *headers]
        scope: Message = {"type": "http", "method": method, "path": path, "headers": said}
        await self.guard(scope, receive, send)
        if not sent:
            return None
        start, body = sent
        assert len({name.lower() for name, _ in start["headers"]}) == len(start["headers"])
        return start["status"], dict(start["headers"]), body["body"]


def ask(method: str, path: str, *parts: bytes, headers: tuple = ()) -> tuple:
    answer = asyncio.run(Asker().ask(method, path, *parts, headers=headers))
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{API}/run/edited"),  # past the queue
        ("POST", f"{API}/api/edited"),
        ("POST", f"{API}/call/edited"),
        ("POST", f"{API}/call/v2/edited"),
        ("POST", f"{API}/component_server"),
        ("POST", f"{API}/process_recording"),
        ("POST", f"{API}/stream/1"),
        ("GET", f"{API}/file/http://127.0.0.1:9/"),  # the old name of `file=`
        ("GET", f"{API}/file/tmp/page/abc/edited.png"),
        ("GET", f"{API}/deep_link"),
        ("GET", f"{API}/proxy=https://example.org/"),
        ("GET", f"{API}//file=/tmp/page/a.png"),
        ("GET", "/monitoring"),
        ("GET", UPLOAD),
        ("OPTIONS", "/"),
        ("PUT", JOIN),
    ],
)
def test_only_what_the_page_itself_asks_for_comes_through(method: str, path: str) -> None:
    asker = Asker()
    answer = asyncio.run(asker.ask(method, path, b"{}"))
    assert answer is not None
    assert answer[::2] == (404, b"the page has no such address")
    assert asker.seen == []


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"http://127.0.0.1:7860", 200),
        (b"https://127.0.0.1:7860", 200),
        (b"http://localhost:9999", 403),
        (b"http://127.0.0.1:9999", 403),
        (b"http://127.0.0.1:7860.evil.org", 403),
        (b"http://evil.org", 403),
        (b"null", 403),
        (b"", 403),
    ],
)
def test_other_sites_cannot_ask_for_anything(origin: bytes, status: int) -> None:
    for method, path in (("POST", JOIN), ("POST", UPLOAD), ("GET", "/config")):
        answer = ask(method, path, headers=((b"origin", origin),))
        assert answer[0] == status
        assert (b"from its own address only" in answer[2]) is (status == 403)


def test_nobody_tells_the_page_where_it_is() -> None:
    asker = Asker()
    said = ((b"x-forwarded-host", b"evil.org"), (b"x-gradio-server", b"http://evil.org"))
    asyncio.run(asker.ask("GET", "/config", headers=said))
    (scope,) = asker.seen
    assert b"evil.org" not in b" ".join(value for _, value in scope["headers"])
    assert HOST in scope["headers"]


def test_an_upload_that_breaks_off_or_takes_too_long_never_begins() -> None:
    asker = Asker(limits=Limits(upload_bytes=1000, body_seconds=1))
    assert asyncio.run(asker.ask("POST", UPLOAD, b"x" * 500, None)) is None
    assert asker.seen == []
    assert asker.guard.uploads == 0

    async def dripping() -> tuple | None:
        async def receive() -> Message:
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b"x", "more_body": True}

        sent = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": UPLOAD, "headers": [HOST]}
        await asker.guard(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]

    assert asyncio.run(dripping()) == (408, b"the request took more than 1 s")
    assert asker.seen == []


def test_uploads_at_the_same_time_are_counted() -> None:
    asker = Asker(limits=Limits(uploads=2))

    async def three() -> list:
        gates = [asyncio.Event() for _ in range(3)]

        async def one(gate: asyncio.Event) -> tuple:
            sent = []

            async def receive() -> Message:
                await gate.wait()
                return {"type": "http.request", "body": b"x", "more_body": False}

            async def send(message: Message) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": UPLOAD, "headers": [HOST]}
            await asker.guard(scope, receive, send)
            return sent[0]["status"], sent[1]["body"]

        waiting = [asyncio.create_task(one(gate)) for gate in gates[:2]]
        await asyncio.sleep(0)
        last = await one(gates[2])
        for gate in gates:
            gate.set()
        return [last, *await asyncio.gather(*waiting)]

    (status, line), *others = asyncio.run(three())
    assert (status, line) == (503, b"too many uploads at the same time; try again in a moment")
    assert [answer[0] for answer in others] == [200, 200]


def test_what_a_failed_upload_leaves_behind_is_removed(tmp_path: Path) -> None:
    whole = tmp_path / "hash" / "a.png"
    whole.parent.mkdir()
    whole.write_bytes(b"x")
    asker = Asker(tmp_path)
    asyncio.run(asker.ask("POST", UPLOAD, b"x"))
    assert sorted(tmp_path.rglob("*")) == [whole.parent, whole]


def test_temporary_files_are_bounded_by_age_and_all_together(tmp_path: Path) -> None:
    def file(name: str, age: int, size: int = 5000) -> Path:
        path = tmp_path / name / "a.png"
        path.parent.mkdir()
        path.write_bytes(b"x" * size)
        os.utime(path, (1000 - age, 1000 - age))
        return path

    own = file("own", 900)
    store = Store(tmp_path, Limits(stored_bytes=10_000, idle_seconds=100), clock=lambda: 1000.0)
    old, third, second, first = file("old", 101), file("c", 3), file("b", 2), file("a", 1, size=1)
    store.sweep()
    assert [path.exists() for path in (own, old, third, second, first)] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert not old.parent.exists()
    # an empty file takes a block, too
    names = [file(f"empty{number}", 0, size=0) for number in range(3)]
    store.sweep()
    assert sum(path.exists() for path in [second, first, *names]) == 2


def test_a_folder_that_a_killed_server_left_is_removed_and_no_other(tmp_path: Path) -> None:
    left, young, locked = (tmp_path / f"{PREFIX}{name}" for name in ("left", "young", "locked"))
    for folder in (left, young, locked):
        folder.mkdir()
        (folder / "picture.png").write_bytes(b"x")
        os.utime(folder, (1000, 1000))
    os.utime(young, (1990, 1990))
    (tmp_path / "other").mkdir()
    link = tmp_path / f"{PREFIX}link"
    link.symlink_to(tmp_path / "other")
    holder = os.open(locked, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        remove_abandoned(tmp_path, clock=lambda: 2000.0)
    finally:
        os.close(holder)
    assert sorted(tmp_path.iterdir()) == sorted([young, locked, link, tmp_path / "other"])
    assert (locked / "picture.png").is_file()


def test_the_folder_of_a_server_is_held_while_it_lives(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with held_folder() as folder:
        remove_abandoned(tmp_path, clock=lambda: 1e12)
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_body_is_counted_whatever_its_length_is_said_to_be() -> None:
    join, upload = f"{API}/queue/join", f"{API}/upload"
    assert ask("POST", join, b"x" * 100, b"y" * 100)[2] == b"x" * 100 + b"y" * 100
    assert ask("POST", join, b"x" * 100, b"y" * 101)[0] == 413
    # an upload may have the file's bytes and some for its envelope
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


def test_every_answer_tells_browsers_to_load_nothing_from_elsewhere() -> None:
    for path in ("/", f"{API}/proxy=x"):
        headers = ask("GET", path)[1]
        assert headers[b"content-security-policy"].startswith(b"default-src 'self'; ")
        assert headers[b"referrer-policy"] == b"no-referrer"
