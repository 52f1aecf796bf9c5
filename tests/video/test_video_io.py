"""Videos in and out: exact times, true colours, sound bit for bit, and files that are refused."""

import wave
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.images import write_image
from emu_edit.video.colour import HLG, PQ, WHITE_NITS, Colour, linear_light, to_bt709
from emu_edit.video.io import Frame, Video, open_video
from emu_edit.video.write import Coding, PartWriter, join_parts

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
    info, frames = source.info, list(source.frames())
    settled = coding.settled(output, info.size)
    parts = []
    for number, some in enumerate((frames[:at], frames[at:])):
        if not some:
            continue
        parts.append(output.parent / f"{number}.nut")
        writer = PartWriter(parts[-1], info, settled, reorders=output.suffix != ".avi")
        for frame in some:
            writer.write(frame)
        writer.close()
    left = join_parts(parts, output, info, info)
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


@pytest.mark.parametrize("matrix", [1, 5, 6])
@pytest.mark.parametrize("is_full", [False, True])
def test_a_colour_stays_within_two_levels_and_its_tags_are_written(
    variable: Path, tmp_path: Path, matrix: int, *, is_full: bool
) -> None:
    colour = Colour(matrix, matrix, matrix, is_full)
    info = replace(open_video(variable).info, colour=colour, rate=Fraction(25))
    plain = torch.tensor([200, 30, 30], dtype=torch.uint8)[:, None, None].expand(3, HEIGHT, WIDTH)
    part, output = tmp_path / "0.nut", tmp_path / "out.mp4"
    writer = PartWriter(part, info, Coding().settled(output, info.size), reorders=True)
    for time in TIMES[:3]:
        writer.write(Frame(plain.contiguous(), time, 40))
    writer.close()
    join_parts([part], output, info, info)
    result = open_video(output)
    for frame in result.frames():
        assert (frame.pixels.int() - plain.int()).abs().max() <= 2
    assert result.info.colour == colour.written()
    with av.open(output) as container:
        decoded = next(container.decode(video=0))
        assert int(decoded.colorspace) == (1 if matrix == 1 else 6)
        assert int(decoded.color_range) == (2 if is_full else 1)
        # the numbers in the file, not only how this program reads them back
        luma = {1: (0.2126, 0.7152, 0.0722)}.get(matrix, (0.299, 0.587, 0.114))
        level = float(np.dot(luma, (200, 30, 30)))
        expected = level if is_full else 16 + level * 219 / 255
        assert decoded.to_ndarray()[:HEIGHT].mean() == pytest.approx(expected, abs=1.5)


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


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (9, 8)])
def test_an_odd_size_stays_in_mp4(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        pixels = torch.from_numpy(picture(number, size)).permute(2, 0, 1).contiguous()
        write_image(folder / f"{number}.png", pixels)
    source = open_video(folder)
    written(source, tmp_path / "out.mp4", at=1)
    result = open_video(tmp_path / "out.mp4")
    assert result.info.size == size
    assert mean_error(stack(list(result.frames())), stack(list(source.frames()))) < 6
    with av.open(tmp_path / "out.mp4") as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv444p"


def nits(signal: float, transfer: int) -> float:
    grey = np.full((1, 1, 3), signal, dtype=np.float32)
    light = linear_light(grey, transfer) * WHITE_NITS
    assert np.ptp(light) <= 1e-3 * light.max()
    return float(light.mean())


@pytest.mark.parametrize(
    ("transfer", "signal", "expected"),
    [
        (PQ, 0.5081, 100),  # BT.2408-7, table 1 and annex 2
        (PQ, 0.5806, 203),
        (PQ, 0.7518, 1000),
        (PQ, 1.0, 10000),
        (HLG, 0.75, 203),
        (HLG, 1.0, 1000),
    ],
)
def test_hdr_signals_are_the_light_of_the_standards(
    transfer: int, signal: float, expected: float
) -> None:
    assert nits(signal, transfer) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_black_is_no_light(transfer: int) -> None:
    assert nits(0.0, transfer) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("transfer", [PQ, HLG, 14])
def test_tone_mapping_keeps_the_order_of_greys_and_their_hue(transfer: int) -> None:
    signal = np.linspace(0, 65535, 1024).astype(np.uint16)
    toned = to_bt709(np.repeat(signal[None, :, None], 3, axis=2), transfer).astype(int)
    assert (np.diff(toned[0], axis=0) >= 0).all()
    assert np.ptp(toned, axis=2).max() <= 1
    assert toned[0, 0].max() == 0
    assert toned[0, -1].min() >= 250


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


def one_line(path: Path, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        list(open_video(path).frames())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    text, empty, wav = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.wav"
    text.write_text("no video at all, but text that goes on for a while\n" * 40)
    empty.touch()
    with wave.open(str(wav), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes(bytes(2 * RATE))
    (tmp_path / "folder").mkdir()
    one_line(text, "is no video that can be read")
    one_line(empty, "is no video that can be read")
    one_line(wav, "has no video stream; give a video")
    one_line(tmp_path / "none.mp4", "No such file")
    one_line(tmp_path / "folder", "has no picture")


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        ("mp4", "is no video that can be read"),
        ("mkv", r"is cut short or damaged, it holds \d+ frames"),
    ],
)
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, suffix: str, said: str) -> None:
    whole, short = tmp_path / f"whole.{suffix}", tmp_path / f"short.{suffix}"
    times = list(range(0, 480, 40))
    write_video(whole, times, draw=noisy, codec="libx264", pixel_format="yuv420p")
    assert open_video(whole).info.frames == len(times)
    data = whole.read_bytes()
    short.write_bytes(data[: len(data) * 6 // 10])
    one_line(short, said)


def test_an_mp4_made_for_streaming_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    """Its index comes first, so that it opens as if it were whole."""
    source = write_video(tmp_path / "source.mkv", list(range(0, 480, 40)), draw=noisy)
    whole, short = tmp_path / "whole.mp4", tmp_path / "short.mp4"
    written(open_video(source), whole)
    data = whole.read_bytes()
    short.write_bytes(data[: len(data) * 6 // 10])
    one_line(short, r"is cut short or damaged, it holds \d+ frames of 12")


@pytest.mark.parametrize(
    ("name", "coding", "said"),
    [
        ("out.mpx", Coding(), r"cannot write '.mpx', needs one of .mp4"),
        ("out.mp5", Coding(), r"did you mean '?.mp4"),
        ("out.mp4", Coding("libx265x"), "there is no encoder 'libx265x' here; for example"),
        ("out.mp4", Coding("aac"), "aac encodes audio, no pictures"),
        (
            "out.mp4",
            Coding(pixel_format="yuv421p"),
            "libx264 has no pixel format 'yuv421p'; it has",
        ),
        ("out.gif", Coding(crf=20), "have no codec to choose"),
        ("folder", Coding("libx264"), "have no codec to choose"),
    ],
)
def test_codings_that_do_not_exist_are_refused(name: str, coding: Coding, said: str) -> None:
    with pytest.raises(InputError, match=f"(?i){said}") as caught:
        coding.settled(Path(name), (HEIGHT, WIDTH))
    assert "\n" not in str(caught.value)


def test_options_that_an_encoder_refuses_leave_nothing_behind(
    variable: Path, tmp_path: Path
) -> None:
    info = open_video(variable).info
    coding = Coding(preset="nosuch").settled(tmp_path / "out.mp4", info.size)
    with pytest.raises(InputError, match="libx264 takes no 64x48 frames of yuv420p with"):
        PartWriter(tmp_path / "0.nut", info, coding, reorders=True)
    assert list(tmp_path.iterdir()) == []
