"""Editing a video file into another: decode, edit, encode side by side; stop and go on anywhere.

Three threads work at once and wait for each other: one decodes, one edits, one encodes. What is
encoded is kept in parts in a hidden folder beside the output, with what the editor remembers at
each part's end, so that an interrupted job goes on there. Several processes share a video by its
scenes; the first of them joins the parts.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from safetensors.torch import load, save
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.files import atomic_file, read_regular, write_json
from emu_edit.video.clip import Frame, Video, VideoInfo
from emu_edit.video.coding import Coding, container_of, kept_colour
from emu_edit.video.cuts import GivenCuts, scene_starts
from emu_edit.video.threads import Encoder, ahead
from emu_edit.video.windows import Shot
from emu_edit.video.write import PART_FRAMES, PartWriter, join_parts, try_writing, writing

POLL = 0.2  # seconds between looks for what other processes have finished

OnFrame = Callable[[int, int], None]  # called with (frames done, frames in all)


@runtime_checkable
class FrameEditor(Protocol):
    """What edits a stream of frames; `VideoEditor` is one."""

    def push(self, shot: Shot) -> list[Shot]:
        """Take the next frame; return those that it finishes."""
        ...

    def flush(self) -> list[Shot]:
        """Return the frames that are left at the end of a scene, and forget it."""
        ...

    def state(self) -> bytes:
        """Return what is remembered between two frames."""
        ...

    def restore(self, state: bytes) -> None:
        """Go on where `state` was taken."""
        ...


@dataclass(frozen=True)
class Job:
    """One video to be edited.

    Attributes:
        video: the source.
        output: the file or folder to be written.
        name: of what decides the pixels; a half-done job of another name is not gone on with.
        coding: how the result is encoded.
        cuts: where scenes begin; None detects it.
        resume: go on with a half-done job.
        side_by_side: write the source to the left of the result.
        rank: number of this process.
        world: how many processes share the video.
    """

    video: Video
    output: Path
    name: dict[str, object] = field(default_factory=dict)
    coding: Coding = field(default_factory=Coding)
    cuts: GivenCuts | None = None
    resume: bool = False
    side_by_side: bool = False
    rank: int = 0
    world: int = 1

    @property
    def folder(self) -> Path:
        """Where parts are kept until the end."""
        return self.output.with_name(f".{self.output.name}.parts")


@dataclass(frozen=True)
class Done:
    """What was done.

    Attributes:
        frames: of the result.
        scenes: numbers of the frames that they begin with, counted from the file's first.
        seconds: that this run took.
        edited: frames that this run edited, not those of an earlier one.
        notes: what happened to the source's other streams.
    """

    frames: int
    scenes: tuple[int, ...]
    seconds: float
    edited: int
    notes: tuple[str, ...]


def run(
    job: Job,
    editor: FrameEditor,
    on_frame: OnFrame | None = None,
    resized: Callable[[UInt8[Tensor, "3 h w"]], UInt8[Tensor, "3 h w"]] | None = None,
) -> Done:
    """Edit the whole video; the output appears complete or not at all.

    Args:
        job: what to edit, and where to.
        editor: what edits; it has seen no frame yet.
        on_frame: called after each frame that is encoded.
        resized: brings a frame to the size that is edited; None leaves it.

    Raises:
        InputError: if frames cannot be decoded, or a half-done job is in the way.
        StorageError: if the result cannot be written.
    """
    began = time.monotonic()
    info = _result_info(job, resized)
    coding, asked = job.coding.settled(job.output, info.size), info.size
    info = replace(info, size=coding.fitted(asked), colour=kept_colour(job.output, info))
    notes: list[str] = []
    if info.size != asked:
        (height, width), (full_height, full_width) = asked, info.size
        notes.append(
            f"padded from {width}x{height} to {full_width}x{full_height}, which {coding.codec} "
            f"needs for {coding.pixel_format}"
        )
    _prepare(job)
    worker = _Worker(job, editor, info, coding, on_frame)
    with _kept_if_useful(job):
        if job.rank == 0:
            try_writing(job.folder, job.output, info, coding)
        starts = worker.work(resized)
    if job.rank == 0:
        _wait(lambda: all((job.folder / f"{first:08d}.done").exists() for first in starts))
        parts = sorted(job.folder.glob("*.nut"))
        notes += join_parts(parts, job.output, job.video.info, info, coding)
        shutil.rmtree(job.folder)
    seconds = time.monotonic() - began
    frames = worker.seen - job.video.info.first
    return Done(frames, tuple(starts), seconds, worker.edited, tuple(notes))


class _Worker:
    """Edits the scenes of one process and keeps their parts."""

    def __init__(
        self,
        job: Job,
        editor: FrameEditor,
        info: VideoInfo,
        coding: Coding,
        on_frame: OnFrame | None,
    ) -> None:
        self.job, self.editor, self.info, self.coding = job, editor, info, coding
        self.on_frame = on_frame
        container = container_of(job.output)
        self.reorders = container is None or container.reorders
        self.edited = self.done = 0
        self.seen = job.video.info.first  # number of the next frame
        self.times: dict[int, tuple[int, int]] = {}  # of frames on their way
        self.sources: dict[int, UInt8[Tensor, "3 h w"]] = {}
        self.writer: PartWriter | None = None
        self.part = 0

    def work(self, resized: Callable | None) -> list[int]:
        """Edit; return the frames that scenes begin with."""
        starts: list[int] = []
        encoder = Encoder(self._encode)
        first, mine = 0, False
        try:
            for frame, is_start in ahead(self._frames(resized)):
                if is_start:
                    if mine:
                        self._end_scene(encoder, first)
                    first = self.seen
                    mine = len(starts) % self.job.world == self.job.rank and self._begin(first)
                    starts.append(first)
                if mine and self.seen >= self.skip:
                    self._edit(frame, encoder, first, is_start=is_start)
                elif mine:
                    self._tell()
                self.seen += 1
            if mine:
                self._end_scene(encoder, first)
            encoder.finish()
        except BaseException:
            encoder.abandon()
            if self.writer is not None:
                self.writer.abandon()
            raise
        return starts

    def _frames(self, resized: Callable | None) -> Iterator[tuple[Frame, bool]]:
        """Yield frames at the size that is edited, each with whether a scene begins there."""
        waiting: list[Frame] = []

        def pixels() -> Iterator[UInt8[Tensor, "3 h w"]]:
            for frame in self.job.video.frames():
                waiting.append(frame)
                yield frame.pixels

        for kept, is_start in scene_starts(pixels(), self.job.cuts, self.job.video.info.first):
            frame = waiting.pop()
            small = kept if resized is None else resized(kept)
            yield Frame(small, frame.time, frame.duration), is_start

    def _begin(self, first: int) -> bool:
        """Begin a scene, or go on with one; False if it is finished already."""
        state = self.job.folder / f"{first:08d}.state"
        self.part, self.skip = 0, first
        if (self.job.folder / f"{first:08d}.done").exists():
            return False
        if state.exists():
            kept = _Kept.of(read_regular(state))
            self.part, self.skip = kept.part, kept.frame
            self.times = {int(number): (a, b) for number, a, b in kept.times}
            self.editor.restore(kept.editor)
            self.sources = kept.sources
        # a part may have been closed and its state not yet been written
        for old in self.job.folder.glob(f"{first:08d}-*.nut"):
            if int(old.stem.split("-")[1]) >= self.part:
                old.unlink()
        return True

    def _edit(self, frame: Frame, encoder: Encoder, first: int, *, is_start: bool) -> None:
        self.times[self.seen] = frame.time, frame.duration
        if self.job.side_by_side:
            self.sources[self.seen] = frame.pixels
        self.edited += 1
        shots = self.editor.push(Shot(frame.pixels, self.seen, is_start))
        self._send(shots, encoder, first)
        if self.done >= PART_FRAMES:
            self.done = 0
            self.part += 1
            kept = _Kept(
                self.part,
                self.seen + 1,
                [(number, *times) for number, times in self.times.items()],
                dict(self.sources),
                self.editor.state(),
            )
            encoder.put(("close", self.job.folder / f"{first:08d}.state", kept.data()))

    def _end_scene(self, encoder: Encoder, first: int) -> None:
        self._send(self.editor.flush(), encoder, first)
        self.done = 0
        encoder.put(("close", self.job.folder / f"{first:08d}.done", b""))

    def _send(self, shots: list[Shot], encoder: Encoder, first: int) -> None:
        path = self.job.folder / f"{first:08d}-{self.part:05d}.nut"
        for shot in shots:
            pixels, times = shot.pixels, self.times.pop(shot.number)
            if self.job.side_by_side:
                pixels = torch.cat([self.sources.pop(shot.number), pixels], dim=2)
            encoder.put(("frame", path, Frame(pixels, *times)))
            self.done += 1

    def _encode(self, item: tuple) -> None:
        """Do one piece of the encoder's work, in its thread."""
        what, path, content = item
        if what == "frame":
            if self.writer is None:
                self.writer = PartWriter(path, self.info, self.coding, reorders=self.reorders)
            self.writer.write(content)
            self._tell()
            return
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        with writing(path), atomic_file(path) as stream:
            stream.write(content)

    told = 0

    def _tell(self) -> None:
        self.told += 1
        if self.on_frame is not None:
            self.on_frame(self.told, self.job.video.info.frames)


