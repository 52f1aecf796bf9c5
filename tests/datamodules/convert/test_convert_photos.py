"""Photographs as pairs: those scikit-image ships inside its package, so nothing is downloaded."""

import json

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps

from datamodules.convert.run import convert
from emu_edit.images import decode_rgb
from tests.datamodules.convert.shards import of_task, read_back


@pytest.fixture(scope="module")
def photos() -> dict[str, Image.Image]:
    """Four photographs, reduced to at most 64 pixels a side, in their own aspect."""
    names = ("astronaut", "chelsea", "coffee", "rocket")
    found = {name: Image.fromarray(getattr(skimage.data, name)()) for name in names}
    for photo in found.values():
        photo.thumbnail((64, 64))
    return found


def test_a_folder_of_photographs_becomes_shards_with_the_same_pixels(photos, tmp_path):
    (tmp_path / "in" / "source").mkdir(parents=True)
    (tmp_path / "in" / "target").mkdir()
    lines = []
    for name, photo in photos.items():
        photo.save(tmp_path / "in" / "source" / f"{name}.png")
        ImageOps.grayscale(photo).save(tmp_path / "in" / "target" / f"{name}.png")
        lines.append({"file": f"{name}.png", "instruction": "take the colour out", "task": "color"})
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "in" / "instructions.jsonl").write_text(text)
    report = convert("folder", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == ({"color": 4}, {})
    for sample, photo in zip(read_back(tmp_path / "out"), photos.values(), strict=True):
        source = decode_rgb(sample["source.png"]).permute(1, 2, 0).numpy()
        target = decode_rgb(sample["target.png"]).permute(1, 2, 0).numpy()
        assert np.array_equal(source, np.asarray(photo))
        assert np.array_equal(target, np.asarray(ImageOps.grayscale(photo).convert("RGB")))


def test_photographs_as_a_camera_stores_them_fit_their_edited_copies(photos, tmp_path):
    """The source is a JPEG turned by EXIF, the target an upright PNG with alpha."""
    for side in ("control", "images"):
        (tmp_path / "in" / side).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 8
    for name, photo in photos.items():
        turned = photo.transpose(Image.Transpose.ROTATE_270)
        turned.save(
            tmp_path / "in" / "control" / f"{name}.jpg", exif=exif, quality=100, subsampling=0
        )
        flipped = ImageOps.flip(photo)
        flipped.putalpha(255)
        flipped.save(tmp_path / "in" / "images" / f"{name}.png")
        (tmp_path / "in" / "images" / f"{name}.txt").write_text("turn it upside down\n")
    report = convert("control", tmp_path / "in", tmp_path / "out", of_task("global"))
    assert (report.written, report.skipped) == ({"global": 4}, {})
    for sample, photo in zip(read_back(tmp_path / "out"), photos.values(), strict=True):
        source = decode_rgb(sample["source.png"]).permute(1, 2, 0).numpy().astype(int)
        target = decode_rgb(sample["target.png"]).permute(1, 2, 0).numpy()
        assert np.abs(source - np.asarray(photo)).max() <= 12  # JPEG at its best
        assert np.array_equal(target, np.asarray(ImageOps.flip(photo)))
