"""The leak guard: which copies it knows again, which others it leaves alone, what it is given."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.leaks_recall import colours, crop, half, jpeg, mirror, world
from datamodules.checks.leaks import BITS, MAX_BITS, LeakGuard, fingerprint, hamming
from datamodules.shards.writer import PairRecord
from emu_edit.errors import BadImageError, InputError
from tests.datamodules.toy_shards import make_folder

SIZE = 64


PICTURES = world(1, 96, SIZE)


def record(source: np.ndarray, target: np.ndarray) -> PairRecord:
    return PairRecord(key="a", source=source, target=target, instruction="x", task="add")


@pytest.mark.parametrize(
    ("change", "least"), [(jpeg, 95), (half, 96), (crop, 91), (colours, 94), (mirror, 96)]
)
def test_a_changed_copy_is_recognised(change, least):
    found = 0
    for name, pixels in PICTURES:
        leak = LeakGuard([(name, pixels)]).find(np.asarray(change(Image.fromarray(pixels))))
        found += leak is not None and leak.name == name
    assert found >= least  # of 96; counted once, the pictures never change


def test_a_mirrored_copy_is_called_so():
    guard = LeakGuard(PICTURES[:8])
    for name, pixels in PICTURES[:8]:
        assert guard.find(pixels) == guard.find(pixels.copy())
        straight, flipped = guard.find(pixels), guard.find(pixels[:, ::-1].copy())
        assert straight is not None
        assert (straight.name, straight.bits, straight.is_mirrored) == (name, 0, False)
        assert flipped is not None
        assert (flipped.name, flipped.is_mirrored) == (name, True)
        assert f"shows the mirror image of the evaluation picture {name}" in str(flipped)


def test_other_pictures_of_the_world_are_left_alone_but_for_the_alike():
    """96 x 96 pairs of pictures that are all different; the world's backgrounds are few."""
    guard = LeakGuard(world(2, 96, SIZE))
    assert sum(guard.find(pixels) is not None for _, pixels in PICTURES) <= 2


def test_unlike_photographs_are_left_alone():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (300, 6, 6, 3), dtype=np.uint8)
    smooth = [
        np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for one in coarse
    ]
    guard = LeakGuard((str(i), picture) for i, picture in enumerate(smooth[:150]))
    assert [guard.find(picture) for picture in smooth[150:]] == [None] * 150


def test_an_edited_copy_of_a_known_picture_is_found_by_its_source():
    known, (_, other) = PICTURES[0], PICTURES[1]
    guard = LeakGuard([known])
    assert guard(record(other, other[::-1].copy())) is None
    assert guard(record(known[1], other)) == f"the source {guard.find(known[1])}"
    assert guard(record(other, known[1])) == f"the target {guard.find(known[1])}"


def test_of_several_matches_the_nearest_is_named():
    name, pixels = PICTURES[3]
    copy = np.asarray(crop(Image.fromarray(pixels)))
    of_copy = LeakGuard([("a copy", copy)]).find(pixels)
    assert of_copy is not None
    assert of_copy.bits > 0
    leak = LeakGuard([("a copy", copy), (name, pixels)]).find(pixels)
    assert leak is not None
    assert (leak.name, leak.bits) == (name, 0)


def test_plain_areas_are_neither_known_nor_refused():
    black = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    guard = LeakGuard([("black", black), PICTURES[0]])
    assert guard.size == 1
    assert guard.find(black) is None
    assert guard.find(black + 200) is None
    assert LeakGuard([("black", black)]).find(PICTURES[0][1]) is None


def test_the_hash_of_the_mirror_image_costs_no_second_transform():
    for _, pixels in PICTURES[:16]:
        straight, flipped = fingerprint(pixels), fingerprint(pixels[:, ::-1].copy())
        assert straight is not None
        assert flipped is not None
        assert hamming(np.array([straight.mirrored]), flipped.hash)[0] <= 2  # ties at the median
        assert hamming(np.array([straight.hash]), flipped.mirrored)[0] <= 2


def test_half_of_the_bits_are_set_so_that_unlike_pictures_differ_in_half():
    marks = [fingerprint(pixels) for _, pixels in PICTURES]
    assert all(mark is not None and int(mark.hash).bit_count() <= BITS // 2 for mark in marks)


def test_hamming_counts_bits():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**63, 200, dtype=np.uint64)
    for other in hashes[:5]:
        counted = [(int(one) ^ int(other)).bit_count() for one in hashes]
        assert hamming(hashes, other).tolist() == counted
    assert hamming(np.array([2**64 - 1], dtype=np.uint64), np.uint64(0))[0] == 64
    assert MAX_BITS < BITS // 2


def test_folders_shards_and_parquet_are_read(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    paths, seen = [], []
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    Image.fromarray(PICTURES[0][1]).save(tmp_path / "pictures" / "deep" / "a.png")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    paths.append(tmp_path / "pictures")
    make_folder(tmp_path / "more" / "shards", {"add": 2})
    paths.append(tmp_path / "more")
    Image.fromarray(PICTURES[1][1]).save(tmp_path / "b.webp", lossless=True)
    paths.append(tmp_path / "b.webp")
    cell = {"bytes": (tmp_path / "pictures" / "deep" / "a.png").read_bytes(), "path": "a.png"}
    rows = {"image": [cell, None], "text": ["x", "y"], "size": [{"w": 1}, {"w": 2}]}
    parquet.write_table(table(rows), tmp_path / "test.parquet")
    paths.append(tmp_path / "test.parquet")
    guard = LeakGuard.of(paths, seen.append)
    assert guard.size == 1 + 2 * 2 + 1 + 1
    assert seen == list(range(1, 8))
    leak = LeakGuard.of([tmp_path / "test.parquet"]).find(PICTURES[0][1])
    assert leak is not None
    assert leak.name == f"{tmp_path / 'test.parquet'}, row 0, image"
    rng = np.random.default_rng([len("add"), ord("a"), 1])
    source = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    leak = LeakGuard.of([tmp_path / "more"]).find(255 - source)
    assert leak is not None
    assert leak.name.endswith("add-000000.tar: target of 'add_00001'")


def test_what_cannot_be_read_is_no_silent_hole(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder; give the evaluation"):
        LeakGuard.of([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no pictures \(looked for .png"):
        LeakGuard.of([tmp_path / "empty"])
    (tmp_path / "bad.png").write_bytes(b"nothing of the kind")
    with pytest.raises(BadImageError, match=r"bad\.png: is no picture"):
        LeakGuard.of([tmp_path / "bad.png"])
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    with pytest.raises(InputError, match=r"black\.png: all evaluation pictures are plain areas"):
        LeakGuard.of([tmp_path / "black.png"])
