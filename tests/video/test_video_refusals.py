"""What is no video, what cannot be written, and codings that do not exist: one line each."""

import wave
from pathlib import Path

import pytest

from emu_edit.errors import InputError
from emu_edit.video.coding import Coding
from emu_edit.video.io import open_video
from emu_edit.video.write import PartWriter
from tests.video.conftest import HEIGHT, RATE, WIDTH, noisy, write_video, written


def one_line(path: Path, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        list(open_video(path).frames())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    text, empty, wav = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.wav"
    text.write_text("no video at all, but text that goes on for a while\n" * 40)
    empty.touch()
    with wave.open(str(wav), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes(bytes(2 * RATE))
    (tmp_path / "folder").mkdir()
    one_line(text, "is no video that can be read")
    one_line(empty, "is no video that can be read")
    one_line(wav, "has no video stream; give a video")
    one_line(tmp_path / "none.mp4", "No such file")
    one_line(tmp_path / "folder", "has no picture")


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        ("mp4", "is no video that can be read"),
        ("mkv", r"is cut short or damaged, it holds \d+ frames"),
    ],
)
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, suffix: str, said: str) -> None:
    whole, short = tmp_path / f"whole.{suffix}", tmp_path / f"short.{suffix}"
    times = list(range(0, 480, 40))
    write_video(whole, times, draw=noisy, codec="libx264", pixel_format="yuv420p")
    assert open_video(whole).info.frames == len(times)
    data = whole.read_bytes()
    short.write_bytes(data[: len(data) * 6 // 10])
    one_line(short, said)


def test_an_mp4_made_for_streaming_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    """Its index comes first, so that it opens as if it were whole."""
    source = write_video(tmp_path / "source.mkv", list(range(0, 480, 40)), draw=noisy)
    whole, short = tmp_path / "whole.mp4", tmp_path / "short.mp4"
    written(open_video(source), whole)
    data = whole.read_bytes()
    short.write_bytes(data[: len(data) * 6 // 10])
    one_line(short, r"is cut short or damaged, it holds \d+ frames of 12")


@pytest.mark.parametrize(
    ("name", "coding", "said"),
    [
        ("out.mpx", Coding(), r"cannot write '.mpx', needs one of .mp4"),
        ("out.mp5", Coding(), r"did you mean '?.mp4"),
        ("out.mp4", Coding("libx265x"), "there is no encoder 'libx265x' here; for example"),
        ("out.mp4", Coding("aac"), "aac encodes audio, no pictures"),
        (
            "out.mp4",
            Coding(pixel_format="yuv421p"),
            "libx264 has no pixel format 'yuv421p'; it has",
        ),
        ("out.mp4", Coding(preset="fastt"), "libx264 has no preset 'fastt'; it has.* mean 'fast'"),
        ("out.webm", Coding("libx264"), "webm does not hold h264, which libx264 makes; leave --co"),
        ("out.webm", Coding(preset="fast"), r"with crf 24, preset fast \(Invalid argument\); give"),
        ("out.gif", Coding(crf=20), "have no codec to choose"),
        ("folder", Coding("libx264"), "have no codec to choose"),
    ],
)
def test_codings_that_do_not_exist_are_refused(name: str, coding: Coding, said: str) -> None:
    with pytest.raises(InputError, match=f"(?i){said}") as caught:
        coding.settled(Path(name), (HEIGHT, WIDTH))
    assert "\n" not in str(caught.value)


def test_options_that_an_encoder_refuses_leave_nothing_behind(
    variable: Path, tmp_path: Path
) -> None:
    info = open_video(variable).info
    coding = Coding("libvpx-vp9", preset="nosuch", pixel_format="yuv420p")
    with pytest.raises(InputError, match="libvpx-vp9 takes no 64x48 frames of yuv420p with preset"):
        PartWriter(tmp_path / "0.nut", info, coding, reorders=True)
    assert list(tmp_path.iterdir()) == []
