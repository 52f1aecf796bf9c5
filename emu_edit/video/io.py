"""Videos as streams of frames: what a file is, and its frames one by one in constant memory.

A video is a file that FFmpeg reads (through PyAV), an animated GIF, PNG or WebP, or a folder of
pictures. Every frame keeps its own time, so a variable rate stays exact. Frames are upright RGB in
8 bits: rotation is applied, interlaced fields are joined, colours converted with both ends named.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import BlockingIOError as AvBlockingIOError
from av.error import EOFError as AvEOFError
from av.error import FFmpegError
from av.filter import Graph
from av.stream import Disposition
from jaxtyping import UInt8
from PIL import Image, ImageSequence
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.files import open_stream
from emu_edit.images import from_pil, read_image
from emu_edit.pictures import EXTENSIONS, MAX_PIXELS
from emu_edit.video.clip import Frame, Video, VideoInfo
from emu_edit.video.colour import HLG, PQ, colour_of, to_rgb

FOLDER_RATE = 25  # frames a second of a folder of pictures, which has no times
FEW = 1  # frames, and one of fifty, that a whole file may hold less than it says,
LEAST_SLACK = Fraction(1, 5)  # and seconds that it may end earlier: durations are often rounded


def open_video(path: Path | str) -> Video:
    """Look at a video: a file, an animation, or a folder of pictures in the order of their names.

    All packets of a file are counted, which finds one that is cut short; nothing is decoded but the
    first frame.

    Raises:
        InputError: if there is none, it is no video, is cut short or has no frame, or its frames
            have more pixels than `MAX_PIXELS`.
    """
    path = Path(path)
    if path.is_dir():
        return PictureFolder(path)
    try:
        with open_stream(path) as stream:
            start = stream.read(16)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return Animation(path)
    return VideoFile(path)


class VideoFile:
    """A file that FFmpeg reads."""

    def __init__(self, path: Path) -> None:
        """Look at it, see `open_video`."""
        self.path = path
        with self.opened(self.path) as container:
            stream = _video_stream(container, path)
            if stream.time_base is None:
                raise InputError(f"{path}: its video stream has no times")
            context = stream.codec_context
            _check_pixels(path, context.height, context.width)  # before a frame needs the memory
            first = self._first(container, stream)
            times, end = self._count(Fraction(stream.time_base))
            self._upending = _upending_of(first)
            self._is_interlaced = first.interlaced_frame
            self.colour = colour_of(first)
            height, width = first.height, first.width
            aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
            if self._upending.transposes:
                height, width, aspect = width, height, 1 / aspect
            _check_pixels(path, height, width)
            rate = stream.average_rate or Fraction(FOLDER_RATE)
            seconds = (end - times[0]) * stream.time_base
            self.info = VideoInfo(
                path,
                (height, width),
                Fraction(stream.time_base),
                times,
                Fraction(len(times)) / seconds if seconds > 0 else Fraction(rate),
                self.colour,
                aspect,
                tuple(_notes(first, container)),
                any(other.type in {"audio", "subtitle"} for other in container.streams),
                self._starts_before_zero,
            )
        self._usual = max(1, round(1 / (self.info.rate * self.info.time_base)))

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """Yield every frame from one on; those before are decoded, no more.

        Raises:
            InputError: if one cannot be decoded.
        """
        with self.opened(self.path) as container:
            stream = _video_stream(container, self.path)
            stream.thread_type = "AUTO"
            waiting: tuple[UInt8[Tensor, "3 h w"] | None, int, int] | None = None
            for number, frame in enumerate(self._joined(self._decoded(container, stream), stream)):
                pixels = self._upright(frame) if number >= first else None
                after = 0 if waiting is None else waiting[1] + waiting[2]
                time = after if frame.pts is None else frame.pts
                if waiting is not None:
                    time = max(time, waiting[1] + 1)  # some files say a time twice
                    if waiting[0] is not None:
                        yield Frame(waiting[0], waiting[1], time - waiting[1])
                waiting = pixels, time, frame.duration or self._usual
            if waiting is not None and waiting[0] is not None:
                yield Frame(waiting[0], *waiting[1:])

    @staticmethod
    def opened(path: Path) -> InputContainer:
        """Open a file for one reading.

        Raises:
            InputError: if FFmpeg cannot read it.
        """
        try:
            return av.open(path, metadata_errors="replace")
        except (FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{path}: is no video that can be read ({_why(error)})") from error

    def _first(self, container: InputContainer, stream: av.VideoStream) -> av.VideoFrame:
        try:
            for frame in container.decode(stream):
                return frame
        except FFmpegError as error:
            raise InputError(f"{self.path}: no frame can be decoded ({_why(error)})") from error
        raise InputError(f"{self.path}: has no frame")

    def _count(self, unit: Fraction) -> tuple[list[int], int]:
        """Return when the frames begin, and when the last one ends."""
        times: list[int] = []
        end, all_end, is_damaged = 0, Fraction(0), False
        self._starts_before_zero = False
        with self.opened(self.path) as container:
            stream = _video_stream(container, self.path)
            for packet in self._packets(container):
                if not packet.size or packet.is_discard:
                    continue
                time = packet.pts if packet.pts is not None else packet.dts or 0
                self._starts_before_zero |= time < 0
                time += packet.duration or 0
                all_end = max(all_end, time * (packet.time_base or Fraction(0)))
                if packet.stream_index == stream.index:
                    is_damaged |= packet.is_corrupt
                    times.append(time - (packet.duration or 0))
                    end = max(end, time)
            kept, promised = len(times), stream.frames or 0
            told = Fraction(container.duration or 0, av.time_base)
            told += Fraction(container.start_time or 0, av.time_base)
        if not times:
            raise InputError(f"{self.path}: has no frame")
        start, last = min(times), max(times)
        one = Fraction(last - start, max(kept - 1, 1)) * unit  # some files say no durations
        all_end = max(all_end, last * unit + one)
        slack = max(FEW * one, LEAST_SLACK) + (last - start) * unit / 50
        late = max(Fraction(0), told - all_end - slack) if told else 0
        missing = max(promised - kept - FEW - kept // 50, late / one if one else 0)
        if is_damaged or missing > 0:
            raise InputError(
                f"{self.path}: is cut short or damaged, it holds {kept} frames of "
                f"{promised or 'more'}; copy it again, or mend it with ffmpeg"
            )
        return sorted(times), end if end > last else round(last + one / unit)

    def _packets(self, container: InputContainer) -> Iterator[av.Packet]:
        try:
            yield from container.demux()
        except FFmpegError as error:
            raise InputError(f"{self.path}: is cut short ({_why(error)})") from error

    def _decoded(
        self, container: InputContainer, stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        done = 0
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise InputError(
                        f"{self.path}: frame {done + 1} is damaged; mend it with ffmpeg"
                    )
                yield frame
                done += 1
        except FFmpegError as error:
            raise InputError(
                f"{self.path}: frame {done + 1} of {self.info.frames} cannot be decoded "
                f"({_why(error)}); mend it with ffmpeg"
            ) from error

    def _joined(
        self, frames: Iterator[av.VideoFrame], stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        """Make whole pictures of interlaced ones, which hold two moments (filter bwdif)."""
        if not self._is_interlaced:
            yield from frames
            return
        graph = Graph()
        graph.link_nodes(
            graph.add_buffer(template=stream),
            graph.add("bwdif", "mode=send_frame"),
            graph.add("buffersink"),
        ).configure()
        for frame in frames:
            frame.time_base = stream.time_base
            graph.vpush(frame)
            yield from _pulled(graph, Fraction(stream.time_base or 1))
        graph.vpush(None)
        yield from _pulled(graph, Fraction(stream.time_base or 1))

    def _upright(self, frame: av.VideoFrame) -> UInt8[Tensor, "3 h w"]:
        pixels = to_rgb(frame, self.colour)
        upright = self._upending.applied(pixels)
        return torch.from_numpy(np.ascontiguousarray(upright.transpose(2, 0, 1)))


class Animation:
    """An animated WebP, which FFmpeg does not decode; Pillow does."""

    def __init__(self, path: Path) -> None:
        """Look at it, see `open_video`."""
        self.path = path
        try:
            with Image.open(path) as image:
                width, height = image.size
                _check_pixels(path, height, width)
                times, end = list[int](), 0
                for index in range(getattr(image, "n_frames", 1)):
                    image.seek(index)
                    image.load()
                    times.append(end)
                    end += int(image.info.get("duration", 0)) or 1000 // FOLDER_RATE
        except (OSError, SyntaxError, EOFError, ValueError) as error:
            raise (
                error
                if isinstance(error, InputError)
                else InputError(f"{path}: is no animation that can be read ({error})")
            ) from error
        rate = Fraction(1000 * len(times), end)
        self.info = VideoInfo(path, (height, width), Fraction(1, 1000), times, rate)

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """Yield every frame from one on."""
        with Image.open(self.path) as image:
            for page, time in zip(ImageSequence.Iterator(image), self.info.times, strict=True):
                page.load()
                if time >= self.info.times[first]:
                    duration = int(page.info.get("duration", 0)) or 1000 // FOLDER_RATE
                    yield Frame(from_pil(page.copy()), time, duration)


class PictureFolder:
    """Pictures of one size in a folder, in the order of their names, 25 a second."""

    def __init__(self, path: Path) -> None:
        """Look at it, see `open_video`."""
        names = (each for each in path.iterdir() if each.suffix.lower() in EXTENSIONS)
        self.files = sorted(each for each in names if not each.name.startswith("."))
        if not self.files:
            raise InputError(f"{path}: has no picture ({', '.join(EXTENSIONS)}); give a video")
        size = read_image(self.files[0]).shape[-2:]
        self.info = VideoInfo(
            path,
            (size[0], size[1]),
            Fraction(1, FOLDER_RATE),
            range(len(self.files)),
            Fraction(FOLDER_RATE),
        )

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """Yield every picture from one on.

        Raises:
            InputError: if one cannot be read, or has another size than the first.
        """
        for time, file in enumerate(self.files[first:], first):
            pixels = read_image(file)
            height, width = pixels.shape[-2:]
            if (height, width) != self.info.size:
                raise InputError(
                    f"{file}: is {width}x{height}, the first picture of the folder "
                    f"{self.info.size[1]}x{self.info.size[0]}; give pictures of one size"
                )
            yield Frame(pixels, time, 1)


def frame_pixels(frame: av.VideoFrame) -> np.ndarray:
    """Return a lossless part's frame, RGB as it was written, as uint8 "h w 3"."""
    return np.ascontiguousarray(frame.reformat(format="rgb24").to_ndarray())


