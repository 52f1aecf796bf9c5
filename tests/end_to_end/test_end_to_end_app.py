"""The web page in a real browser: upload, two turns, undo, branch, downloads, refusals."""

import io
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image

from emu_edit.editing.editor import Editor
from emu_edit.editing.manifest import pixel_hash
from emu_edit.editing.session import replay
from emu_edit.images import decode_rgb
from tests.end_to_end.browser import Browser, open_browser, programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        programs() is None, reason="needs chromium and chromedriver (Debian: chromium-driver)"
    ),
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio (the extra app)"),
]

REPOSITORY = Path(__file__).parents[2]
CHOOSE_TASK = """
const option = [...document.querySelectorAll('[role=option]')].find(
  (one) => one.innerText.trim().startsWith(arguments[0])
);
option.dispatchEvent(new MouseEvent('mousedown', {bubbles: true}));
"""


@dataclass(frozen=True)
class Served:
    """A running page: its address, its error output, and where its temporary files are."""

    address: str
    errors: Path
    temporary: Path


@pytest.fixture(scope="module")
def page(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of the tiny model; files above 1 MiB are refused."""
    folder = tmp_path_factory.mktemp("page")
    temporary = folder / "temporary"
    temporary.mkdir()
    errors = folder / "errors.txt"
    command = [sys.executable, "-m", "emu_edit", "app", "--port=0", "--max-upload-mib=1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(temporary)}
    with errors.open("w") as stderr:
        server = subprocess.Popen(
            [*command, "--model", str(model)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        assert server.stdout is not None
        with server.stdout:
            line = server.stdout.readline()  # ends when the server listens, or dies
            assert line.startswith("the page is at http://127.0.0.1:"), errors.read_text()
            yield Served(line.split()[4], errors, temporary)
            server.terminate()
            assert server.wait(60) == 0
    assert list(temporary.iterdir()) == []  # pictures of visitors do not stay


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("downloads")) as browser:
        yield browser


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG of 40x30 that says where it was taken."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x010E] = "SECRET"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    assert b"SECRET" in path.read_bytes()
    return path


def upload(chromium: Browser, page: Served, path: Path) -> None:
    chromium.open(page.address)
    chromium.type("#upload input[type=file]", str(path))
    chromium.wait_text("#summary", "The original, 40x30 px")


def choose_task(chromium: Browser, name: str, where: str = "#task") -> None:
    chromium.click(f"{where} input")
    chromium.find("[role=option]")
    chromium.run(CHOOSE_TASK, name)


def fetch(
    address: str, data: bytes | None = None, kind: str = "application/json"
) -> tuple[int, bytes]:
    request = urllib.request.Request(address, data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def test_upload_two_turns_undo_branch_and_downloads(
    chromium: Browser, page: Served, photo: Path, model: Path
) -> None:
    upload(chromium, page, photo)
    chromium.type("#instruction textarea, #instruction input", "make it red")
    choose_task(chromium, "local")
    chromium.click("#edit")
    chromium.wait_text("#summary", "Turn 1 of 1, 40x30 px. Task local, seed 0")
    chromium.click("#edit")
    chromium.wait_text("#summary", "Turn 2 of 2")
    chromium.wait_text("#history", "2. make it red [local]")

    made = chromium.download("#picture", "edited.png")
    manifest = json.loads(chromium.download("#manifest", "manifest.json"))
    with Image.open(io.BytesIO(made)) as image:
        assert (image.format, image.size, image.info) == ("PNG", (40, 30), {})
    assert b"SECRET" not in made
    again = replay(Editor.from_pretrained(model), decode_rgb(photo.read_bytes()), manifest)
    assert pixel_hash(again.image) == pixel_hash(decode_rgb(made)) == manifest["results"][1]

    chromium.click("#undo")
    chromium.wait_text("#summary", "Turn 1 of 1")
    assert "2. make it red" not in chromium.text("#history")
    chromium.run("document.querySelector('#history .thumbnail-item').click()")
    chromium.wait_text("#summary", "The original")
    chromium.click("#edit")  # from the original once more: a branch
    chromium.wait_text("#summary", "Turn 1 of 1")
    chromium.find("#line input")
    assert page.errors.read_text() == ""


def test_what_is_too_large_or_no_picture_is_refused_and_the_page_goes_on(
    chromium: Browser, page: Served, photo: Path, tmp_path: Path
) -> None:
    large, text = tmp_path / "large.jpg", tmp_path / "text.png"
    large.write_bytes(photo.read_bytes() + b"\0" * 2**20)
    text.write_bytes(b"no picture at all")
    for path, where, words in (
        (large, "#too-large", "MiB, at most 1 are taken; save it as JPEG or make it smaller."),
        (text, "#summary", "Not taken: the file is no picture, needs a JPEG"),
    ):
        chromium.open(page.address)
        chromium.type("#upload input[type=file]", str(path))
        chromium.wait_text(where, words)
    upload(chromium, page, photo)
    # two files, each small enough: together they are not
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = 2 * (part + b"x" * 600_000 + b"\r\n") + b"--b--\r\n"
    kind = "multipart/form-data; boundary=b"
    status, line = fetch(f"{page.address}/gradio_api/upload", body, kind)
    assert (status, line) == (413, b"the request has more than 1114112 bytes")


def test_the_page_loads_nothing_from_elsewhere(chromium: Browser, page: Served) -> None:
    chromium.open(page.address)
    chromium.find("#upload input[type=file]")
    hosts = chromium.run(
        "return [...new Set(performance.getEntriesByType('resource').map(r => r.name))]"
    )
    assert hosts
    assert all(name.startswith(f"{page.address}/") for name in hosts), hosts
    blocked = chromium.run(
        "return fetch('http://127.0.0.1:9/').then(() => 'loaded', error => 'blocked')"
    )
    assert blocked == "blocked"


def test_an_unexpected_error_tells_the_visitor_nothing(page: Served) -> None:
    _, config = fetch(f"{page.address}/config")
    parts, events = (json.loads(config)[name] for name in ("components", "dependencies"))
    button = next(part["id"] for part in parts if part["props"].get("elem_id") == "edit")
    edit = next(
        event for event in events if [button, "click"] in event["targets"] and event["inputs"][1:]
    )
    data = [None, "x", {"a": 1}, ["b"], 3, "much", None, "many", "seed", "maybe"]
    body = {"data": data, "fn_index": edit["id"], "session_hash": "visitor"}
    status, _ = fetch(f"{page.address}/gradio_api/queue/join", json.dumps(body).encode())
    assert status == 200
    _, stream = fetch(f"{page.address}/gradio_api/queue/data?session_hash=visitor")
    answer = stream.decode()
    assert '"success":false' in answer
    assert "Traceback" not in answer
    assert str(REPOSITORY) not in answer
    assert "site-packages" not in answer
    assert "/tmp" not in answer


@pytest.mark.parametrize("named", ["/etc/passwd", "http://127.0.0.1:9/", "https://example.org/a"])
def test_no_file_or_address_outside_is_served(page: Served, named: str) -> None:
    assert fetch(f"{page.address}/gradio_api/file={named}") == (404, b"no such file")
