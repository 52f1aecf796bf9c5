"""OmniEdit: wordings, scores, its seven tasks, its validation files."""

import json

import numpy as np
import pyarrow as pa
import pytest

from datamodules.convert.gates import Gates
from datamodules.convert.parquet_sets import OMNIEDIT_TASKS as TASKS
from datamodules.convert.run import ConvertSettings, convert
from emu_edit.errors import InputError
from tests.datamodules.convert.released import (
    PICTURE,
    cell,
    edited,
    pixels,
    quarantine,
    scene,
    write_parquet,
)
from tests.datamodules.convert.shards import read_back

SCHEMA = [
    ("omni_edit_id", pa.string()),
    ("task", pa.string()),
    ("src_img", PICTURE),
    ("edited_img", PICTURE),
    ("edited_prompt_list", pa.list_(pa.string())),
    ("width", pa.int64()),
    ("height", pa.int64()),
    ("sc_score_1", pa.int64()),
    ("sc_score_2", pa.int64()),
    ("sc_reasoning", pa.string()),
    ("pq_score", pa.int64()),
    ("pq_reasoning", pa.string()),
    ("o_score", pa.float64()),
]


def row(number: int, task: str = "swap", **changes: object) -> dict:
    made = {
        "omni_edit_id": f"task_obj_{task}_{number}",
        "task": task,
        "src_img": cell(scene(number)),
        "edited_img": cell(edited(scene(number))),
        "edited_prompt_list": [f"swap {number}", f"please swap {number}", f"swap {number}", " "],
        "width": 32,
        "height": 24,
        "sc_score_1": 9,
        "sc_score_2": 10,
        "pq_score": 8,
        "o_score": 8.5,
    }
    return made | changes


def test_rows_become_pairs_with_wordings_and_scores(tmp_path):
    write_parquet(tmp_path / "in" / "data" / "train-00000-of-00001.parquet", SCHEMA, [row(0)])
    report = convert("omniedit", tmp_path / "in", tmp_path / "out")
    assert report.written == {"local": 1}
    (sample,) = read_back(tmp_path / "out")
    text = json.loads(sample["json"])
    assert np.array_equal(pixels(sample["source.png"]), scene(0))
    assert np.array_equal(pixels(sample["target.png"]), edited(scene(0)))
    assert (text["instruction"], text["instruction_alt"]) == ("swap 0", ["please swap 0"])
    assert text["raw_task"] == "swap"
    assert text["scores"] == {"sc_score_1": 9, "sc_score_2": 10, "pq_score": 8, "o_score": 8.5}


def test_the_key_is_the_sets_own_name_wherever_the_row_stands(tmp_path):
    for name, rows in (("a", [row(0), row(1)]), ("b", [row(1), row(0)])):
        write_parquet(tmp_path / name / f"{name}.parquet", SCHEMA, rows)
        convert("omniedit", tmp_path / name, tmp_path / f"{name}-out")
    keys = [
        {pixels(one["source.png"]).tobytes(): one["__key__"] for one in read_back(tmp_path / out)}
        for out in ("a-out", "b-out")
    ]
    assert keys[0] == keys[1]


def test_scores_are_gates(tmp_path):
    rows = [row(0), row(1, o_score=3.0), row(2, o_score=None)]
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, rows)
    settings = ConvertSettings(gates=Gates(scores={"o_score": 7.0}))
    report = convert("omniedit", tmp_path / "in", tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"local": 1}, {"low score": 2})


@pytest.mark.parametrize("score", [float("inf"), float("nan")])
def test_a_score_that_is_no_finite_number_is_none(tmp_path, score):
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, [row(0), row(1, o_score=score)])
    convert("omniedit", tmp_path / "in", tmp_path / "all")
    scores = [
        json.loads(sample["json"])["scores"]["o_score"] for sample in read_back(tmp_path / "all")
    ]
    assert scores == [8.5, None]
    settings = ConvertSettings(gates=Gates(scores={"o_score": 7.0}))
    assert convert("omniedit", tmp_path / "in", tmp_path / "out", settings).skipped == {
        "low score": 1
    }


def test_the_seven_tasks_have_names_of_ours(tmp_path):
    rows = [row(i, task) for i, task in enumerate(TASKS)]
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, rows)
    report = convert("omniedit", tmp_path / "in", tmp_path / "out")
    assert report.written == {
        "local": 2, "remove": 1, "add": 1, "background": 1, "global": 1, "style": 1
    }  # fmt: skip


@pytest.mark.parametrize("prompts", [None, [], ["", "  "]])
def test_a_row_without_words_is_left_out(tmp_path, prompts):
    rows = [row(0), row(1, edited_prompt_list=prompts)]
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, rows)
    convert("omniedit", tmp_path / "in", tmp_path / "out")
    ((name, reason, detail),) = quarantine(tmp_path / "out")
    assert (name, reason) == ("a.parquet, row 1", "empty instruction")
    assert "edited_prompt_list has no text" in detail


def test_words_that_are_no_list_are_a_bad_line(tmp_path):
    schema = [
        (name, pa.string() if name == "edited_prompt_list" else kind) for name, kind in SCHEMA
    ]
    write_parquet(tmp_path / "in" / "a.parquet", schema, [row(0, edited_prompt_list="swap it")])
    with pytest.raises(InputError, match="no pair is left to write: 1 left out: 1 bad line"):
        convert("omniedit", tmp_path / "in", tmp_path / "out")
    assert "needs a list of texts" in quarantine(tmp_path / "out")[0][2]


def test_a_doubled_name_is_written_once(tmp_path):
    rows = [row(0), row(1, omni_edit_id="task_obj_swap_0")]
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, rows)
    report = convert("omniedit", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == ({"local": 1}, {"duplicate": 1})


@pytest.mark.parametrize("dev", ["dev-00000-of-00004", "dev", "dev/0000", "Validation"])
def test_validation_files_of_a_folder_stay_out(tmp_path, dev):
    for number, name in enumerate(("train-00000-of-00001", dev)):
        write_parquet(tmp_path / "in" / "data" / f"{name}.parquet", SCHEMA, [row(number)])
    report = convert("omniedit", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == ({"local": 1}, {"validation table": 1})


def test_unknown_tasks_and_missing_columns_are_named(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", SCHEMA, [row(0, "teleport")])
    with pytest.raises(InputError, match=r"unknown task 'teleport' \(1 pair\)"):
        convert("omniedit", tmp_path / "in", tmp_path / "out")
    write_parquet(tmp_path / "other" / "a.parquet", SCHEMA[:3], [])
    with pytest.raises(InputError, match="OmniEdit has the columns edited_img, edited_prompt_list"):
        convert("omniedit", tmp_path / "other", tmp_path / "out")
