import json
from collections import Counter
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.checks.folders import check_folder
from datamodules.shards.manifest import MANIFEST, load_manifest, write_manifest
from datamodules.shards.shapes import SHAPES, SQUARE, nearest_shape, shape_of, sides_of
from datamodules.shards.writer import PairRecord, ShardWriter
from emu_edit.errors import ShardError

SIDES = st.integers(1, 3000)


def pair(i: int, height: int, width: int) -> PairRecord:
    source = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PairRecord(f"p{i}", source, 255 - source, "do it", "local", extra={"kind": "a b"})


def ratio(shape: str) -> float:
    width, height = map(int, shape.split("x"))
    return width / height


@pytest.mark.parametrize("image_size", [64, 256, 512, 768, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_of_the_sides_of_a_shape_is_of_that_shape(shape: str, image_size: int):
    height, width = sides_of(shape, image_size)
    assert shape_of(height, width) == shape
    assert height % (image_size // 8) == width % (image_size // 8) == 0
    assert abs(height * width / image_size**2 - 1) < 0.1


def test_the_square_has_the_sides_of_before():
    assert sides_of(SQUARE, 60) == (60, 60)
    assert sides_of("10x7", 512) == (448, 640)


@given(SIDES, SIDES)
def test_the_shape_of_a_picture_is_the_nearest(height: int, width: int):
    errors = {shape: abs(log(width / height) - log(ratio(shape))) for shape in SHAPES}
    assert errors[shape_of(height, width)] == pytest.approx(min(errors.values()), abs=1e-12)
    flipped = "x".join(reversed(shape_of(height, width).split("x")))
    assert shape_of(width, height) == flipped


def test_usual_pictures_lose_about_a_tenth_of_a_side_at_most():
    usual = {
        "4:3": "9x7",
        "3:2": "10x7",
        "16:9": "11x6",
        "21:9": "13x5",
        "5:4": "9x7",
        "2:1": "11x6",
    }
    for name, shape in usual.items():
        width, height = map(int, name.split(":"))
        assert shape_of(height * 100, width * 100) == shape
        cut = (width / height) / ratio(shape)
        assert min(cut, 1 / cut) > 0.89, name


def test_a_shape_is_nearest_to_itself_and_else_to_the_next():
    assert nearest_shape("10x7", SHAPES) == "10x7"
    assert nearest_shape("10x7", ["8x8", "11x6", "7x10"]) == "11x6"
    assert nearest_shape(SQUARE, ["7x9", "9x7"]) == "7x9"


def write(folder: Path, sizes: list[tuple[int, int]], *, by_kind: bool = False) -> None:
    with ShardWriter(folder, by_shape=True, by_kind=by_kind) as writer:
        for i, size in enumerate(sizes):
            writer.add(pair(i, *size))
    write_manifest(folder, writer.entries, made_by={})


def test_pairs_of_another_shape_go_into_shards_of_their_own(tmp_path: Path):
    write(tmp_path, [(14, 20), (16, 16), (15, 21), (64, 8), (17, 16)])
    entries = load_manifest(tmp_path).entries
    assert {entry.file: (entry.shape, entry.samples, entry.kind) for entry in entries} == {
        "local-10x7-000000.tar": ("10x7", 2, ""),
        "local-000000.tar": ("8x8", 2, ""),
        "local-5x13-000000.tar": ("5x13", 1, ""),
    }
    assert not check_folder(tmp_path).problems


def test_kind_and_shape_part_together(tmp_path: Path):
    write(tmp_path, [(14, 20), (16, 16)], by_kind=True)
    entries = load_manifest(tmp_path).entries
    assert Counter(entry.file for entry in entries) == Counter([
        "local-a_b-10x7-000000.tar",
        "local-a_b-000000.tar",
    ])


def edit_manifest(folder: Path, shape: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["tasks"]["local"][0]["shape"] = shape
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize("shape", ["10x6", 3, ["10x7"], None])
def test_a_shape_that_there_is_not_is_refused(tmp_path: Path, shape: object):
    write(tmp_path, [(14, 20)])
    edit_manifest(tmp_path, shape)
    with pytest.raises(ShardError, match=r"a shard has pictures of the shape .*, known are 5x13"):
        load_manifest(tmp_path)


def test_a_check_finds_pictures_of_another_shape_than_the_manifest_says(tmp_path: Path):
    write(tmp_path, [(14, 20)])
    edit_manifest(tmp_path, "8x8")
    (problem,) = check_folder(tmp_path).problems
    assert problem.is_error
    assert problem.message == "is 20x14, of the shape 10x7; the manifest says 8x8"
