"""How the page looks and behaves in a real browser; what it does is in tests/end_to_end."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu_edit.video.coding import Coding
from emu_edit.video.io import open_video
from tests.end_to_end.browser import Browser, programs, request, wait_for
from tests.end_to_end.test_end_to_end_app import Served, choose_task, chromium, page
from tests.web.clips import clip

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
VIDEO_TAB = """
[...document.querySelectorAll('[role=tab]')].find((tab) => tab.innerText.trim() === 'Video').click()
"""
PLAYER = "const player = document.querySelector(arguments[0]);"
PLAYED = f"{PLAYER} return player && [player.videoWidth, player.videoHeight]"
PAUSED = f"{PLAYER} return player.paused"
TIME = f"{PLAYER} return player.currentTime"
TOP = f"{PLAYER} return player.getBoundingClientRect().top"
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


def open_videos(chromium: Browser, page: Served) -> None:
    chromium.open(page.address)
    chromium.find("#upload input[type=file]")
    chromium.run(VIDEO_TAB)


def test_a_video_is_edited_played_before_and_after_and_downloaded(
    chromium: Browser, page: Served, tmp_path: Path
) -> None:
    source = clip(tmp_path / "source.avi")  # which no browser plays
    open_videos(chromium, page)
    chromium.type("#video-upload input[type=file]", str(source))
    chromium.wait_text("#video-summary", "The original, 40x30 px, 12 frames, 0.5 s.")
    chromium.type("#video-instruction textarea, #video-instruction input", "make it red")
    choose_task(chromium, "local", "#video-task")
    chromium.click("#video-edit")
    chromium.wait_text("#video-summary", "Edited, 20x16 px, 12 frames. Task local, seed ")
    sizes = {"#video-before": [40, 30], "#video-after": [20, 16]}
    for player, size in sizes.items():
        chromium.find(player)
        wait_for(player, lambda: chromium.run(PLAYED, player) == size)  # noqa: B023
    made = tmp_path / "edited.mp4"
    made.write_bytes(chromium.download("#video-result", "edited.mp4"))
    assert open_video(made).info.frames == 12
    with window(chromium, 390, 844):
        assert chromium.run("return document.documentElement.scrollWidth") <= 390
        tops = [chromium.run(TOP, player) for player in sizes]
        assert tops[1] - tops[0] > 200  # one below the other
    assert chromium.run(TOP, "#video-before") == chromium.run(TOP, "#video-after")
    assert page.errors.read_text() == ""


def test_one_player_follows_the_other(chromium: Browser, page: Served, tmp_path: Path) -> None:
    open_videos(chromium, page)
    long = clip(tmp_path / "long.mp4", frames=100)
    chromium.type("#video-upload input[type=file]", str(long))
    chromium.wait_text("#video-summary", "The original")
    chromium.type("#video-instruction textarea, #video-instruction input", "make it red")
    choose_task(chromium, "local", "#video-task")
    chromium.click("#video-edit")
    chromium.wait_text("#video-summary", "Edited")
    wait_for("both players", lambda: chromium.run(PLAYED, "#video-after") == [20, 16])
    chromium.run("document.querySelector('#video-before').pause()")
    wait_for("a pause", lambda: chromium.run(PAUSED, "#video-after"))
    chromium.run("document.querySelector('#video-after').currentTime = 2")
    wait_for("a jump", lambda: chromium.run(TIME, "#video-before") == 2)


def test_what_is_no_video_is_refused_in_a_line_that_stays(
    chromium: Browser, page: Served, tmp_path: Path
) -> None:
    text, large = tmp_path / "text.mp4", tmp_path / "large.mp4"
    text.write_bytes(b"no video at all")
    large.write_bytes(b"\0" * (2**20 + 1))
    for path, where, words in (
        (text, "#video-summary", "Not taken: the file is no video that can be read; give MP4,"),
        (large, "#video-too-large", "MiB, at most 1 are taken; make it shorter or smaller."),
    ):
        open_videos(chromium, page)
        chromium.type("#video-upload input[type=file]", str(path))
        said = chromium.wait_text(where, words)
        time.sleep(3)
        assert chromium.text(where) == said
        assert list(page.temporary.rglob(path.name)) == []


def test_whoever_leaves_stops_the_edit_and_leaves_nothing_of_it(
    chromium: Browser, page: Served, tmp_path: Path
) -> None:
    open_videos(chromium, page)
    many = clip(tmp_path / "many.mp4", width=128, height=96, frames=250, coding=Coding(crf=40))
    chromium.type("#video-upload input[type=file]", str(many))
    chromium.wait_text("#video-summary", "The original")
    chromium.run("document.querySelector('#video-resize input').click()")
    chromium.type("#video-instruction textarea, #video-instruction input", "make it red")
    choose_task(chromium, "local", "#video-task")
    for leave in (
        lambda: chromium.click("#video-stop"),
        lambda: chromium.open("about:blank"),
    ):
        chromium.click("#video-edit")
        wait_for("the edit", lambda: list(page.temporary.rglob(".edited.mp4.parts")))
        leave()
        wait_for("its end", lambda: not list(page.temporary.rglob(".edited.mp4.parts")))
        if "about" not in chromium.run("return document.location.href"):
            chromium.wait_text("#video-summary", "Not edited: stopped after ")


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
