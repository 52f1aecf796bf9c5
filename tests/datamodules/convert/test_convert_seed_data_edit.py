"""SEED-Data-Edit: single pairs, sessions by turn, where pictures are looked for, broken folders."""

import json

import numpy as np
import pytest

from datamodules.convert.naming import TaskNaming
from datamodules.convert.pair import RawPair
from datamodules.convert.picture import MissingPictureError
from datamodules.convert.run import ConvertSettings, convert
from datamodules.convert.seed_data_edit import list_pairs
from emu_edit.errors import InputError
from tests.datamodules.convert.released import edited, pixels, quarantine, save, scene, write_lines
from tests.datamodules.convert.shards import of_task, read_back

GENERAL = of_task("local")


@pytest.fixture
def folder(tmp_path):
    """Part 2 as it unpacks: annotations/ and images/ beside each other."""
    root = tmp_path / "real_editing"
    rows = []
    for number in range(3):
        save(root / "images" / f"{number}_src.png", scene(number))
        save(root / "images" / f"{number}_tgt.png", edited(scene(number)))
        rows.append({
            "source_image": f"{number}_src.png",
            "target_image": f"{number}_tgt.png",
            "instruction": f"real wish {number}",
        })
    write_lines(root / "annotations" / "split_0001.jsonl", *rows)
    return root


@pytest.fixture
def sessions(tmp_path):
    """Part 3: two sessions, of three turns and of one."""
    root = tmp_path / "multi_turn_editing"
    rows = []
    for number, turns in enumerate((3, 1)):
        row = {"source_image": f"d/{number}/source.png"}
        save(root / "images" / "data" / row["source_image"], scene(10 * number))
        for turn in range(1, turns + 1):
            row[f"edit_image_{turn}"] = f"d/{number}/edit{turn}.png"
            row[f"instruction_{turn}"] = f"turn {turn} of {number}"
            row[f"inverse_instruction_{turn}"] = f"undo {turn} of {number}"
            picture = edited(scene(10 * number + turn))
            save(root / "images" / "data" / f"d/{number}/edit{turn}.png", picture)
        rows.append(row)
    write_lines(root / "annotations" / "split_0001.jsonl", *rows)
    return root


def by_instruction(out) -> dict[str, tuple[dict, dict]]:
    found = {}
    for sample in read_back(out):
        text = json.loads(sample["json"])
        found[text["instruction"]] = (text, sample)
    return found


def test_rows_become_pairs(folder, tmp_path):
    report = convert("seed-data-edit", folder, tmp_path / "out", GENERAL)
    assert report.written == {"local": 3}
    text, sample = by_instruction(tmp_path / "out")["real wish 1"]
    assert np.array_equal(pixels(sample["source.png"]), scene(1))
    assert np.array_equal(pixels(sample["target.png"]), edited(scene(1)))
    assert text["group"] == "1_src.png"
    assert text["origin"] == "annotations/split_0001.jsonl:2"


def test_a_session_gives_a_pair_for_each_turn(sessions, tmp_path):
    report = convert("seed-data-edit", sessions, tmp_path / "out", GENERAL)
    assert report.written == {"local": 4}
    found = by_instruction(tmp_path / "out")
    text, first = found["turn 1 of 0"]
    assert np.array_equal(pixels(first["source.png"]), scene(0))
    assert np.array_equal(pixels(first["target.png"]), edited(scene(1)))
    third_text, third = found["turn 3 of 0"]
    assert np.array_equal(pixels(third["source.png"]), edited(scene(2)))
    assert np.array_equal(pixels(third["target.png"]), edited(scene(3)))
    assert (third_text["turn"], third_text["inverse_instruction"]) == (3, "undo 3 of 0")
    assert third_text["session"] == text["session"] != found["turn 1 of 1"][0]["session"]


def test_a_hole_in_a_session_is_never_bridged(sessions, tmp_path):
    lines = sessions / "annotations" / "split_0001.jsonl"
    row = json.loads(lines.read_text().splitlines()[0])
    write_lines(lines, {**row, "edit_image_2": None})
    report = convert("seed-data-edit", sessions, tmp_path / "out", GENERAL)
    assert report.written == {"local": 1}
    assert [(name[-6:], reason) for name, reason, _ in quarantine(tmp_path / "out")] == [
        ("turn 2", "missing target"),
        ("turn 3", "missing target"),
    ]
    write_lines(lines, {**row, "instruction_2": None})
    report = convert("seed-data-edit", sessions, tmp_path / "again", GENERAL)
    assert (report.written, report.skipped) == ({"local": 2}, {"empty instruction": 1})


@pytest.mark.parametrize("lacks", ["target_image", "source_image"])
def test_a_row_without_a_picture_is_counted_and_not_passed_over(folder, tmp_path, lacks):
    lines = folder / "annotations" / "split_0001.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    del rows[1][lacks]
    write_lines(lines, *rows)
    report = convert("seed-data-edit", folder, tmp_path / "out", GENERAL)
    reason = lacks.replace("_image", "")
    assert (report.listed, report.written) == (3, {"local": 2})
    assert report.skipped == {f"missing {reason}": 1}
    assert f"split_0001.jsonl:2: there is no {lacks}" in quarantine(tmp_path / "out")[0][2]


def test_short_sessions_that_are_filled_up_have_no_turns_to_miss(sessions, tmp_path):
    lines = sessions / "annotations" / "split_0001.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    empty = {f"{name}_{turn}": None for name in ("edit_image", "instruction") for turn in (2, 3)}
    write_lines(lines, rows[0], {**rows[1], **empty})
    report = convert("seed-data-edit", sessions, tmp_path / "out", GENERAL)
    assert (report.written, report.skipped) == ({"local": 4}, {})


