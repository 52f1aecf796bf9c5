"""UltraEdit: columns that come and go, masks that mean nothing, scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.convert.gates import Gates
from datamodules.convert.naming import TaskNaming
from datamodules.convert.run import ConvertSettings, convert
from emu_edit.errors import InputError
from tests.datamodules.convert.sets import (
    HEIGHT,
    WIDTH,
    after,
    before,
    cell,
    quarantine,
    region,
    samples,
    save,
    write_parquet,
)
from tests.datamodules.convert.shards import of_task

pytest.importorskip("pyarrow")

SCORES = (
    "clip_sim_source",
    "clip_sim_target",
    "clip_sim_dir",
    "clip_sim_image",
    "dinov2_sim",
    "ssim",
)


def row(seed: int, mask: np.ndarray | None = None) -> dict[str, object]:
    return {
        **{name: 0.1 * index + 0.01 * seed for index, name in enumerate(SCORES)},
        "source_caption": f"a cat {seed}",
        "target_caption": f"a dog {seed}",
        "idx": seed,
        "edit_prompt": f"turn the cat into a dog {seed}",
        "edit_object": "cat",
        "source_image": cell(before(seed)),
        "edited_image": cell(after(seed)),
        "mask_image": None if mask is None else cell(mask),
    }


def test_region_based_rows_come_back_with_masks_and_scores(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", [row(seed, region()) for seed in range(3)])
    report = convert("ultraedit", tmp_path / "in", tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 3}, {})
    for seed, sample in enumerate(samples(tmp_path / "out")):
        assert np.array_equal(sample.source, before(seed))
        assert np.array_equal(sample.target, after(seed))
        assert sample.mask is not None
        assert np.array_equal(sample.mask, region() == 255)
        assert sample.text["instruction"] == f"turn the cat into a dog {seed}"
        assert sample.text["source_caption"] == f"a cat {seed}"
        assert sample.text["edit_object"] == "cat"
        assert sample.text["idx"] == seed
        expected = {name: 0.1 * index + 0.01 * seed for index, name in enumerate(SCORES)}
        assert sample.text["scores"] == expected


def test_free_form_rows_have_no_mask_whether_null_white_or_absent(tmp_path: Path) -> None:
    white = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    absent = [{k: v for k, v in row(2).items() if k not in {"mask_image", "edit_object"}}]
    write_parquet(tmp_path / "in" / "FreeForm_0.parquet", [row(0, None), row(1, white)])
    write_parquet(tmp_path / "in" / "UltraEdit_500k.parquet", absent)
    report = convert("ultraedit", tmp_path / "in", tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 3}, {})
    found = samples(tmp_path / "out")
    assert [sample.mask for sample in found] == [None] * 3
    assert "edit_object" not in found[2].text


def test_the_word_none_of_old_json_lines_is_no_mask(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", before(0))
    save(tmp_path / "in" / "b.png", after(0))
    save(tmp_path / "in" / "m.png", region())
    names = {"source_image": "a.png", "edited_image": "b.png"}
    lines = [
        {**names, "edit_prompt": "make it red", "mask_image": "NONE"},
        {**names, "edit_prompt": "make it blue", "mask_image": "m.png"},
        {**names, "edit_prompt": "make it green", "mask_image": "../m.png"},
    ]
    (tmp_path / "in" / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = convert("ultraedit", tmp_path / "in", tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 2}, {"unsafe name": 1})
    assert [sample.mask is None for sample in samples(tmp_path / "out")] == [True, False]
    assert (
        "must be a relative name inside the folder, without '..'"
        in quarantine(tmp_path / "out")[0]["detail"]
    )


def test_a_mask_that_a_line_names_has_to_be_there(tmp_path: Path) -> None:
    """Without it the pair would teach that everything may change."""
    save(tmp_path / "in" / "a.png", before(0))
    save(tmp_path / "in" / "b.png", after(0))
    line = {"source_image": "a.png", "edited_image": "b.png", "edit_prompt": "make it red"}
    lines = [
        {**line, "mask_image": ""},
        {**line, "edit_prompt": "make it blue", "mask_image": "gone.png"},
    ]
    (tmp_path / "in" / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = convert("ultraedit", tmp_path / "in", tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 1}, {"missing mask": 1})


def test_numbers_beyond_all_floats_are_no_scores(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", before(0))
    save(tmp_path / "in" / "b.png", after(0))
    line = {"source_image": "a.png", "edited_image": "b.png", "edit_prompt": "x", "ssim": 10**400}
    (tmp_path / "in" / "data.jsonl").write_text(json.dumps(line))
    convert("ultraedit", tmp_path / "in", tmp_path / "out", of_task("local"))
    (sample,) = samples(tmp_path / "out")
    assert sample.text["scores"] == {"ssim": None}


def test_a_score_gates_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [row(seed) for seed in range(4)])
    settings = ConvertSettings(
        naming=TaskNaming("local"), gates=Gates(scores={"clip_sim_dir": 0.215})
    )
    report = convert("ultraedit", tmp_path / "a.parquet", tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"local": 2}, {"low score": 2})


def test_words_decide_tasks_where_asked(tmp_path: Path) -> None:
    texts = ["remove the dog", "add a hat to the cat", "xyz"]
    rows = [row(seed) | {"edit_prompt": text} for seed, text in enumerate(texts)]
    write_parquet(tmp_path / "a.parquet", rows)
    settings = ConvertSettings(naming=TaskNaming(by_words=True))
    report = convert("ultraedit", tmp_path / "a.parquet", tmp_path / "words", settings)
    assert (report.written, report.skipped) == ({"remove": 1, "add": 1}, {"no task of ours": 1})
    assert "no rule fits the words 'xyz'" in quarantine(tmp_path / "words")[0]["detail"]
    settings = ConvertSettings(naming=TaskNaming("style", by_words=True))
    report = convert("ultraedit", tmp_path / "a.parquet", tmp_path / "both", settings)
    assert report.written == {"remove": 1, "add": 1, "style": 1}


def test_the_set_names_no_tasks(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [row(0), row(1)])
    message = r"a.parquet, row 0: names no task \(2 of 2 pairs name none\).*--task-by-words"
    with pytest.raises(InputError, match=message):
        convert("ultraedit", tmp_path / "a.parquet", tmp_path / "out")


@pytest.mark.parametrize("line", ["{torn", "[1]", '{"edit_prompt": "x"}'])
def test_json_lines_of_something_else_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    message = r"a.jsonl:1: (is not a line of JSON|holds list|a table of UltraEdit has the columns)"
    with pytest.raises(InputError, match=message):
        convert("ultraedit", tmp_path / "a.jsonl", tmp_path / "out", of_task("local"))
