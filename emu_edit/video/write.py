"""From frames to a video file: parts that are encoded apart, then joined with the source's sound.

Edited frames go into parts of a few hundred frames, each a whole file under its own name, so that
an interrupted job loses at most one part. In the end the packets of all parts are joined without
decoding, between the copied packets of the source's sound and subtitles, under a temporary name.
A job that was never interrupted is joined of the same parts: its frames are the same, bit for bit.
"""

import heapq
import os
import secrets
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import av
import numpy as np
import torch
from av.error import FFmpegError
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.errors import InputError, StorageError
from emu_edit.video.animate import LATER, animate, write_pictures
from emu_edit.video.clip import Frame, VideoInfo
from emu_edit.video.coding import (
    ANIMATIONS,
    PART,
    Coding,
    Container,
    avi_clock,
    container_of,
    kept_colour,
)
from emu_edit.video.colour import from_rgb
from emu_edit.video.passengers import passengers

PART_FRAMES = 120  # a part is closed after so many frames
BEFORE = 2**20  # units of time, more than a part has packets


class PartWriter:
    """Encode frames into one part; a file appears under `path` when it is closed."""

    def __init__(self, path: Path, info: VideoInfo, coding: Coding, *, reorders: bool) -> None:
        """Begin; `coding` is settled, `info` of the result at the size that the encoder takes.

        Raises:
            InputError: if the encoder refuses its options.
            StorageError: if the place cannot be written.
        """
        self.path = path
        self._decoded: int | None = None  # the next packet's number
        self._half = path.with_name(f".{secrets.token_hex(8)}.part")
        self._colour, self._pixel_format = coding.colour(info.colour), coding.pixel_format or ""
        self._unit, self._clock = info.time_base, coding.clock(info)
        self._times: list[int] = []  # of frames that are numbered for the encoder
        with writing(path):
            self._container = av.open(self._half, "w", format=PART)
        try:
            rate = info.rate.limit_denominator(1001)
            rate = max(rate, Fraction(1, 1001))
            added = self._container.add_stream(coding.codec or "", rate=rate)
            stream = cast("av.VideoStream", added)
            stream.height, stream.width = info.size
            stream.pix_fmt = self._pixel_format
            stream.options = coding.options(info.size, reorders=reorders)
            context = stream.codec_context
            stream.time_base, context.time_base = self._unit, self._clock or self._unit
            context.sample_aspect_ratio = info.aspect
            context.thread_type = "AUTO"
            coding.tag(context, info.colour)
            self._stream = stream
            context.open()
        except (FFmpegError, ValueError, OverflowError) as error:
            self.abandon()
            raise coding.refused(info.size, error) from error

    def write(self, frame: Frame) -> None:
        """Encode one frame more."""
        pixels = np.ascontiguousarray(frame.pixels.permute(1, 2, 0).numpy())
        more = [self._stream.height - pixels.shape[0], self._stream.width - pixels.shape[1]]
        if any(more):
            pixels = np.pad(pixels, [(0, more[0]), (0, more[1]), (0, 0)], mode="edge")
        picture = from_rgb(pixels, self._colour, self._pixel_format)
        picture.pts, picture.duration = frame.time + LATER, frame.duration
        picture.time_base = self._unit
        if self._clock is not None:
            self._times.append(picture.pts)
            picture.pts, picture.duration = len(self._times) - 1, 1
            picture.time_base = self._clock
        with writing(self.path):
            self._mux(self._stream.encode(picture))

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        """Write packets, numbered in their order before the first frame.

        Their true times of decoding follow from all parts' frames, see `_picture_packets`; those of
        libx265 are random for fewer frames than it looks ahead (seen with x265 4.2).
        """
        for packet in packets:
            if self._clock is not None:
                packet.pts, packet.time_base = self._times[packet.pts or 0], self._unit
            self._decoded = -BEFORE + (packet.pts or 0) if self._decoded is None else self._decoded
            packet.dts = self._decoded
            self._decoded += 1
            self._container.mux(packet)

    def close(self) -> None:
        """Finish the file; it is whole or not there."""
        with writing(self.path):
            self._mux(self._stream.encode(None))
            self._container.close()
            with self._half.open("rb") as stream:
                os.fsync(stream.fileno())
            self._half.replace(self.path)

    def abandon(self) -> None:
        """Leave nothing behind."""
        try:
            self._container.close()
        except (FFmpegError, OSError):
            pass
        finally:
            self._half.unlink(missing_ok=True)


