"""AnyEdit: both layouts, misaligned rows, types without underscores, third pictures."""

import json

import numpy as np
import pyarrow as pa
import pytest

from datamodules.convert.anyedit import PROBED, TASKS, list_pairs
from datamodules.convert.pair import RawPair
from datamodules.convert.parquet import PICTURE_ROWS, PictureColumn
from datamodules.convert.run import ConvertSettings, Part, convert
from emu_edit.errors import InputError
from tests.datamodules.convert.released import (
    PICTURE,
    cell,
    edited,
    pixels,
    quarantine,
    save,
    scene,
    write_lines,
    write_parquet,
)
from tests.datamodules.convert.shards import read_back

SCHEMA = [
    ("image_id", pa.string()),
    ("edit_instruction", pa.string()),
    ("edit_type", pa.string()),
    ("image_file", PICTURE),
    ("edited_file", PICTURE),
    ("visual_input", PICTURE),
    ("input", pa.string()),
    ("output", pa.string()),
]


def row(number: int, edit_type: str = "replace", *, target: int | None = None) -> dict:
    of_target = number if target is None else target
    return {
        "image_id": f"COCO_{number}",
        "edit_instruction": f"replace thing {number}",
        "edit_type": edit_type,
        "image_file": cell(scene(number)),
        "edited_file": cell(edited(scene(of_target))),
        "input": f"a thing {number}",
        "output": f"another thing {number}",
    }


def test_rows_become_pairs_with_all_they_have(tmp_path):
    rows = [row(0), row(1, "tune_transfer"), row(2, "color_alter")]
    write_parquet(tmp_path / "in" / "data" / "train-00000-of-00001.parquet", SCHEMA, rows)
    report = convert("anyedit", tmp_path / "in", tmp_path / "out")
    assert report.written == {"local": 2, "global": 1}
    samples = {json.loads(one["json"])["raw_task"]: one for one in read_back(tmp_path / "out")}
    sample = samples["replace"]
    text = json.loads(sample["json"])
    assert np.array_equal(pixels(sample["source.png"]), scene(0))
    assert np.array_equal(pixels(sample["target.png"]), edited(scene(0)))
    assert (text["instruction"], text["task"]) == ("replace thing 0", "local")
    assert (text["source_caption"], text["target_caption"]) == ("a thing 0", "another thing 0")
    assert (text["dataset"], text["group"]) == ("anyedit", "COCO_0")
    assert "mask.png" not in sample


def test_keys_are_the_same_in_every_run(tmp_path):
    path = tmp_path / "in" / "train-00000-of-00001.parquet"
    write_parquet(path, SCHEMA, [row(0), row(1)])
    keys = []
    for out in ("first", "second"):
        convert("anyedit", tmp_path / "in", tmp_path / out)
        keys.append(sorted(sample["__key__"] for sample in read_back(tmp_path / out)))
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 2


@pytest.mark.parametrize("raw", ["appearancealter", "appearance_alter", "AppearanceAlter"])
def test_types_are_read_with_and_without_underscores(tmp_path, raw):
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, [row(0, raw)])
    assert convert("anyedit", tmp_path / "in", tmp_path / "out").written == {"local": 1}
    text = json.loads(read_back(tmp_path / "out")[0]["json"])
    assert text["raw_task"] == raw


def test_the_split_release_has_the_type_in_the_name_of_the_file(tmp_path):
    schema = [field for field in SCHEMA if field[0] != "edit_type"]
    rows = [{name: value for name, value in row(0).items() if name != "edit_type"}]
    write_parquet(tmp_path / "in" / "data" / "stylechange-00000-of-00003.parquet", schema, rows)
    assert convert("anyedit", tmp_path / "in", tmp_path / "out").written == {"style": 1}


def test_a_misaligned_row_is_quarantined_and_a_bold_style_is_not(tmp_path):
    rows = [row(i) for i in range(8)]
    rows += [row(8, target=108), row(9, "style_change", target=109)]
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, rows)
    report = convert("anyedit", tmp_path / "in", tmp_path / "out")
    assert report.written == {"local": 8, "style": 1}
    ((name, reason, detail),) = quarantine(tmp_path / "out")
    assert (name, reason) == ("a.parquet, row 8", "pictures unlike each other")
    assert "of the picture, such an edit needs 15%" in detail


def test_a_file_whose_rows_are_shifted_is_quarantined_as_a_whole(tmp_path):
    """A shift by one: some targets look like their new source by chance, and go out as well."""
    shifted = [row(i, target=i + 1) for i in range(30)]
    write_parquet(tmp_path / "in" / "bad.parquet", SCHEMA, shifted)
    write_parquet(tmp_path / "in" / "good.parquet", SCHEMA, [row(i) for i in range(100, 110)])
    report = convert("anyedit", tmp_path / "in", tmp_path / "out")
    assert report.written == {"local": 10}
    assert report.skipped == {"pictures unlike each other": 30}
    detail = quarantine(tmp_path / "out")[0][2]
    assert detail.startswith("bad.parquet: rows are misaligned: ")
    assert f"of its first {PROBED} local edits have a target unlike their source" in detail


