import io
import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from datamodules.shards.index import index_path
from datamodules.shards.manifest import load_manifest, read_manifest, verify_hash, write_manifest
from datamodules.shards.writer import PairRecord, write_task_shards
from emu_edit.errors import InputError, ShardError
from emu_edit.files import atomic_file
from tests.datamodules.toy_shards import make_folder, records

PIXELS = np.zeros((8, 8, 3), dtype=np.uint8)


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own reader
def test_webdataset_reads_back_every_pixel_and_word(tmp_path: Path):
    manifest = make_folder(tmp_path, {"local": 6, "add": 3})
    written = {r.key: r for task, n in (("local", 6), ("add", 3)) for r in records(task, n)}
    urls = [str(tmp_path / entry.file) for entry in manifest.entries]
    read = list(WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [item["__key__"] for item in read] == list(written)
    for item in read:
        record = written[item["__key__"]]
        np.testing.assert_array_equal(pixels_of(item["source.png"]), record.source)
        np.testing.assert_array_equal(pixels_of(item["target.png"]), record.target)
        assert json.loads(item["json"]) == {
            "instruction": record.instruction,
            "task": record.task,
            "source_caption": record.source_caption,
            "target_caption": record.target_caption,
            **record.extra,
        }
        assert ("mask.png" in item) == (record.mask is not None)
        if record.mask is not None:
            np.testing.assert_array_equal(pixels_of(item["mask.png"]) == 255, record.mask)


def test_shards_hold_as_many_pairs_as_asked_and_have_their_index_beside_them(tmp_path: Path):
    manifest = make_folder(tmp_path, {"local": 10, "add": 4}, pairs_per_shard=4)
    assert [(e.task, e.file, e.samples) for e in manifest.entries] == [
        ("local", "local-000000.tar", 4),
        ("local", "local-000001.tar", 4),
        ("local", "local-000002.tar", 2),
        ("add", "add-000000.tar", 4),
    ]
    assert all(index_path(tmp_path / entry.file).exists() for entry in manifest.entries)
    assert manifest.num_samples == 14
    assert manifest.tasks == ["local", "add"]
    assert read_manifest(tmp_path) == manifest


def test_kinds_have_shards_of_their_own_where_asked_for(tmp_path: Path):
    kinds = ["oil paint", "comic", "oil paint", "oil_paint"]
    pairs = [
        replace(record, extra={"kind": kind})
        for record, kind in zip(records("style", 4), kinds, strict=True)
    ]
    entries = write_task_shards(tmp_path, "style", pairs, by_kind=True)
    write_manifest(tmp_path, entries, made_by={})
    assert [(e.kind, e.file, e.samples) for e in read_manifest(tmp_path).entries] == [
        ("oil paint", "style-oil_paint-000000.tar", 2),
        ("comic", "style-comic-000000.tar", 1),
        ("oil_paint", "style-oil_paint-000001.tar", 1),
    ]
    assert list(read_manifest(tmp_path).kinds("style")) == ["oil paint", "comic", "oil_paint"]
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"oil paint"', "7"))
    with pytest.raises(ShardError, match="a shard is of the kind 7, needs at most 100 printable"):
        read_manifest(tmp_path)


def test_the_same_pairs_give_the_same_bytes(tmp_path: Path):
    first, second = (make_folder(tmp_path / name, {"local": 5}) for name in "ab")
    assert first == second


def test_nothing_is_left_when_a_pair_cannot_be_made(tmp_path: Path):
    def failing() -> Iterator[PairRecord]:
        yield from records("local", 2)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_task_shards(tmp_path, "local", failing())
    assert list(tmp_path.iterdir()) == []


def test_a_pair_in_the_wrong_task_is_refused(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"add_00000 is of task 'add' and cannot go into .*'local'"
    ):
        write_task_shards(tmp_path, "local", records("add", 1))


def test_two_pairs_with_one_key_are_refused(tmp_path: Path):
    record = next(records("local", 1))
    with pytest.raises(ShardError, match="sample 'local_00000' has two"):
        write_task_shards(tmp_path, "local", [record, record])


def test_an_empty_instruction_is_refused_when_written(tmp_path: Path):
    record = replace(next(records("local", 1)), instruction=" ")
    with pytest.raises(ShardError, match="'local_00000': the instruction is empty"):
        write_task_shards(tmp_path, "local", [record])


def test_a_task_without_pairs_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="task 'local' has no pairs"):
        write_task_shards(tmp_path, "local", [])


@pytest.mark.parametrize("task", ["", "a/b", "a.b", ".."])
def test_a_task_that_cannot_name_a_file_is_refused(tmp_path: Path, task: str):
    with pytest.raises(InputError, match="cannot name a shard"):
        write_task_shards(tmp_path, task, [])


def test_empty_shards_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="pairs_per_shard=0 must be at least 1"):
        write_task_shards(tmp_path, "local", [], pairs_per_shard=0)


@pytest.mark.parametrize("key", ["", "a.b", "../a", "/a", "a/", "a b", "a\0", "k" * 81])
def test_keys_that_could_not_be_read_back_are_refused(key: str):
    with pytest.raises(InputError, match="cannot be stored"):
        PairRecord(key, PIXELS, PIXELS, "do it", "local")


def test_pictures_and_masks_of_other_sizes_are_refused():
    with pytest.raises(InputError, match=r"source is \(8, 8\) and target \(4, 8\)"):
        PairRecord("k", PIXELS, PIXELS[:4], "do it", "local")
    mask = np.zeros((4, 4), dtype=np.bool_)
    with pytest.raises(InputError, match=r"mask is \(4, 4\) and the pictures \(8, 8\)"):
        PairRecord("k", PIXELS, PIXELS, "do it", "local", mask=mask)