@dataclass(frozen=True)
class _Kept:
    """What a scene needs to be gone on with: the next part and frame, and what is on its way."""

    part: int
    frame: int
    times: list[tuple[int, int, int]]
    sources: dict[int, UInt8[Tensor, "3 h w"]]
    editor: bytes

    def data(self) -> bytes:
        known = {"part": self.part, "frame": self.frame, "times": self.times}
        tensors = {f"source.{number}": pixels for number, pixels in self.sources.items()}
        tensors["editor"] = torch.frombuffer(bytearray(self.editor or b"\0"), dtype=torch.uint8)
        return save(tensors, metadata={"kept": json.dumps(known)})

    @staticmethod
    def of(data: bytes) -> "_Kept":
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        known, tensors = json.loads(header["__metadata__"]["kept"]), load(data)
        editor = tensors.pop("editor").numpy().tobytes()
        sources = {int(name.split(".")[1]): value for name, value in tensors.items()}
        times = [(number, when, duration) for number, when, duration in known["times"]]
        return _Kept(known["part"], known["frame"], times, sources, editor)


def _result_info(job: Job, resized: Callable | None) -> VideoInfo:
    """Say what the result is: the source's times and colours, at the size that is edited."""
    info = job.video.info
    height, width = info.size
    if resized is not None:
        height, width = resized(torch.zeros(3, height, width, dtype=torch.uint8)).shape[-2:]
    return replace(info, size=(height, width * (2 if job.side_by_side else 1)))


