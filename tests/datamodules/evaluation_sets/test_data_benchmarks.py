"""The benchmarks' own files, read into items; what cannot be read is refused in one line."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.evaluation_sets import load_benchmark
from datamodules.evaluation_sets.items import ALL_TURNS, FINAL_TURNS, SINGLE, Benchmark
from emu_edit.errors import InputError
from tests.datamodules.benchmark_files import (
    EMU_ROWS,
    SESSIONS,
    emu_fields,
    picture,
    png,
    write_emu_edit,
    write_magicbrush,
)


def load_emu(folder: Path, split: str | None = None) -> Benchmark:
    return load_benchmark("emu-edit", folder, split=split, captions="global")


def load_brush(folder: Path, captions: str = "local") -> Benchmark:
    return load_benchmark("magicbrush", folder, split=None, captions=captions)


def write_csv(folder: Path) -> None:
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", *emu_fields(0)])
        writer.writeheader()
        for index in range(len(EMU_ROWS)):
            picture(index).save(folder / f"{index}.png")
            writer.writerow({"file_name": f"{index}.png", **emu_fields(index)})


def write_parquet(folder: Path) -> None:
    """Write a file per split, as the hub has them, in row groups of two."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (folder / "data").mkdir(parents=True)
    for split in ("test", "validation"):
        rows = [
            {**emu_fields(i), "image": {"bytes": png(picture(i)), "path": None}}
            for i, row in enumerate(EMU_ROWS)
            if row[0] == split
        ]
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def write_splits(folder: Path) -> None:
    """Write a folder per split."""
    for split in ("test", "validation"):
        (folder / split).mkdir(parents=True)
        lines = []
        for i, row in enumerate(EMU_ROWS):
            if row[0] == split:
                picture(i).save(folder / split / f"{i}.png")
                lines.append(json.dumps({"image": f"{i}.png", **emu_fields(i)}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))


def told(benchmark: Benchmark) -> list[tuple[str, ...]]:
    return [
        (item.key, item.task, item.instruction, item.source_caption, item.target_caption)
        for item in benchmark.items
    ]


def test_the_emu_edit_test_set_is_read_from_an_export(tmp_path: Path) -> None:
    benchmark = load_emu(write_emu_edit(tmp_path / "emu"))
    assert told(benchmark)[0] == (
        "test-add-0",
        "add",
        "add a hat to the cat",
        "a cat on grass",
        "a cat with a hat on grass",
    )
    keys = ["test-add-0", "test-global-0", "test-add-2", "test-remove-5"]
    assert [item.key for item in benchmark.items] == keys
    assert benchmark.blocks == {SINGLE: tuple(keys)}
    assert (benchmark.split, benchmark.folder) == ("test", "emu")
    assert "validation-style-0" in benchmark.known
    assert all(item.target is None and item.follows is None for item in benchmark.items)
    assert benchmark.items[1].source.decode().shape == (3, 24, 32)


@pytest.mark.parametrize("write", [write_csv, write_parquet, write_splits])
def test_every_layout_gives_the_same_items(write: Callable[[Path], None], tmp_path: Path) -> None:
    wanted = load_emu(write_emu_edit(tmp_path / "jsonl"))
    write(tmp_path / "other")
    found = load_emu(tmp_path / "other")
    assert told(found) == told(wanted)
    assert found.known == wanted.known
    for a, b in zip(found.items, wanted.items, strict=True):
        assert (a.source.decode() == b.source.decode()).all()


def test_a_task_of_any_words_can_name_a_file(tmp_path: Path) -> None:
    folder = write_emu_edit(tmp_path / "emu")
    changed(task="text / colour")(folder)
    item = load_emu(folder).items[1]
    assert (item.key, item.task) == ("test-text_colour-0", "text / colour")


def test_a_split_can_be_asked_for(tmp_path: Path) -> None:
    folder = write_emu_edit(tmp_path / "emu")
    assert [item.key for item in load_emu(folder, "validation").items] == ["validation-style-0"]
    with pytest.raises(InputError, match="emu has no split 'dev', it has test, validation"):
        load_emu(folder, "dev")


def changed(**fields: object) -> Callable[[Path], None]:
    """Return what overwrites fields of the second line; a field that is None goes."""

    def change(folder: Path) -> None:
        lines = (folder / "metadata.jsonl").read_text().splitlines()
        values = {**json.loads(lines[1]), **fields}
        lines[1] = json.dumps({k: v for k, v in values.items() if v is not None})
        (folder / "metadata.jsonl").write_text("\n".join(lines))

    return change


