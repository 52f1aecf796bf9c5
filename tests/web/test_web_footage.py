"""What the page takes as a video, what a browser is given of it, and its edit; without gradio."""

import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from emu_edit.editing.editor import Editor
from emu_edit.editing.session import TurnSettings
from emu_edit.editing.settings import WORLD, Sampling
from emu_edit.errors import InputError
from emu_edit.video.coding import Coding
from emu_edit.video.io import open_video
from emu_edit.web.footage import EditedVideo, OpenedVideo, about, edit, judged, open_upload
from emu_edit.web.guard import MEBI, Limits
from tests.web.clips import clip

LIMITS = Limits(frames=20, characters=40, steps=4, upload_bytes=MEBI)


@pytest.fixture(scope="module")
def editor(model: Path) -> Editor:
    return Editor.from_pretrained(model)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The page's folder."""
    folder = tmp_path / "page"
    folder.mkdir()
    return folder


def take(editor: Editor, data: bytes, place: Path, limits: Limits = LIMITS) -> OpenedVideo:
    return open_upload(editor, data, place, limits)


def ask(
    editor: Editor,
    opened: OpenedVideo,
    place: Path,
    instruction: str = "make it red",
    *,
    is_resized: bool = True,
    limits: Limits = LIMITS,
    task: str | None = "local",
    steps: int = 1,
    on_frame=None,
) -> EditedVideo:
    settings = TurnSettings(task=task, sampling=Sampling(steps, 1.0, 1.0), seed=7)
    return edit(
        editor,
        opened,
        instruction,
        settings,
        place,
        is_resized=is_resized,
        limits=limits,
        on_frame=on_frame,
    )


def times(path: Path) -> list[Fraction]:
    video = open_video(path)
    first = next(video.frames()).time
    return [(frame.time - first) * video.info.time_base for frame in video.frames()]


def is_for_browsers(path: Path) -> bool:
    """Whether a file is H.264 in 4:2:0 in an MP4 that begins with its index."""
    with av.open(path) as container:
        pictures = container.streams.video[0].codec_context
        kind = container.format.name.startswith("mov"), pictures.name, pictures.pix_fmt
    data = path.read_bytes()
    return kind == (True, "h264", "yuv420p") and data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_what_browsers_play_is_shown_as_it_came(
    editor: Editor, tmp_path: Path, place: Path, name: str
) -> None:
    data = clip(tmp_path / name).read_bytes()
    opened = take(editor, data, place)
    assert opened.shown.suffix == Path(name).suffix
    assert opened.shown.read_bytes() == data
    assert [path.name for path in opened.folder.iterdir()] == [opened.shown.name]


@pytest.mark.parametrize(
    ("name", "size", "coding"),
    [
        ("a.mov", (40, 30), None),
        ("a.avi", (40, 30), None),
        ("a.gif", (41, 31), None),
        ("a.mkv", (40, 30), Coding("ffv1")),
        ("a.mp4", (40, 30), Coding("libvpx-vp9")),
        ("a.mp4", (41, 31), None),  # 4:4:4, which few browsers decode
    ],
)
def test_of_what_browsers_do_not_play_a_copy_is_shown(
    editor: Editor,
    tmp_path: Path,
    place: Path,
    name: str,
    size: tuple[int, int],
    coding: Coding | None,
) -> None:
    source = clip(tmp_path / name, width=size[0], height=size[1], coding=coding)
    opened = take(editor, source.read_bytes(), place)
    assert is_for_browsers(opened.shown)
    assert times(opened.shown) == pytest.approx(times(source), abs=1e-3)
    assert open_video(opened.shown).info.size == (30, 40)
    assert sorted(path.name for path in opened.folder.iterdir()) == ["shown.mp4", "source"]


def refused(place: Path, words: str, act) -> None:
    """Expect one line without names of files here, and nothing left behind."""
    before = sorted(place.rglob("*"))
    with pytest.raises(InputError, match=words) as said:
        act()
    assert "\n" not in str(said.value)
    assert str(place) not in str(said.value)
    assert sorted(place.rglob("*")) == before


def webp() -> bytes:
    import io

    buffer = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0" * (MEBI + 1), r"the file has 1\.0 MiB, at most 1 are taken; make it shorter"),
        (b"no video at all", "the file is no video that can be read; give MP4, MOV, MKV, WebM"),
        (b"", "no video that can be read"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no video that can be read"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "no video that can be"),
        (webp(), "no video that can be read"),
    ],
    ids=["bytes", "text", "empty", "concat", "playlist", "webp"],
)
def test_what_is_no_video_is_refused(editor: Editor, place: Path, data: bytes, words: str) -> None:
    refused(place, words, lambda: take(editor, data, place))


def test_a_list_of_files_is_not_followed_to_another_video(tmp_path: Path) -> None:
    clip(tmp_path / "other.mp4")
    listed = tmp_path / "list"
    listed.write_bytes(b"ffconcat version 1.0\nfile other.mp4\n")
    with av.open(listed) as container:
        assert container.streams.video  # FFmpeg itself reads it happily
    with pytest.raises(InputError, match="no video that can be read"):
        judged(listed, LIMITS)


