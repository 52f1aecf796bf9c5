"""ImgEdit: tasks from names of tables, pictures from oddly named archives, sessions."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datamodules.convert.imgedit import TASKS, list_pairs
from datamodules.convert.imgedit_files import task_in
from datamodules.convert.naming import TaskNaming
from datamodules.convert.pair import RawPair
from datamodules.convert.run import ConvertSettings, convert
from emu_edit.errors import BadDataError, InputError
from tests.datamodules.convert.released import (
    edited,
    pixels,
    quarantine,
    save,
    scene,
    write_parquet,
)
from tests.datamodules.convert.shards import read_back

NAMES = pa.list_(pa.string())
SINGLE = [("input_images", NAMES), ("output_images", NAMES), ("prompt", pa.string())]
SESSION = [("data", pa.list_(pa.struct(SINGLE)))]
SAMPLE = "00094_00030_000304748"


def row(folder: str, sample: str = SAMPLE, *, prompt: str = "remove the dog") -> dict:
    return {
        "input_images": [f"{folder}/{sample}/original.png"],
        "output_images": [f"{folder}/{sample}/result.png"],
        "prompt": prompt,
    }


def unpack(folder: Path, number: int, sample: str = SAMPLE) -> None:
    """Lay a sample's pictures down."""
    save(folder / sample / "original.png", scene(number))
    save(folder / sample / "result.png", edited(scene(number)))


def table(root: Path, name: str, *rows: dict) -> None:
    write_parquet(root / "Parquet" / f"{name}.parquet", SINGLE, list(rows))


def sources(out: Path) -> dict[str, np.ndarray]:
    """Return the source pictures by instruction."""
    samples = read_back(out)
    return {json.loads(one["json"])["instruction"]: pixels(one["source.png"]) for one in samples}


def test_rows_become_pairs(tmp_path):
    root = tmp_path / "ImgEdit"
    table(root, "remove_part5", row("results_remove_laion_part5"))
    unpack(root / "Singleturn" / "results_remove_laion_part5", 0)
    assert convert("imgedit", root, tmp_path / "out").written == {"remove": 1}
    (sample,) = read_back(tmp_path / "out")
    text = json.loads(sample["json"])
    assert np.array_equal(pixels(sample["source.png"]), scene(0))
    assert np.array_equal(pixels(sample["target.png"]), edited(scene(0)))
    assert (text["instruction"], text["raw_task"]) == ("remove the dog", "remove")
    assert (text["group"], text["origin"]) == (SAMPLE, "remove_part5.parquet, row 0")
    assert "mask.png" not in sample


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("add_part0", "add"),
        ("adjust_canny_part2", "adjust_canny"),
        ("results_remove_laion_part5", "remove"),
        ("style_transfer", "style_transfer"),
        ("style_transfer_part0_cap36472", "style_transfer"),
        ("reference_extract_part1", "reference_extract"),
        ("version_backtracking_part0", "version_backtracking"),
    ],
)
def test_the_task_is_in_the_name_of_the_table(name, task):
    assert task_in(name) == task
    assert task in TASKS


def test_a_table_of_an_unknown_task_stops_the_run(tmp_path):
    table(tmp_path / "in", "juggle_part0", row("x"))
    with pytest.raises(InputError, match=r"unknown task 'juggle' \(1 pair\)"):
        convert("imgedit", tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    "archive",
    [
        "results_replace_laion_part1",  # as the table says
        "results",  # as one archive of the hub unpacks
        "replace_part1",  # as a careful user calls it
        "mnt/data/makers/results_replace_laion_part1",  # with the makers' own path
    ],
)
def test_samples_are_found_whatever_their_archive_unpacks_to(tmp_path, archive):
    root = tmp_path / "in"
    table(root, "replace_part1", row("results_replace_laion_part1"))
    unpack(root / "Singleturn" / archive, 0)
    assert convert("imgedit", root, tmp_path / "out").written == {"local": 1}


def test_a_picture_edited_for_two_tasks_is_never_mixed_up(tmp_path):
    root = tmp_path / "in"
    table(root, "remove_part0", row("results_remove", prompt="remove it"))
    table(root, "replace_part0", row("replace", prompt="replace it"))
    unpack(root / "results_remove", 1)
    unpack(root / "replace_part0", 2)
    assert convert("imgedit", root, tmp_path / "out").written == {"local": 1, "remove": 1}
    found = sources(tmp_path / "out")
    assert np.array_equal(found["remove it"], scene(1))
    assert np.array_equal(found["replace it"], scene(2))


