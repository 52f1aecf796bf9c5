"""Evaluation sets are refused by name and by what they hold, whatever converter is asked."""

import json
from pathlib import Path

import pytest

from datamodules.convert.run import convert
from emu_edit.errors import InputError
from tests.convert.sets import before, cell, save, write_parquet
from tests.convert.shards import of_task
from tests.data.benchmark_files import emu_fields, write_emu_edit

MESSAGE = "is the Emu Edit test set, which is for evaluation only and never becomes training data"


@pytest.mark.parametrize("kind", ["emu-edit", "emu_edit_test_set", "Emu-Edit"])
def test_there_is_no_converter_for_it(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=f"^{kind}: {MESSAGE}; measure with it"):
        convert(kind, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "emu_edit_test_set",
        "emu_edit_test_set_generations",
        "datasets--facebook--emu_edit_test_set/snapshots/0",
        "Emu-Edit-Test-Set/data",
    ],
)
@pytest.mark.parametrize("kind", ["folder", "ultraedit", "hq-edit"])
def test_it_is_known_by_its_name(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match=MESSAGE):
        convert(kind, tmp_path / name, tmp_path / "out", of_task("local"))


@pytest.mark.parametrize("kind", ["magicbrush", "ultraedit", "promptfix", "instruct-pix2pix"])
def test_a_renamed_copy_is_known_by_its_columns(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("pyarrow")
    rows = [{**emu_fields(index), "image": cell(before(index))} for index in range(3)]
    write_parquet(tmp_path / "mine" / "a.parquet", rows)
    with pytest.raises(InputError, match=f"a.parquet: {MESSAGE}"):
        convert(kind, tmp_path / "mine", tmp_path / "out", of_task("local"))


def test_an_export_of_it_is_known_by_its_columns(tmp_path: Path) -> None:
    folder = write_emu_edit(tmp_path / "mine")
    with pytest.raises(InputError, match=f"metadata.jsonl:1: {MESSAGE}"):
        convert("jsonl", folder / "metadata.jsonl", tmp_path / "out", of_task("local"))
    with pytest.raises(InputError, match=f"metadata.jsonl:1: {MESSAGE}"):
        convert("ultraedit", folder, tmp_path / "out", of_task("local"))


def test_pairs_with_some_of_its_columns_are_no_test_set(tmp_path: Path) -> None:
    for side, seed in (("source", 0), ("target", 1)):
        save(tmp_path / "in" / side / "a.png", before(seed))
    line = {"file": "a.png", "instruction": "x", "task": "add", "split": "train", "idx": 1}
    (tmp_path / "in" / "instructions.jsonl").write_text(json.dumps(line))
    assert convert("folder", tmp_path / "in", tmp_path / "out").written == {"add": 1}
