"""InstructPix2Pix: parquet of the hub, and the authors' seeds.json folders."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.convert.gates import Gates
from datamodules.convert.naming import TaskNaming
from datamodules.convert.run import ConvertSettings, convert
from emu_edit.errors import InputError
from tests.datamodules.convert.sets import (
    after,
    before,
    cell,
    quarantine,
    samples,
    save,
    write_parquet,
)
from tests.datamodules.convert.shards import of_task

pytest.importorskip("pyarrow")


def row(seed: int) -> dict[str, object]:
    return {
        "original_prompt": f"a street {seed}",
        "original_image": cell(before(seed)),
        "edit_prompt": f"make it night {seed}",
        "edited_prompt": f"a street at night {seed}",
        "edited_image": cell(after(seed)),
    }


def write_seeds(root: Path, *, prompts: int = 2, seeds: int = 2) -> Path:
    entries = []
    for prompt in range(prompts):
        folder = f"{prompt:07d}"
        texts = {"input": f"a cat {prompt}", "edit": f"add a hat {prompt}", "output": "a cat, hat"}
        numbers = [str(prompt * 1000 + index) for index in range(seeds)]
        lines = []
        for number in numbers:
            # what is read is JPEG; the best quality leaves the region far above its noise
            save(root / folder / f"{number}_0.jpg", before(int(number)), quality=100)
            save(root / folder / f"{number}_1.jpg", after(int(number)), quality=100)
            lines.append({"seed": int(number), "clip_sim_dir": 0.1 + int(number) / 10_000})
        (root / folder / "prompt.json").write_text(json.dumps(texts))
        (root / folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
        entries.append([folder, numbers])
    (root / "seeds.json").write_text(json.dumps(entries))
    return root


def test_parquet_comes_back_with_its_pixels_and_captions(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "in" / "data" / "train-00000.parquet", [row(seed) for seed in range(5)]
    )
    report = convert("instruct-pix2pix", tmp_path / "in", tmp_path / "out", of_task("global"))
    assert (report.listed, report.written, report.skipped) == (5, {"global": 5}, {})
    for seed, sample in enumerate(samples(tmp_path / "out")):
        assert np.array_equal(sample.source, before(seed))
        assert np.array_equal(sample.target, after(seed))
        assert sample.mask is None
        assert sample.text == {
            "dataset": "instruct-pix2pix",
            "origin": f"data/train-00000.parquet, row {seed}",
            "instruction": f"make it night {seed}",
            "task": "global",
            "source_caption": f"a street {seed}",
            "target_caption": f"a street at night {seed}",
        }


def test_the_small_copy_with_other_column_names_is_read(tmp_path: Path) -> None:
    names = {"original_image": "input_image"}
    small = {names.get(name, name): value for name, value in row(0).items() if "ed_p" not in name}
    write_parquet(tmp_path / "a.parquet", [small])
    convert("instruct-pix2pix", tmp_path / "a.parquet", tmp_path / "out", of_task("global"))
    (sample,) = samples(tmp_path / "out")
    assert np.array_equal(sample.source, before(0))


def test_every_seed_of_a_prompt_is_a_sample_of_its_group(tmp_path: Path) -> None:
    write_seeds(tmp_path / "in")
    report = convert("instruct-pix2pix", tmp_path / "in", tmp_path / "out", of_task("add"))
    assert (report.written, report.skipped) == ({"add": 4}, {})
    found = samples(tmp_path / "out")
    assert [sample.text["origin"] for sample in found] == [
        "0000000/0",
        "0000000/1",
        "0000001/1000",
        "0000001/1001",
    ]
    assert [sample.text["group"] for sample in found] == ["0000000"] * 2 + ["0000001"] * 2
    assert found[3].text["instruction"] == "add a hat 1"
    assert found[3].text["source_caption"] == "a cat 1"
    assert found[3].text["scores"] == {"clip_sim_dir": pytest.approx(0.2001)}
    difference = np.abs(found[3].target.astype(int) - after(1001))
    assert difference.mean() < 3  # JPEG at its best, not another picture


def test_of_each_prompt_so_many_pairs_as_asked_are_taken(tmp_path: Path) -> None:
    write_seeds(tmp_path / "in", seeds=3)
    settings = ConvertSettings(naming=TaskNaming("add"), per_group=1)
    report = convert("instruct-pix2pix", tmp_path / "in", tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"add": 2}, {"enough of its group": 4})
    assert [s.text["origin"] for s in samples(tmp_path / "out")] == ["0000000/0", "0000001/1000"]


def test_the_pairs_of_a_prompt_are_counted_wherever_they_stand(tmp_path: Path) -> None:
    root = write_seeds(tmp_path / "in")
    entries = [["0000000", ["0"]], ["0000001", ["1000"]], ["0000000", ["1"]]]
    (root / "seeds.json").write_text(json.dumps(entries))
    settings = ConvertSettings(naming=TaskNaming("add"), per_group=1)
    report = convert("instruct-pix2pix", root, tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"add": 2}, {"enough of its group": 1})
    detail = quarantine(tmp_path / "out")[0]["detail"]
    assert detail == "0000000/1: 1 of '0000000' were taken before"


def test_so_many_of_each_group_of_a_table_without_groups_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [row(0)])
    settings = ConvertSettings(naming=TaskNaming("add"), per_group=1)
    message = "a.parquet: no pair says which prompt, session or picture it is of, so at most 1 of"
    with pytest.raises(InputError, match=message):
        convert("instruct-pix2pix", tmp_path / "a.parquet", tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_a_score_gates_pairs_and_a_pair_without_it_is_left_out(tmp_path: Path) -> None:
    root = write_seeds(tmp_path / "in")
    lines = '{"seed": 0, "clip_sim_dir": 0.5}\n{"seed": 1, "clip_sim_dir": NaN}\n{torn'
    (root / "0000000" / "metadata.jsonl").write_text(lines)
    settings = ConvertSettings(
        naming=TaskNaming("add"), gates=Gates(scores={"clip_sim_dir": 0.20005})
    )
    report = convert("instruct-pix2pix", root, tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"add": 2}, {"low score": 2})
    details = [item["detail"] for item in quarantine(tmp_path / "out")]
    assert details == [
        "0000000/1: clip_sim_dir is none, needs 0.20005",
        "0000001/1000: clip_sim_dir is 0.2, needs 0.20005",
    ]


def test_a_score_that_no_pair_has_is_refused(tmp_path: Path) -> None:
    root = write_seeds(tmp_path / "in")
    settings = ConvertSettings(naming=TaskNaming("add"), gates=Gates(scores={"o_score": 5.0}))
    with pytest.raises(InputError, match="no pair has a score o_score; there are: clip_sim_dir"):
        convert("instruct-pix2pix", root, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entry", "reason", "detail"),
    [
        ("0000001", "bad line", "needs [folder, [seed, ...]]"),
        (["0000001", ["../x"]], "bad line", "needs [folder"),
        (["../0000001", ["1"]], "unsafe name", "must be a name inside the folder"),
        (["nowhere", ["1"]], "missing instruction", "nowhere/prompt.json is missing"),
        (["broken", ["1"]], "missing instruction", "broken/prompt.json is not JSON"),
        (["listed", ["1"]], "missing instruction", "listed/prompt.json has no text 'edit'"),
        (["0000001", ["7"]], "missing source", "7_0.jpg: no such file"),
    ],
)
def test_a_broken_prompt_is_left_out_with_its_reason(
    tmp_path: Path, entry: object, reason: str, detail: str
) -> None:
    root = write_seeds(tmp_path / "in")
    for name, text in (("broken", "{"), ("listed", "[]")):
        (root / name).mkdir()
        (root / name / "prompt.json").write_text(text)
    seeds = json.loads((root / "seeds.json").read_text())
    (root / "seeds.json").write_text(json.dumps([seeds[0], entry]))
    report = convert("instruct-pix2pix", root, tmp_path / "out", of_task("add"))
    assert (report.written, report.skipped) == ({"add": 2}, {reason: 1})
    assert detail in quarantine(tmp_path / "out")[0]["detail"]


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("{}", "holds dict, needs")])
def test_a_broken_list_of_seeds_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "seeds.json").write_text(text)
    with pytest.raises(InputError, match=f"seeds.json: {message}"):
        convert("instruct-pix2pix", tmp_path / "in", tmp_path / "out", of_task("add"))


def test_a_table_of_another_set_is_refused_with_its_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", [{"input_img": cell(before(0)), "task_id": "x"}])
    message = (
        "a.parquet: a table of InstructPix2Pix has the columns original_image or input_image, "
        "edited_image, edit_prompt, this one has input_img, task_id; give the folder of"
    )
    with pytest.raises(InputError, match=message):
        convert("instruct-pix2pix", tmp_path / "in", tmp_path / "out", of_task("add"))


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    message = "in: has no .parquet or .jsonl files; give a copy of InstructPix2Pix"
    with pytest.raises(InputError, match=message):
        convert("instruct-pix2pix", tmp_path / "in", tmp_path / "out", of_task("add"))


def test_tables_of_both_kinds_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", [row(0)])
    (tmp_path / "in" / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"has both .jsonl and .parquet files, .* pairs twice"):
        convert("instruct-pix2pix", tmp_path / "in", tmp_path / "out", of_task("add"))
