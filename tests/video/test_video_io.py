"""Videos in and out: exact times, sound bit for bit."""

import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from emu_edit.images import write_image
from emu_edit.video.coding import Coding
from emu_edit.video.io import open_video
from tests.video.conftest import (
    HEIGHT,
    LOSSLESS,
    TIMES,
    UNIT,
    WIDTH,
    mean_error,
    picture,
    seconds,
    sound_of,
    stack,
    written,
)


def test_frames_and_times_of_a_variable_rate_are_read_exactly(variable: Path) -> None:
    video = open_video(variable)
    frames = list(video.frames())
    assert [frame.time * video.info.time_base for frame in frames] == [
        Fraction(time, 1000) for time in TIMES
    ]
    assert [frame.duration for frame in frames[:-1]] == [b - a for a, b in pairwise(TIMES)]
    assert (video.info.frames, video.info.size) == (len(TIMES), (HEIGHT, WIDTH))
    for number, frame in enumerate(frames):
        assert np.array_equal(frame.pixels.permute(1, 2, 0).numpy(), picture(number))


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.mov"])
@pytest.mark.parametrize("at", [1, 4, 8])
def test_a_variable_rate_comes_through_parts_exactly(
    variable: Path, tmp_path: Path, name: str, at: int
) -> None:
    source = open_video(variable)
    written(source, tmp_path / name, at=at)
    result = open_video(tmp_path / name)
    assert seconds(result) == seconds(source)
    assert result.info.frames == source.info.frames
    assert mean_error(stack(list(result.frames())), stack(list(source.frames()))) < 6


def test_a_lossless_codec_brings_every_pixel_back(variable: Path, tmp_path: Path) -> None:
    source = open_video(variable)
    written(source, tmp_path / "out.mkv", LOSSLESS)
    result = open_video(tmp_path / "out.mkv")
    assert torch.equal(stack(list(result.frames())), stack(list(source.frames())))
    assert seconds(result) == seconds(source)


DELAYS = [(0, 100), (100, 40), (140, 250), (390, 100)]  # time and duration in milliseconds


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless file of four frames with delays of their own."""
    path = tmp_path_factory.mktemp("paced") / "paced.mkv"
    with av.open(path, "w") as output:
        stream = output.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "bgr0"
        stream.codec_context.time_base = stream.time_base = UNIT
        for number, (time, duration) in enumerate(DELAYS):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.duration, frame.time_base = time, duration, UNIT
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("suffix", "most"), [("gif", 8.0), ("apng", 0.0), ("webp", 0.0)])
def test_animations_go_out_and_in_with_delays_of_their_own(
    paced: Path, tmp_path: Path, suffix: str, most: float
) -> None:
    source = open_video(paced)
    written(source, tmp_path / f"one.{suffix}", at=2)
    once = open_video(tmp_path / f"one.{suffix}")
    (tmp_path / "again").mkdir()
    written(once, tmp_path / "again" / f"two.{suffix}", at=2)
    for result in (once, open_video(tmp_path / "again" / f"two.{suffix}")):
        frames = list(result.frames())
        assert mean_error(stack(frames), stack(list(source.frames()))) <= most
        assert seconds(result) == [Fraction(time, 1000) for time, _ in DELAYS]
        assert result.info.frames == len(DELAYS)
        durations = [frame.duration * result.info.time_base for frame in frames]
        assert durations[:-1] == [Fraction(duration, 1000) for _, duration in DELAYS[:-1]]


def test_a_folder_of_pictures_goes_in_and_out_without_loss(variable: Path, tmp_path: Path) -> None:
    source = open_video(variable)
    written(source, tmp_path / "pictures")
    names = [file.name for file in sorted((tmp_path / "pictures").iterdir())]
    assert names == [f"{number:06d}.png" for number in range(len(TIMES))]
    folder = open_video(tmp_path / "pictures")
    assert torch.equal(stack(list(folder.frames())), stack(list(source.frames())))
    written(folder, tmp_path / "out.mkv", LOSSLESS)
    result = open_video(tmp_path / "out.mkv")
    assert torch.equal(stack(list(result.frames())), stack(list(source.frames())))
    # Matroska counts in milliseconds
    assert seconds(result) == [Fraction(number, 25) for number in range(len(TIMES))]


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.mov"])
def test_sound_is_copied_bit_for_bit(loud: Path, tmp_path: Path, name: str) -> None:
    assert written(open_video(loud), tmp_path / name) == []
    assert sound_of(loud)
    assert sound_of(tmp_path / name) == sound_of(loud)
    assert seconds(open_video(tmp_path / name)) == seconds(open_video(loud))


def test_sound_that_a_container_refuses_is_encoded_anew_and_said(
    loud: Path, tmp_path: Path
) -> None:
    said = written(open_video(loud), tmp_path / "out.webm")
    assert said == ["sound encoded anew: aac to libopus"]
    with av.open(tmp_path / "out.webm") as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == "opus"
        heard = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert heard == pytest.approx(1.0, abs=0.15)


def test_an_animation_leaves_the_sound_out_and_says_so(loud: Path, tmp_path: Path) -> None:
    assert written(open_video(loud), tmp_path / "out.gif") == ["sound and subtitles left out"]


def odd_pictures(folder: Path, size: tuple[int, int]) -> Path:
    folder.mkdir()
    for number in range(3):
        pixels = torch.from_numpy(picture(number, size)).permute(2, 0, 1).contiguous()
        write_image(folder / f"{number}.png", pixels)
    return folder


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (9, 8)])
def test_an_odd_size_stays_in_mp4(tmp_path: Path, size: tuple[int, int]) -> None:
    source = open_video(odd_pictures(tmp_path / "pictures", size))
    written(source, tmp_path / "out.mp4", at=1)
    result = open_video(tmp_path / "out.mp4")
    assert result.info.size == size
    assert mean_error(stack(list(result.frames())), stack(list(source.frames()))) < 6
    with av.open(tmp_path / "out.mp4") as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv444p"


@pytest.mark.parametrize(
    ("name", "coding", "size", "held"),
    [
        ("out.mp4", Coding(pixel_format="yuv420p"), (47, 63), (48, 64)),
        ("out.mp4", Coding("libx265", pixel_format="yuv420p"), (47, 64), (48, 64)),
        ("out.mkv", Coding(pixel_format="yuv422p"), (47, 63), (47, 64)),
        ("out.webm", Coding(pixel_format="yuv420p"), (47, 63), (47, 63)),
    ],
)
def test_a_pixel_format_that_is_named_is_kept_and_frames_are_padded_where_it_needs_that(
    tmp_path: Path, name: str, coding: Coding, size: tuple[int, int], held: tuple[int, int]
) -> None:
    source = open_video(odd_pictures(tmp_path / "pictures", size))
    written(source, tmp_path / name, coding, at=1)
    result = open_video(tmp_path / name)
    assert result.info.size == held
    frames = stack(list(result.frames())).float()
    assert mean_error(frames[..., : size[0], : size[1]], stack(list(source.frames()))) < 10
    # the last row and column are repeated
    for axis, (was, now) in enumerate(zip(size, held, strict=True), 2):
        last = frames.narrow(axis, was - 1, 1)
        assert mean_error(frames.narrow(axis, now - 1, 1), last) < (6 if now > was else 1e-9)
    with av.open(tmp_path / name) as container:
        assert container.streams.video[0].codec_context.pix_fmt == coding.pixel_format


def test_what_an_encoder_and_a_decoder_call_by_other_names_is_joined(
    variable: Path, tmp_path: Path
) -> None:
    assert written(open_video(variable), tmp_path / "out.mp4", Coding("libsvtav1")) == []
    assert seconds(open_video(tmp_path / "out.mp4")) == seconds(open_video(variable))


def marked(path: Path, degrees: int) -> None:
    """Write three frames that are red at the top left, with a rotation for display."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[:16, :16, 0] = 255
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.set_display_rotation(degrees)
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))


