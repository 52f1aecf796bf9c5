"""The tab of videos as gradio lays it out; without a browser. Skipped without the extra `app`."""

import hashlib
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from emu_edit.video.io import open_video
from tests.web.clips import clip
from tests.web.test_web_page import guessing, handlers, layout

__all__ = ["guessing", "handlers"]  # fixtures

pytestmark = [
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio (the extra app)"),
    pytest.mark.filterwarnings("ignore"),  # gradio's own, on import
]


def visitor(name: str = "visitor") -> Any:
    import gradio as gr  # pyright: ignore[reportMissingImports]

    return gr.Request(session_hash=name)


@pytest.fixture
def tab(guessing: Any) -> Any:
    from emu_edit.web.video import VideoHandlers

    return VideoHandlers(guessing)


@pytest.fixture
def upload(tmp_path: Path) -> bytes:
    return clip(tmp_path / "a.mp4").read_bytes()


def asked(state: Any, **changes: Any) -> list[Any]:
    values = {
        "state": state, "is_resized": True, "instruction": "make it red", "task": "local",
        "negative": None, "text": 1.0, "image": 1.0, "steps": 1, "seed": None,
        "keeping": "automatic", "request": visitor(),
    }  # fmt: skip
    return list({**values, **changes}.values())


def files(tab: Any) -> list[str]:
    return sorted(path.name for path in tab.page.folder.rglob("*") if path.is_file())


def test_a_video_through_the_buttons(tab: Any, upload: bytes) -> None:
    state, said, start, both, result, stop = tab.opened(None, upload, visitor())
    assert said.startswith("The original, 40x30 px, 12 frames, 0.5 s. Say what to change.")
    assert (start.visible, result.visible, stop.interactive) == (False, False, False)
    assert re.findall(r'<figcaption>(\w+)</figcaption><video id="(\S+)"', both.value) == [
        ("Original", "video-before")
    ]
    names = {"predicted": "surely a painting", "local": "make it red"}
    for task, words in names.items():
        state, said, _, both, result, stop = tab.edited(*asked(state, task=task, instruction=words))
        chosen = {"predicted": "style"}.get(task, task)
        assert re.match(rf"Edited, 20x16 px, 12 frames\. Task {chosen}, seed \d+, steps 1,", said)
    shown = re.findall(r'src="gradio_api/file=(\S+)"', both.value)
    assert [open_video(path).info.frames for path in shown] == [12, 12]
    assert shown[1] == result.value["path"]
    assert (result.visible, stop.interactive) == (True, False)
    # of a visitor's videos one and its last result are kept
    assert files(tab) == ["edited.mp4", "source.mp4"]
    tab.opened(state, upload, visitor())
    assert files(tab) == ["source.mp4"]
    assert tab.running == {}


def test_what_is_refused_is_said_in_a_line_that_stays(tab: Any, upload: bytes) -> None:
    import gradio as gr  # pyright: ignore[reportMissingImports]

    state, *_ = tab.opened(None, upload, visitor())
    kept = files(tab)
    name = hashlib.sha256(b"secret").hexdigest()
    (tab.page.folder / name).mkdir()
    (tab.page.folder / name / "a.mp4").write_bytes(b"no video")
    for refused, words in (
        (tab.opened(None, None, visitor()), r"\*\*Not taken:\*\* no file came; choose a video\."),
        (
            tab.opened(state, b"no video", visitor()),
            r"\*\*Not taken:\*\* the file is no video that",
        ),
        (tab.edited(*asked(None)), r"\*\*Not edited:\*\* there is no video yet; upload one first"),
        (tab.edited(*asked(state, instruction="")), r"\*\*Not edited:\*\* the instruction is empt"),
        (tab.edited(*asked(state, task=None)), r"\*\*Not edited:\*\* choose the kind of edit"),
        (tab.edited(*asked(state, task="<img>")), r"\*\*Not edited:\*\* unknown task &#x27;&lt;i"),
        (tab.edited(*asked(state, seed="<b>")), r"\*\*Not edited:\*\* the seed must be a whole"),
    ):
        assert re.match(words, refused[1])
        assert "\n" not in refused[1]
        assert [part for part in (*refused[:1], *refused[2:-1]) if part != gr.skip()] == []
        assert not refused[-1].interactive
    assert files(tab) == kept
    assert tab.running == {}


@pytest.mark.parametrize("whose", ["visitor", "other"])
def test_a_visitor_stops_his_own_edit_and_no_other(tab: Any, upload: bytes, whose: str) -> None:
    import gradio as gr  # pyright: ignore[reportMissingImports]

    state, *_ = tab.opened(None, upload, visitor())
    kept = files(tab)

    class Stopping(gr.Progress):
        def __call__(self, *_: object, **__: object) -> None:
            tab.stopped(visitor(whose))

    said = tab.edited(*asked(state), Stopping())[1]
    if whose == "visitor":
        assert re.match(r"\*\*Not edited:\*\* stopped after \d+ of 12 frames\.", said)
        assert files(tab) == kept
    else:
        assert said.startswith("Edited, ")
    tab.stopped(visitor())  # when nothing runs


def test_a_video_that_takes_too_long_is_given_up(
    tab: Any, upload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, *_ = tab.opened(None, upload, visitor())
    kept = files(tab)
    tab.page.limits = replace(tab.page.limits, job_seconds=5)
    seconds = iter(range(0, 1000, 2))
    monkeypatch.setattr("emu_edit.web.video.time.monotonic", lambda: next(seconds))
    said = tab.edited(*asked(state))[1]
    assert re.match(r"\*\*Not edited:\*\* it took more than 5 s, and \d of 12 frames were", said)
    assert files(tab) == kept


def test_videos_wait_for_each_other_and_for_pictures(handlers: Any) -> None:
    from emu_edit.web.page import build_page

    functions = build_page(handlers).fns.values()
    made = [(fn.name, fn.concurrency_id) for fn in functions if "Video" in str(fn.fn)]
    assert [one for one in made if one[0] != "stopped"] == [
        ("opened", "model"),
        ("edited", "model"),
        ("edited", "model"),
    ]
    stopping = [where for name, where in made if name == "stopped"]
    assert len(stopping) == 2  # the button, and who leaves
    assert "model" not in stopping


def test_the_tab_says_what_is_taken(handlers: Any) -> None:
    handlers.limits = replace(handlers.limits, upload_bytes=3 * 2**20, frames=77)
    parts = layout(handlers)
    assert "up to 77 frames" in parts["video-start"]["value"]
    assert parts["video-upload"]["label"] == "Video, up to 3 MiB"
    assert "video-too-large" in parts
