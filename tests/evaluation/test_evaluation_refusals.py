"""`evaluate FOLDER --benchmark`: what cannot be scored is refused in one line, or listed."""

import os
from pathlib import Path

import pytest

from emu_edit.cli.main import main
from emu_edit.metrics.protocols import CLIP_L14, DINO_S16
from tests.datamodules.benchmark_files import picture
from tests.evaluation.benchmark_runs import Run, arguments, evaluate, refused

pytestmark = pytest.mark.usefixtures("quick_intervals")


def test_an_unreadable_result_counts_as_not_edited_and_is_listed(
    emu: Path, made: Path, backbones: Path
) -> None:
    (made / "test-global-0.png").write_bytes((made / "test-global-0.png").read_bytes()[:60])
    run = evaluate(made, emu, backbones, status=1)
    (failed,) = run.results["failed"]
    assert failed["key"] == "test-global-0"
    assert "test-global-0.png: cannot be decoded" in failed["reason"]
    assert run.items["test-global-0"]["status"] == "failed"
    assert run.items["test-global-0"]["scores"]["l1"] == 0
    assert run.results["blocks"]["single edits"]["rows"]["model"]["all"]["l1"]["n"] == 4
    assert "1 failed and counts as not edited, first test-global-0" in run.table


def test_unpaired_pictures_are_refused_and_missing_ones_may_count_as_not_edited(
    emu: Path, made: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "test-add-2.png").unlink()
    (made / "test-remove-5.png").unlink()
    told = refused(capsys, made, emu, backbones)
    assert "made lacks 2 of 4 pictures (test-add-2, test-remove-5); add them (KEY.png), or" in told
    run = evaluate(made, emu, backbones, "--allow-missing", status=1)
    assert [one["key"] for one in run.results["failed"]] == ["test-add-2", "test-remove-5"]
    assert run.items["test-add-2"]["reason"] == "there is no picture of it"
    assert run.items["test-remove-5"]["scores"]["l1"] == 0
    for name in ("test-3", "test-4", "cat", "dog"):
        picture(1).save(made / f"{name}.png")
    told = refused(capsys, made, emu, backbones, "--allow-missing")
    assert "made has 4 pictures of no item of emu-edit (cat.png, dog.png, test-3.png, …)" in told


def test_two_pictures_of_one_edit_are_refused_and_other_files_left_alone(
    emu: Path, made: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "notes.txt").write_text("by somebody")
    picture(4).save(made / "validation-style-0.png")  # of the other split
    evaluate(made, emu, backbones)
    picture(3).save(made / "test-global-0.jpg")
    told = refused(capsys, made, emu, backbones)
    assert "two pictures of test-global-0 (test-global-0.jpg, test-global-0.png); keep one" in told


