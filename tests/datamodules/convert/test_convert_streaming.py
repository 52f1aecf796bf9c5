"""How much of a set is in memory, how often it is read, and what a failed run leaves behind."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import datamodules.convert.parquet
from datamodules.convert.pair import RawPair, key_of
from datamodules.convert.parquet import PICTURE_ROWS, TEXT_ROWS, PictureColumn
from datamodules.convert.parquet_sets import ULTRAEDIT
from datamodules.convert.run import convert
from datamodules.shards.writer import ShardWriter
from emu_edit.errors import InputError, ShardError
from tests.datamodules.convert.sets import (
    after,
    before,
    cell,
    png,
    quarantine,
    samples,
    write_parquet,
)
from tests.datamodules.convert.shards import of_task
from tests.datamodules.toy_shards import records

pytest.importorskip("pyarrow")


def rows(count: int) -> list[dict[str, object]]:
    small = [(cell(before(seed)), cell(after(seed))) for seed in range(8)]
    return [
        {
            "edit_prompt": f"turn it over {index}",
            "source_image": small[index % 8][0],
            "edited_image": small[index % 8][1],
        }
        for index in range(count)
    ]


def test_of_a_row_group_only_a_batch_of_pictures_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 5 * PICTURE_ROWS
    write_parquet(tmp_path / "a.parquet", rows(count), group=count)
    columns: list[PictureColumn] = []
    held: list[int] = []

    class Counting(PictureColumn):
        def __init__(self, file: Any, column: str) -> None:
            super().__init__(file, column)
            columns.append(self)

        def fetch(self, where: str, group: int, row: int) -> bytes:
            data = super().fetch(where, group, row)
            held.append(max(column.rows_held for column in columns))
            return data

    monkeypatch.setattr(datamodules.convert.parquet, "PictureColumn", Counting)
    report = convert("ultraedit", tmp_path / "a.parquet", tmp_path / "out", of_task("local"))
    assert report.written == {"local": count}
    assert len(held) == 2 * count
    assert max(held) == PICTURE_ROWS


def test_counting_reads_no_picture_and_converting_each_batch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = import_module("pyarrow.parquet")
    count = 2 * PICTURE_ROWS
    write_parquet(tmp_path / "a.parquet", rows(count), group=count)
    asked: list[tuple[str, ...]] = []

    class Watched(parquet.ParquetFile):
        def iter_batches(
            self, *, batch_size: int, row_groups: list[int], columns: list[str]
        ) -> Any:
            asked.append(tuple(columns))
            return super().iter_batches(batch_size, row_groups, columns)

    monkeypatch.setattr(parquet, "ParquetFile", Watched)
    listed = list(ULTRAEDIT.list_pairs(tmp_path / "a.parquet"))
    assert len(listed) == count
    assert asked == [("edit_prompt",)]
    asked.clear()
    convert("ultraedit", tmp_path / "a.parquet", tmp_path / "out", of_task("local"))
    assert sorted(asked) == [("edit_prompt",)] * 2 + [("edited_image",), ("source_image",)]


def test_texts_are_read_in_batches_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", rows(30), group=30)
    monkeypatch.setattr(datamodules.convert.parquet, "TEXT_ROWS", 4)
    pairs = ULTRAEDIT.list_pairs(tmp_path / "a.parquet")
    words = [pair.instruction for pair in pairs if isinstance(pair, RawPair)]
    assert words == [f"turn it over {index}" for index in range(30)]
    assert TEXT_ROWS == 1024


def test_pictures_may_be_fetched_in_any_order_and_twice(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", rows(3 * PICTURE_ROWS), group=2 * PICTURE_ROWS)
    listed = list(ULTRAEDIT.list_pairs(tmp_path / "a.parquet"))
    pairs = [pair for pair in listed if isinstance(pair, RawPair)]
    for index in (40, 3, 17, 3, 31, 0, 47):
        assert pairs[index].source.fetch() == png(before(index % 8))


def test_a_damaged_batch_costs_its_rows_and_not_the_file(tmp_path: Path) -> None:
    parquet = import_module("pyarrow.parquet")
    path = write_parquet(tmp_path / "a.parquet", rows(6), group=2)
    group = parquet.ParquetFile(path).metadata.row_group(1)
    names = [group.column(index).path_in_schema for index in range(group.num_columns)]
    column = group.column(names.index("source_image.bytes"))
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    report = convert("ultraedit", path, tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 4}, {"unreadable picture": 2})
    assert "the parquet file is damaged" in quarantine(tmp_path / "out")[0]["detail"]


def test_a_torn_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in" / "a.parquet", rows(6))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"a.parquet: the parquet file is damaged \(.*download it"):
        convert("ultraedit", tmp_path / "in", tmp_path / "out", of_task("local"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "reason", "detail"),
    [
        (
            {"bytes": b"GIF89a", "path": None},
            "unreadable picture",
            "row 1: is a damaged GIF, needs a JPEG",
        ),
        ({"bytes": b"", "path": None}, "unreadable picture", "row 1: is empty (0 bytes)"),
        (
            {"bytes": None, "path": "a.png"},
            "missing source",
            "row 1 has no picture in source_image",
        ),
        (None, "missing source", "row 1 has no picture in source_image"),
    ],
)
def test_cells_go_through_the_decoder_of_files(
    tmp_path: Path, source: object, reason: str, detail: str
) -> None:
    table = rows(3)
    table[1]["source_image"] = source
    write_parquet(tmp_path / "a.parquet", table)
    report = convert("ultraedit", tmp_path / "a.parquet", tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 2}, {reason: 1})
    assert detail in quarantine(tmp_path / "out")[0]["detail"]


def test_keys_depend_on_the_place_alone(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 5)):
        write_parquet(tmp_path / name / "x.parquet", rows(count))
        convert("ultraedit", tmp_path / name, tmp_path / f"{name}_out", of_task("local"))
    first, second = ([s.key for s in samples(tmp_path / f"{name}_out")] for name in "ab")
    assert first == second[:3] == [key_of(f"x.parquet {index}") for index in range(3)]


def test_an_interrupted_run_leaves_no_manifest_and_no_half_shard(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", rows(6))

    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    run = partial(convert, "ultraedit", tmp_path / "a.parquet", tmp_path / "out", of_task("local"))
    with pytest.raises(KeyboardInterrupt):
        run(on_progress=stop)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["quarantine.jsonl"]
    assert run().written == {"local": 6}


def test_a_writer_keeps_full_shards_and_removes_open_ones_when_it_fails(tmp_path: Path) -> None:
    def failing() -> Iterator[None]:
        with ShardWriter(tmp_path, pairs_per_shard=2) as writer:
            for local, add in zip(records("local", 3), records("add", 3), strict=True):
                writer.add(local)
                if local.key.endswith("0"):
                    writer.add(add)
                yield
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        list(failing())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["local-000000.idx.npy", "local-000000.tar"]


def test_tasks_in_any_order_become_shards_of_each(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, pairs_per_shard=2) as writer:
        for local, add in zip(records("local", 3), records("add", 3), strict=True):
            writer.add(local)
            writer.add(add)
    found = sorted((entry.file, entry.samples) for entry in writer.entries)
    assert found == [
        ("add-000000.tar", 2),
        ("add-000001.tar", 1),
        ("local-000000.tar", 2),
        ("local-000001.tar", 1),
    ]
    assert not list(tmp_path.glob(".*"))


def test_a_shard_that_cannot_be_indexed_leaves_no_other_half_done(tmp_path: Path) -> None:
    (record,) = records("local", 1)
    (other,) = records("add", 1)

    def write() -> None:
        with ShardWriter(tmp_path) as writer:
            for twice in (record, other, record):
                writer.add(twice)

    with pytest.raises(ShardError, match="sample 'local_00000' has two"):
        write()
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("add*"))
