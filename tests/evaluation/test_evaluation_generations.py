"""`evaluate GENERATIONS --benchmark emu-edit`: Emu Edit's published results, scored as they are."""

import json
from pathlib import Path

import pytest

from tests.datamodules.benchmark_files import (
    EMU_KEYS,
    generation,
    parquet_rows,
    struct,
    write_exported_generations,
    write_generations,
)
from tests.evaluation.benchmark_runs import evaluate, refused

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("quick_intervals")


def test_published_results_score_like_the_same_pictures_as_files(
    emu: Path, made: Path, backbones: Path, tmp_path: Path
) -> None:
    wanted = evaluate(made, emu, backbones)
    for name, write in (("tables", write_generations), ("export", write_exported_generations)):
        (tmp_path / "out").rename(tmp_path / f"before-{name}")
        found = evaluate(write(tmp_path / name), emu, backbones)
        assert found.results["blocks"] == wanted.results["blocks"]
        scores = {key: line["scores"] for key, line in found.items.items()}
        assert scores == {key: line["scores"] for key, line in wanted.items.items()}
        assert found.results["model"]["name"] == name
        assert found.results["model"]["kind"] == "pictures"
        assert found.results["failed"] == []
    page = (tmp_path / "out" / "index.html").read_text()
    assert "add a hat to the cat" in page


def test_the_other_split_is_asked_for_by_the_test_sets_own_name(
    emu: Path, backbones: Path, tmp_path: Path
) -> None:
    folder = write_generations(tmp_path / "tables")
    run = evaluate(folder, emu, backbones, "--split", "validation")
    assert set(run.items) == {"validation-style-0"}


def test_rows_that_are_missing_or_damaged_count_as_not_edited_where_that_is_allowed(
    emu: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**generation(i), "edited_image": struct(50 + i)} for i in (0, 1, 2)]
    rows[1]["edited_image"] = {"bytes": b"\x89PNG\r\n\x1a\n", "path": None}
    parquet_rows(tmp_path / "tables", "a.parquet", rows)
    told = refused(capsys, tmp_path / "tables", emu, backbones)
    assert "tables lacks 1 of 4 pictures (test-remove-5)" in told
    run = evaluate(tmp_path / "tables", emu, backbones, "--allow-missing", status=1)
    reasons = {one["key"]: one["reason"] for one in run.results["failed"]}
    assert set(reasons) == {"test-global-0", "test-remove-5"}
    assert reasons["test-global-0"].startswith("a.parquet, row 1: is a damaged PNG")
    assert run.items["test-global-0"]["scores"]["l1"] == 0


def test_what_is_wrong_with_the_rows_is_one_line_before_anything_is_written(
    emu: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**generation(i), "edited_image": struct(50 + i)} for i in range(4)]
    for name, wrong, words in (
        ("twice", [*rows, rows[2]], "a.parquet, row 4 has the hash 00000002 of a.parquet, row 2;"),
        ("other", [*rows, {**rows[0], "hash": "cafe"}], "other has 1 rows of no edit of emu: hash"),
        ("empty", [*rows[:3], {**rows[3], "edited_image": None}], "row 3 has no picture in edited"),
        (
            "test-set",
            [{**generation(0), "image": struct(0)}],
            "there is no column edited_image; it",
        ),
    ):
        parquet_rows(tmp_path / name, "a.parquet", wrong)
        assert words in refused(capsys, tmp_path / name, emu, backbones)
    assert "leave --steps" in refused(capsys, tmp_path / "twice", emu, backbones, "--steps", "3")
    assert not (tmp_path / "out").exists()


def test_an_export_of_ones_own_beside_ones_pictures_is_left_alone(
    emu: Path, made: Path, backbones: Path
) -> None:
    (made / "metadata.jsonl").write_text(json.dumps({"key": EMU_KEYS[0], "seconds": 3}) + "\n")
    assert set(evaluate(made, emu, backbones).items) == set(EMU_KEYS[:4])
