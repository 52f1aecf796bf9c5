"""A stretch of a video: the frames between two times, as they are in the whole, and its sound."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
import torch

from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.images import save_png
from emu_edit.video import job as jobs
from emu_edit.video.clip import Stretch, said
from emu_edit.video.cuts import GivenCuts
from emu_edit.video.editor import VideoEditor, VideoSettings, VideoTurn
from emu_edit.video.io import open_video
from emu_edit.video.job import Job, run
from emu_edit.video.noise import NoiseMode
from tests.video.conftest import (
    LOSSLESS,
    TIMES,
    picture,
    seconds,
    stack,
    written,
)

START, END = Fraction(1, 2), Fraction(4, 5)  # of the videos with sound: 12 frames, 84 ms each


def a_stretch(path: Path, start: Fraction | None = START, end: Fraction | None = END) -> Stretch:
    return Stretch(open_video(path), start, end)


@pytest.mark.parametrize("start", [None, 0, 1, 40, 73, 140, 142, 399, 400])
@pytest.mark.parametrize("end", [None, 1, 40, 141, 400, 401, 900, 901])
def test_the_frames_are_those_that_begin_between_the_times(
    variable: Path, start: int | None, end: int | None
) -> None:
    least, most = start or 0, 10**6 if end is None else end
    inside = [number for number, time in enumerate(TIMES) if least <= time < most]
    if not inside or least >= most:
        return
    given = [None if time is None else Fraction(time, 1000) for time in (start, end)]
    stretch = a_stretch(variable, *given)
    whole, frames = list(open_video(variable).frames()), list(stretch.frames())
    assert stretch.info.first == inside[0]
    assert torch.equal(stack(frames), stack(whole)[inside])
    assert [frame.duration for frame in frames] == [whole[number].duration for number in inside]
    # it is shown from where the whole is
    assert [frame.time for frame in frames] == [TIMES[n] - TIMES[inside[0]] for n in inside]
    assert list(stretch.info.times) == [frame.time for frame in frames]


def sources(folder: Path, variable: Path) -> Iterator[Path]:
    """A file, animations, and a folder of pictures."""
    yield variable
    video = open_video(variable)
    for name in ("out.gif", "out.webp", "pictures"):
        written(video, folder / name)
        yield folder / name


def test_every_kind_of_video_is_read_from_any_frame_on(variable: Path, tmp_path: Path) -> None:
    for path in sources(tmp_path, variable):
        video = open_video(path)
        whole = list(video.frames())
        assert [frame.time for frame in whole] == list(video.info.times)
        for first in (1, len(TIMES) - 1):
            rest = list(video.frames(first))
            assert torch.equal(stack(rest), stack(whole)[first:])
            assert [(frame.time, frame.duration) for frame in rest] == [
                (frame.time, frame.duration) for frame in whole[first:]
            ]


def packets_of(path: Path, kind: str = "audio") -> list[tuple[Fraction, Fraction, bytes]]:
    with av.open(path) as container:
        (stream,) = (each for each in container.streams if each.type == kind)
        return [
            (
                (packet.pts or 0) * Fraction(packet.time_base or 1),
                (packet.duration or 0) * Fraction(packet.time_base or 1),
                bytes(packet),
            )
            for packet in container.demux(stream)
            if packet.size
        ]


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.mov"])
def test_the_packets_of_sound_that_begin_in_it_come_along_moved_as_the_frames(
    loud: Path, tmp_path: Path, name: str
) -> None:
    stretch = a_stretch(loud)
    assert written(stretch, tmp_path / name, at=2) == []
    shown = seconds(open_video(tmp_path / name))
    assert len(shown) == 4
    first, after = Fraction(504, 1000), Fraction(840, 1000)
    kept = [packet for packet in packets_of(loud) if first <= packet[0] < after]
    copied = packets_of(tmp_path / name)
    assert [data for _, _, data in copied] == [data for _, _, data in kept]
    assert 0 < len(kept) < len(packets_of(loud))
    for (now, _, _), (then, _, _) in zip(copied, kept, strict=True):
        # sound keeps its place beside the frames, to the thousandths that Matroska counts
        assert abs((now - shown[0]) - (then - first)) <= Fraction(1, 1000)


def test_sound_that_is_encoded_anew_is_cut_too(loud: Path, tmp_path: Path) -> None:
    assert written(a_stretch(loud), tmp_path / "out.webm", at=2) == [
        "sound encoded anew: aac to libopus"
    ]
    with av.open(tmp_path / "out.webm") as container:
        heard = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert heard == pytest.approx(0.336, abs=0.13)  # a packet at either end


SAID = [(0, 200, b"before"), (400, 300, b"into"), (600, 100, b"in"), (760, 200, b"out of")]


@pytest.fixture(scope="module")
def captioned(loud: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of `loud` with four subtitles."""
    path = tmp_path_factory.mktemp("captioned") / "captioned.mkv"
    times = [f"00:00:00,{time:03d} --> 00:00:00,{time + lasts:03d}" for time, lasts, _ in SAID]
    blocks = [f"{i}\n{time}\n{SAID[i][2].decode()}\n" for i, time in enumerate(times)]
    path.with_suffix(".srt").write_text("\n".join(blocks))
    with (
        av.open(loud) as source,
        av.open(path.with_suffix(".srt")) as texts,
        av.open(path, "w") as output,
    ):
        given = source.streams.video[0], texts.streams.subtitles[0]
        copies = [output.add_stream_from_template(stream) for stream in given]
        for container, copy in ((texts, copies[1]), (source, copies[0])):
            for packet in container.demux(given[copy.index]):
                if packet.size:
                    packet.stream = copy
                    output.mux(packet)
    return path


