"""Rows of the fault list about what is in a sample, as training meets them.

`tests/images` has what the decoder does with each picture, and `test_data_index` what indexing
refuses; here the same files lie in shards, between good samples.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.remote.folder import open_folder
from datamodules.shards import index as index_module
from datamodules.shards.index import index_shard, save_index
from datamodules.shards.manifest import ShardEntry, write_manifest
from datamodules.stream.mixing import DataSet, lanes_of
from datamodules.stream.reader import InOrder, PictureDecoder, ShardDataset
from datamodules.stream.transforms import Crop, Substitutes
from emu_edit.batch import Sample
from emu_edit.files import sha256_of
from emu_edit.tasks import SIXTEEN
from tests.datamodules.toy_shards import sample, text, write_tar
from tests.images.pictures import GREEN, RED, encoded
from tests.images.pictures import png as header

ODD = 1  # the position of the odd sample, between two good ones


def read(folder: Path, **members: bytes) -> Sample:
    """Read what training gets at the position of a sample with these members."""
    path = write_tar(
        folder / "local-000000.tar", [*sample("a"), *sample("odd", **members), *sample("c")]
    )
    save_index(path, index_shard(path, task="local"))
    entry = ShardEntry("local", path.name, path.stat().st_size, sha256_of(path), 3)
    write_manifest(folder, [entry], made_by={})
    lanes = lanes_of([DataSet("", open_folder(folder))])
    data = ShardDataset(
        lanes,
        order=InOrder([lane.sizes for lane in lanes]),
        tasks=SIXTEEN,
        decode=PictureDecoder(Crop(16)),
        substitutes=Substitutes(0),
    )
    return data[ODD]


def turned(size: tuple[int, int], *, orientation: int, kind: str = "PNG") -> bytes:
    """Return a picture, red in its stored first row, that says how it lies."""
    pixels = np.full((*size, 3), 255, dtype=np.uint8)
    pixels[0] = RED
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels), kind, exif=exif)


def animation() -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    return encoded(frames[0], save_all=True, append_images=frames[1:])


REFUSED = {
    "a PDF named png": (
        {"source": encoded(Image.new("RGB", (16, 16)), "PDF")},
        "source_unreadable",
        "source: is a PDF, needs a JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF picture",
    ),
    "an animation": ({"target": animation()}, "target_unreadable", "target: is animated, needs a"),
    "a decompression bomb": (
        {"source": header(12000, 12000)},
        "source_unreadable",
        "source: is 12000x12000, at most 67108864 pixels",
    ),
    "one pixel": (
        {"target": encoded(Image.new("RGB", (1, 1)))},
        "target_unreadable",
        "target: is 1x1, both sides need at least 8 pixels",
    ),
    "a strip": (
        {"target": header(8, 400)},
        "target_unreadable",
        "target: is 8x400, the sides may differ by a factor of 20 at most",
    ),
    "only the source lies on its side": (
        {"source": turned((16, 24), orientation=6), "target": turned((16, 24), orientation=1)},
        "sizes_differ",
        r"pictures differ in size (source 16x24, target 24x16); they need to be equal",
    ),
    "a mask that may mean either": (
        {"mask": encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 0)))},
        "mask_unreadable",
        "mask: the mask has transparent pixels; write white (may change) on opaque black",
    ),
    "half a picture": (
        {"source": encoded(Image.effect_noise((32, 32), 50), "JPEG")[:-200]},
        "source_unreadable",
        "source: cannot be decoded (",
    ),
    "an empty member": (
        {"target": b""},
        "target_unreadable",
        "target: is empty (0 bytes)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_gives_its_place_away_with_kind_and_reason(tmp_path: Path, name: str):
    members, kind, reason = REFUSED[name]
    found = read(tmp_path, **members)
    assert found.key in {"a", "c"}
    assert found.position == ODD
    assert {(bad.key, bad.kind) for bad in found.bad} == {("odd", kind)}
    assert found.bad[0].reason.startswith(reason)


def grey(level: int) -> Image.Image:
    return Image.fromarray(np.full((16, 16), level, dtype=np.uint16))


def palette() -> Image.Image:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, *GREEN])
    return image


WHITE = (255, 255, 255)
HANDLED = {
    "transparent red": (encoded(Image.new("RGBA", (16, 16), (*RED, 0))), WHITE, 0),
    "transparent grey": (encoded(Image.new("LA", (16, 16), (90, 0))), WHITE, 0),
    "a transparent palette": (encoded(palette(), transparency=0), WHITE, 0),
    "CMYK": (
        encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100),
        (255, 0, 0),
        3,
    ),
    "16 bit": (encoded(grey(51400)), (200, 200, 200), 0),
    "bilevel": (encoded(Image.new("1", (16, 16), 1)), WHITE, 0),
    "WebP": (encoded(Image.new("RGB", (16, 16), GREEN), "WEBP", lossless=True), GREEN, 0),
}


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("name", HANDLED)
def test_odd_modes_come_as_the_same_colours_in_source_and_target(
    tmp_path: Path, name: str, role: str
):
    data, colour, tolerance = HANDLED[name]
    found = read(tmp_path, **{role: data})
    assert (found.key, found.bad) == ("odd", ())
    picture = found.source if role == "source" else found.target
    assert picture is not None
    difference = np.subtract(picture[:, 5, 5].tolist(), colour)
    assert np.abs(difference).max() <= tolerance


def test_a_pair_that_lies_on_its_side_is_turned_upright_together(tmp_path: Path):
    # orientation 6: the stored first row is the right side of the picture
    data = turned((16, 16), orientation=6)
    found = read(tmp_path, source=data, target=data)
    assert (found.key, found.bad) == ("odd", ())
    for picture in (found.source, found.target):
        assert picture is not None
        assert picture[:, 3, -1].tolist() == [*RED]
        assert picture[:, 0, 3].tolist() == [255, 255, 255]


TEXTS = {
    "giant": (text(instruction="x" * 5000), "the instruction has 5000 characters, at most 2000"),
    "empty": (text(instruction=" \n "), "the instruction is empty; say what to change"),
    "invalid UTF-8": (
        b'{"instruction": "caf\xe9", "task": "local"}',
        "its json cannot be parsed (",
    ),
    "NUL": (text(instruction="a\0b"), "the instruction has the character U+0000 at position 1"),
    "control character": (text(instruction="a\x1bb"), "the instruction has the character U+001B"),
    "half a surrogate": (
        b'{"instruction": "a\\ud800", "task": "local"}',
        "the instruction has the character U+D800 at position 1",
    ),
    "no JSON": (b"make it red", "its json cannot be parsed ("),
    "no instruction": (b'{"task": "local"}', "its json has no instruction"),
    "another task": (text(task="depth"), "its json says task 'depth', the manifest says 'local'"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_an_index_of_others_let_pass_gives_its_place_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    data, reason = TEXTS[name]
    monkeypatch.setattr(index_module, "check_text", lambda *_, where: where)  # for the index alone
    found = read(tmp_path, json=data)
    assert found.key in {"a", "c"}
    assert {(bad.key, bad.kind) for bad in found.bad} == {("odd", "text_unusable")}
    assert found.bad[0].reason.startswith(reason)


def test_decomposed_letters_arrive_composed(tmp_path: Path):
    found = read(tmp_path, json=text(instruction="  cafe\u0301\n red "))
    assert found.instruction == "caf\u00e9 red"
