"""The streams of a video that are not edited: sound and subtitles, copied packet by packet.

Of a stretch come the packets of sound that begin in it, so that a cut is exact to a packet (some
hundredths of a second), and the subtitles that are shown in it, each as long as it is.
"""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.stream import SubtitleStream

from emu_edit.video.clip import Span, VideoInfo
from emu_edit.video.io import VideoFile

AUDIO = {"webm": "libopus", "avi": "mp3"}  # what a container takes where it refuses a stream's own
SUBTITLES = {"mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "matroska": "ass"}
Flow = Iterator[av.Packet]


WHOLE = Span(None, None, Fraction(0))


def passengers(info: VideoInfo, output: OutputContainer, kind: str) -> tuple[list[Flow], list[str]]:
    """Open every stream of sound and subtitles of a video as a flow of packets for `output`.

    A stream that the container takes is copied bit for bit, any other is encoded anew; one that
    cannot be (pictures as subtitles, say) is left out. Each flow reads the file for itself, so that
    no packet has to wait in memory.

    Returns:
        The flows, and in a few words what was not copied.
    """
    flows, said = [], []
    path, span = info.path, info.span or WHOLE
    with VideoFile.opened(path) as source:
        taken = output.supported_codecs
        for stream in source.streams:
            if stream.type not in {"audio", "subtitle"} or stream.codec_context is None:
                continue
            name = stream.codec_context.codec.canonical_name
            if name in taken or {"srt": "subrip"}.get(name) in taken:
                copy = output.add_stream_from_template(stream)
                copy.time_base = stream.time_base
                flows.append(_copied(path, stream.index, copy, span))
            elif isinstance(stream, AudioStream):
                encoder = AUDIO.get(kind, "aac")
                copy = cast("AudioStream", output.add_stream(encoder, rate=_rate(encoder, stream)))
                flows.append(_sound(path, stream.index, copy, span))
                said.append(f"sound encoded anew: {name} to {encoder}")
            elif isinstance(stream, SubtitleStream) and kind in SUBTITLES and name not in PICTURED:
                copy = cast("SubtitleStream", output.add_stream(SUBTITLES[kind]))
                flows.append(_text(path, stream, copy, span))
                said.append(f"subtitles encoded anew: {name} to {SUBTITLES[kind]}")
            else:
                said.append(f"left out: {stream.type} of {name}, which {kind} does not take")
                continue
            copy.metadata.update({
                key: value for key, value in stream.metadata.items() if key == "language"
            })
    return flows, said


PICTURED = {"dvd_subtitle", "hdmv_pgs_subtitle", "dvb_subtitle", "xsub", "pgssub", "dvbsub"}


def _rate(encoder: str, stream: av.AudioStream) -> int:
    return 48000 if encoder == "libopus" else stream.codec_context.sample_rate


def _taken(packets: Iterator[av.Packet], span: Span, kind: str) -> Flow:
    """Yield the packets of a stretch, moved to where it is shown."""
    for packet in packets:
        if packet.dts is None or packet.time_base is None:  # the end
            continue
        unit = packet.time_base
        begin = unit * (packet.dts if packet.pts is None else packet.pts)
        if span.end is not None and begin >= span.end:
            return
        if kind == "subtitle":
            last = begin + unit * (packet.duration or 0)
            shown = begin if span.begin is None else max(begin, span.begin)
            last = last if span.end is None else min(last, span.end)
            if shown > begin and shown >= last:
                continue
            packet.duration = max(0, round((last - shown) / unit))
            packet.pts = packet.dts = round((shown - span.earlier) / unit)
        elif span.begin is not None and begin < span.begin:
            continue
        else:
            moved = round(span.earlier / unit)
            packet.dts -= moved
            packet.pts = packet.dts if packet.pts is None else packet.pts - moved
        yield packet


def _copied(path: Path, index: int, copy: Stream, span: Span) -> Flow:
    with VideoFile.opened(path) as source:
        last: int | None = None
        stream = source.streams[index]
        for packet in _taken(source.demux(stream), span, stream.type):
            if last is not None and (packet.dts or 0) < last:
                continue  # of a stream whose times go back; a player would stop there, too
            last = packet.dts
            packet.stream = copy
            yield packet


def _sound(path: Path, index: int, copy: av.AudioStream, span: Span) -> Flow:
    with VideoFile.opened(path) as source:
        context = copy.codec_context
        stream = cast("AudioStream", source.streams[index])
        resampler = av.AudioResampler(
            format=context.format,
            layout=stream.codec_context.layout,
            rate=context.sample_rate,
            frame_size=context.frame_size or None,
        )
        packets = _taken(source.demux(stream), span, stream.type)
        for frame in itertools.chain.from_iterable(
            map(stream.decode, itertools.chain(packets, [None]))
        ):
            for part in resampler.resample(frame):
                yield from copy.encode(part)
        for part in resampler.resample(None):
            yield from copy.encode(part)
        yield from copy.encode(None)


def _text(path: Path, stream: SubtitleStream, copy: SubtitleStream, span: Span) -> Flow:
    stream.codec_context.open()
    context = copy.codec_context
    context.subtitle_header = stream.codec_context.subtitle_header
    copy.time_base = stream.time_base
    context.time_base = stream.time_base  # pyright: ignore[reportAttributeAccessIssue]
    return _texts(path, stream.index, copy, span)


def _texts(path: Path, index: int, copy: SubtitleStream, span: Span) -> Flow:
    with VideoFile.opened(path) as source:
        stream = cast("SubtitleStream", source.streams[index])
        for packet in _taken(source.demux(stream), span, stream.type):
            if not (text := stream.decode2(packet)):
                continue
            made = copy.codec_context.encode_subtitle(text)
            made.pts = made.dts = packet.pts
            made.duration, made.time_base, made.stream = packet.duration, packet.time_base, copy
            yield made
