"""Colours of video: exact conversions with both ends named, and light as the standards say."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from emu_edit.video.clip import Frame
from emu_edit.video.coding import Coding
from emu_edit.video.colour import (
    HLG,
    PQ,
    WHITE_NITS,
    Colour,
    from_rgb,
    linear_light,
    to_bt709,
    to_rgb,
)
from emu_edit.video.io import open_video
from emu_edit.video.write import PartWriter, join_parts
from tests.video.conftest import HEIGHT, TIMES, WIDTH


@pytest.mark.parametrize("matrix", [1, 5, 6])
@pytest.mark.parametrize("is_full", [False, True])
def test_a_colour_stays_within_two_levels_and_its_tags_are_written(
    variable: Path, tmp_path: Path, matrix: int, *, is_full: bool
) -> None:
    colour = Colour(matrix, matrix, matrix, is_full)
    info = replace(open_video(variable).info, colour=colour, rate=Fraction(25))
    plain = torch.tensor([200, 30, 30], dtype=torch.uint8)[:, None, None].expand(3, HEIGHT, WIDTH)
    part, output = tmp_path / "0.nut", tmp_path / "out.mp4"
    coding = Coding().settled(output, info.size)
    writer = PartWriter(part, info, coding, reorders=True)
    for time in TIMES[:3]:
        writer.write(Frame(plain.contiguous(), time, 40))
    writer.close()
    join_parts([part], output, info, info, coding)
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


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("pixel_format", ["yuv444p", "yuv420p"])
def test_there_and_back_without_a_codec_no_colour_is_shifted(
    matrix: int, pixel_format: str, *, is_full: bool
) -> None:
    colour = Colour(matrix, matrix, matrix, is_full)
    cells = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels = np.kron(cells, np.ones((16, 16, 1), dtype=np.uint8))  # chroma in 4:2:0 keeps them
    frame = from_rgb(pixels, colour, pixel_format)
    error = to_rgb(frame, colour).astype(float)[8::16, 8::16] - cells
    assert np.abs(error.mean((0, 1))).max() < 0.2
    assert np.abs(error).max() <= 2


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
