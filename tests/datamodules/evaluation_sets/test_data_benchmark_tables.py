"""Tables with pictures: places, damage, texts that are no Unicode."""

from pathlib import Path

import pytest

from datamodules.evaluation_sets import load_benchmark
from datamodules.evaluation_sets.items import Benchmark
from datamodules.evaluation_sets.tables import Layout, read_rows
from emu_edit.errors import InputError
from tests.datamodules.benchmark_files import (
    EMU_ROWS,
    emu_fields,
    parquet_rows,
    struct,
    write_emu_edit,
)

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def load(folder: Path) -> Benchmark:
    return load_benchmark("emu-edit", folder, split="test", captions="global")


def test_rows_of_files_of_one_name_are_different_places(tmp_path: Path) -> None:
    for index in (0, 1):
        row = {**emu_fields(index), "image": struct(index)}
        parquet_rows(tmp_path / "emu", f"part{index}/0000.parquet", [row])
    places = [item.source.where for item in load(tmp_path / "emu").items]
    assert places == ["part0/0000.parquet, row 0", "part1/0000.parquet, row 0"]


def test_an_export_beside_parquet_files_is_refused(tmp_path: Path) -> None:
    folder = write_emu_edit(tmp_path / "emu")
    parquet_rows(folder, "data/a.parquet", [{**emu_fields(0), "image": struct(0)}])
    words = "emu has both metadata.jsonl and data/a.parquet; keep the one that is meant"
    with pytest.raises(InputError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "0.png,add a hat, red\n",
            r"emu/metadata.csv:2 has 3 cells, its head 2; put quotes around",
        ),
        ("0.png\n", r"emu/metadata.csv:2 has 1 cells, its head 2"),
        (
            '0.png,"add a hat\n1.png,add\n',
            r"emu/metadata.csv is not CSV \(unexpected end of data\)",
        ),
    ],
)
def test_rows_of_a_csv_file_that_would_shift_or_swallow_cells_are_refused(
    text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "metadata.csv").write_text(f"file_name,instruction\n{text}")
    layout = Layout(image="image", files=("file_name",), needs="a table")
    with pytest.raises(InputError, match=words):
        list(read_rows(tmp_path / "emu", layout))


def test_empty_lines_and_quoted_commas_of_a_csv_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('file_name,instruction\n\n0.png,"add a hat, red"\n')
    layout = Layout(image="image", files=("file_name",), needs="a table")
    (row,) = read_rows(tmp_path, layout)
    assert row.text("instruction") == "add a hat, red"
    assert row.path == tmp_path / "0.png"


def test_damage_that_is_met_only_when_a_picture_is_read_is_one_line_too(tmp_path: Path) -> None:
    rows = [{**emu_fields(i), "image": struct(i)} for i, row in enumerate(EMU_ROWS)]
    path = parquet_rows(tmp_path / "emu", "a.parquet", rows)
    pictures = parquet.ParquetFile(path).metadata.row_group(0).column(len(emu_fields(0)))
    assert pictures.path_in_schema == "image.bytes"
    start = pictures.dictionary_page_offset or pictures.data_page_offset
    data = path.read_bytes()
    path.write_bytes(data[:start] + b"\xff" * 16 + data[start + 16 :])
    items = load(tmp_path / "emu").items
    words = r"^a.parquet, row 0: the parquet file is damaged \(.*\); download it again$"
    with pytest.raises(InputError, match=words):
        items[0].source.fetch()
    assert items[2].source.decode().shape == (3, 24, 32)  # another row group


def test_text_of_a_parquet_file_that_is_not_utf_8_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = [{**emu_fields(i), "image": struct(i)} for i, row in enumerate(EMU_ROWS)]
    table = pyarrow.Table.from_pylist(rows)
    place = table.column_names.index("instruction")
    texts = [f"{row['instruction']}".encode() for row in rows]
    texts[3] = b"remove \xff"
    array = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    (tmp_path / "emu").mkdir()
    parquet.write_table(
        table.set_column(place, "instruction", array), tmp_path / "emu/a.parquet", row_group_size=2
    )
    with pytest.raises(InputError, match=r"^a.parquet, row 3: instruction is not UTF-8 text \("):
        load(tmp_path / "emu")
