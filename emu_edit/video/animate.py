"""From lossless parts to what has no sound: animated GIF, PNG and WebP, and folders of pictures."""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import torch
from av.filter import Graph

from emu_edit.images import write_image
from emu_edit.video.clip import VideoInfo
from emu_edit.video.io import frame_pixels

# Units by which times are later inside a part: an encoder that reorders begins before its first
# frame, and where that is before 0, FFmpeg moves all times of the file.
LATER = 2**40
ENCODERS = {"gif": "gif", "apng": "apng", "webp": "libwebp_anim"}


def _decoded(parts: Sequence[Path], unit: Fraction) -> Iterator[tuple[np.ndarray, int, Fraction]]:
    for part in parts:
        with av.open(part) as container:
            for frame in container.decode(video=0):
                scale = Fraction(frame.time_base or 1) / unit
                yield (
                    frame_pixels(frame),
                    round((frame.pts or 0) * scale) - LATER,
                    frame.duration * scale,
                )


def animate(parts: Sequence[Path], half: Path, kind: str, info: VideoInfo) -> None:
    """Encode an animation from lossless parts; a GIF's palette is made anew for every frame."""
    # an animation begins at 0, counts in hundredths (GIF) or thousandths of a second, and loops
    unit = Fraction(1, 100 if kind == "gif" else 1000)
    options = {"plays": "0"} if kind == "apng" else {"loop": "0"}
    with av.open(half, "w", format=kind, options=options) as output:
        stream = cast(
            "av.VideoStream",
            output.add_stream(ENCODERS[kind], rate=info.rate.limit_denominator(1001)),
        )
        stream.height, stream.width = info.size
        stream.pix_fmt = {"gif": "pal8", "apng": "rgb24", "webp": "bgra"}[kind]
        stream.codec_context.time_base = stream.time_base = unit
        if kind == "webp":
            stream.options = {"lossless": "1"}
        start, shown = None, -1
        for pixels, time, duration in _decoded(parts, info.time_base):
            start = time if start is None else start
            # frames that are closer than its unit follow each other by one
            shown = max(shown + 1, round((time - start) * info.time_base / unit))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = _with_palette(frame) if kind == "gif" else frame
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = shown
            frame.duration = max(1, round(duration * info.time_base / unit))
            frame.time_base = unit
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _with_palette(frame: av.VideoFrame) -> av.VideoFrame:
    graph = Graph()
    source, split = (
        graph.add_buffer(
            template=None,
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=Fraction(1, 100),
        ),
        graph.add("split"),
    )
    palette, use = graph.add("palettegen", "reserve_transparent=0"), graph.add("paletteuse")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    frame.pts = 0
    graph.vpush(frame)
    graph.vpush(None)
    return graph.vpull()


def write_pictures(parts: Sequence[Path], output: Path) -> list[str]:
    """Write a folder of PNGs, named by number; the folder appears when all are there."""
    half = output.with_name(f".{secrets.token_hex(8)}.part")
    half.mkdir()
    try:
        for number, (pixels, _, _) in enumerate(_decoded(parts, Fraction(1))):
            write_image(half / f"{number:06d}.png", torch.from_numpy(pixels).permute(2, 0, 1))
        if output.is_dir():
            shutil.rmtree(output)
        half.replace(output)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return []