def test_types_that_need_a_third_picture_or_are_no_task_are_counted(tmp_path):
    rows = [row(0), row(1, "visual_sketch"), row(2, "visualbbox"), row(3, "counting")]
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, rows)
    report = convert("anyedit", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == ({"local": 1}, {"no task of ours": 3})


def test_an_instruction_that_speaks_of_a_third_picture_is_left_out(tmp_path):
    rows = [row(0), {**row(1), "edit_instruction": "Replace the elephants to [v*]"}]
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, rows)
    convert("anyedit", tmp_path / "in", tmp_path / "out")
    ((name, reason, detail),) = quarantine(tmp_path / "out")
    assert (name, reason) == ("a.parquet, row 1", "bad instruction")
    assert "speaks of a third picture" in detail


def test_an_unknown_type_stops_the_run_with_its_count(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, [row(0), row(1, "levitate")])
    with pytest.raises(InputError, match=r"unknown task 'levitate' \(1 pair\)"):
        convert("anyedit", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_columns_are_named(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", [("input_image", PICTURE)], [{}])
    wanted = (
        "AnyEdit has the columns image_file, edited_file, edit_instruction or edit, this one has"
    )
    with pytest.raises(InputError, match=wanted):
        convert("anyedit", tmp_path / "in", tmp_path / "out")


def test_the_authors_own_lines_are_read(tmp_path):
    save(tmp_path / "in" / "COCO_0.jpg", scene(0))
    save(tmp_path / "in" / "edited" / "0.png", edited(scene(0)))
    line = {
        "edit": "change the airplane to green",
        "edited object": "airplane",
        "input": "a small airplane",
        "output": "a green small airplane",
        "edit_type": "color_alter",
        "visual_input": "None",
        "image_file": "COCO_0.jpg",
        "edited_file": "edited/0.png",
    }
    write_lines(tmp_path / "in" / "color_alter.jsonl", line)
    assert convert("anyedit", tmp_path / "in", tmp_path / "out").written == {"local": 1}
    text = json.loads(read_back(tmp_path / "out")[0]["json"])
    assert (text["instruction"], text["edited_object"]) == (line["edit"], "airplane")


def test_validation_files_of_a_folder_stay_out(tmp_path):
    for name, number in (("train-00000-of-00001", 0), ("validation-00000-of-00001", 1)):
        write_parquet(tmp_path / "in" / "data" / f"{name}.parquet", SCHEMA, [row(number)])
    report = convert("anyedit", tmp_path / "in", tmp_path / "out")
    assert report.written == {"local": 1}
    ((name, reason, detail),) = quarantine(tmp_path / "out")
    assert (name, reason) == ("validation-00000-of-00001.parquet", "validation table")
    assert "give the file itself as SRC" in detail
    held_out = tmp_path / "in" / "data" / "validation-00000-of-00001.parquet"
    assert convert("anyedit", held_out, tmp_path / "val").written == {"local": 1}


def test_the_hubs_own_copies_have_split_and_type_in_the_names_of_folders(tmp_path):
    """`default/SPLIT/0000.parquet`: the same name for all files."""
    write_parquet(tmp_path / "in" / "default" / "train" / "0000.parquet", SCHEMA, [row(0)])
    write_parquet(tmp_path / "in" / "default" / "validation" / "0000.parquet", SCHEMA, [row(1)])
    report = convert("anyedit", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == ({"local": 1}, {"validation table": 1})
    schema = [field for field in SCHEMA if field[0] != "edit_type"]
    by_type = {name: value for name, value in row(0).items() if name != "edit_type"}
    write_parquet(
        tmp_path / "split" / "default" / "stylechange" / "0000.parquet", schema, [by_type]
    )
    assert convert("anyedit", tmp_path / "split", tmp_path / "styles").written == {"style": 1}


def test_what_no_json_can_hold_costs_its_row_and_not_the_run(tmp_path):
    """A lone surrogate, as JSON may spell one, in a field that travels along."""
    save(tmp_path / "in" / "0.png", scene(0))
    save(tmp_path / "in" / "1.png", edited(scene(0)))
    line = {"edit": "x", "edit_type": "style_change", "image_file": "0.png", "edited_file": "1.png"}
    bad = {"edited object": "\ud800"}, {"image_id": "\ud800"}
    write_lines(tmp_path / "in" / "a.jsonl", *({**line, **fields} for fields in bad), line)
    settings = ConvertSettings(part=Part("train", 1e-6))  # which hashes the group
    report = convert("anyedit", tmp_path / "in", tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"style": 1}, {"bad line": 2})
    details = [detail for _, _, detail in quarantine(tmp_path / "out")]
    assert details[0].endswith(r"edited_object is '\ud800', which no json of UTF-8 can hold")
    assert r"group is '\ud800'" in details[1]


def test_listing_holds_one_batch_of_pictures_however_long_the_file_is(tmp_path, monkeypatch):
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, [row(i) for i in range(100)])
    held, fetch = [], PictureColumn.fetch

    def counted(self: PictureColumn, where: str, group: int, number: int) -> bytes:
        data = fetch(self, where, group, number)
        held.append(self.rows_held)
        return data

    monkeypatch.setattr(PictureColumn, "fetch", counted)
    listed = sum(isinstance(item, RawPair) for item in list_pairs(tmp_path / "in"))
    assert (listed, len(held)) == (100, 2 * PROBED)  # only the probed rows were fetched
    convert("anyedit", tmp_path / "in", tmp_path / "out")
    assert max(held) <= PICTURE_ROWS


def test_every_type_of_the_release_is_in_the_table():
    """25 types by image_field.md §5, and one spelling more."""
    assert len(TASKS) == 26