def try_writing(folder: Path, output: Path, info: VideoInfo, coding: Coding) -> None:
    """Write a video of one black frame, in a folder, and remove it.

    Raises:
        InputError: if encoder or container refuse it, as they would after all frames are edited.
        StorageError: if the disk is full or the place cannot be written.
    """
    container = container_of(output)
    if container is None or container.name in ANIMATIONS:
        return
    part, half = folder / "black.nut", folder / "black.part"
    blank = Frame(torch.zeros(3, *info.size, dtype=torch.uint8), info.times[0], 1)
    try:
        writer = PartWriter(part, info, coding, reorders=container.reorders)
        writer.write(blank)
        writer.close()
        with writing(output):
            _mux([part], half, container, replace(info, has_others=False), info, coding)
    except StorageError as error:
        if isinstance(error.__cause__, ValueError):  # so PyAV words EINVAL
            raise InputError(
                f"{output}: {container.name} does not take what {coding.codec} makes "
                f"({coding.pixel_format}); leave --codec out for {container.codec}, or write .mkv"
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)
        half.unlink(missing_ok=True)


def write_clip(
    output: Path, frames: UInt8[Tensor, "f 3 h w"], rate: Fraction, coding: Coding | None = None
) -> None:
    """Write frames that come from nowhere, without sound; see `write_frames`.

    Args:
        output: file or folder; its extension says which kind, see `container_of`.
        frames: all of them.
        rate: frames a second.
        coding: how they are encoded; None is the container's usual.
    """
    size = (frames.shape[-2], frames.shape[-1])
    info = VideoInfo(output, size, time_base=1 / rate, times=range(len(frames)), rate=rate)
    shown = (Frame(pixels, number, 1) for number, pixels in enumerate(frames))
    write_frames(output, shown, info, coding=coding)


def write_frames(
    output: Path,
    frames: Iterable[Frame],
    info: VideoInfo,
    *,
    source: VideoInfo | None = None,
    coding: Coding | None = None,
) -> list[str]:
    """Write a video as its frames come, whole or not at all; memory does not grow with them.

    Args:
        output: file or folder; its extension says which kind, see `container_of`.
        frames: at the times of `info`.
        info: of the result, at the frames' size.
        source: whose sound and subtitles go with it, at their own times; None is without.
        coding: how they are encoded; None is the container's usual.

    Returns:
        What of the source's other streams was re-encoded or left out, a few words each.

    Raises:
        InputError: if the encoder refuses them, before a frame is taken.
        StorageError: if the place cannot be written.
    """
    settled = (coding or Coding()).settled(output, info.size)
    info = replace(info, size=settled.fitted(info.size), colour=kept_colour(output, info))
    container = container_of(output)
    reorders = container is None or container.reorders
    with writing(output):
        held = TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    with held as folder:
        try_writing(Path(folder), output, info, settled)
        parts: list[Path] = []
        for number, some in enumerate(_batched(frames, PART_FRAMES)):
            parts.append(Path(folder, f"{number:08d}.nut"))
            writer = PartWriter(parts[-1], info, settled, reorders=reorders)
            try:
                for frame in some:
                    writer.write(frame)
                writer.close()
            except BaseException:
                writer.abandon()
                raise
        silent = replace(info, has_others=False)
        return join_parts(parts, output, source or silent, info, settled)


def _batched(frames: Iterable[Frame], size: int) -> Iterator[Iterator[Frame]]:
    """Cut a stream into parts, each to be read to its end before the next."""
    stream = iter(frames)
    while (first := next(stream, None)) is not None:
        yield chain([first], islice(stream, size - 1))


def join_parts(
    parts: Sequence[Path], output: Path, source: VideoInfo, info: VideoInfo, coding: Coding
) -> list[str]:
    """Write the whole video; it appears under `output` complete or not at all.

    Returns what of the source's other streams was re-encoded or left out, a few words each.

    Raises:
        StorageError: if the disk is full or the place cannot be written.
    """
    container = container_of(output)
    if container is None:
        with writing(output):
            return write_pictures(parts, output)
    half = output.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with writing(output):
            if container.name in ANIMATIONS:
                animate(parts, half, container.name, info)
                left = ["sound and subtitles left out"] if source.has_others else []
            else:
                left = _mux(parts, half, container, source, info, coding)
            with half.open("rb") as stream:
                os.fsync(stream.fileno())
            half.replace(output)
    finally:
        half.unlink(missing_ok=True)
    return left


