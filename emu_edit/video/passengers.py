"""The streams of a video that are not edited: sound and subtitles, copied packet by packet."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.stream import SubtitleStream

from emu_edit.video.io import VideoFile

AUDIO = {"webm": "libopus", "avi": "mp3"}  # what a container takes where it refuses a stream's own
SUBTITLES = {"mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "matroska": "ass"}
Flow = Iterator[av.Packet]


def passengers(path: Path, output: OutputContainer, kind: str) -> tuple[list[Flow], list[str]]:
    """Open every stream of sound and subtitles of `path` as a flow of packets for `output`.

    A stream that the container takes is copied bit for bit, any other is encoded anew; one that
    cannot be (pictures as subtitles, say) is left out. Each flow reads the file for itself, so that
    no packet has to wait in memory.

    Returns:
        The flows, and in a few words what was not copied.
    """
    flows, said = [], []
    with VideoFile.opened(path) as source:
        taken = output.supported_codecs
        for stream in source.streams:
            if stream.type not in {"audio", "subtitle"} or stream.codec_context is None:
                continue
            name = stream.codec_context.codec.canonical_name
            if name in taken or {"srt": "subrip"}.get(name) in taken:
                copy = output.add_stream_from_template(stream)
                copy.time_base = stream.time_base
                flows.append(_copied(path, stream.index, copy))
            elif isinstance(stream, AudioStream):
                encoder = AUDIO.get(kind, "aac")
                copy = cast("AudioStream", output.add_stream(encoder, rate=_rate(encoder, stream)))
                flows.append(_sound(path, stream.index, copy))
                said.append(f"sound encoded anew: {name} to {encoder}")
            elif isinstance(stream, SubtitleStream) and kind in SUBTITLES and name not in PICTURED:
                copy = cast("SubtitleStream", output.add_stream(SUBTITLES[kind]))
                flows.append(_text(path, stream, copy))
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


def _copied(path: Path, index: int, copy: Stream) -> Flow:
    with VideoFile.opened(path) as source:
        last = None
        for packet in source.demux(source.streams[index]):
            if packet.dts is None:  # the end
                continue
            if last is not None and packet.dts < last:
                continue  # of a stream whose times go back; a player would stop there, too
            last = packet.dts
            packet.stream = copy
            yield packet


def _sound(path: Path, index: int, copy: av.AudioStream) -> Flow:
    with VideoFile.opened(path) as source:
        context = copy.codec_context
        stream = cast("AudioStream", source.streams[index])
        resampler = av.AudioResampler(
            format=context.format,
            layout=stream.codec_context.layout,
            rate=context.sample_rate,
            frame_size=context.frame_size or None,
        )
        for frame in source.decode(stream):
            for part in resampler.resample(cast("av.AudioFrame", frame)):
                yield from copy.encode(part)
        for part in resampler.resample(None):
            yield from copy.encode(part)
        yield from copy.encode(None)


def _text(path: Path, stream: SubtitleStream, copy: SubtitleStream) -> Flow:
    stream.codec_context.open()
    context = copy.codec_context
    context.subtitle_header = stream.codec_context.subtitle_header
    copy.time_base = stream.time_base
    context.time_base = stream.time_base  # pyright: ignore[reportAttributeAccessIssue]
    return _texts(path, stream.index, copy)


def _texts(path: Path, index: int, copy: SubtitleStream) -> Flow:
    with VideoFile.opened(path) as source:
        stream = cast("SubtitleStream", source.streams[index])
        for packet in source.demux(stream):
            if packet.dts is None or not (text := stream.decode2(packet)):
                continue
            made = copy.codec_context.encode_subtitle(text)
            made.pts = made.dts = packet.pts
            made.duration, made.time_base, made.stream = packet.duration, packet.time_base, copy
            yield made
