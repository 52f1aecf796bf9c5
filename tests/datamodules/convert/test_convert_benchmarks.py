"""Benchmarks are known by their columns, files and names, whatever the folder is called."""

import pytest

from datamodules.convert.run import convert
from datamodules.shards.evaluation_only import refuse_columns, refuse_path
from emu_edit.errors import InputError
from tests.datamodules.convert.released import write_lines
from tests.datamodules.convert.test_convert_anyedit import SCHEMA as ANYEDIT
from tests.datamodules.convert.test_convert_omniedit import SCHEMA as OMNIEDIT

COLUMNS = {
    "GEdit-Bench": [
        "key",
        "task_type",
        "instruction",
        "instruction_language",
        "input_image",
        "Intersection_exist",
    ],
    "MSE-Bench": ["image", "context", "description_source", "description_target", "operation"],
    "CompBench": [
        "task",
        "image_path",
        "input_image",
        "edited_image",
        "instruction",
        "caption",
        "mask",
    ],
    "ImagenHub's benchmark": [
        "img_id",
        "turn_index",
        "source_img",
        "mask_img",
        "instruction",
        "target_global_caption",
        "target_local_caption",
        "target_img",
    ],
}
TRAINING = {
    "MagicBrush": ["img_id", "turn_index", "source_img", "mask_img", "instruction", "target_img"],
    "AnyEdit": [name for name, _ in ANYEDIT],
    "OmniEdit": [name for name, _ in OMNIEDIT],
    "SEED": ["source_image", "target_image", "instruction"],
    "a user's": ["image", "task", "instruction", "caption", "mask"],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_benchmark_is_known_by_its_columns(name):
    with pytest.raises(InputError, match=f"x.parquet: is {name}, which is for evaluation only"):
        refuse_columns(COLUMNS[name], "x.parquet")


@pytest.mark.parametrize("name", TRAINING)
def test_training_sets_are_not_taken_for_benchmarks(name):
    refuse_columns(TRAINING[name], "x.parquet")


@pytest.mark.parametrize("file", ["basic_edit.json", "UGE_edit.json"])
def test_imgedit_bench_is_known_by_its_lists(tmp_path, file):
    (tmp_path / file).write_text("{}")
    with pytest.raises(InputError, match="is ImgEdit-Bench, which is for evaluation only"):
        convert("imgedit", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["GEdit-Bench", "datasets--stepfun-ai--GEdit-Bench", "MSE-Bench"])
def test_a_benchmark_is_known_by_the_name_of_its_folder(tmp_path, name):
    with pytest.raises(InputError, match="-Bench, which is for evaluation only"):
        refuse_path(tmp_path / name / "data")


def test_a_converter_refuses_a_benchmarks_table(tmp_path):
    row = dict.fromkeys(COLUMNS["GEdit-Bench"], "x")
    write_lines(tmp_path / "in" / "a.jsonl", row)
    with pytest.raises(InputError, match=r"a\.jsonl:1: is GEdit-Bench, which is for evaluation"):
        convert("seed-data-edit", tmp_path / "in", tmp_path / "out")