@pytest.mark.skipif(
    not hasattr(av.VideoStream, "set_display_rotation"), reason="PyAV cannot write a rotation"
)
@pytest.mark.parametrize(("degrees", "corner"), [(90, (-8, 8)), (180, (-8, -8)), (-90, (8, -8))])
def test_rotation_is_applied_to_pixels(
    tmp_path: Path, degrees: int, corner: tuple[int, int]
) -> None:
    """Positive angles turn counterclockwise: the top left goes to the bottom left."""
    marked(tmp_path / "turned.mp4", degrees)
    video = open_video(tmp_path / "turned.mp4")
    size = (HEIGHT, WIDTH) if degrees == 180 else (WIDTH, HEIGHT)
    assert video.info.size == size
    assert f"turned by {degrees % 360} degrees" in video.info.notes
    for frame in video.frames():
        assert frame.pixels[0, corner[0], corner[1]] > 200
        assert (frame.pixels[0] > 128).sum() < 2 * 16 * 16


@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)])
@pytest.mark.parametrize("transposes", [False, True])
def test_mirroring_is_applied_to_pixels(
    loud: Path, tmp_path: Path, matrix: tuple[int, int, int, int], *, transposes: bool
) -> None:
    """Of a display matrix (a b u, c d v, x y w) is x' = a x + c y, y' = b x + d y."""
    a, b, c, d = (0, matrix[3], matrix[0], 0) if transposes else matrix
    whole = next(open_video(loud).frames()).pixels
    data, mirrored = loud.read_bytes(), tmp_path / "mirrored.mp4"
    place = data.index(b"tkhd") + 44  # of the first track, ISO/IEC 14496-12, 8.3.2
    numbers = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    mirrored.write_bytes(data[:place] + struct.pack(">9i", *numbers) + data[place + 36 :])
    video = open_video(mirrored)
    expected = torch.empty(3, *video.info.size, dtype=torch.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    across, down = a * x + c * y, b * x + d * y
    expected[:, down - down.min(), across - across.min()] = whole
    assert torch.equal(next(video.frames()).pixels, expected)
    said = {note for note in video.info.notes if note.startswith(("mirrored", "turned"))}
    is_mirror = a * d - b * c < 0
    assert is_mirror == ("mirrored, as its file says" in said)


def test_interlaced_frames_are_joined_and_keep_their_times(tmp_path: Path) -> None:
    path, times = tmp_path / "interlaced.mp4", [0, 40, 80, 120, 200]
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"x264-params": "tff=1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = UNIT
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, (64, 64)), format="rgb24")
            frame.pts, frame.time_base = time, UNIT
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    video = open_video(path)
    assert "interlaced fields are joined" in video.info.notes
    assert seconds(video) == [Fraction(time, 1000) for time in times]
    assert [frame.time for frame in video.frames()] == list(video.info.times)
