"""Emu Edit's published results: each row belongs to the edit of its hash, or is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.evaluation_sets import load_benchmark
from datamodules.evaluation_sets.generations import holds_generations, load_generations
from datamodules.evaluation_sets.items import Benchmark
from emu_edit.errors import InputError
from emu_edit.images import from_pil
from tests.datamodules.benchmark_files import (
    EMU_KEYS,
    generation,
    parquet_rows,
    picture,
    struct,
    write_emu_edit,
    write_exported_generations,
    write_generations,
)

pytest.importorskip("pyarrow")


@pytest.fixture
def emu(tmp_path: Path) -> Benchmark:
    folder = write_emu_edit(tmp_path / "emu")
    return load_benchmark("emu-edit", folder, split="test", captions="global")


@pytest.mark.parametrize("write", [write_generations, write_exported_generations])
def test_every_row_is_found_by_its_hash_whatever_its_split_and_place(
    write: Callable[[Path], Path], emu: Benchmark, tmp_path: Path
) -> None:
    found = load_generations(write(tmp_path / "made"), emu)
    assert set(found) == set(EMU_KEYS)
    for index, key in enumerate(EMU_KEYS):
        assert torch.equal(found[key].decode(), from_pil(picture(50 + index)))


def test_rows_of_files_of_one_name_are_different_places(emu: Benchmark, tmp_path: Path) -> None:
    found = load_generations(write_generations(tmp_path / "made"), emu)
    assert len({picture.where for picture in found.values()}) == len(EMU_KEYS)
    assert found["test-remove-5"].where == "validation/0000.parquet, row 0"


def test_tables_of_edited_pictures_are_told_from_pictures(emu: Benchmark, tmp_path: Path) -> None:
    del emu  # written
    assert holds_generations(write_generations(tmp_path / "a"))
    assert holds_generations(write_exported_generations(tmp_path / "b"))
    assert not holds_generations(tmp_path / "emu")
    assert not holds_generations(tmp_path / "emu" / "0.png")
    assert not holds_generations(tmp_path / "nowhere")


def changed(**fields: object) -> Callable[[Path], None]:
    """Return what overwrites fields of the export's second row; what is None goes."""

    def change(folder: Path) -> None:
        lines = (folder / "metadata.jsonl").read_text().splitlines()
        values = {**json.loads(lines[1]), **fields}
        lines[1] = json.dumps({k: v for k, v in values.items() if v is not None})
        (folder / "metadata.jsonl").write_text("\n".join(lines))

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            changed(hash="00000003", instruction="remove the dog"),
            "made/metadata.jsonl:2 has the hash 00000003 of made/metadata.jsonl:1; keep one",
        ),
        (changed(hash="cafe"), "made has 1 rows of no edit of emu: hash cafe; give --data the"),
        (changed(hash=None), "made/metadata.jsonl:2: hash is None, needs text"),
        (changed(hash=7), "made/metadata.jsonl:2: hash is 7, needs text"),
        (
            changed(instruction="add a cat"),
            "asks 'add a cat', and the edit of its hash, test-add-0,",
        ),
        (changed(model="other"), r"has results of 2 models \(emu_edit, other\); keep those of one"),
        (changed(edited_image="no.png"), r"made: 1 of its pictures are missing \(no\.png\)"),
        (changed(edited_image=None), "metadata.jsonl:2: edited_image is None, needs the name of a"),
        (changed(edited_image=""), "metadata.jsonl:2: edited_image is '', needs the name of a pic"),
    ],
)
def test_what_does_not_pair_up_is_refused(
    damage: Callable[[Path], None], words: str, emu: Benchmark, tmp_path: Path
) -> None:
    folder = write_exported_generations(tmp_path / "made")
    damage(folder)
    with pytest.raises(InputError, match=words):
        load_generations(folder, emu)


def test_the_rows_of_another_split_may_ask_for_anything_but_need_an_edit(
    emu: Benchmark, tmp_path: Path
) -> None:
    row = {**generation(4), "instruction": "of another release", "edited_image": struct(1)}
    parquet_rows(tmp_path / "made", "a.parquet", [row])
    assert set(load_generations(tmp_path / "made", emu)) == {"validation-style-0"}


def test_a_row_without_a_picture_is_refused_when_it_is_read(emu: Benchmark, tmp_path: Path) -> None:
    rows = [{**generation(i), "edited_image": struct(i)} for i in (0, 1)]
    rows[1]["edited_image"] = {"bytes": None, "path": "a.png"}
    parquet_rows(tmp_path / "made", "a.parquet", rows)
    found = load_generations(tmp_path / "made", emu)
    with pytest.raises(
        InputError, match=r"^a.parquet, row 1 has no picture in edited_image, needs"
    ):
        found["test-global-0"].fetch()


def test_tables_without_hash_are_refused_on_either_side(emu: Benchmark, tmp_path: Path) -> None:
    row = {**generation(0), "edited_image": struct(1)}
    parquet_rows(tmp_path / "a", "a.parquet", [{k: v for k, v in row.items() if k != "hash"}])
    with pytest.raises(InputError, match=r"^a.parquet: there is no column hash; it has instru"):
        load_generations(tmp_path / "a", emu)
    parquet_rows(tmp_path / "b", "b.parquet", [{k: v for k, v in row.items() if "edit" not in k}])
    with pytest.raises(InputError, match=r"^b.parquet: there is no column edited_image; it has"):
        load_generations(tmp_path / "b", emu)
    table = tmp_path / "emu" / "metadata.jsonl"
    table.write_text(table.read_text().replace('"hash"', '"digest"'))
    without = load_benchmark("emu-edit", table.parent, split="test", captions="global")
    with pytest.raises(InputError, match="emu has no column hash, by which the results in made"):
        load_generations(write_generations(tmp_path / "made"), without)


def test_a_hash_of_two_edits_tells_neither(tmp_path: Path) -> None:
    folder = write_emu_edit(tmp_path / "emu")
    table = folder / "metadata.jsonl"
    table.write_text(table.read_text().replace('"00000001"', '"00000000"'))
    emu = load_benchmark("emu-edit", folder, split="test", captions="global")
    with pytest.raises(InputError, match=r"hash of 2 edits of emu \(test-add-0, test-global-0\); "):
        load_generations(write_exported_generations(tmp_path / "made"), emu)
