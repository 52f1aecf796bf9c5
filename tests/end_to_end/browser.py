"""A headless Chromium, spoken to in the W3C WebDriver protocol: a dozen requests, no library."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the standard's name of a reference
PATIENCE = 120.0  # seconds; a busy machine is no failure


def programs() -> tuple[str, str] | None:
    """Return where chromium and its driver are (Debian: chromium, chromium-driver), or None."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return None if browser is None or driver is None else (browser, driver)


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


def wait_for(what: str, probe: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Call `probe` until it returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)
    return found


def request(method: str, address: str, body: object = None) -> Any:
    """Send JSON, return the answer's value; an error of the driver raises with its message."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(address, data=data, method=method)
    asked.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(json.load(error)["value"]["message"]) from None


class Browser:
    """One window of 1280x900, and the folder its downloads go to."""

    def __init__(self, session: str, downloads: Path) -> None:
        self.session = session
        self.downloads = downloads

    def open(self, address: str) -> None:
        request("POST", f"{self.session}/url", {"url": address})

    def run(self, script: str, *arguments: object) -> Any:
        """Run the body of a function in the page."""
        body = {"script": script, "args": list(arguments)}
        return request("POST", f"{self.session}/execute/sync", body)

    def find(self, css: str) -> str:
        """Return the address of the first element, waiting until there is one."""

        def probe() -> list[dict[str, str]]:
            wanted = {"using": "css selector", "value": css}
            return request("POST", f"{self.session}/elements", wanted)

        return f"{self.session}/element/{wait_for(css, probe)[0][ELEMENT]}"

    def click(self, css: str) -> None:
        request("POST", f"{self.find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        """Type into a field, or give the path of a file to a file input."""
        request("POST", f"{self.find(css)}/value", {"text": text})

    def clear(self, css: str) -> None:
        request("POST", f"{self.find(css)}/clear", {})

    def text(self, css: str) -> str:
        return self.run(
            "const found = document.querySelector(arguments[0]); "
            "return found ? found.innerText : ''",
            css,
        )

    def wait_text(self, css: str, words: str) -> str:
        """Wait until the element's text has the words; return the text."""
        seen = ""

        def probe() -> bool:
            nonlocal seen
            seen = self.text(css)
            return words in seen

        try:
            wait_for(f"{words!r} in {css}", probe)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {seen!r}") from None
        return seen

    def download(self, css: str, name: str) -> bytes:
        """Click what downloads the file `name`; return its content."""
        path = self.downloads / name
        path.unlink(missing_ok=True)
        self.click(css)
        wait_for(f"the download of {name}", path.exists)  # it has another name until it is whole
        return path.read_bytes()

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(request("GET", f"{self.session}/screenshot")))


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start driver and browser; downloads go into `folder`."""
    found = programs()
    assert found is not None, "needs chromium and chromium-driver"
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    driver = subprocess.Popen(
        [found[1], f"--port={port}", "--silent"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for("the driver", lambda: _is_ready(address))
        # --no-sandbox: containers run tests as root; the page is our own
        flags = ["--headless=new", "--no-sandbox", "--window-size=1280,900", "--disable-gpu"]
        flags += ["--disable-dev-shm-usage", "--force-color-profile=srgb", "--no-first-run"]
        options = {
            "args": flags,
            "binary": found[0],
            "prefs": {"download.default_directory": str(folder)},
        }
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options}
        made = request(
            "POST", f"{address}/session", {"capabilities": {"alwaysMatch": capabilities}}
        )
        session = f"{address}/session/{made['sessionId']}"
        try:
            yield Browser(session, folder)
        finally:
            request("DELETE", session)
    finally:
        driver.terminate()
        driver.wait()


def _is_ready(address: str) -> bool:
    try:
        return request("GET", f"{address}/status")["ready"]
    except OSError:
        return False
