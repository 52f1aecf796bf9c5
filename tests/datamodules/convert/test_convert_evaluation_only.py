"""Evaluation sets are refused by name and by what they hold, whatever converter is asked."""

import json
from pathlib import Path

import pytest

from datamodules.convert.picture import Picture
from datamodules.convert.run import convert
from datamodules.evaluation_sets.items import BenchmarkItem
from datamodules.shards.evaluation_only import refuse_columns
from emu_edit.cli.main import main
from emu_edit.errors import InputError
from emu_edit.evaluation.edits import item_line
from emu_edit.evaluation.outputs import failed
from tests.datamodules.benchmark_files import emu_fields, write_emu_edit
from tests.datamodules.convert.sets import before, cell, save, write_parquet
from tests.datamodules.convert.shards import of_task

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


@pytest.mark.parametrize("name", ["emu_edit_test_set.jsonl", "GEdit-Bench.jsonl"])
def test_a_file_is_known_by_its_name_without_the_extension(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="which is for evaluation only"):
        convert("jsonl", tmp_path / name, tmp_path / "out", of_task("local"))


def test_a_link_is_known_by_its_own_name_and_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "GEdit-Bench" / "a").mkdir(parents=True)
    (tmp_path / "mine").symlink_to(tmp_path / "GEdit-Bench" / "a")
    (tmp_path / "plain").mkdir()
    (tmp_path / "MSE-Bench").symlink_to(tmp_path / "plain")
    for name, known in (("mine", "GEdit-Bench"), ("MSE-Bench", "MSE-Bench")):
        with pytest.raises(InputError, match=f"is {known}, which is for evaluation only"):
            convert("folder", tmp_path / name, tmp_path / "out", of_task("local"))


def test_it_is_found_among_other_sets_of_one_folder(tmp_path: Path) -> None:
    """Below a folder of downloads, with the columns of a training set."""
    pytest.importorskip("pyarrow")
    pairs = {"edit_prompt": "x", "source_image": cell(before(0)), "edited_image": cell(before(1))}
    write_parquet(tmp_path / "all" / "good" / "a.parquet", [pairs])
    write_parquet(tmp_path / "all" / "ImgEdit-Bench" / "a.parquet", [pairs])
    with pytest.raises(InputError, match=r"ImgEdit-Bench/a\.parquet: is ImgEdit-Bench, which is"):
        convert("ultraedit", tmp_path / "all", tmp_path / "out", of_task("local"))
    assert not (tmp_path / "out").exists()


def test_shards_may_not_be_called_after_it(tmp_path: Path) -> None:
    save(tmp_path / "in" / "source" / "a.png", before(0))
    save(tmp_path / "in" / "target" / "a.png", before(1))
    line = {"file": "a.png", "instruction": "x", "task": "add"}
    (tmp_path / "in" / "instructions.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=MESSAGE):
        convert("folder", tmp_path / "in", tmp_path / "emu_edit_test_set")
    assert not (tmp_path / "emu_edit_test_set").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("benchmark.json", {"benchmark": "world", "pairs_sha256": "a"}),
        ("results.json", {"benchmark": "magicbrush", "protocol": {}}),
    ],
)
@pytest.mark.parametrize("place", ["", "images"])
def test_what_evaluate_writes_is_no_training_data(
    tmp_path: Path, name: str, content: dict[str, object], place: str
) -> None:
    """Pairs made of a benchmark's inputs and of a model's results."""
    root = tmp_path / "results"
    (root / place).mkdir(parents=True)
    (root / name).write_text(json.dumps(content))
    message = f"results: is of the benchmark '{content['benchmark']}' \\({name}\\), which is for"
    with pytest.raises(InputError, match=message):
        convert("folder", root / place, tmp_path / "out", of_task("local"))


def test_the_inputs_that_evaluate_really_writes_are_known(tmp_path: Path) -> None:
    asked = ["--write-inputs", str(tmp_path / "made"), "--pairs", "1", "--size", "16"]
    assert main(["evaluate", "--benchmark", "world", *asked]) == 0
    for source in (tmp_path / "made", tmp_path / "made" / "inputs.jsonl"):
        with pytest.raises(InputError, match="made: is of the benchmark 'world'"):
            convert("jsonl", source, tmp_path / "out", of_task("local"))


def test_the_lines_that_evaluate_really_writes_are_known() -> None:
    nothing = Picture.of(b"", "nowhere")
    item = BenchmarkItem(
        key="k",
        task="add",
        session="k",
        instruction="add a hat",
        source_caption="a cat",
        target_caption="a cat, a hat",
        source=nothing,
    )
    with pytest.raises(InputError, match=r"items\.jsonl:1: is the result of a benchmark"):
        refuse_columns(item_line(item, failed("k", "a", "no picture")), "items.jsonl:1")


def test_results_of_other_programs_are_no_mark(tmp_path: Path) -> None:
    save(tmp_path / "in" / "source" / "a.png", before(0))
    save(tmp_path / "in" / "target" / "a.png", before(1))
    line = {"file": "a.png", "instruction": "x", "task": "add"}
    (tmp_path / "in" / "instructions.jsonl").write_text(json.dumps(line))
    for number, text in enumerate(('{"benchmark": "speed"}', "[1]", "{torn", "")):
        (tmp_path / "in" / "results.json").write_text(text)
        report = convert("folder", tmp_path / "in", tmp_path / f"out{number}")
        assert report.written == {"add": 1}


def test_items_of_an_evaluation_are_known_by_their_columns(tmp_path: Path) -> None:
    line = {"key": "a", "source_sha256": "b", "output_sha256": "c", "status": "ok"}
    (tmp_path / "items.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=r"items.jsonl:1: is the result of a benchmark, which is"):
        convert("jsonl", tmp_path / "items.jsonl", tmp_path / "out", of_task("local"))


def test_pairs_with_some_of_its_columns_are_no_test_set(tmp_path: Path) -> None:
    for side, seed in (("source", 0), ("target", 1)):
        save(tmp_path / "in" / side / "a.png", before(seed))
    line = {"file": "a.png", "instruction": "x", "task": "add", "split": "train", "idx": 1}
    (tmp_path / "in" / "instructions.jsonl").write_text(json.dumps(line))
    assert convert("folder", tmp_path / "in", tmp_path / "out").written == {"add": 1}
