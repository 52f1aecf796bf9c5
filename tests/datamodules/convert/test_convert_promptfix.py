"""PromptFix: task names in ours, the raw ones kept, unknown ones told first."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.convert.naming import TaskNaming
from datamodules.convert.run import ConvertSettings, convert
from datamodules.shards.manifest import read_manifest
from emu_edit.errors import InputError
from tests.datamodules.convert.sets import after, before, cell, quarantine, samples, write_parquet

pytest.importorskip("pyarrow")


def row(seed: int, task: str) -> dict[str, object]:
    return {
        "input_img": cell(before(seed)),
        "processed_img": cell(after(seed)),
        "instruction": f"restore it {seed}",
        "auxiliary_prompt": f"a photograph {seed}" if seed % 2 else "",
        "task_id": task,
    }


TASKS = {
    "Deblur": "color",
    "Low-light": "color",
    "low_light_enhancement": "color",
    "Colorization": "color",
    "watermark removal": "remove",
    "Object Removal": "remove",
    "Desnow": "global",
    "dehaze": "global",
}


def test_every_task_is_mapped_and_its_own_name_kept(tmp_path: Path) -> None:
    rows = [row(seed, name) for seed, name in enumerate(TASKS)]
    write_parquet(tmp_path / "in" / "train-00000.parquet", rows)
    report = convert("promptfix", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == ({"remove": 2, "global": 2, "color": 4}, {})
    assert read_manifest(tmp_path / "out").made_by["raw_tasks"] == dict.fromkeys(sorted(TASKS), 1)
    found = {sample.text["raw_task"]: sample for sample in samples(tmp_path / "out")}
    assert {name: sample.text["task"] for name, sample in found.items()} == TASKS
    for seed, name in enumerate(TASKS):
        assert np.array_equal(found[name].source, before(seed))
        assert np.array_equal(found[name].target, after(seed))
        assert found[name].text["instruction"] == f"restore it {seed}"
    assert found["Low-light"].text["auxiliary_prompt"] == "a photograph 1"
    assert "auxiliary_prompt" not in found["Deblur"].text


def test_unknown_names_are_listed_with_their_counts_before_anything_is_written(
    tmp_path: Path,
) -> None:
    names = ["Deblur", "derain", "derain", "stile"]
    write_parquet(tmp_path / "a.parquet", [row(seed, name) for seed, name in enumerate(names)])
    message = (
        r"a.parquet: unknown task 'derain' \(2 pairs\). unknown task 'stile' \(1 pair\). "
        r"Did you mean 'style'\? known tasks: local, .*--map NAME=TASK, .*--map NAME=none"
    )
    with pytest.raises(InputError, match=message):
        convert("promptfix", tmp_path / "a.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_map_names_the_unknown_overrules_the_table_and_leaves_out(tmp_path: Path) -> None:
    names = ["Deblur", "derain", "dehaze"]
    write_parquet(tmp_path / "a.parquet", [row(seed, name) for seed, name in enumerate(names)])
    given = {"derain": "global", "DEBLUR": "local", "dehaze": None}
    settings = ConvertSettings(naming=TaskNaming(given=given))
    report = convert("promptfix", tmp_path / "a.parquet", tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"local": 1, "global": 1}, {"no task of ours": 1})
    detail = quarantine(tmp_path / "out")[0]["detail"]
    assert detail == "a.parquet, row 2: 'dehaze' is none of ours; to keep such pairs: " + (
        "--map 'dehaze=TASK'"
    )


def test_a_map_to_a_task_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown task 'colour'; .*Did you mean 'color'"):
        TaskNaming(given={"derain": "colour"})
