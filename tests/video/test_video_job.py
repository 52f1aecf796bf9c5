"""A job that is stopped goes on to the same bytes; several processes give what one gives."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.errors import InputError, StorageError
from emu_edit.video import job as jobs
from emu_edit.video.coding import Coding
from emu_edit.video.cuts import GivenCuts
from emu_edit.video.io import Frame, VideoInfo, open_video
from emu_edit.video.job import Done, Job, run
from emu_edit.video.windows import Shot
from emu_edit.video.write import PartWriter

FRAMES, STARTS = 14, [0, 5, 6]  # scenes of 5, 1 and 8 frames
CUTS = GivenCuts.of(STARTS, FRAMES)


class Stop(BaseException):
    """Somebody pressed Ctrl-C."""


class Identity:
    """An editor that changes nothing but says `late` frames later what it was given."""

    def __init__(self, late: int = 0, stop_at: int | None = None) -> None:
        self.late, self.stop_at = late, stop_at
        self.waiting: list[Shot] = []
        self.seen: list[int] = []

    def push(self, shot: Shot) -> list[Shot]:
        if shot.number == self.stop_at:
            raise Stop
        self.seen.append(shot.number)
        self.waiting.append(shot)
        done, self.waiting = self.waiting[: -self.late or None], self.waiting[-self.late :]
        self.waiting = self.waiting if self.late else []
        return done

    def flush(self) -> list[Shot]:
        done, self.waiting = self.waiting, []
        return done

    def state(self) -> bytes:
        parts = [shot.number.to_bytes(4, "little") for shot in self.waiting]
        return b"".join([
            bytes([len(parts)]),
            *parts,
            *(shot.pixels.numpy().tobytes() for shot in self.waiting),
        ])

    def restore(self, state: bytes) -> None:
        count = state[0]
        numbers = np.frombuffer(state[1 : 1 + 4 * count], dtype="<u4").tolist()
        pixels = np.frombuffer(state[1 + 4 * count :], dtype=np.uint8).copy()
        pictures = torch.from_numpy(pixels).view(count, 3, 16, 24) if count else []
        self.waiting = [
            Shot(picture, number, number in STARTS)
            for picture, number in zip(pictures, numbers, strict=True)
        ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen frames of 24x16 at a variable rate, with sound."""
    path = tmp_path_factory.mktemp("source") / "source.mkv"
    random = np.random.default_rng(0)
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264rgb", rate=25, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 16, 24, "rgb24"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        sound = output.add_stream("aac", rate=8000, layout="mono")
        for number in range(FRAMES):
            pixels = random.integers(0, 256, (16, 24, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = 40 * number + number % 3, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 2048), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 8000, 0
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PART_FRAMES", 4)
    monkeypatch.setattr(jobs, "POLL", 0.01)


def job_of(source: Path, output: Path) -> Job:
    return Job(open_video(source), output, cuts=CUTS)


def frames_of(path: Path) -> list[Frame]:
    return list(open_video(path).frames())


def stack(frames: list[Frame]) -> UInt8[Tensor, "f 3 h w"]:
    return torch.stack([frame.pixels for frame in frames])


def stopping(at: int) -> Callable[[int, int], None]:
    def on_frame(done: int, _: int) -> None:
        if done == at:
            raise Stop

    return on_frame


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture(scope="module")
def wholes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What jobs that were never stopped write, by how late the editor is."""
    output = tmp_path_factory.mktemp("whole") / "out.mp4"
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "PART_FRAMES", 4)
        for late in range(3):
            run(job_of(source, output), Identity(late))
            written.append(output.read_bytes())
    return written


@pytest.fixture
def whole(wholes: list[bytes]) -> bytes:
    """What a job with an editor that is never late writes."""
    return wholes[0]


def test_an_identity_job_keeps_frames_times_and_scenes(source: Path, tmp_path: Path) -> None:
    output, told = tmp_path / "out.mkv", list[tuple[int, int]]()
    coding = Coding("libx264rgb", crf=0, pixel_format="rgb24")
    job = replace(job_of(source, output), coding=coding)
    done = run(job, Identity(late=3), lambda *now: told.append(now))
    before, after = frames_of(source), frames_of(output)
    assert torch.equal(stack(before), stack(after))
    assert [frame.time for frame in before] == [frame.time for frame in after]
    assert (done.frames, done.edited, done.scenes) == (FRAMES, FRAMES, tuple(STARTS))
    assert told == [(number + 1, FRAMES) for number in range(FRAMES)]
    assert left(tmp_path) == ["out.mkv"]


@pytest.mark.parametrize("at", range(1, FRAMES + 1))
def test_a_job_that_is_stopped_at_any_frame_goes_on_to_the_same_bytes(
    source: Path, tmp_path: Path, wholes: list[bytes], at: int
) -> None:
    late = at % 3
    job, editor = job_of(source, tmp_path / "out.mp4"), Identity(late)
    with pytest.raises(Stop):
        run(job, Identity(late), stopping(at))
    assert left(tmp_path) == ([".out.mp4.parts"] if at > 5 else [])  # nothing to go on with
    done = run(replace(job, resume=True), editor)
    assert job.output.read_bytes() == wholes[late]
    assert (done.frames, done.scenes) == (FRAMES, tuple(STARTS))
    assert left(tmp_path) == ["out.mp4"]
    # what was finished is not done again
    assert done.edited == len(editor.seen)
    assert editor.seen[0] >= 4 or at <= 5


def test_a_job_that_is_stopped_again_and_again_goes_on_to_the_same_bytes(
    source: Path, tmp_path: Path, wholes: list[bytes]
) -> None:
    job = job_of(source, tmp_path / "out.mp4")
    for stop_at in (3, 8, 10, 13):  # the second ends in the editor, not in the encoder
        with pytest.raises(Stop):
            run(replace(job, resume=True), Identity(late=2, stop_at=stop_at))
    run(replace(job, resume=True), Identity(late=2))
    assert job.output.read_bytes() == wholes[2]


def test_a_half_done_job_is_in_the_way_without_resume_and_of_other_options(
    source: Path, tmp_path: Path, whole: bytes
) -> None:
    job = replace(job_of(source, tmp_path / "out.mp4"), name={"seed": 1})
    with pytest.raises(Stop):
        run(job, Identity(), stopping(6))
    with pytest.raises(InputError, match="half done by an earlier run; go on with --resume"):
        run(job, Identity())
    others = [
        replace(job, name={"seed": 2}),
        replace(job, coding=Coding(crf=30)),
        replace(job, side_by_side=True),
    ]
    for other in others:
        with pytest.raises(InputError, match="was begun with other options or another source"):
            run(replace(other, resume=True), Identity())
    assert left(tmp_path) == [".out.mp4.parts"]
    run(replace(job, resume=True), Identity())
    assert job.output.read_bytes() == whole


def test_two_processes_give_what_one_gives(source: Path, tmp_path: Path, whole: bytes) -> None:
    job = replace(job_of(source, tmp_path / "out.mp4"), world=2)
    editors, done = [Identity(), Identity()], dict[int, Done]()

    def work(rank: int) -> None:
        mine = replace(job, rank=rank, video=open_video(source))
        done[rank] = run(mine, editors[rank])

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == [0, 1]
    assert editors[0].seen == [*range(5), *range(6, FRAMES)]  # the first and the third scene
    assert editors[1].seen == [5]
    assert job.output.read_bytes() == whole
    assert left(tmp_path) == ["out.mp4"]


def test_side_by_side_is_the_source_and_the_result(source: Path, tmp_path: Path) -> None:
    coding = Coding("libx264rgb", crf=0, pixel_format="rgb24")
    job = replace(job_of(source, tmp_path / "out.mkv"), side_by_side=True, coding=coding)
    with pytest.raises(Stop):
        run(job, Identity(late=2), stopping(11))
    run(replace(job, resume=True), Identity(late=2))
    video, before = open_video(job.output), stack(frames_of(source))
    assert video.info.size == (16, 48)
    assert torch.equal(stack(list(video.frames())), torch.cat([before, before], dim=3))


def test_frames_are_edited_and_written_at_the_size_that_is_asked(
    source: Path, tmp_path: Path
) -> None:
    job = job_of(source, tmp_path / "out.mp4")
    run(job, Identity(), resized=lambda pixels: pixels[:, ::2, ::2].contiguous())
    assert open_video(job.output).info.size == (8, 12)


@pytest.mark.parametrize("place", ["missing/out.mp4", "file/out.mp4"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_edited(
    source: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    editor = Identity()
    with pytest.raises(StorageError, match=r"out.mp4: cannot be written: ") as caught:
        run(job_of(source, tmp_path / place), editor)
    assert "\n" not in str(caught.value)
    assert editor.seen == []
    assert left(tmp_path) == ["file"]


def test_a_full_disk_leaves_no_output_and_the_job_can_go_on(
    source: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, usual, written = job_of(source, tmp_path / "out.mp4"), PartWriter.write, list[Frame]()

    def full(self: PartWriter, frame: Frame) -> None:
        written.append(frame)
        if len(written) == 8:
            raise StorageError(f"{self.path}: cannot be written: No space left on device")
        usual(self, frame)

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "write", full)
        with pytest.raises(StorageError, match="No space left on device"):
            run(job, Identity())
    assert left(tmp_path) == [".out.mp4.parts"]
    assert not list(job.folder.glob("*.part"))
    run(replace(job, resume=True), Identity())
    assert job.output.read_bytes() == whole


def test_an_output_that_was_there_stays_until_the_new_one_is_whole(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"old")
    with pytest.raises(Stop):
        run(job_of(source, output), Identity(), stopping(9))
    assert output.read_bytes() == b"old"


def test_a_source_that_cannot_be_decoded_stops_the_job_and_its_threads(
    source: Path, tmp_path: Path
) -> None:
    whole = list(open_video(source).frames())

    class Broken:
        info: VideoInfo = open_video(source).info

        def frames(self, first: int = 0) -> Iterator[Frame]:
            yield from whole[first:9]
            raise InputError("frame 10 of 14 cannot be decoded")

    before = threading.active_count()
    with pytest.raises(InputError, match="frame 10 of 14 cannot be decoded"):
        run(Job(Broken(), tmp_path / "out.mp4", cuts=CUTS), Identity())
    assert threading.active_count() == before
    assert "out.mp4" not in left(tmp_path)
