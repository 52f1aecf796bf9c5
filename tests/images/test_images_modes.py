"""Rows of the fault list that are handled: odd modes become RGB in a stated way."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from emu_edit.errors import BadImageError
from emu_edit.images import decode_mask, decode_rgb, from_pil
from tests.images.pictures import GREEN, RED, encoded, noise, png


def pixel(tensor, y: int = 0, x: int = 0) -> tuple[int, ...]:
    return tuple(tensor[:, y, x].tolist())


@pytest.mark.parametrize("options", [{"kind": "PNG"}, {"kind": "WEBP", "lossless": True}])
def test_lossless_formats_give_their_exact_pixels(options):
    decoded = decode_rgb(encoded(Image.fromarray(noise()), **options))
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), noise())


def test_a_jpeg_gives_what_pillow_decodes():
    data = encoded(Image.fromarray(noise()), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_rgb(data).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_bilevel_grey_and_palette_become_rgb(mode):
    image = Image.fromarray(noise()).convert(mode)
    decoded = decode_rgb(encoded(image))
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_hidden_colour_under_transparent_pixels_never_shows(kind):
    image = Image.new("RGBA", (16, 16), (*RED, 0))
    data = encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert pixel(decode_rgb(data)) == (255, 255, 255)
    assert pixel(decode_rgb(data, background=(10, 20, 30))) == (10, 20, 30)


def test_half_transparent_red_is_mixed_with_the_background():
    data = encoded(Image.new("RGBA", (16, 16), (*RED, 51)))  # 51 / 255 = 1/5
    assert pixel(decode_rgb(data, background=(0, 0, 100))) == (51, 0, 80)


def test_grey_with_alpha_is_composited():
    data = encoded(Image.new("LA", (16, 16), (100, 0)))
    assert pixel(decode_rgb(data)) == (255, 255, 255)


def test_the_transparent_entry_of_a_palette_is_composited():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([*RED, *GREEN])
    image.putpixel((0, 0), 0)
    decoded = decode_rgb(encoded(image, transparency=0))
    assert pixel(decoded) == (255, 255, 255)
    assert pixel(decoded, 1, 1) == GREEN


def test_graded_alpha_of_a_palette_is_composited():
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, *GREEN])
    decoded = decode_rgb(encoded(image, transparency=bytes([51, 255])), background=(0, 0, 100))
    assert pixel(decoded) == (51, 0, 80)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_transparent_colour_of_a_png_is_composited(mode):
    key = RED if mode == "RGB" else 7
    image = Image.new(mode, (16, 16), key)
    image.putpixel((0, 0), GREEN if mode == "RGB" else 8)
    decoded = decode_rgb(encoded(image, transparency=key))
    assert pixel(decoded, 1, 1) == (255, 255, 255)
    assert pixel(decoded) == (GREEN if mode == "RGB" else (8, 8, 8))


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255, 255, 255))],
)
def test_cmyk_is_converted(ink, colour):
    data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    difference = np.subtract(pixel(decode_rgb(data)), colour)
    assert np.abs(difference).max() <= 3


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 61400, 16 * 256).astype(np.uint16).reshape(16, 256)
    decoded = decode_rgb(encoded(Image.fromarray(ramp)))
    assert np.array_equal(decoded[0].numpy(), np.rint(ramp / 257).astype(np.uint8))
    assert decoded.max() == 239
    assert len(decoded.unique()) == 240


def test_the_transparent_level_of_sixteen_bit_grey_is_composited():
    levels = np.full((16, 16), 300, dtype=np.uint16)
    levels[0, 0] = 299  # the same 8-bit level, but not the transparent one
    data = encoded(Image.fromarray(levels))
    end_of_header = data.index(b"IDAT") - 4
    body = b"tRNS" + struct.pack(">H", 300)
    chunk = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
    decoded = decode_rgb(data[:end_of_header] + chunk + data[end_of_header:])
    assert pixel(decoded, 1, 1) == (255, 255, 255)
    assert pixel(decoded) == (1, 1, 1)


def test_sixteen_bit_colour_is_scaled():
    rows = b"".join(b"\0" + struct.pack(">HHH", 0, 0x8000, 0xFFFF) * 16 for _ in range(16))
    decoded = decode_rgb(png(16, 16, depth=16, data=rows))
    assert pixel(decoded) == (0, 128, 255)


def test_thirty_two_bit_integers_are_read_as_sixteen_bit_grey():
    image = Image.fromarray(np.full((16, 16), 65535, dtype=np.int32))
    assert image.mode == "I"
    assert pixel(from_pil(image)) == (255, 255, 255)


def test_floats_from_zero_to_one_are_scaled():
    image = Image.fromarray(np.full((16, 16), 0.5, dtype=np.float32))
    assert image.mode == "F"
    assert pixel(from_pil(image)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("value", "dtype", "span"),
    [
        (70000, np.int32, "70000..70000 in mode I, needs 0..65535"),
        (-1, np.int32, "-1..-1 in mode I, needs 0..65535"),
        (200.0, np.float32, "200..200 in mode F, needs 0..1"),
        (np.nan, np.float32, "nan..nan in mode F, needs 0..1"),
    ],
)
def test_deep_grey_outside_its_range_is_refused(value, dtype, span):
    with pytest.raises(BadImageError, match=re.escape(f"deep: has grey values {span}")):
        from_pil(Image.fromarray(np.full((16, 16), value, dtype=dtype)), where="deep")


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    # quarters: red green / black white
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, 16:] = RED, GREEN, 255
    # where EXIF says the stored first row and first column belong (EXIF 2.3, tag 0x0112)
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }.get(orientation, upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options[kind])
    decoded = decode_rgb(data).permute(1, 2, 0).numpy()
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= 4


def test_the_photo_of_a_multi_picture_jpeg_is_taken():
    extra = Image.new("RGB", (16, 24), GREEN)
    data = encoded(Image.new("RGB", (24, 16), RED), "MPO", save_all=True, append_images=[extra])
    decoded = decode_rgb(data)
    assert decoded.shape == (3, 16, 24)
    assert np.abs(np.subtract(pixel(decoded), RED)).max() <= 3


def test_a_mask_is_true_where_it_is_white():
    grey = np.full((16, 16), 127, dtype=np.uint8)
    grey[:4] = 128
    mask = decode_mask(encoded(Image.fromarray(grey)))
    assert mask.dtype == torch.bool
    assert mask[:4].all()
    assert not mask[4:].any()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_masks_of_any_opaque_mode_are_read(mode):
    image = Image.new("L", (16, 8), 0)
    image.paste(255, (0, 0, 4, 8))
    mask = decode_mask(encoded(image.convert(mode)))
    assert mask.sum() == 4 * 8


def test_a_mask_with_transparency_is_refused():
    data = encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 0)))
    with pytest.raises(BadImageError, match=r"m.png: the mask has transparent pixels; write white"):
        decode_mask(data, "m.png")


def test_a_broken_mask_is_refused():
    with pytest.raises(BadImageError, match=r"m.png: is no picture"):
        decode_mask(b"nothing", "m.png")
