"""How the page looks and behaves in a real browser; what it does is in tests/end_to_end."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.browser import Browser, programs, request
from tests.end_to_end.test_end_to_end_app import Served, choose_task, chromium, page

__all__ = ["chromium", "page"]  # fixtures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        programs() is None, reason="needs chromium and chromedriver (Debian: chromium-driver)"
    ),
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio (the extra app)"),
]

INSTRUCTION = "#instruction textarea, #instruction input"
WIDTH = "return document.querySelector(arguments[0]).getBoundingClientRect().width"
RENDERING = "return getComputedStyle(document.querySelector(arguments[0])).imageRendering"
COVERED = """
const box = document.querySelector(arguments[0]).getBoundingClientRect();
const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
return top.tagName;
"""


def upload(chromium: Browser, page: Served, folder: Path, width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = folder / f"{width}x{height}.png"
    Image.fromarray(pixels).save(path)
    chromium.open(page.address)
    chromium.type("#upload input[type=file]", str(path))
    chromium.wait_text("#summary", f"The original, {width}x{height} px")


def edit(chromium: Browser, words: str, turn: int) -> str:
    chromium.clear(INSTRUCTION)
    chromium.type(INSTRUCTION, words)
    chromium.click("#edit")
    return chromium.wait_text("#summary", f"Turn {turn} of {turn}")


@contextmanager
def window(chromium: Browser, width: int, height: int) -> Iterator[None]:
    """Make the page as wide and high as a phone's."""
    devtools = f"{chromium.session}/goog/cdp/execute"
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    request("POST", devtools, {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})
    try:
        yield
    finally:
        request("POST", devtools, {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}})


def test_small_pictures_are_shown_large_and_sharp_and_large_ones_smooth(
    chromium: Browser, page: Served, tmp_path: Path
) -> None:
    upload(chromium, page, tmp_path, 40, 30)
    for shown, least in (("#after img", 300), ("#history img", 100)):
        chromium.find(shown)
        assert chromium.run(WIDTH, shown) >= least
        assert chromium.run(RENDERING, shown) == "pixelated"
    upload(chromium, page, tmp_path, 240, 180)
    for shown in ("#after img", "#history img"):
        chromium.find(shown)
        assert chromium.run(RENDERING, shown) == "auto"


def test_each_turn_has_a_noise_of_its_own_though_the_settings_were_opened(
    chromium: Browser, page: Served, tmp_path: Path
) -> None:
    upload(chromium, page, tmp_path, 40, 30)
    choose_task(chromium, "local")
    chromium.click("#more button")
    chromium.find("#seed input, #seed textarea")
    first, second = edit(chromium, "one", 1), edit(chromium, "two", 2)
    assert "seed 0, " in first
    assert "seed 0, " not in second
    chromium.type("#seed input, #seed textarea", "7")
    assert "seed 7, " in edit(chromium, "three", 3)


def test_a_refused_edit_leaves_the_picture_in_sight(
    chromium: Browser, page: Served, tmp_path: Path
) -> None:
    upload(chromium, page, tmp_path, 40, 30)
    choose_task(chromium, "local")
    chromium.click("#edit")
    chromium.wait_text(".toast-wrap", "the instruction is empty; say what to change")
    assert chromium.run(COVERED, "#after img") == "IMG"
    edit(chromium, "make it red", 1)
    assert [chromium.text(f"{side} label") for side in ("#before", "#after")] == [
        "Before: original",
        "After: turn 1",
    ]


def test_after_a_refused_file_the_next_one_can_be_given_at_once(
    chromium: Browser, page: Served, tmp_path: Path
) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * (2**20 + 1))
    chromium.open(page.address)
    chromium.type("#upload input[type=file]", str(large))
    chromium.wait_text(".toast-wrap", "exceed the maximum allowed size of 1.0 Mb")
    assert "rror" not in chromium.run(
        "const box = document.querySelector('#upload').getBoundingClientRect();"
        "return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2).innerText"
    )


def test_a_window_of_400_pixels_needs_no_scrolling_sideways_and_goes_to_the_result(
    chromium: Browser, page: Served, tmp_path: Path
) -> None:
    with window(chromium, 400, 800):
        upload(chromium, page, tmp_path, 40, 30)
        choose_task(chromium, "local")
        for turn in (1, 2):
            edit(chromium, "make it red", turn)
        chromium.find("#before img")
        assert chromium.run("return document.documentElement.scrollWidth") <= 400
        top = chromium.run("return document.querySelector('#panel').getBoundingClientRect().top")
        assert top < 400


def test_a_second_tab_sees_nothing_of_the_first(
    chromium: Browser, page: Served, tmp_path: Path
) -> None:
    upload(chromium, page, tmp_path, 40, 30)
    choose_task(chromium, "local")
    edit(chromium, "make it red", 1)
    first = request("GET", f"{chromium.session}/window")
    second = request("POST", f"{chromium.session}/window/new", {"type": "tab"})
    request("POST", f"{chromium.session}/window", second)
    try:
        chromium.open(page.address)
        chromium.wait_text("#summary", "No picture yet.")
        chromium.wait_text("#start", "Say what to change")
        assert chromium.run("return document.querySelectorAll('#panel img').length") == 0
    finally:
        request("DELETE", f"{chromium.session}/window")
        request("POST", f"{chromium.session}/window", {"handle": first})
    made = chromium.download("#picture", "edited.png")
    assert Image.open(io.BytesIO(made)).size == (40, 30)