def _video_stream(container: InputContainer, path: Path) -> av.VideoStream:
    """Return the first stream of moving pictures; a cover of an album is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    if not container.streams:
        raise InputError(f"{path}: is cut short or damaged, nothing in it can be read")
    raise InputError(f"{path}: has no video stream; give a video")


def _check_pixels(path: Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{path}: has frames of {width}x{height}, at most {MAX_PIXELS / 1e6:.0f} megapixels "
            "are read; make it smaller"
        )


def _notes(frame: av.VideoFrame, container: InputContainer) -> Iterator[str]:
    colour = colour_of(frame)
    if colour.transfer in {PQ, HLG}:
        yield "HDR is toned down to 8-bit BT.709"
    elif colour.is_wide:
        yield "the wide gamut BT.2020 is brought to BT.709"
    elif any(part.bits > 8 for part in frame.format.components):
        yield "is edited and written in 8 bits"
    # a GIF is always decoded with transparency
    if container.format.name != "gif" and any(part.is_alpha for part in frame.format.components):
        yield "transparency is laid over white"
    if frame.interlaced_frame:
        yield "interlaced fields are joined"
    if _upending_of(frame).is_mirror:
        yield "mirrored, as its file says"
    elif frame.rotation % 360:
        yield f"turned by {frame.rotation % 360} degrees"
    others = [each.type for each in container.streams if each.type in {"data", "attachment"}]
    if others:
        yield f"left out: {', '.join(sorted(set(others)))} streams"
    if len(container.streams.video) > 1:
        yield "only the first of its video streams is edited"


@dataclass(frozen=True)
class _Upending:
    """How stored pixels become upright: transposed, then columns and rows reversed."""

    transposes: bool = False
    columns: bool = False
    rows: bool = False

    @property
    def is_mirror(self) -> bool:
        return self.transposes ^ self.columns ^ self.rows

    def applied(self, pixels: np.ndarray) -> np.ndarray:
        turned = pixels.swapaxes(0, 1) if self.transposes else pixels
        turned = turned[:, ::-1] if self.columns else turned
        return turned[::-1] if self.rows else turned


def _upending_of(frame: av.VideoFrame) -> _Upending:
    """Read a display matrix (a b u, c d v, x y w): x' = a x + c y, y' = b x + d y, y downwards.

    Source: ISO/IEC 14496-12, 8.3.2; rotation alone does not tell of mirroring.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _Upending()
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), dtype=np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _Upending(transposes=True, columns=c < 0, rows=b < 0)
    return _Upending(columns=a < 0, rows=d < 0)


def _pulled(graph: Graph, unit: Fraction) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = graph.vpull()
        except (AvBlockingIOError, AvEOFError):
            return
        scale = Fraction(frame.time_base or unit) / unit  # bwdif counts in halves
        frame.duration = round(frame.duration * scale)
        frame.pts = None if frame.pts is None else round(frame.pts * scale)
        frame.time_base = unit
        yield frame


def _why(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split()) or "unknown reason"