def test_a_damaged_picture_of_the_benchmark_is_refused_before_anything_is_written(
    emu: Path, made: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (emu / "2.png").write_bytes(b"GIF89a")
    told = refused(capsys, made, emu, backbones)
    assert "2.png: is a damaged GIF, needs a JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF" in told
    assert "; it is the benchmark's own" in told
    assert not (made.parent / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--protocol", "emu-l15"],
            "unknown protocol 'emu-l15'; known protocols: emu-b32, emu-l14",
        ),
        (
            ["--protocol", "magicbrush"],
            "magicbrush is not for the benchmark emu-edit, which has no",
        ),
        (
            ["--split", "heldout"],
            "emu has no split 'heldout', it has test, validation; give --split",
        ),
        (["--pairs", "3"], "--pairs belongs to --benchmark world; leave it out"),
        (["--seed", "3"], "--seed belongs to --benchmark world; leave it out"),
        (["--drift"], "--drift belongs to --benchmark world; leave it out"),
        (["--limit", "0"], "needs a whole number of at least 1, got '0'"),
        (["--steps", "3"], "is a folder of pictures, which are scored as they are; leave --steps"),
        (["--guidance-text", "3"], "which are scored as they are; leave --guidance-text out"),
        (["--tasks", "given"], "which are scored as they are; leave --tasks out"),
        (["--compare", "nowhere.json"], "there is no file nowhere.json to compare with"),
        (["--data", "nowhere"], "there is no folder nowhere; give --data the folder"),
        (["--backbones", "nowhere"], "no directory nowhere/openai--clip-vit-large-patch14, needs"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    more: list[str],
    words: str,
    emu: Path,
    made: Path,
    backbones: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert words in refused(capsys, made, emu, backbones, *more)
    assert not (made.parent / "out").exists()


def test_the_other_benchmarks_options_are_refused_for_the_world(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--tasks", "given"], ["--protocol", "x"], ["--limit", "1"]):
        assert main(["evaluate", str(made), *option]) == 2
        told = capsys.readouterr().err
        assert f"{option[0]} belongs to --benchmark emu-edit or magicbrush; leave it out" in told
    assert main(["evaluate", str(made), "--benchmark", "magicbrush", "--split", "test"]) == 2
    assert "--split test: magicbrush has no splits" in capsys.readouterr().err
    assert main(["evaluate", str(made), "--benchmark", "magicbrush"]) == 2
    assert "--benchmark magicbrush needs --data DIR, the folder it" in capsys.readouterr().err


def test_a_folder_without_pictures_is_no_model_either(
    emu: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    told = refused(capsys, tmp_path / "empty", emu, backbones)
    assert "empty is empty, needs a model or a picture per edit" in told
    assert "there is no model at" in refused(capsys, tmp_path / "nowhere", emu, backbones)


def test_a_run_that_has_no_model_yet_is_not_taken_for_pictures(
    emu: Path, made: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "config.yaml").write_text("seed_everything: 0\n")  # its pictures are grids
    told = refused(capsys, made, emu, backbones)
    assert "made is not a model directory (it has no model_index.json); give a run" in told


def test_a_caption_that_is_no_unicode_is_refused_with_its_row_before_anything_is_loaded(
    emu: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = emu / "metadata.jsonl"
    table.write_text(table.read_text().replace("a city at night", "a city \\ud83c"))
    told = refused(capsys, made, emu, made / "no-backbones")
    assert (
        "emu/metadata.jsonl:2: output_caption has the lone surrogate U+D83C at position 7" in told
    )


def test_folders_whose_names_are_no_unicode_are_scored_all_the_same(
    emu: Path, made: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = (
        path.with_name(os.fsdecode(path.name.encode() + b"-\xff")) for path in (made, emu)
    )
    made.rename(folder)
    emu.rename(data)
    out = folder.with_name(os.fsdecode(b"out-\xff"))
    assert main(arguments(folder, data, backbones, out)) == 0
    assert "wrote " in capsys.readouterr().out.encode().decode()
    run = Run(out)
    assert run.results["model"]["name"] == "made-\\udcff"
    assert run.results["data"]["name"] == "emu-\\udcff"


def test_the_folder_of_another_evaluation_is_not_overwritten(
    emu: Path, made: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(made, emu, backbones, "--protocol", "emu-b32")
    capsys.readouterr()
    told = refused(capsys, made, emu, backbones)
    assert "out was begun with protocol 'emu-b32', now it is 'emu-l14'; run it again as" in told
    (made.parent / "out" / "run.json").unlink()
    assert "out already holds something that is no run" in refused(capsys, made, emu, backbones)


def test_a_benchmark_with_other_columns_is_refused_with_what_it_has(
    emu: Path, made: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (emu / "metadata.jsonl").read_text()
    (emu / "metadata.jsonl").write_text(text.replace('"instruction"', '"prompt"'))
    told = refused(capsys, made, emu, backbones)
    assert "emu/metadata.jsonl:1: there is no column instruction; it has file_name, prompt" in told


def test_a_backbone_without_its_files_is_refused(
    emu: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "networks" / CLIP_L14.replace("/", "--")).mkdir(parents=True)
    (tmp_path / "networks" / DINO_S16.replace("/", "--")).mkdir()
    told = refused(capsys, made, emu, tmp_path / "networks")
    assert "openai--clip-vit-large-patch14 has no config.json, needs a whole backbone" in told