def test_a_folder_without_manifest_is_no_shard_folder(tmp_path: Path):
    with pytest.raises(ShardError, match=r"is not a shard folder: manifest\.json cannot be read"):
        read_manifest(tmp_path)


BROKEN = {
    "not json": ("{", "is not JSON"),
    "not an object": ("[]", "is not a manifest of version 1"),
    "another version": ('{"version": 2}', "is not a manifest of version 1"),
    "no tasks": ('{"version": 1, "made_by": {}}', "has no tasks or no made_by"),
    "no shards": ('{"version": 1, "made_by": {}, "tasks": {}}', "names no shards"),
    "field missing": (
        '{"version": 1, "made_by": {}, "tasks": {"local": [{"file": "a.tar"}]}}',
        "a shard of 'local' lacks",
    ),
    "a new task that is none": (
        '{"version": 1, "made_by": {"new_task": ["a"]}, "tasks": {"local": []}}',
        r"new_task in made_by is \['a'\], needs the name of a task",
    ),
    "a task with half a character": (
        '{"version": 1, "made_by": {}, "tasks": {"a\\ud800": []}}',
        r"a task is called 'a\\ud800', needs 1\.\.100 printable characters",
    ),
    "a task that moves the cursor": (
        '{"version": 1, "made_by": {}, "tasks": {"a\\u001b[2J": []}}',
        r"a task is called 'a\\x1b\[2J', needs",
    ),
    "a task without end": (
        '{"version": 1, "made_by": {}, "tasks": {"' + "a" * 5000 + '": []}}',
        r"a task is called 'a{79}, needs",
    ),
    "millions of lists": (
        "[" + "[]," * 2_000_000 + "[]]",
        "has 6000004 bytes with 4000002 brackets and commas, more than the list of any shards",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_manifest_is_refused(tmp_path: Path, name: str):
    content, reason = BROKEN[name]
    (tmp_path / "manifest.json").write_text(content)
    tracemalloc.start()
    with pytest.raises(ShardError, match=reason) as caught:
        read_manifest(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20  # parsed, the millions of lists would take eight times as much
    assert str(caught.value).isprintable()


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["tasks"]["local"][0] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file": "../x.tar"}, "is not a plain file name"),
        ({"file": "x.zip"}, "is not a plain file name"),
        ({"file": 3}, "is not a plain file name"),
        ({"samples": 0}, "needs positive integers"),
        ({"bytes": "many"}, "needs positive integers"),
        ({"file": ".x.tar"}, "is not a plain file name"),
        ({"file": "a\nb.tar"}, "is not a plain file name"),
        ({"file": "..\\x.tar"}, "is not a plain file name"),
        ({"sha256": 1}, "has the sha256 1, needs 64 hexadecimal digits"),
        ({"sha256": "../../" + "a" * 58}, "needs 64 hexadecimal digits"),
        ({"file": "local-000001.tar"}, "names shard 'local-000001.tar' twice"),
        ({"file": "a\ud800.tar"}, "is not a plain file name"),
        ({"samples": True}, "True samples, needs positive integers"),
        ({"samples": 10**400}, "a number of 2.63 or more samples, needs positive integers"),
        ({"bytes": 2**63}, "a number of 2.63 or more bytes and 4 samples, needs positive"),
        ({"samples": 10**9}, "bytes, too few for 1000000000 samples"),
    ],
)
def test_odd_entries_of_a_manifest_are_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
):
    make_folder(tmp_path, {"local": 8}, pairs_per_shard=4)
    edit_manifest(tmp_path, **changes)
    with pytest.raises(ShardError, match=reason):
        read_manifest(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path):
    make_folder(tmp_path, {"local": 3})
    (tmp_path / "local-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"local-000000\.tar is named in the manifest but cannot"):
        read_manifest(tmp_path)


def test_a_shard_that_changed_its_size_is_named(tmp_path: Path):
    make_folder(tmp_path, {"local": 3})
    path = tmp_path / "local-000000.tar"
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(ShardError, match=r"local-000000\.tar changed since .* bytes, the manifest"):
        read_manifest(tmp_path)


def test_a_shard_that_kept_its_size_but_not_its_bytes_is_named(tmp_path: Path):
    manifest = make_folder(tmp_path, {"local": 3})
    path = tmp_path / "local-000000.tar"
    verify_hash(path, manifest.entries[0])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    read_manifest(tmp_path)
    with pytest.raises(ShardError, match=r"local-000000\.tar changed since .* its sha256 is"):
        verify_hash(path, manifest.entries[0])


def test_a_long_manifest_is_read(tmp_path: Path):
    folder = tmp_path / "one"
    entry = make_folder(folder, {"local": 1}).entries[0]
    entries = [replace(entry, file=f"local-{i:06d}.tar") for i in range(20_000)]
    manifest = write_manifest(folder, entries, made_by={"program": "test"})
    assert load_manifest(folder) == manifest
    compact = json.dumps(json.loads((folder / "manifest.json").read_text()), separators=(",", ":"))
    (folder / "manifest.json").write_text(compact)
    assert load_manifest(folder) == manifest


def test_a_manifest_of_nothing_is_not_written(tmp_path: Path):
    with pytest.raises(ShardError, match="names no shards"):
        write_manifest(tmp_path, [], made_by={})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_file(path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