@pytest.mark.parametrize("archive", ["results_remove_laion_part0", "remove_part0", "x/remove"])
def test_the_archive_of_another_task_is_never_taken(tmp_path, archive):
    """Of two tables with one LAION picture, the archive of the second was not unpacked."""
    root = tmp_path / "in"
    table(root, "remove_part0", row("results_remove_laion_part0", prompt="remove it"))
    table(root, "replace_part0", row("results_replace_laion_part0", prompt="replace it"))
    unpack(root / archive, 1)
    report = convert("imgedit", root, tmp_path / "out")
    assert (report.written, report.skipped) == ({"remove": 1}, {"missing source": 1})
    ((name, _, detail),) = quarantine(tmp_path / "out")
    assert name == "replace_part0.parquet, row 0"
    assert f"but that of another task, {root / archive}" in detail


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("style_transfer_part0", "results_style_laion_part0"),
        ("adjust_part0", "adjust_canny_part0"),
        ("background_part0", "results_background_change"),
    ],
)
def test_an_archive_may_go_by_another_name_of_its_task(tmp_path, name, archive):
    table(tmp_path / "in", name, row("results"))
    unpack(tmp_path / "in" / archive, 1)
    assert sum(convert("imgedit", tmp_path / "in", tmp_path / "out").written.values()) == 1


def test_what_stays_ambiguous_is_refused(tmp_path):
    root = tmp_path / "in"
    table(root, "replace_part0", row("replace"))
    unpack(root / "a", 1)
    unpack(root / "b", 2)
    with pytest.raises(BadDataError, match="1 unreadable picture"):
        convert("imgedit", root, tmp_path / "out")
    detail = quarantine(tmp_path / "out")[0][2]
    assert f"{SAMPLE}/original.png is in 2 folders" in detail
    assert "none of them called replace; rename the one with this table's archive" in detail


def test_archives_still_in_pieces_are_explained(tmp_path):
    root = tmp_path / "in"
    table(root, "add_part0", row("results_add_laion_part0"))
    (root / "Singleturn").mkdir()
    (root / "Singleturn" / "results_add_laion_part0.tar.split.000").write_bytes(b"x")
    with pytest.raises(BadDataError, match="1 missing source"):
        convert("imgedit", root, tmp_path / "out")
    assert "cat X.tar.split.* > X.tar && tar xf X.tar" in quarantine(tmp_path / "out")[0][2]


def test_what_cannot_be_used_has_its_reason(tmp_path):
    root = tmp_path / "in"
    good = row("results_add_laion_part0")
    two = [*good["input_images"], "b.png"]
    table(
        root,
        "add_part0",
        good,
        {**good, "input_images": two},
        {**good, "input_images": []},
        {**good, "output_images": []},
        {**good, "input_images": None},
        {**good, "input_images": ["../../secret.png"]},
        {**good, "prompt": None},
    )
    unpack(root / "results_add_laion_part0", 0)
    convert("imgedit", root, tmp_path / "out")
    assert [reason for _, reason, _ in quarantine(tmp_path / "out")] == [
        "bad line",
        "missing source",
        "missing target",
        "bad line",
        "unsafe name",
        "empty instruction",
    ]
    assert "input_images names 2 pictures, an edit has one" in quarantine(tmp_path / "out")[0][2]


def session(prefix: str, turns: int) -> dict:
    return {
        "data": [
            {
                "input_images": [f"{prefix}/{SAMPLE}/origin_{turn}.png"],
                "output_images": [f"{prefix}/{SAMPLE}/result_{turn}.png"],
                "prompt": f"turn {turn}",
            }
            for turn in range(turns)
        ]
    }


def test_sessions_are_none_of_our_tasks_unless_one_is_given(tmp_path):
    root, prefix = tmp_path / "in", "results_content_memory_part2"
    path = root / "Parquet" / "content_memory_part2.parquet"
    write_parquet(path, SESSION, [session(prefix, 3)])
    for turn in range(3):
        save(root / prefix / SAMPLE / f"origin_{turn}.png", scene(turn))
        save(root / prefix / SAMPLE / f"result_{turn}.png", edited(scene(turn)))
    with pytest.raises(BadDataError, match="3 left out: 3 no task of ours"):
        convert("imgedit", root, tmp_path / "none")
    settings = ConvertSettings(naming=TaskNaming(given={"content_memory": "local"}))
    assert convert("imgedit", root, tmp_path / "out", settings).written == {"local": 3}
    found = sources(tmp_path / "out")
    assert all(np.array_equal(found[f"turn {turn}"], scene(turn)) for turn in range(3))
    texts = [json.loads(one["json"]) for one in read_back(tmp_path / "out")]
    assert sorted(text["turn"] for text in texts) == [1, 2, 3]
    assert len({text["session"] for text in texts}) == 1


def test_other_columns_are_named(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", [("image", pa.string())], [{}])
    wanted = "ImgEdit has the columns input_images or data, this one has image"
    with pytest.raises(InputError, match=wanted):
        convert("imgedit", tmp_path / "in", tmp_path / "out")


def test_listing_opens_no_picture(tmp_path):
    table(tmp_path, "add_part0", row("x"), row("y", "00000_00000_000000001"))
    listed = list(list_pairs(tmp_path))
    assert [type(item) for item in listed] == [RawPair, RawPair]