def other_columns(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    renamed = [{"prompt": x.pop("instruction"), "picture": x.pop("file_name"), **x} for x in lines]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, renamed)))


def not_utf8(folder: Path) -> None:
    with (folder / "metadata.jsonl").open("ab") as file:
        file.write(b"\n\xe9")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_columns, r"no column instruction, image; it has prompt, picture, task, split, idx"),
        (changed(idx="seven"), "emu/metadata.jsonl:2: idx is 'seven', needs a whole number"),
        (changed(task="add"), "'test-add-0' occurs twice"),
        (changed(split="te/st"), "'te/st-global-0' cannot name a file"),
        (changed(task=3), "emu/metadata.jsonl:2: task is 3, needs text"),
        (changed(instruction=None), "emu/metadata.jsonl:2: instruction is None, needs text"),
        (changed(file_name="../a.png"), r"file_name is '\.\./a\.png', needs the name of a pict"),
        (changed(file_name="no.png"), r"emu: 1 of its pictures are missing \(no\.png\)"),
        (lambda f: (f / "metadata.jsonl").write_text("{"), "emu/metadata.jsonl:1: is not a line"),
        (lambda f: (f / "metadata.jsonl").write_text("[]"), "holds list, needs an object"),
        (lambda f: (f / "metadata.jsonl").write_text("\n"), "emu/metadata.jsonl is empty"),
        (not_utf8, r"emu/metadata.jsonl:\d: is not UTF-8 at byte 0 \(0xE9, in Windows-1252 'é'\)"),
        (changed(instruction="a \ud800"), "jsonl:2: instruction has the lone surrogate U.D800 at"),
        (changed(output_caption="\udfff"), "jsonl:2: output_caption has the lone surrogate U.DF"),
        (lambda f: (f / "metadata.jsonl").unlink(), "has no metadata.jsonl, metadata.csv or parq"),
    ],
)
def test_what_is_no_emu_edit_test_set_is_refused(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    folder = write_emu_edit(tmp_path / "emu")
    damage(folder)
    with pytest.raises(InputError, match=words):
        load_emu(folder)


def test_emu_edits_own_results_are_not_taken_for_the_test_set(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = {"bytes": png(picture(0)), "path": None}
    row = {**emu_fields(0), "image": image, "edited_image": image, "model": "emu_edit"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "test.parquet")
    with pytest.raises(
        InputError, match=r"the names of its splits swapped.* needs emu_edit_test_set; give"
    ):
        load_emu(tmp_path)


def test_a_damaged_parquet_file_and_rows_without_pictures_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"test.parquet: the parquet file is damaged"):
        load_emu(tmp_path)
    row = {**emu_fields(0), "image": {"bytes": None, "path": "a.png"}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"test.parquet, row 0 has no picture in image, needs"):
        load_emu(tmp_path).items[0].source.decode()


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="needs pyarrow; pip install pyarrow, or export the data"):
        load_emu(tmp_path)


def test_magicbrush_is_edited_from_the_truth_and_from_our_own_results(tmp_path: Path) -> None:
    benchmark = load_brush(write_magicbrush(tmp_path / "brush"))
    assert benchmark.blocks[ALL_TURNS] == (
        "1001_1",
        "1001_inde_2",
        "1001_inde_3",
        "1002_1",
        "2001_1",
        "2001_inde_2",
    )
    assert benchmark.blocks[FINAL_TURNS] == ("1001_iter_3", "1002_1", "2001_iter_2")
    items = {item.key: item for item in benchmark.items}
    assert set(items) == {*benchmark.blocks[ALL_TURNS], "1001_iter_2", "1001_iter_3", "2001_iter_2"}
    assert items["1001_iter_3"].follows == "1001_iter_2"
    assert items["1001_iter_2"].follows == "1001_1"
    assert items["1001_inde_3"].follows is None
    assert items["1001_inde_3"].source.where.endswith("1001-output2.png")
    assert items["1001_iter_3"].source.where.endswith("1001-input.png")
    for key in ("1001_inde_3", "1001_iter_3"):
        target = items[key].target
        assert target is not None
        assert target.where.endswith("1001-output3.png")
        assert (items[key].turn, items[key].session) == (3, "1001")
        assert items[key].instruction == SESSIONS["1001"][2]


