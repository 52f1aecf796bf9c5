"""`emu-edit video`: what is refused, in one line and with nothing left behind; stretches."""

import json
import resource
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from emu_edit.cli.arguments import clock
from emu_edit.cli.main import main
from emu_edit.video import io as videos
from emu_edit.video.io import open_video
from tests.video.conftest import noisy, write_video

TIMES = list(range(0, 480, 40))  # of twelve frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Twelve frames that no codec makes small."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, TIMES, draw=noisy, codec="libx264", pixel_format="yuv420p")
    return path.read_bytes()


@pytest.fixture
def place(tmp_path: Path, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where all is done, with the clip in it."""
    (tmp_path / "clip.mp4").write_bytes(clip)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(path: Path) -> None:
    path.write_text("no video at all, but words\n" * 40)


def cut_short(path: Path) -> None:
    data = Path("clip.mp4").read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])


def nothing(_: Path) -> None: ...


def only_sound(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16_000))


def without_frames(path: Path) -> None:
    with av.open(path, "w", format="avi") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()


def video(model: Path, *arguments: str) -> int:
    source, *rest = arguments
    given = ["--task=local", f"--model={model}", "--device=cpu", *rest]
    return main(["video", source, "make it red", *given])


def refused(capsys: pytest.CaptureFixture[str], said: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("emu-edit: error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (text, "bad.mp4: is no video that can be read"),
        (cut_short, "bad.mp4: is no video that can be read"),
        (only_sound, "bad.mp4: has no video stream; give a video"),
        (without_frames, "bad.mp4: has no frame"),
        (Path.touch, "bad.mp4: is no video that can be read"),
        (nothing, "bad.mp4: No such file"),
        (Path.mkdir, "bad.mp4: has no picture"),
    ],
)
def test_what_is_no_whole_video_is_refused(
    place: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    said: str,
) -> None:
    make(place / "bad.mp4")
    there = sorted(place.iterdir())
    assert video(model, "bad.mp4", "-o", "out.mp4") == 2
    refused(capsys, said)
    assert sorted(place.iterdir()) == there


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "none/out.mp4"], "none/out.mp4: there is no folder none; make it first"),
        (["-o", "clip.mp4"], "clip.mp4: is the source itself; give another name"),
        (["-o", "./clip.mp4"], "clip.mp4: is the source itself; give another name"),
        (["-o", "folder.mp4"], "folder.mp4: is a folder; give another name"),
        (["-o", "others"], "others: is a folder with other files than pictures"),
        (["-o", "out.mpx"], "out.mpx: cannot write '.mpx', needs one of"),
        (["-o", "out.mp4", "--codec=libx265x"], "there is no encoder 'libx265x' here"),
        (["-o", "out.webm", "--codec=libx264"], "out.webm: webm does not hold h264"),
        (["-o", "out.mp4", "--preset=nosuch"], "libx264 has no preset 'nosuch'"),
        (["-o", "out.webm", "--preset=nosuch"], "libvpx-vp9 takes no 64x48 frames of yuv420p"),
        (["-o", "out.mp4", "--cuts=0,12"], "a cut at frame 12: the video has the frames 0 to 11"),
        (["-o", "out.mp4", "--cuts=4,2"], "cuts have to rise, got 4, 2"),
        (["-o", "out.mp4", "--cuts=a"], "--cuts takes frame numbers, e.g. 0,120,340, got 'a'"),
        (["-o", "out.mp4", "--start=9"], "clip.mp4: lasts 0.48 s, the start asked for is at 9 s"),
        (["-o", "out.mp4", "--end=1:00"], "lasts 0.48 s, the end asked for is at 0:01:00"),
        (["-o", "out.mp4", "--start=0.3", "--end=0.2"], "the start, 0.3 s, has to come before"),
        (["-o", "out.mp4", "--start=soon"], "argument --start: needs a time in seconds, or as h:"),
        (["-o", "out.mp4", "--strip=none/a.png"], "none/a.png: there is no folder none; make it"),
        (["-o", "out.mp4", "--strip=clip.mp4"], "clip.mp4: is a folder, the source or the output"),
    ],
)
def test_places_and_options_that_cannot_be_used_are_refused(
    place: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    clip: bytes,
    arguments: list[str],
    said: str,
) -> None:
    (place / "folder.mp4").mkdir()
    (place / "others").mkdir()
    (place / "others" / "letter.txt").touch()
    there = sorted(place.rglob("*"))
    assert video(model, "clip.mp4", *arguments) == 2
    refused(capsys, said)
    assert sorted(place.rglob("*")) == there
    assert (place / "clip.mp4").read_bytes() == clip


@pytest.mark.usefixtures("place")
def test_frames_of_too_many_pixels_are_refused_before_one_is_decoded(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(videos, "MAX_PIXELS", 64 * 48 - 1)
    monkeypatch.setattr(videos.VideoFile, "_first", None)
    assert video(model, "clip.mp4", "-o", "out.mp4") == 2
    refused(capsys, "clip.mp4: has frames of 64x48, at most 0 megapixels are read; make it smaller")


def test_a_disk_that_is_full_leaves_no_output_and_only_what_can_be_gone_on_with(
    place: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["clip.mp4", "-o", "out.mp4", "--cuts=0,6", "--threshold=2"]  # the source itself
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    left = {4_000: {"clip.mp4"}, 16_000: {"clip.mp4", ".out.mp4.parts"}}
    try:
        for most, there in left.items():  # no part is whole, then both are but the video
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, usual[1]))
            assert video(model, *arguments) == 2
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            refused(capsys, "cannot be written: File too large")
            assert {path.name for path in place.iterdir()} == there
            assert not list(place.rglob("*.part"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert video(model, *arguments, "--resume") == 0
    assert {path.name for path in place.iterdir()} == {"clip.mp4", "out.mp4"}
    assert open_video(place / "out.mp4").info.frames == len(TIMES)


def test_a_stretch_is_edited_with_the_frames_numbers(
    place: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-o", "out.mp4", "--start=0.1", "--end=0.3", "--cuts=0,5,8", "--json"]
    assert video(model, "clip.mp4", *arguments, "--strip=strip.png") == 0
    told = json.loads(capsys.readouterr().out)
    # frames 3 to 7 are at 0.12 to 0.28 seconds
    assert (told["frames"], told["scenes"]) == (5, [3, 5])
    frames = list(open_video(place / "out.mp4").frames())
    unit = open_video(place / "out.mp4").info.time_base
    assert [frame.time * unit for frame in frames] == [Fraction(n, 25) for n in range(5)]
    assert (place / "strip.png").is_file()


def test_odd_frames_of_a_named_pixel_format_are_padded_and_that_is_said(
    place: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (place / "odd").mkdir()
    for number in range(2):
        pixels = np.full((15, 17, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(place / "odd" / f"{number}.png")
    assert video(model, "odd", "-o", "out.mp4", "--pixel-format=yuv420p", "--json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes == ["padded from 17x15 to 18x16, which libx264 needs for yuv420p"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("7.25", 7.25), ("2:07.5", 127.5), ("90:00", 5400), ("1:02:03.5", 3723.5)],
)
def test_a_time_is_seconds_or_a_clock(text: str, seconds: float) -> None:
    assert clock(text) == seconds


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("text", ["", "-1", "1e3", "nan", "2:7", "1:99:00", "1:02:99", "1:2:3"])
def test_what_is_no_time_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert video(model, "clip.mp4", "-o", "out.mp4", f"--end={text}") == 2
    refused(capsys, f"needs a time in seconds, or as h:mm:ss, e.g. 7.5 or 1:02:07.5, got {text!r}")
