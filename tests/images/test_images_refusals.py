"""Rows of the fault list that are refused, each with its line."""

import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from emu_edit.errors import BadImageError
from emu_edit.images import decode_rgb, from_pil, read_image
from emu_edit.pictures import MOST_SCANS
from tests.images.pictures import GREEN, RED, encoded, noise, png


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(BadImageError, match=r"a.x: is animated, needs a still picture"):
        decode_rgb(data, where="a.x")


@pytest.mark.parametrize(("kind", "came"), [("EPS", "PostScript"), ("PDF", "a PDF")])
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind, came):
    (tmp_path / "photo.jpg").write_bytes(encoded(Image.fromarray(noise()), kind))
    with pytest.raises(BadImageError, match=f"photo.jpg: is {came}, needs a JPEG, PNG, WebP, GIF"):
        read_image(tmp_path / "photo.jpg")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP"])
def test_common_formats_are_read_whatever_their_name(tmp_path, kind):
    picture = Image.fromarray(noise()).convert("P").convert("RGB")  # 256 colours, as a GIF has
    (tmp_path / "photo.jpg").write_bytes(encoded(picture, kind))
    assert torch.equal(read_image(tmp_path / "photo.jpg"), from_pil(picture))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_an_avif_is_read():
    data = encoded(Image.new("RGB", (16, 16), GREEN), "AVIF", quality=100)
    assert (decode_rgb(data).int() - torch.tensor(GREEN)[:, None, None]).abs().max() <= 2