def test_magicbrush_has_two_kinds_of_captions(tmp_path: Path) -> None:
    folder = write_magicbrush(tmp_path / "brush")
    local, whole = load_brush(folder / "test").items[0], load_brush(folder, "global").items[0]
    assert (local.source_caption, local.target_caption) == ("", "the cat")
    assert (whole.source_caption, whole.target_caption) == ("a city in the day", "a cat on grass")


def test_an_id_with_the_digits_of_another_turn_is_not_mistaken(tmp_path: Path) -> None:
    folder = write_magicbrush(tmp_path / "brush")
    text = (folder / "test" / "edit_sessions.json").read_text().replace("1002", "5_12")
    (folder / "test" / "edit_sessions.json").write_text(text)
    place = folder / "test" / "images" / "1002"
    for path in list(place.iterdir()):
        path.rename(path.with_name(path.name.replace("1002", "5_12")))
    place.rename(place.with_name("5_12"))
    benchmark = load_brush(folder)
    assert benchmark.blocks[FINAL_TURNS] == ("1001_iter_3", "5_12_1", "2001_iter_2")


def twice_in_a_file(folder: Path) -> None:
    path = folder / "test" / "edit_sessions.json"
    path.write_text(path.read_text().replace('"2001": [', '"1001": ['))


def local_captions(file: str, caption: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "test" / "local_descriptions.json"
        values = json.loads(path.read_text())
        values[file.partition("-")[0]][file] = caption
        path.write_text(json.dumps(values))

    return damage


def edit_sessions(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "test" / "edit_sessions.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "test/edit_sessions.json").unlink(), "has no edit_sessions.json beside"),
        (lambda f: (f / "test/edit_sessions.json").write_text("{"), "edit_sessions.json is not JS"),
        (lambda f: (f / "test/edit_sessions.json").write_text("{}"), "an object with a field per"),
        (lambda f: (f / "test/local_descriptions.json").unlink(), "no local_descriptions.json in"),
        (lambda f: (f / "test/images/1002/1002-input.png").unlink(), r"1 of .* \(1002-input.png\)"),
        (
            edit_sessions(lambda v: v["1002"][0].pop("output")),
            "1002, turn 1: there is no text 'out",
        ),
        (edit_sessions(lambda v: v.update({"1002": {}})), "session 1002: needs a list of turns"),
        (edit_sessions(lambda v: v.update({"1002": [3]})), "needs an object, got int"),
        (edit_sessions(lambda v: v["1002"][0].update(output="../x")), "needs the name of a file"),
        (twice_in_a_file, r"edit_sessions.json is not JSON \('1001' stands in it twice\)"),
        (
            edit_sessions(lambda v: v["1001"][1].update(instruction="a\ud8ff")),
            "session 1001, turn 2: instruction has the lone surrogate U.D8FF at position 1",
        ),
        (local_captions("1002-output1.png", None), "caption of 1002-output1.png is None, needs te"),
        (local_captions("1002-output1.png", "\udead"), "caption of 1002-output1.png has the lone"),
        (edit_sessions(lambda v: v.update({"x": v["1002"]})), "'1002_1' occurs twice"),
    ],
)
def test_what_is_no_magicbrush_test_set_is_refused(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    folder = write_magicbrush(tmp_path / "brush")
    damage(folder)
    with pytest.raises(InputError, match=words):
        load_brush(folder)


def test_a_limit_keeps_whole_sessions_and_a_filter_what_an_item_is_made_from(
    tmp_path: Path,
) -> None:
    benchmark = load_brush(write_magicbrush(tmp_path / "brush"))
    assert {item.session for item in benchmark.limited(2).items} == {"1001", "1002"}
    assert benchmark.limited(None) is benchmark
    last = benchmark.keep(lambda item: item.key == "1001_iter_3")
    assert [item.key for item in last.items] == ["1001_1", "1001_iter_2", "1001_iter_3"]
    assert last.blocks == {ALL_TURNS: (), FINAL_TURNS: ("1001_iter_3",)}
    single = benchmark.without(FINAL_TURNS)
    assert {item.key for item in single.items} == set(benchmark.blocks[ALL_TURNS])
    assert single.known == benchmark.known


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; give --data the folder"):
        load_emu(tmp_path / "nowhere")
