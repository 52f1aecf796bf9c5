"""Colour profiles: what a picture means is kept, whatever space its numbers are in."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from emu_edit.images import decode_mask, decode_rgb, encode_png
from emu_edit.pictures import open_rgb
from tests.images.pictures import encoded

# SMPTE EG 432-1 (Display P3), chromatically adapted to D50 as ICC profiles have it
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
D50 = (0.96420, 1.0, 0.82491)


def xyz(values: tuple[float, ...]) -> bytes:
    """An XYZ tag (ICC.1:2022, 10.31)."""
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def profile(primaries: tuple[tuple[float, ...], ...], name: bytes = b"Display P3") -> bytes:
    """A matrix profile with sRGB's curve (ICC.1:2022, 7.2, 7.3, 10.18)."""
    numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0)
    curve += b"".join(struct.pack(">i", round(v * 65536)) for v in numbers)
    text = name.decode().encode("utf-16-be")
    said = b"mluc\0\0\0\0" + struct.pack(">II", 1, 12) + b"enUS"
    said += struct.pack(">II", len(text), 28) + text
    tags = {b"desc": said, b"wtpt": xyz(D50)}
    tags |= {key: xyz(v) for key, v in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        table += key + struct.pack(">II", at + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"\0" * 4, 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28
    head += b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
    return head.ljust(128, b"\0") + table + data


def to_srgb(colour: tuple[int, ...], primaries: tuple[tuple[float, ...], ...]) -> list[int]:
    """Convert by the definition: linear light, XYZ, linear light, sRGB's curve."""
    share = np.array(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    light = linear @ np.array(primaries) @ np.linalg.inv(np.array(SRGB))
    light = np.clip(light, 0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(int).tolist()


@pytest.mark.parametrize("colour", [(200, 100, 50), (40, 180, 90), (128, 128, 128), (250, 20, 10)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_display_p3_photograph_is_converted_to_srgb(colour, kind):
    options = {"PNG": {}, "TIFF": {}, "JPEG": {"quality": 100}, "WEBP": {"lossless": True}}[kind]
    picture = Image.new("RGB", (16, 16), colour)
    data = encoded(picture, kind, icc_profile=profile(P3), **options)
    wanted = torch.tensor(to_srgb(colour, P3))
    assert (decode_rgb(data)[:, 8, 8].int() - wanted).abs().max() <= 2


def test_a_difference_of_profiles_is_visible_at_all():
    assert np.abs(np.array(to_srgb((40, 180, 90), P3)) - (40, 180, 90)).max() > 20


def test_srgb_pictures_keep_every_bit():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    plain = decode_rgb(encoded(picture, "PNG"))
    given = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert torch.equal(decode_rgb(encoded(picture, "PNG", icc_profile=given)), plain)


def test_transparency_keeps_its_place_beside_a_profile():
    picture = Image.new("RGBA", (16, 16), (40, 180, 90, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    image = decode_rgb(encoded(picture, "PNG", icc_profile=profile(P3)))
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert (image[:, 8, 8].int() - torch.tensor(to_srgb((40, 180, 90), P3))).abs().max() <= 2


@pytest.mark.parametrize("broken", [b"not a profile", b"", profile(P3)[:200]])
def test_a_damaged_profile_never_decides_whether_pixels_are_read(broken):
    picture = Image.new("RGB", (16, 16), (40, 180, 90))
    image = decode_rgb(encoded(picture, "PNG", icc_profile=broken))
    assert image[:, 0, 0].tolist() == [40, 180, 90]


def test_what_was_done_is_said():
    notes: list[str] = []
    picture = Image.new("RGBA", (16, 16), (40, 180, 90, 128))
    open_rgb(encoded(picture, "PNG", icc_profile=profile(P3)), on_note=notes.append)
    converted = "colours were converted from Display P3 to sRGB"
    assert notes == [converted, "transparency was put on white"]


def test_a_mask_is_data_and_no_colour():
    mask = Image.new("RGB", (16, 16), (130, 130, 130))
    assert decode_mask(encoded(mask, "PNG", icc_profile=profile(P3))).all()


def test_what_is_written_has_no_profile_and_means_the_same():
    data = encoded(Image.new("RGB", (16, 16), (40, 180, 90)), "PNG", icc_profile=profile(P3))
    image = decode_rgb(data)
    assert torch.equal(decode_rgb(encode_png(image)), image)
