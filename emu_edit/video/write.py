"""From frames to a video file: parts that are encoded apart, then joined with the source's sound.

Edited frames go into parts of a few hundred frames, each a whole file under its own name, so that
an interrupted job loses at most one part. In the end the packets of all parts are joined without
decoding, between the copied packets of the source's sound and subtitles, under a temporary name.
A job that was never interrupted is joined of the same parts: its frames are the same, bit for bit.
"""

import heapq
import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.error import FFmpegError

from emu_edit.errors import StorageError
from emu_edit.video.animate import LATER, animate, write_pictures
from emu_edit.video.clip import Frame, VideoInfo
from emu_edit.video.coding import ANIMATIONS, FINEST, Coding, Container, container_of
from emu_edit.video.colour import BT709, Colour, from_rgb
from emu_edit.video.passengers import passengers

PICTURES_COLOUR = Colour(BT709, BT709, BT709, is_full=False)
BEFORE = 2**20  # units of time, more than a part has packets
PART = "nut"  # a container that keeps any codec and any time base exactly


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
        self._colour = (info.colour or PICTURES_COLOUR).written()
        self._coding, self._unit = coding, info.time_base
        with writing(path):
            self._container = av.open(self._half, "w", format=PART)
        try:
            rate = info.rate.limit_denominator(1001)
            rate = max(rate, Fraction(1, 1001))
            added = self._container.add_stream(coding.codec or "", rate=rate)
            stream = cast("av.VideoStream", added)
            stream.height, stream.width = info.size
            stream.pix_fmt = coding.pixel_format or ""
            stream.options = coding.options(reorders=reorders)
            context = stream.codec_context
            context.time_base = stream.time_base = info.time_base
            context.sample_aspect_ratio = info.aspect
            context.thread_type = "AUTO"
            if not av.VideoFormat(coding.pixel_format or "").is_rgb:
                context.colorspace = self._colour.matrix
                context.color_range = 2 if self._colour.is_full else 1
            context.color_primaries = self._colour.primaries
            context.color_trc = self._colour.transfer
            self._stream = stream
            context.open()
        except (FFmpegError, ValueError, OverflowError) as error:
            self.abandon()
            raise coding.refused(info.size, error) from error

    def write(self, frame: Frame) -> None:
        """Encode one frame more."""
        assert self._coding.pixel_format is not None
        pixels = np.ascontiguousarray(frame.pixels.permute(1, 2, 0).numpy())
        more = [self._stream.height - pixels.shape[0], self._stream.width - pixels.shape[1]]
        if any(more):
            pixels = np.pad(pixels, [(0, more[0]), (0, more[1]), (0, 0)], mode="edge")
        picture = from_rgb(pixels, self._colour, self._coding.pixel_format)
        picture.pts, picture.duration = frame.time + LATER, frame.duration
        picture.time_base = self._unit
        with writing(self.path):
            self._mux(self._stream.encode(picture))

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        """Write packets, numbered in their order before the first frame.

        Their true times of decoding follow from all parts' frames, see `_picture_packets`; those of
        libx265 are random for fewer frames than it looks ahead (seen with x265 4.2).
        """
        for packet in packets:
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


def join_parts(
    parts: Sequence[Path], output: Path, source: VideoInfo, info: VideoInfo
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
                left = _mux(parts, half, container, source, info)
            with half.open("rb") as stream:
                os.fsync(stream.fileno())
            half.replace(output)
    finally:
        half.unlink(missing_ok=True)
    return left


def _mux(
    parts: Sequence[Path], half: Path, container: Container, source: VideoInfo, info: VideoInfo
) -> list[str]:
    options = {"movflags": "+faststart"} if container.name in {"mp4", "mov"} else {}
    if container.name in {"matroska", "webm"} and not source.starts_before_zero:
        # these keep no times of decoding, the only ones that are negative
        options["avoid_negative_ts"] = "disabled"
    with av.open(half, "w", format=container.name, options=options) as output:
        with av.open(parts[0]) as first:
            # opaque: a decoder may have another name than the encoder (libdav1d, libsvtav1)
            pictures = output.add_stream_from_template(first.streams.video[0], opaque=True)
            pictures.time_base = info.time_base
            if container.name == "avi" and info.time_base < FINEST:
                # AVI has no times: frame k is shown at k / rate
                pictures.time_base = 1 / info.rate.limit_denominator(1001)
        flows = [_picture_packets(parts, pictures, info)]
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
        durations = {packet.pts: packet.duration for packet in packets}
        if not shown:
            shown = [times[0] - one * (late - i) for i in range(late)]
        known = shown + times
        ends = dict(itertools.pairwise(times))
        for number, packet in enumerate(packets):
            time = packet.pts or 0
            packet.dts = min(known[number], time)
            packet.duration = ends[time] - time if time in ends else durations[time] or one
            packet.time_base = info.time_base
            packet.stream = stream
            yield packet
        shown = known[len(known) - late :]


def _read_part(part: Path, unit: Fraction) -> list[av.Packet]:
    """Return a part's packets in their stored order."""
    with av.open(part) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets:  # a part may count in fractions of the unit, never in others
            packet.pts = round((packet.pts or 0) * Fraction(packet.time_base or 1) / unit) - LATER
            packet.duration = round((packet.duration or 0) * Fraction(packet.time_base or 1) / unit)
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
