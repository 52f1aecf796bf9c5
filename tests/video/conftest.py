"""Small videos that are drawn, written and read again."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.video.clip import Frame, Video
from emu_edit.video.coding import Coding
from emu_edit.video.write import PartWriter, join_parts

HEIGHT, WIDTH = 48, 64
UNIT = Fraction(1, 1000)
TIMES = [0, 40, 73, 140, 141, 300, 333, 400, 900]  # of a variable rate, in UNIT
RATE = 8000  # of the sound
USUAL = Coding()
LOSSLESS = Coding("libx264rgb", crf=0, pixel_format="rgb24")


def picture(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Draw a smooth "h w 3" picture that codecs keep well, different for every seed."""
    y, x = np.mgrid[: size[0], : size[1]]
    parts = [x * 3 + 9 * seed, y * 4 + 5 * seed, (x + y) * 2 + 11 * seed]
    return np.abs(np.stack(parts, -1) % 510 - 255).astype(np.uint8)


def noisy(seed: int) -> np.ndarray:
    """Draw an "h w 3" picture that no codec makes small, so that a file is mostly pictures."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def write_video(
    path: Path,
    times: list[int] = TIMES,
    *,
    draw: Callable[[int], np.ndarray] = picture,
    sound: str | None = None,
    codec: str = "ffv1",
    pixel_format: str = "bgr0",
) -> Path:
    with av.open(path, "w") as output:
        stream = cast("av.VideoStream", output.add_stream(codec, rate=25))
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixel_format
        stream.codec_context.time_base = stream.time_base = UNIT
        voice = None
        if sound is not None:
            voice = cast("av.AudioStream", output.add_stream(sound, rate=RATE, layout="mono"))
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            frame.pts, frame.time_base = time, UNIT
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if voice is not None:
            wobble = np.random.default_rng(0).normal(0, 0.1, (1, RATE)).astype(np.float32)
            for start in range(0, RATE - 1023, 1024):
                part = np.ascontiguousarray(wobble[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = RATE, start
                frame.time_base = Fraction(1, RATE)
                output.mux(voice.encode(frame))
            output.mux(voice.encode(None))
    return path


@pytest.fixture(scope="module")
def variable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless Matroska file of nine frames at a variable rate."""
    return write_video(tmp_path_factory.mktemp("variable") / "variable.mkv")


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 of twelve frames with a second of AAC."""
    path = tmp_path_factory.mktemp("loud") / "loud.mp4"
    times = list(range(0, 1000, 84))
    return write_video(path, times, sound="aac", codec="libx264", pixel_format="yuv420p")


def written(source: Video, output: Path, coding: Coding = USUAL, *, at: int = 4) -> list[str]:
    """Write the frames of `source` again, in two parts that meet at frame `at`."""
    frames, settled = list(source.frames()), coding.settled(output, source.info.size)
    info = replace(source.info, size=settled.fitted(source.info.size))
    parts = []
    for number, some in enumerate((frames[:at], frames[at:])):
        if not some:
            continue
        parts.append(output.parent / f"{number}.nut")
        writer = PartWriter(parts[-1], info, settled, reorders=output.suffix != ".avi")
        for frame in some:
            writer.write(frame)
        writer.close()
    left = join_parts(parts, output, source.info, info, settled)
    for part in parts:
        part.unlink()
    assert list(output.parent.glob(".*")) == []  # no half file
    return left


def stack(frames: list[Frame]) -> UInt8[Tensor, "f 3 h w"]:
    return torch.stack([frame.pixels for frame in frames])


def seconds(video: Video) -> list[Fraction]:
    return [frame.time * video.info.time_base for frame in video.frames()]


def mean_error(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


def sound_of(path: Path) -> list[bytes]:
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]
