"""Damaged pictures: decoding gives a valid picture or BadImageError, and nothing else, ever."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from emu_edit.errors import BadImageError
from emu_edit.images import decode_mask, decode_rgb
from emu_edit.pictures import MAX_PIXELS, MAX_SIDE, MIN_SIDE
from tests.images.pictures import encoded, noise


def _seeds() -> list[bytes]:
    rgb = Image.fromarray(noise(20, 28))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    deep = Image.fromarray(noise(20, 28)[..., 0].astype(np.uint16) * 257)
    frames = [rgb, Image.new("RGB", rgb.size)]
    return [
        encoded(rgb, exif=exif),
        encoded(rgb.convert("RGBA"), dpi=(72, 72)),
        encoded(rgb.convert("LA")),
        encoded(rgb.convert("1")),
        encoded(palette, transparency=bytes(range(0, 160, 10))),
        encoded(palette, transparency=3),
        encoded(rgb, transparency=(1, 2, 3)),
        encoded(deep),
        encoded(rgb, save_all=True, append_images=frames[1:]),
        encoded(rgb, "JPEG", exif=exif),
        encoded(rgb, "JPEG", progressive=True),
        encoded(rgb.convert("L"), "JPEG"),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgb, "MPO", save_all=True, append_images=frames[1:]),
        encoded(rgb, "WEBP", exif=exif),
        encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        encoded(rgb, "WEBP", save_all=True, append_images=frames[1:]),
    ]


def _with_right_checksums(data: bytes) -> bytes:
    """Recompute the CRC of every PNG chunk, so that damage reaches what lies behind the check."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, at)
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return `data` with one to four random faults: bytes set, runs removed, doubled or zeroed."""
    bad = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        # headers are short and hold most of the meaning: half of the faults go to the first bytes
        reach = len(bad) if rng.random() < 0.5 else min(len(bad), 80)
        at, length = int(rng.integers(0, reach)), int(rng.integers(1, 33))
        match rng.integers(0, 6):
            case 0 | 1:
                bad[at] = int(rng.choice([0, 1, 2, 3, 4, 16, 127, 128, 255, rng.integers(256)]))
            case 2:
                bad[at] ^= 1 << int(rng.integers(0, 8))
            case 3:
                del bad[at : at + length]
            case 4:
                bad[at:at] = bad[at : at + length]
            case _:
                bad[at : at + length] = bytes(len(bad[at : at + length]))
        if not bad:
            break
    is_png = bad.startswith(b"\x89PNG")
    return _with_right_checksums(bytes(bad)) if is_png and rng.random() < 0.8 else bytes(bad)


def _decode_damaged(number: int) -> int:
    """Decode `number` damaged files of each seed; return how many were refused."""
    refused = 0
    for kind, seed in enumerate(_seeds()):
        for index in range(number):
            data = _damaged(seed, np.random.default_rng((kind, index)))
            try:
                image = decode_rgb(data, where="fuzz")
            except BadImageError as error:
                line = str(error)
                assert line.startswith("fuzz: ")
                assert line.isprintable()
                refused += 1
                continue
            _, height, width = image.shape
            assert image.dtype == torch.uint8
            assert min(height, width) >= MIN_SIDE
            assert max(height, width) <= MAX_SIDE
            assert height * width <= MAX_PIXELS
    return refused


def test_two_hundred_damaged_pictures_are_refused_or_valid():
    assert 0 < _decode_damaged(12) < 12 * 17


@pytest.mark.slow
def test_many_damaged_pictures_are_refused_or_valid():
    assert 0 < _decode_damaged(300) < 300 * 17


def test_damaged_masks_are_refused_or_valid():
    seed = encoded(Image.fromarray(noise(20, 28)[..., 0]))
    shapes = set()
    for index in range(100):
        try:
            mask = decode_mask(_damaged(seed, np.random.default_rng(index)), "fuzz")
        except BadImageError:
            continue
        shapes.add((mask.ndim, mask.dtype))
    assert shapes == {(2, torch.bool)}