def test_a_video_beyond_the_limits_or_damaged_is_refused(
    editor: Editor, tmp_path: Path, place: Path
) -> None:
    data = clip(tmp_path / "a.mp4").read_bytes()
    small = clip(tmp_path / "b.mp4", width=14, height=40).read_bytes()
    for upload, limits, words in (
        (data, Limits(frames=11), "the video has 12 frames, at most 11 are edited; make it short"),
        (data, Limits(upload_pixels=1199), r"the frames are 40x30, at most 0\.0 megapixels"),
        (small, LIMITS, "the frames are 14x40, needs at least 16 px a side"),
        (data.replace(b"avc1", b"none"), LIMITS, "pictures are coded in a way that is not known"),
        (data[: len(data) // 2], LIMITS, "the file: no frame can be decoded"),
    ):
        refused(place, words, lambda: take(editor, upload, place, limits))  # noqa: B023


@pytest.mark.parametrize(
    ("is_resized", "size"), [(True, (16, 20)), (False, (30, 40))], ids=["resized", "as it is"]
)
def test_a_result_has_the_frames_of_the_source_and_browsers_play_it(
    editor: Editor, tmp_path: Path, place: Path, is_resized: bool, size: tuple[int, int]
) -> None:
    source = clip(tmp_path / "a.mp4", width=41, height=31)
    opened = take(editor, source.read_bytes(), place)
    assert about(opened) == "The original, 41x31 px, 12 frames, 0.5 s. Say what to change."
    seen: list[tuple[int, int]] = []
    edited = ask(
        editor, opened, place, is_resized=is_resized, on_frame=lambda *done: seen.append(done)
    )
    assert is_for_browsers(edited.file)
    assert times(edited.file) == pytest.approx(times(source), abs=1e-3)
    assert open_video(edited.file).info.size == size
    assert seen == [(number, 12) for number in range(1, 13)]
    assert [path.name for path in edited.file.parent.iterdir()] == ["edited.mp4"]
    start = f"Edited, {size[1]}x{size[0]} px, 12 frames. Task local, seed 7, steps 1, "
    assert edited.said.startswith(start)


def test_an_edit_beyond_the_limits_is_refused_and_leaves_nothing(
    editor: Editor, tmp_path: Path, place: Path
) -> None:
    opened = take(editor, clip(tmp_path / "a.mp4").read_bytes(), place)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"instruction": " "}, "the instruction is empty"),
        ({"instruction": "x" * 41}, "the instruction has 41 characters, at most 40 are taken"),
        ({"steps": 5}, "steps must be 1 to 4, got 5"),
        ({"task": "lokal"}, "unknown task 'lokal'"),
        ({"task": None}, "this model has no task predictor; choose the kind of edit"),
        (
            {"is_resized": False, "limits": Limits(edited_pixels=8 * 1200 - 1)},
            "the frames are 40x30, too large .* tick 'Resize' below the upload",
        ),
        (
            {"is_resized": False, "limits": Limits(times_larger=2)},
            "the frames are 40x30, too large .* trained at 16 px",
        ),
    )
    for changes, words in cases:
        refused(place, words, lambda: ask(editor, opened, place, **changes))  # noqa: B023


def test_a_video_in_use_does_not_grow_old_and_one_that_is_gone_is_asked_for_again(
    editor: Editor, tmp_path: Path, place: Path
) -> None:
    opened = take(editor, clip(tmp_path / "a.avi").read_bytes(), place)
    kept = (opened.shown, opened.video.info.path)
    for path in kept:
        os.utime(path, (0, 0))
    ask(editor, opened, place)
    assert min(path.stat().st_mtime for path in kept) > time.time() - 60
    opened.video.info.path.unlink()
    refused(place, "is gone; upload it again", lambda: ask(editor, opened, place))


def test_whoever_stops_an_edit_leaves_nothing_behind(
    editor: Editor, tmp_path: Path, place: Path
) -> None:
    opened = take(editor, clip(tmp_path / "a.mp4").read_bytes(), place)
    before = sorted(place.rglob("*"))

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise RuntimeError(f"{done} of {total}")

    with pytest.raises(RuntimeError, match="3 of 12"):
        ask(editor, opened, place, on_frame=stop)
    assert sorted(place.rglob("*")) == before


def test_a_model_of_the_world_says_that_it_has_never_seen_a_photograph(
    model: Path, tmp_path: Path, place: Path
) -> None:
    editor = Editor.from_pretrained(model)
    editor.trained_on = WORLD
    opened = take(editor, clip(tmp_path / "a.mp4").read_bytes(), place)
    words = "This looks like a photograph, and the model has never seen one."
    assert words in about(opened)
    assert words in ask(editor, opened, place).said


def test_sound_alone_is_no_video(editor: Editor, tmp_path: Path, place: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(path, "w") as output:
        stream = output.add_stream("aac", rate=8000)
        samples = np.zeros((1, 8000), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    refused(place, "the file: has no video stream", lambda: take(editor, path.read_bytes(), place))