def test_of_a_moving_gif_the_first_frame_is_taken_and_said(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    (tmp_path / "a.gif").write_bytes(data)
    notes: list[str] = []
    image = read_image(tmp_path / "a.gif", on_note=notes.append)
    assert image[:, 0, 0].tolist() == list(RED)
    assert notes == ["the first frame of a GIF was taken"]


def test_a_float_tiff_is_scaled_and_one_out_of_range_refused():
    levels = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    grey = decode_rgb(encoded(Image.fromarray(levels), "TIFF"))
    assert torch.equal(grey[0].flatten(), torch.arange(256, dtype=torch.uint8))
    with pytest.raises(BadImageError, match=r"deep.tif: has grey values 0..2 in mode F"):
        decode_rgb(encoded(Image.fromarray(levels * 2), "TIFF"), where="deep.tif")


@pytest.mark.parametrize(
    ("data", "came"),
    [
        (b"make it red", "no picture"),
        (b"\0" * 64, "no picture"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page or XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; run `git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, AVIF or a video"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "a damaged PNG"),
        (b"\xff\xd8\xff" + b"\0" * 40, "a damaged JPEG"),
        (b"RIFF\x10\0\0\0WEBPxxxx", "a damaged WebP"),
    ],
)
def test_bytes_that_are_no_picture_are_named(data, came):
    with pytest.raises(
        BadImageError, match=f"x: is {came}, needs a JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF"
    ):
        decode_rgb(data, where="x")


@pytest.mark.parametrize(
    ("width", "height", "refusal"),
    [
        (12000, 12000, "is 12000x12000, at most 67108864 pixels"),
        (9000, 8000, "is 9000x8000, at most 67108864 pixels"),
        (20000, 1000, "is 20000x1000, at most 67108864 pixels and 16384 a side"),
        (60000, 60000, "has more than 67108864 pixels"),
        (2**31 - 1, 2**31 - 1, "has more than 67108864 pixels"),
        (8, 161, "is 8x161, the sides may differ by a factor of 20"),
        (161, 8, "is 161x8, the sides may differ by a factor of 20"),
        (7, 100, "is 7x100, both sides need at least 8"),
        (1, 1, "is 1x1, both sides need at least 8"),
    ],
)
def test_sizes_are_refused_from_the_header(width, height, refusal):
    with pytest.raises(BadImageError, match=f"bomb.png: {refusal}"):
        decode_rgb(png(width, height), where="bomb.png")


def test_a_bomb_is_refused_without_decoding_it(monkeypatch):
    rows = bytes(12000 // 8 + 1) * 12000
    bomb = png(12000, 12000, depth=1, colour=0, data=rows)
    assert len(bomb) < 30_000  # and 144 million pixels
    loaded = []
    monkeypatch.setattr(Image.Image, "load", loaded.append)
    with pytest.raises(BadImageError, match="is 12000x12000"):
        decode_rgb(bomb)
    assert not loaded


def test_a_webp_with_a_huge_canvas_is_refused():
    data = bytearray(encoded(Image.fromarray(noise()), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9  # 14 bits of width - 1, 14 bits of height - 1, 4 bits of flags
    flags = int.from_bytes(data[at : at + 4], "little") >> 28
    data[at : at + 4] = (9999 | 9999 << 14 | flags << 28).to_bytes(4, "little")
    with pytest.raises(BadImageError, match="is 10000x10000, at most"):
        decode_rgb(bytes(data))


@pytest.mark.parametrize("size", [(8, 160), (160, 8), (8, 8)])
def test_the_smallest_and_thinnest_allowed_pictures_pass(size):
    assert decode_rgb(encoded(Image.new("RGB", size))).shape == (3, size[1], size[0])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_file_cut_anywhere_is_refused_or_complete(kind, options):
    data = encoded(Image.fromarray(noise()), kind, **options)
    whole = decode_rgb(data)
    refused = 0
    for length in range(len(data)):
        try:
            # only the trailer may be missing: all pixels are there
            assert torch.equal(decode_rgb(data[:length], where="cut"), whole)
        except BadImageError as error:
            assert re.match("cut: (is|cannot be decoded)", str(error))  # noqa: PT017
            refused += 1
    assert refused >= len(data) - 20


def test_a_truncated_jpeg_says_so():
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    with pytest.raises(BadImageError, match=r"half.jpg: cannot be decoded \(.*truncated"):
        decode_rgb(data[: len(data) // 2], where="half.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_never_decides_whether_pixels_are_read_and_is_said(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    damaged = exif.tobytes().replace(b"MM\0*", b"MM\0?")
    picture = Image.fromarray(noise())
    (tmp_path / "a.x").write_bytes(encoded(picture, kind, exif=damaged, lossless=True))
    notes: list[str] = []
    read = read_image(tmp_path / "a.x", on_note=notes.append)
    assert torch.equal(read, decode_rgb(encoded(picture, kind, lossless=True)))
    assert notes == ["damaged EXIF data were ignored; the picture may lie on its side"]


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_long_text_in_a_png_is_passed_over(place):
    picture = Image.fromarray(noise())
    data = encoded(picture, "PNG")
    text = zlib.compress(b"a" * 2**24)
    body = b"zTXt" + b"Comment\0\0" + text
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    at = data.index(b"IDAT") - 4 if place == "before" else data.index(b"IEND") - 4
    assert torch.equal(decode_rgb(data[:at] + chunk + data[at:]), from_pil(picture))


def scans(data: bytes, count: int) -> bytes:
    """Repeat the last scan of a progressive JPEG until it has `count`."""
    start = data.rindex(b"\xff\xda")
    scan, end = data[start:-2], data[-2:]
    return data[:start] + scan * (count - data.count(b"\xff\xda") + 1) + end


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(monkeypatch):
    data = encoded(Image.fromarray(noise()), "JPEG", progressive=True)
    assert decode_rgb(scans(data, MOST_SCANS)).shape == (3, *noise().shape[:2])
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(BadImageError, match=r"a.jpg: is a JPEG of over 100 scans, .* save it"):
        decode_rgb(scans(data, 500), where="a.jpg")


def test_fewer_scans_are_taken_of_a_large_picture(monkeypatch):
    data = encoded(Image.fromarray(noise()), "JPEG", progressive=True)
    monkeypatch.setattr("emu_edit.pictures.MOST_SCANNED", 20 * noise().shape[0] * noise().shape[1])
    assert decode_rgb(scans(data, 20)).shape[0] == 3
    with pytest.raises(BadImageError, match=r"is a JPEG of over 20 scans"):
        decode_rgb(scans(data, 21))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(BadImageError, match=r"a.png: is empty \(0 bytes\)"):
        read_image(tmp_path / "a.png")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadImageError, match=r"no.png: no such file"):
        read_image(tmp_path / "no.png")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(BadImageError, match="is a folder, needs a picture file"):
        read_image(tmp_path)


def test_a_pipe_is_refused_instead_of_waiting_for_ever(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadImageError, match=r"a.png: is not a regular file"):
        read_image(tmp_path / "a.png")


def test_a_huge_file_is_refused_before_reading(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**29)  # sparse: takes no room
    with pytest.raises(
        BadImageError, match=r"a.png: is 536870912 bytes, a picture may have at most"
    ):
        read_image(tmp_path / "a.png")


def test_a_name_too_long_for_the_system_is_one_line(tmp_path):
    with pytest.raises(BadImageError, match=r"cannot be read \(File name too long\)"):
        read_image(tmp_path / ("a" * 300 + ".png"))


def test_a_nul_in_a_name_is_refused(tmp_path):
    with pytest.raises(BadImageError, match="cannot hold a NUL"):
        read_image(tmp_path / "a\0.png")


def test_a_line_end_in_a_file_name_does_not_break_the_message(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"x")
    with pytest.raises(BadImageError, match=r"a\\nb.png: is no picture") as caught:
        read_image(tmp_path / "a\nb.png")
    assert "\n" not in str(caught.value)


def test_a_message_without_a_place_still_reads():
    with pytest.raises(BadImageError, match=r"^the picture is empty"):
        decode_rgb(b"")