def _prepare(job: Job) -> None:
    """Make the folder of parts, or find the half-done job there."""
    known = job.video.info
    name = {"source": str(known.path.resolve()), "first": known.first, "frames": known.frames}
    name |= {"coding": asdict(job.coding), "side_by_side": job.side_by_side, **job.name}
    name = json.loads(json.dumps(name, default=str))
    file = job.folder / "job.json"
    if job.rank > 0:
        _wait(file.exists)
    if file.exists():
        if not job.resume and job.rank == 0:
            raise InputError(
                f"{job.output}: half done by an earlier run; go on with --resume, or begin anew "
                f"after removing {job.folder}"
            )
        if json.loads(read_regular(file)) != name:
            raise InputError(
                f"{job.output}: was begun with other options or another source; give the same, or "
                f"begin anew after removing {job.folder}"
            )
        return
    with writing(job.output), _kept_if_useful(job):
        job.folder.mkdir(exist_ok=True)
        write_json(file, name)


@contextmanager
def _kept_if_useful(job: Job) -> Iterator[None]:
    """Leave no folder of parts behind a failure that there is nothing in to go on with."""
    try:
        yield
    except BaseException:
        done = [*job.folder.glob("*.state"), *job.folder.glob("*.done")]
        if job.world == 1 and not done:  # other processes may be about to keep something
            shutil.rmtree(job.folder, ignore_errors=True)
        raise


def _wait(is_there: Callable[[], bool]) -> None:
    while not is_there():
        time.sleep(POLL)
