"""Every encoder that is suggested: right frames, times and colours, or refused before an edit."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest

from emu_edit.errors import InputError
from emu_edit.video import job as jobs
from emu_edit.video.coding import Coding
from emu_edit.video.io import open_video
from emu_edit.video.job import Job, run
from emu_edit.video.preview import Unedited
from emu_edit.video.windows import Shot
from tests.video.conftest import mean_error, picture, seconds, stack

FINE = Fraction(1, 90000)
VARIABLE = [0, 3003, 6006, 7000, 12012, 30030, 90000, 93003]
LAST = 5000  # units that the last frame is shown
EVEN = [3003 * number for number in range(8)]


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PART_FRAMES", 3)


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[[tuple[int, int], list[int]], Path]:
    """Draws a lossless file of BT.709, its last frame `LAST` units long."""

    def draw(size: tuple[int, int], times: list[int]) -> Path:
        path = tmp_path / "source.mp4"
        with av.open(path, "w") as output:
            stream = cast("av.VideoStream", output.add_stream("libx264rgb", rate=30))
            (stream.height, stream.width), stream.pix_fmt = size, "rgb24"
            stream.options = {"crf": "0", "bf": "0"}
            stream.codec_context.time_base = stream.time_base = FINE
            packets = []
            for number, time in enumerate(times):
                frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
                frame.pts, frame.time_base = time, FINE
                packets += stream.encode(frame)
            packets += stream.encode(None)
            for packet, duration in zip(packets, [*np.diff(times).tolist(), LAST], strict=True):
                packet.duration = duration
                output.mux(packet)
        return path

    return draw


class Watched(Unedited):
    """Counts what it is given."""

    def __init__(self) -> None:
        self.seen = 0

    def push(self, shot: Shot) -> list[Shot]:
        self.seen += 1
        return [shot]


@pytest.mark.parametrize(
    ("codec", "most"),  # and the mean error of colours
    [
        ("libx264", 3.0),
        ("libx265", 3.0),
        ("libvpx-vp9", 3.0),
        ("libsvtav1", 3.0),
        ("mpeg4", 3.0),
        ("mjpeg", 3.0),
        ("ffv1", 0.6),
    ],
)
@pytest.mark.parametrize("size", [(30, 40), (64, 64), (31, 41)])
def test_every_suggested_encoder_keeps_frames_times_and_colours(
    drawn: Callable, tmp_path: Path, codec: str, most: float, size: tuple[int, int]
) -> None:
    source = open_video(drawn(size, VARIABLE))
    run(Job(source, tmp_path / "out.mp4", coding=Coding(codec)), Unedited())
    result = open_video(tmp_path / "out.mp4")
    assert seconds(result) == seconds(source)
    frames = stack(list(result.frames()))[..., : size[0], : size[1]]
    assert mean_error(frames, stack(list(source.frames()))) < most


@pytest.mark.parametrize("codec", ["ffv1", "mpeg4", "mjpeg", "libx264"])
def test_avi_keeps_an_even_rate_and_colours_without_tags(
    drawn: Callable, tmp_path: Path, codec: str
) -> None:
    source = open_video(drawn((30, 40), EVEN))
    run(Job(source, tmp_path / "out.avi", coding=Coding(codec)), Unedited())
    result = open_video(tmp_path / "out.avi")
    times = seconds(result)
    assert {b - a for a, b in itertools.pairwise(times)} == {Fraction(3003, 90000)}
    before, after = stack(list(source.frames())), stack(list(result.frames()))
    assert mean_error(before, after) < 3


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mjpeg"])
def test_the_last_frame_is_shown_as_long_as_in_the_source(
    drawn: Callable, tmp_path: Path, codec: str
) -> None:
    source = open_video(drawn((64, 64), VARIABLE))
    run(Job(source, tmp_path / "out.mp4", coding=Coding(codec)), Unedited())
    assert source.info.seconds == (VARIABLE[-1] + LAST) * FINE
    with av.open(tmp_path / "out.mp4") as container:
        stream = container.streams.video[0]
        told = (stream.duration or 0) * Fraction(stream.time_base or 0)
    assert abs(told - source.info.seconds) < Fraction(1, 1000)  # in which MP4 counts what is shown


@pytest.mark.parametrize(
    ("name", "codec", "said"),
    [
        ("out.avi", None, "source.mp4: has a variable rate, which AVI cannot keep; write .mkv"),
        ("out.mov", "libsvtav1", r"out.mov: mov does not take what libsvtav1 makes \(yuv420p\)"),
        ("out.mov", "libvpx-vp9", "out.mov: mov does not take what libvpx-vp9 makes"),
        ("out.mkv", "prores_ks", r"makes prores, which the parts .* \(nut\) do not hold"),
        ("out.mkv", "mpeg2video", "mpeg2video takes no 64x64 frames of yuv420p"),
    ],
)
def test_what_encoder_or_container_refuse_is_refused_before_a_frame_is_edited(
    drawn: Callable, tmp_path: Path, name: str, codec: str | None, said: str
) -> None:
    source, editor = open_video(drawn((64, 64), VARIABLE)), Watched()
    with pytest.raises(InputError, match=said) as caught:
        run(Job(source, tmp_path / name, coding=Coding(codec)), editor)
    assert "\n" not in str(caught.value)
    assert editor.seen == 0
    assert [path.name for path in tmp_path.iterdir()] == ["source.mp4"]


def test_a_quality_is_passed_on_or_refused(drawn: Callable, tmp_path: Path) -> None:
    source = open_video(drawn((64, 64), EVEN))
    with pytest.raises(InputError, match="ffv1 has no quality to choose; leave --crf out"):
        Coding("ffv1", crf=3).settled(tmp_path / "out.mkv", (64, 64))
    sizes = []
    for quantiser in (2, 20):
        output = tmp_path / f"{quantiser}.mp4"
        run(Job(source, output, coding=Coding("mpeg4", crf=quantiser)), Unedited())
        sizes.append(output.stat().st_size)
    assert sizes[0] > 1.5 * sizes[1]