def test_subtitles_that_are_shown_in_it_come_along_each_as_long_as_it_is(
    captioned: Path, tmp_path: Path
) -> None:
    assert written(a_stretch(captioned), tmp_path / "out.mkv", at=2) == []
    ms = Fraction(1, 1000)
    # of 504 to 840 ms: the second has begun before, the last goes on after
    assert packets_of(tmp_path / "out.mkv", "subtitle") == [
        (0 * ms, 196 * ms, b"into"),
        (96 * ms, 100 * ms, b"in"),
        (256 * ms, 80 * ms, b"out of"),
    ]


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PART_FRAMES", 3)


@pytest.fixture(scope="module")
def editor(model: Path) -> Editor:
    """The tiny model, with weights that make the noise matter."""
    editor = Editor.from_pretrained(model, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in editor.networks.denoiser.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return editor


def job_of(video: object, output: Path) -> Job:
    return Job(cast("jobs.Video", video), output, coding=LOSSLESS, cuts=GivenCuts.of([0, 2, 6], 12))


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("noise", list(NoiseMode))
def test_a_frame_is_edited_as_in_the_whole_video(
    loud: Path, editor: Editor, tmp_path: Path, noise: NoiseMode
) -> None:
    settings = VideoSettings(noise=noise, threshold=None)
    turn = VideoTurn("make it red", "local", seed=3)
    jobs_of = {"whole": open_video(loud), "part": a_stretch(loud)}
    done = {
        name: run(job_of(video, tmp_path / f"{name}.mkv"), VideoEditor(editor, [turn], settings))
        for name, video in jobs_of.items()
    }
    whole, part = (stack(list(open_video(tmp_path / f"{n}.mkv").frames())) for n in jobs_of)
    assert torch.equal(part, whole[6:10])
    # frames are counted from the file's first, those that scenes begin with, too
    assert (done["part"].frames, done["part"].scenes) == (4, (6,))
    assert done["whole"].scenes == (0, 2, 6)


class Stop(BaseException):
    """Somebody pressed Ctrl-C."""


@pytest.mark.usefixtures("short_parts")
def test_a_job_that_is_stopped_goes_on_to_the_same_bytes_and_no_other_stretch_does(
    loud: Path, editor: Editor, tmp_path: Path
) -> None:
    def made() -> VideoEditor:
        return VideoEditor(editor, [VideoTurn("make it red", "local", seed=3)])

    def stop(done: int, frames: int) -> None:
        assert frames == 8
        if done == 6:
            raise Stop

    stretch = a_stretch(loud, Fraction(1, 4), Fraction(9, 10))
    run(job_of(stretch, tmp_path / "whole.mp4"), made())
    job = job_of(stretch, tmp_path / "out.mp4")
    with pytest.raises(Stop):
        run(job, made(), stop)
    with pytest.raises(InputError, match="was begun with other options or another source"):
        run(replace(job, resume=True, video=a_stretch(loud, Fraction(1, 3), Fraction(1))), made())
    done = run(replace(job, resume=True), made())
    assert done.edited < done.frames == 8
    assert job.output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_cuts_are_found_in_a_stretch_by_the_numbers_of_the_whole(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        pixels = np.full((16, 16, 3), 250 if number >= 5 else 5, dtype=np.uint8)
        pixels[:4, :4] = picture(0, (4, 4))
        save_png(folder / f"{number}.png", torch.from_numpy(pixels).permute(2, 0, 1))

    class Same:
        def push(self, shot: jobs.Shot) -> list[jobs.Shot]:
            return [shot]

        def flush(self) -> list[jobs.Shot]:
            return []

        def state(self) -> bytes:
            return b""

        def restore(self, state: bytes) -> None: ...

    done = run(Job(a_stretch(folder, Fraction(3, 25), None), tmp_path / "out.mp4"), Same())
    assert (done.frames, done.scenes) == (5, (3, 5))


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("0.8", "0.5", "the start, 0.8 s, has to come before the end, 0.5 s"),
        ("0.5", "0.5", "the start, 0.5 s, has to come before the end, 0.5 s"),
        ("5", None, r"loud.mp4: lasts 1\.\d+ s, the start asked for is at 5 s; give an earlier"),
        ("0.5", "3600", r"loud.mp4: lasts 1\.\d+ s, the end asked for is at 1:00:00; give an"),
        ("0.51", "0.55", "loud.mp4: no frame begins from 0.51 s to 0.55 s; give a longer stretch"),
    ],
)
def test_times_that_are_not_of_the_video_are_refused_in_one_line(
    loud: Path, start: str, end: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        a_stretch(loud, Fraction(start), None if end is None else Fraction(end))
    assert "\n" not in str(refusal.value)


def test_the_length_that_is_said_can_be_given_again(loud: Path) -> None:
    info = open_video(loud).info
    known = Fraction(said(info.seconds).removesuffix(" s"))
    assert info.seconds - Fraction(1, 1000) < known <= info.seconds
    assert list(a_stretch(loud, None, known).info.times) == list(info.times)
    assert [said(Fraction(text)) for text in ("0", "59.9999", "60", "3723.5")] == [
        "0 s",
        "59.999 s",
        "0:01:00",
        "1:02:03.5",
    ]
