"""HQ-Edit: each row there and back, under the names of all its revisions."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.convert.run import convert
from tests.datamodules.convert.sets import after, before, cell, quarantine, samples, write_parquet
from tests.datamodules.convert.shards import of_task

pytest.importorskip("pyarrow")


def row(seed: int) -> dict[str, object]:
    return {
        "input": f"a meadow {seed}",
        "input_image": cell(before(seed)),
        "edit": f"make it winter {seed}",
        "inverse_edit": f"make it summer {seed}",
        "output": f"a snowy meadow {seed}",
        "output_image": cell(after(seed)),
    }


def test_each_row_gives_the_edit_and_its_inverse(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", [row(seed) for seed in range(3)])
    report = convert("hq-edit", tmp_path / "in", tmp_path / "out", of_task("global"))
    assert (report.listed, report.written, report.skipped) == (6, {"global": 6}, {})
    found = samples(tmp_path / "out")
    assert len({sample.key for sample in found}) == 6
    for seed in range(3):
        forward, inverse = found[2 * seed : 2 * seed + 2]
        for sample, first, last, words, captions, way in (
            (forward, before, after, "winter", ("a meadow", "a snowy meadow"), "forward"),
            (inverse, after, before, "summer", ("a snowy meadow", "a meadow"), "inverse"),
        ):
            assert np.array_equal(sample.source, first(seed))
            assert np.array_equal(sample.target, last(seed))
            assert sample.text["instruction"] == f"make it {words} {seed}"
            assert sample.text["source_caption"] == f"{captions[0]} {seed}"
            assert sample.text["target_caption"] == f"{captions[1]} {seed}"
            assert sample.text["direction"] == way
            assert sample.text["aligned"] is False
            assert sample.text["group"] == f"a.parquet {seed}"


@pytest.mark.parametrize("inverse", ["inverse-edit", "inverse_edit"])
def test_old_revisions_are_read(tmp_path: Path, inverse: str) -> None:
    names = {"edit": "edit_instruction", "inverse_edit": inverse}
    old = {names.get(name, name): value for name, value in row(0).items()}
    write_parquet(tmp_path / "a.parquet", [old])
    convert("hq-edit", tmp_path / "a.parquet", tmp_path / "out", of_task("global"))
    words = [sample.text["instruction"] for sample in samples(tmp_path / "out")]
    assert words == ["make it winter 0", "make it summer 0"]


def test_a_row_without_inverse_gives_the_edit_alone(tmp_path: Path) -> None:
    rows = [row(0) | {"inverse_edit": None}, row(1) | {"inverse_edit": "None"}, row(2)]
    write_parquet(tmp_path / "a.parquet", rows)
    report = convert("hq-edit", tmp_path / "a.parquet", tmp_path / "out", of_task("global"))
    assert (report.written, report.skipped) == ({"global": 4}, {"empty instruction": 2})
    assert [item["name"] for item in quarantine(tmp_path / "out")] == [
        "a.parquet, row 0, inverse",
        "a.parquet, row 1, inverse",
    ]
    assert "the instruction says 'None'" in quarantine(tmp_path / "out")[1]["detail"]


def test_a_text_of_another_kind_is_a_bad_line(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", [{**row(0), "edit": 5}])
    write_parquet(tmp_path / "in" / "b.parquet", [row(1)])
    report = convert("hq-edit", tmp_path / "in", tmp_path / "out", of_task("global"))
    assert (report.written, report.skipped) == ({"global": 2}, {"bad line": 1})
    assert quarantine(tmp_path / "out")[0]["detail"] == "a.parquet, row 0: edit is int, needs text"