def _mux(
    parts: Sequence[Path],
    half: Path,
    container: Container,
    source: VideoInfo,
    info: VideoInfo,
    coding: Coding,
) -> list[str]:
    options = {"movflags": "+faststart"} if container.name in {"mp4", "mov"} else {}
    if container.name in {"matroska", "webm"} and not source.starts_before_zero:
        # these keep no times of decoding, the only ones that are negative
        options["avoid_negative_ts"] = "disabled"
    with av.open(half, "w", format=container.name, options=options) as output:
        with av.open(parts[0]) as first:
            # opaque: a decoder may have another name than the encoder (libdav1d, libsvtav1)
            pictures = output.add_stream_from_template(first.streams.video[0], opaque=True)
        coding.tag(pictures.codec_context, info.colour)  # which parts do not keep
        pictures.time_base = info.time_base
        packets = _picture_packets(parts, pictures, info)
        if container.name == "avi" and (clock := avi_clock(info)) is not None:
            pictures.time_base = clock
            packets = _counted(packets, clock, round(info.times[0] * info.time_base / clock))
        flows = [packets]
        left: list[str] = []
        if source.has_others:
            others, left = passengers(source, output, container.name)
            flows += others
        for _, _, packet in heapq.merge(*map(_keyed, flows, range(len(flows)))):
            output.mux(packet)
    return left


def _keyed(
    packets: Iterator[av.Packet], number: int
) -> Iterator[tuple[Fraction, tuple[int, int], av.Packet]]:
    for index, packet in enumerate(packets):
        yield (packet.dts or 0) * Fraction(packet.time_base or 1), (number, index), packet


def _picture_packets(
    parts: Sequence[Path], stream: av.VideoStream, info: VideoInfo
) -> Iterator[av.Packet]:
    """Yield the packets of all parts with exact times.

    A decoder gets packet k before it shows the k-th frame; with d frames of reordering it needs
    them d frames earlier, so dts[k] is the (k - d)-th time of all, in the order of showing.
    """
    late = max(_reordered(_read_part(part, info.time_base)) for part in parts)
    shown: list[int] = []  # the times of all frames so far, as far as they are needed
    one = max(1, round(1 / (info.rate * info.time_base)))
    for part in parts:
        packets = _read_part(part, info.time_base)
        times = sorted(packet.pts or 0 for packet in packets)
        if not shown:
            shown = [times[0] - one * (late - i) for i in range(late)]
        known = shown + times
        for number, packet in enumerate(packets):
            time = packet.pts or 0
            packet.dts = min(known[number], time)
            packet.duration = max(1, _next(info, time) - time)
            packet.time_base = info.time_base
            packet.stream = stream
            yield packet
        shown = known[len(known) - late :]


def _next(info: VideoInfo, time: int) -> int:
    """Return when the frame that is shown at a time is shown no more."""
    after = bisect_right(info.times, time)
    if after < len(info.times):
        return info.times[after]
    return info.times[0] + round(info.seconds / info.time_base)


def _counted(packets: Iterator[av.Packet], clock: Fraction, first: int) -> Iterator[av.Packet]:
    for number, packet in enumerate(packets, first):
        packet.pts = packet.dts = number
        packet.duration, packet.time_base = 1, clock
        yield packet


def _read_part(part: Path, unit: Fraction) -> list[av.Packet]:
    """Return a part's packets in their stored order."""
    with av.open(part) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets:  # a part may count in fractions of the unit, never in others
            packet.pts = round((packet.pts or 0) * Fraction(packet.time_base or 1) / unit) - LATER
        return packets


def _reordered(packets: Sequence[av.Packet]) -> int:
    """Return by how many frames packets come earlier than they are shown, at most."""
    times = [packet.pts or 0 for packet in packets]
    order = {time: index for index, time in enumerate(sorted(times))}
    return max((number - order[time] for number, time in enumerate(times)), default=0)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Word (StorageError) what keeps `path` from being written."""
    try:
        yield
    except (FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{path}: cannot be written: {reason}") from error
