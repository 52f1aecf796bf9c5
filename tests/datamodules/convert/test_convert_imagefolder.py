"""Pictures with a table whose columns the user names: metadata.jsonl, .csv, .parquet."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.convert.naming import TaskNaming
from datamodules.convert.pair import FieldMap
from datamodules.convert.report import ConvertReport
from datamodules.convert.run import ConvertSettings, convert
from emu_edit.errors import InputError
from tests.datamodules.convert.sets import (
    after,
    before,
    cell,
    quarantine,
    region,
    samples,
    save,
    write_parquet,
)

FIELDS = FieldMap("file_name", "edited_file_name", "text")


def write_pairs(folder: Path, count: int = 2) -> list[dict[str, str]]:
    """Write pictures and return the rows that name them."""
    for seed in range(count):
        save(folder / "a" / f"{seed}.png", before(seed))
        save(folder / "b" / f"{seed}.png", after(seed))
    names = (str(seed) for seed in range(count))
    return [
        {"file_name": f"a/{n}.png", "edited_file_name": f"b/{n}.png", "text": f"invert, {n}"}
        for n in names
    ]


def write_table(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def run(source: Path, out: Path, fields: FieldMap | None = FIELDS) -> ConvertReport:
    return convert("imagefolder", source, out, ConvertSettings(TaskNaming("local"), fields=fields))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_pairs_come_back_from_tables_of_every_split(
    tmp_path: Path, suffix: str, encoding: str
) -> None:
    for split in ("train", "extra"):
        folder = tmp_path / "in" / split
        rows = write_pairs(folder, 1)
        rows[0]["text"] += f" in {split}"
        write_table(folder / f"metadata{suffix}", rows, encoding)
    report = run(tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == ({"local": 2}, {})
    for sample in samples(tmp_path / "out"):
        assert np.array_equal(sample.source, before(0))
        assert np.array_equal(sample.target, after(0))
    texts = [sample.text["instruction"] for sample in samples(tmp_path / "out")]
    assert texts == ["invert, 0 in extra", "invert, 0 in train"]


def test_a_table_of_the_hub_with_pictures_inside_is_read_by_its_columns(tmp_path: Path) -> None:
    row = {"old": cell(before(0)), "new": cell(after(0)), "ask": "x", "where": cell(region())}
    file = write_parquet(tmp_path / "in" / "any.parquet", [row])
    report = run(file, tmp_path / "out", FieldMap("old", "new", "ask", mask="where"))
    assert report.written == {"local": 1}
    (sample,) = samples(tmp_path / "out")
    assert sample.mask is not None
    assert np.array_equal(sample.mask, region() > 0)


def test_pictures_that_no_row_names_and_other_files_are_counted(tmp_path: Path) -> None:
    rows = write_pairs(tmp_path / "in")
    write_table(tmp_path / "in" / "metadata.jsonl", rows[:1])
    (tmp_path / "in" / "notes.md").touch()
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.written == {"local": 1}
    assert report.skipped == {"named by no line": 2, "no file of a pair": 1}
    assert {row["name"] for row in quarantine(tmp_path / "out")} == {
        *("a/1.png", "b/1.png", "notes.md")
    }
    write_table(tmp_path / "in" / "some.jsonl", rows[:1])  # a list says what is meant
    assert run(tmp_path / "in" / "some.jsonl", tmp_path / "some").skipped == {}


def test_columns_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    rows = write_pairs(tmp_path / "in")
    write_table(tmp_path / "in" / "metadata.csv", rows)
    has = "file_name, edited_file_name, text"
    with pytest.raises(InputError, match=f"metadata.csv has the columns {has}; say which is what"):
        run(tmp_path / "in", tmp_path / "out", None)
    with pytest.raises(InputError, match=f"metadata.csv:2: has no column new; it has {has}; say"):
        run(tmp_path / "in", tmp_path / "out", FieldMap("file_name", "new", "text"))
    (tmp_path / "in" / "metadata.csv").unlink()
    with pytest.raises(InputError, match=r"in: has no metadata.jsonl, .csv or .parquet"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