def test_sources_and_targets_of_equal_names_are_not_mixed_up(tmp_path):
    root = tmp_path / "openimages"
    rows = []
    for number in range(3):
        name = f"{number}.png"
        save(root / "source_images" / name, scene(number))
        save(root / "target_images" / name, edited(scene(number)))
        rows.append({"source_image": name, "target_image": name, "instruction": f"wish {number}"})
    write_lines(root / "annotations" / "split_0001.jsonl", *rows)
    report = convert("seed-data-edit", root, tmp_path / "out", GENERAL)
    assert (report.written, report.skipped) == ({"local": 3}, {})
    for number in range(3):
        _, sample = by_instruction(tmp_path / "out")[f"wish {number}"]
        assert np.array_equal(pixels(sample["source.png"]), scene(number))
        assert np.array_equal(pixels(sample["target.png"]), edited(scene(number)))


@pytest.mark.parametrize(
    "place", ["", "images", "data", "images/data", "source_images", "unsplash_images"]
)
def test_pictures_are_found_where_the_archives_unpack_to(tmp_path, place):
    root = tmp_path / "part"
    names = {"source_image": "a/s.png", "target_image": "a/t.png"}
    for name, picture in (("a/s.png", scene(0)), ("a/t.png", edited(scene(0)))):
        save(root / place / name, picture)
    write_lines(root / "annotations" / "split_0001.jsonl", {**names, "instruction": "x"})
    for source in (root, root / "annotations", root / "annotations" / "split_0001.jsonl"):
        out = tmp_path / f"out-{source.name}"
        assert convert("seed-data-edit", source, out, GENERAL).written == {"local": 1}


def test_sources_and_targets_may_lie_apart(tmp_path):
    root = tmp_path / "openimages"
    save(root / "source_images" / "s.png", scene(0))
    save(root / "target_images" / "t.png", edited(scene(0)))
    row = {"source_image": "s.png", "target_image": "t.png", "instruction": "x"}
    write_lines(root / "annotations" / "split_0001.jsonl", row)
    convert("seed-data-edit", root, tmp_path / "out", GENERAL)
    (sample,) = read_back(tmp_path / "out")
    assert np.array_equal(pixels(sample["target.png"]), edited(scene(0)))


def test_rewritten_words_are_pairs_of_their_own(folder, tmp_path):
    row = {"source_image": "0_src.png", "target_image": "0_tgt.png", "instruction": "reworded"}
    write_lines(folder / "annotations_GPT4V" / "split_0001.jsonl", row)
    assert convert("seed-data-edit", folder, tmp_path / "out", GENERAL).written == {"local": 4}
    found = by_instruction(tmp_path / "out")
    assert found["reworded"][0]["group"] == found["real wish 0"][0]["group"]


def test_the_sets_broken_folders_stay_out(folder, tmp_path):
    lines = folder / "annotations" / "split_0001.jsonl"
    good = json.loads(lines.read_text().splitlines()[0])
    bad = [
        {**good, "target_image": f"20240330_315P_1323turns/Data/{number}/1.jpg"}
        for number in (207, 208, 212, 213)
    ]
    write_lines(lines, good, *bad)
    report = convert("seed-data-edit", folder, tmp_path / "out", GENERAL)
    assert report.skipped == {"listed as bad": 2, "missing target": 2}


def test_what_cannot_be_used_has_its_reason(folder, tmp_path):
    lines = folder / "annotations" / "split_0001.jsonl"
    good = json.loads(lines.read_text().splitlines()[0])
    write_lines(
        lines,
        good,
        {**good, "source_image": "../up.png"},
        {**good, "source_image": None},
        {**good, "source_image": "gone.png"},
        {**good, "instruction": 5},
        {**good, "instruction": "None"},
    )
    convert("seed-data-edit", folder, tmp_path / "out", GENERAL)
    rows = quarantine(tmp_path / "out")
    assert [reason for _, reason, _ in rows] == [
        "unsafe name",
        "missing source",
        "missing source",
        "bad line",
        "empty instruction",
    ]
    assert "join the archive's pieces and unpack them to" in rows[2][2]


def test_no_task_is_named_so_one_is_needed(folder, tmp_path):
    with pytest.raises(InputError, match=r"names no task \(3 of 3 pairs name none\)"):
        convert("seed-data-edit", folder, tmp_path / "out")
    lines = folder / "annotations" / "split_0001.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    write_lines(lines, {**rows[0], "instruction": "remove the cat"}, *rows[1:])
    settings = ConvertSettings(naming=TaskNaming("local", by_words=True))
    report = convert("seed-data-edit", folder, tmp_path / "out", settings)
    assert report.written == {"local": 2, "remove": 1}


def test_other_fields_are_named(tmp_path):
    write_lines(tmp_path / "in" / "a.jsonl", {"img": "a.png", "text": "x"})
    wanted = (
        "SEED-Data-Edit has the columns source_image, target_image or edit_image_1, instruction"
    )
    with pytest.raises(InputError, match=wanted):
        convert("seed-data-edit", tmp_path / "in", tmp_path / "out")


def test_listing_opens_no_picture(folder):
    listed = list(list_pairs(folder))
    for picture in (folder / "images").iterdir():
        picture.unlink()
    assert [item.name for item in list_pairs(folder)] == [item.name for item in listed]
    assert isinstance(listed[0], RawPair)
    with pytest.raises(MissingPictureError, match=r"0_src\.png: no such file beside"):
        listed[0].source.fetch()
