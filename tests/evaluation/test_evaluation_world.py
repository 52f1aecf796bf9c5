"""`evaluate --benchmark world` for anybody's editor: inputs to edit, and pictures to score."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.world.pair import WorldPair, make_pair
from datamodules.world.photographs import Photos
from datamodules.world.read import Reading, read_scene
from emu_edit.cli.main import main
from emu_edit.evaluation.reading import shows, target_scene
from emu_edit.evaluation.world import Scenes, WorldBenchmark, score_pairs, truth_of, world_pairs
from emu_edit.images import from_pil, save_png
from emu_edit.metrics.table import summarise
from emu_edit.metrics.world import score
from emu_edit.tasks import SIXTEEN

SIZE, PAIRS = 32, 2
READINGS: dict[bytes, Reading] = {}


def has_maps(seed: int, task: str) -> bool:
    """Whether one of a seed's pairs goes from a picture to its map, which is measured."""
    pairs = (make_pair(seed, i, task=task, size=16, split="heldout") for i in range(PAIRS))
    return any(pair.extra["direction"] == "to_map" for pair in pairs)


SEED = next(seed for seed in range(99) if has_maps(seed, "depth") and has_maps(seed, "normal"))
PLACE = ["--pairs", str(PAIRS), "--size", str(SIZE), "--seed", str(SEED)]


def world() -> list[WorldPair]:
    return [
        make_pair(SEED, index, task=task, size=SIZE, split="heldout")
        for task in SIXTEEN.names
        for index in range(PAIRS)
    ]


def picture(pixels: Any) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.fixture(autouse=True)
def readings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures are read in every test; each reading takes a tenth of a second."""

    def read(pixels: np.ndarray) -> Reading:
        key = pixels.tobytes()
        if key not in READINGS:
            READINGS[key] = read_scene(pixels)
        return READINGS[key]

    monkeypatch.setattr("emu_edit.evaluation.reading.read_scene", read)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    arguments = ["evaluate", "--benchmark", "world", "--write-inputs", str(folder), *PLACE]
    assert main(arguments) == 0
    return folder


@pytest.fixture
def targets(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    for pair in world():
        save_png(folder / f"{pair.key}.png", picture(pair.target))
    return folder


def command(pictures: Path, *more: str) -> list[str]:
    out = pictures.parent / "out"
    return ["evaluate", str(pictures), "--benchmark", "world", "-o", str(out), *more]


def results(pictures: Path, *more: str, status: int = 0) -> dict[str, Any]:
    assert main(command(pictures, *more)) == status
    return json.loads((pictures.parent / "out" / "results.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1, told.err
    return told.err


def test_the_inputs_are_the_sources_and_what_to_do_with_each(inputs: Path) -> None:
    lines = [json.loads(line) for line in (inputs / "inputs.jsonl").read_text().splitlines()]
    assert lines == [
        {
            "key": pair.key,
            "file_name": f"{pair.key}.png",
            "task": pair.task,
            "instruction": pair.instruction,
            "source_caption": pair.source_caption,
            "target_caption": pair.target_caption,
        }
        for pair in world()
    ]
    for pair, line in zip(world(), lines, strict=True):
        with Image.open(inputs / line["file_name"]) as image:
            assert torch.equal(from_pil(image), picture(pair.source))
    assert len(list(inputs.iterdir())) == len(lines) + 2
    told = json.loads((inputs / "benchmark.json").read_text())
    assert (told["seed"], told["split"], told["size"], told["photos"]) == (
        SEED,
        "heldout",
        SIZE,
        None,
    )


@pytest.mark.slow
def test_the_inputs_themselves_score_like_the_row_copy_input(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(inputs, tmp_path / "copied")
    found = results(tmp_path / "copied", "--data", str(inputs))
    assert found["report"]["model"] == found["report"]["copy-input"]
    overall = found["report"]["model"]["overall"]
    assert (overall["success"], overall["detection_ap"], overall["segmentation_miou"]) == (0, 0, 0)
    assert found["model"]["kind"] == "pictures"
    assert found["model"]["name"] == "copied"
    assert (found["size"], found["seed"], found["failed"]) == (SIZE, SEED, [])
    told = capsys.readouterr().out
    assert "AP@0.5 0.00" in told
    assert f"wrote {tmp_path / 'out'} in " in told


def test_the_targets_score_like_the_oracle(targets: Path) -> None:
    report = results(targets, *PLACE)["report"]
    assert report["model"] == report["oracle"]
    overall = report["model"]["overall"]
    assert (overall["success"], overall["detection_ap"], overall["segmentation_miou"]) == (1, 1, 1)
    assert (overall["depth_rmse"], overall["normal_within_11"]) == (0, 1)
    assert overall["normal_degrees"] < 1e-9
    assert {path.name for path in (targets.parent / "out").iterdir()} == {
        "results.json",
        "table.md",
        "grid.png",
        "index.html",
    }
    page = (targets.parent / "out" / "index.html").read_text()
    assert "AP@0.5" in page
    assert "mIoU" in page


@pytest.mark.slow
def test_every_picture_is_scored_against_the_truth_of_its_own_pair(targets: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = []
    for number, pair in enumerate(world()):
        source, target = picture(pair.source), picture(pair.target)
        share = torch.rand(1, SIZE, SIZE, generator=generator) < number / (16 * PAIRS)
        edited = torch.where(share, target, source)
        save_png(targets / f"{pair.key}.png", edited)
        scene = target_scene(pair)
        is_shown = None if scene is None else shows(edited.numpy(), scene)
        scores.append(replace(score(edited, truth_of(pair)), is_shown=is_shown))
    wanted, found = summarise(scores), results(targets, *PLACE)["report"]["model"]
    assert [row["name"] for row in found["tasks"]] == list(SIXTEEN.names)
    for row, expected in zip(found["tasks"], wanted.tasks, strict=True):
        assert row == {name: getattr(expected, name) for name in row}
    assert found["overall"]["success"] == wanted.overall.success
    assert found["overall"]["clean"] == wanted.overall.clean < wanted.overall.success
    assert 0 < wanted.overall.read < 1
    assert 0 < wanted.overall.success < 1


def test_missing_pictures_are_refused_or_count_as_not_edited_and_are_listed(
    targets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [pair.key for pair in world() if pair.task in {"detect", "add"}]
    for key in keys:
        (targets / f"{key}.png").unlink()
    told = refused(capsys, command(targets, *PLACE))
    assert f"made lacks 4 of 32 pictures ({keys[0]}, {keys[1]}, {keys[2]}, …); add them" in told
    assert not (targets.parent / "out").exists()
    found = results(targets, *PLACE, "--allow-missing", status=1)
    assert [one["key"] for one in found["failed"]] == keys
    success = {row["name"]: row["success"] for row in found["report"]["model"]["tasks"]}
    assert {name for name, share in success.items() if share == 0} == {"detect", "add"}
    assert found["report"]["model"]["overall"]["count"] == 32
    assert found["report"]["model"]["overall"]["detection_ap"] == 0
    line = f"4 failed and count as not edited, first {keys[0]}: there is no picture of it."
    assert line in capsys.readouterr().out
    assert line in (targets.parent / "out" / "table.md").read_text()
    assert keys[0] in (targets.parent / "out" / "index.html").read_text()


def test_the_table_in_a_terminal_is_no_wider_than_it_and_whole_in_the_file(
    targets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("emu_edit.cli.evaluate.terminal_width", lambda: 80)
    assert main(command(targets, *PLACE)) == 0
    told, wrote = capsys.readouterr().out.split("\nwrote ")
    assert max(map(len, told.split("\n"))) <= 80
    assert "| task       | edits | clean | 95 %   | read  | 95 %   | made  | 95 %   |" in told
    assert (
        "no room here for error/copy, inside, copy, outside, picture, measured: see"
        in told.replace("\n", " ")
    )
    table = (targets.parent / "out" / "table.md").read_text()
    assert "| copy  | outside | picture | measured" in table
    assert wrote.startswith(str(targets.parent / "out"))


def test_an_unreadable_picture_counts_as_not_edited(targets: Path) -> None:
    (targets / f"{world()[0].key}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (failed,) = results(targets, *PLACE, status=1)["failed"]
    assert failed["key"] == world()[0].key
    assert "is a damaged PNG" in failed["reason"]


def test_pictures_of_no_pair_of_two_files_or_of_another_size_are_refused(
    targets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = world()[3].key
    small = picture(world()[3].target)[:, :16, :24]
    save_png(targets / f"{key}.png", small.contiguous())
    told = refused(capsys, command(targets, *PLACE))
    assert f"made has 1 pictures of another size than 32x32 ({key} 24x16); keep the size" in told
    shutil.copy(targets / f"{key}.png", targets / "other.png")
    told = refused(capsys, command(targets, *PLACE))
    assert "made has 1 pictures of no item of world (other.png); needs one per item" in told
    (targets / "other.png").rename(targets / f"{key}.webp")
    assert f"made has two pictures of {key}" in refused(capsys, command(targets, *PLACE))
    told = refused(capsys, command(targets, "--pairs", "1", "--size", "32", "--seed", str(SEED)))
    assert "has 17 pictures of no item of world" in told  # those of the second pairs


def test_pictures_are_not_scored_against_other_pairs_than_they_were_made_from(
    inputs: Path, targets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    save_png(photos / "a.png", picture(world()[0].source))
    told = refused(capsys, command(targets, "--data", str(inputs), "--photos", str(photos)))
    assert "inputs was written without --photos by version" in told
    told = refused(capsys, command(targets, "--data", str(inputs), "--pairs", "2"))
    assert "--pairs is what" in told
    assert "inputs was written with; leave it out" in told
    told = refused(capsys, command(targets, "--data", str(tmp_path)))
    assert "has no benchmark.json; give --data the folder that --write-inputs wrote" in told
    about = inputs / "benchmark.json"
    about.write_text(about.read_text().replace(f'"seed": {SEED}', '"seed": 77'))
    told = refused(capsys, command(targets, "--data", str(inputs)))
    assert "the pairs made now are not the same; give what it was written with, or write" in told
    about.write_text(about.read_text().replace('"seed": 77', '"seed": "77"'))
    told = refused(capsys, command(targets, "--data", str(inputs)))
    assert "benchmark.json is not what --write-inputs writes; write the inputs again" in told
    about.write_text("{")
    assert "benchmark.json is not JSON" in refused(capsys, command(targets, "--data", str(inputs)))


def test_inputs_with_photographs_are_scored_with_the_same_photographs(
    targets: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    save_png(photos / "a.png", picture(world()[0].source))
    place = [*PLACE, "--photos", str(photos)]
    folder = tmp_path / "with"
    assert main(["evaluate", "--write-inputs", str(folder), *place]) == 0
    shutil.rmtree(targets)
    shutil.copytree(folder, targets)
    found = results(targets, "--data", str(folder), "--photos", str(photos))
    assert found["report"]["model"] == found["report"]["copy-input"]
    assert (
        found["pairs_sha256"] == json.loads((folder / "benchmark.json").read_text())["pairs_sha256"]
    )


def test_edits_of_photographs_are_scored_by_kind_too(tmp_path: Path) -> None:
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        save_png(tmp_path / f"{number}.png", torch.from_numpy(noise).permute(2, 0, 1))
    benchmark = WorldBenchmark(3, Scenes(size=16, photos=Photos(tmp_path)))
    pairs = world_pairs(benchmark, ("style", "detect"), 16)
    result = score_pairs(pairs, [truth_of(pair).target for pair in pairs], benchmark)
    assert result.kinds is not None
    styles = {str(pair.extra["kind"]) for pair in pairs if pair.task == "style"}
    assert {row.name for row in result.kinds.model.tasks} == styles
    assert result.kinds.model.overall.clean == 1
    plain = WorldBenchmark(1, Scenes(size=16))
    pairs = world_pairs(plain, ("style",), 16)
    assert score_pairs(pairs, [truth_of(pair).target for pair in pairs], plain).kinds is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps", "2"], "which are scored as they are; leave --steps out"),
        (["--guidance-image", "2"], "which are scored as they are; leave --guidance-image out"),
        (["--device", "cpu"], "which are scored as they are; leave --device out"),
        (["--drift"], "--drift needs a model, and"),
        (["--drift", "--split", "pairs"], "--split pairs is of single edits"),
        (["--limit", "1"], "--limit belongs to --benchmark emu-edit or magicbrush; leave it out"),
        (["--split", "test"], "--split test: world has heldout, train, sentences, pairs"),
    ],
)
def test_what_pictures_have_no_use_for_is_refused(
    more: list[str], words: str, targets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, command(targets, *more))
    assert not (targets.parent / "out").exists()


def test_results_are_not_written_among_the_pictures(
    targets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (targets, targets / "out"):
        told = refused(capsys, ["evaluate", str(targets), *PLACE, "-o", str(place)])
        assert "is among the pictures of" in told
    assert main(["evaluate", str(targets), *PLACE]) == 0
    assert (targets.parent / "made-world-heldout" / "results.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "evaluate needs a model or a folder of pictures; see emu-edit evaluate --help"),
        (["model", "--write-inputs", "x"], "--write-inputs writes what is to be edited and scores"),
        (["--write-inputs", "x", "-o", "y"], "--output belongs to scoring; with --write-inputs"),
        (["--write-inputs", "x", "--steps", "3"], "--steps belongs to scoring; with --write-"),
        (["--write-inputs", "x", "--allow-missing"], "--allow-missing belongs to scoring"),
        (["--write-inputs", "x", "--data", "y"], "--data belongs to scoring; with --write-inputs"),
        (["--write-inputs", "x", "--drift"], "--drift belongs to scoring; with --write-inputs"),
        (["--write-inputs", "x", "--size", "8"], "size=8 is too small for the world; give 16"),
        (["--write-inputs", "x", "--benchmark", "magicbrush"], "--write-inputs belongs to --bench"),
        (["--write-inputs", "full"], "--write-inputs full: is not empty, needs a new folder"),
    ],
)
def test_calls_that_write_inputs_and_score_are_refused(
    arguments: list[str], words: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "full").mkdir()
    (workplace / "full" / "mine.txt").write_text("mine")
    assert words in refused(capsys, ["evaluate", *arguments])
    assert [path.name for path in workplace.iterdir()] == ["full"]


def test_a_model_is_scored_on_the_pairs_that_were_written(
    model: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["evaluate", str(model), "-o", str(out), "--device", "cpu"]
    assert main([*asked, "--data", str(inputs)]) == 0
    with_data = json.loads((out / "results.json").read_text())
    assert main([*asked, *PLACE]) == 0
    without = json.loads((out / "results.json").read_text())
    told = json.loads((inputs / "benchmark.json").read_text())
    assert with_data["report"] == without["report"]
    assert with_data["pairs_sha256"] == without["pairs_sha256"] == told["pairs_sha256"]
    assert with_data["report"]["model"]["overall"]["detection_ap"] is not None
    assert with_data["device"] == "cpu"
    assert with_data["versions"]["torch"]
    assert main([*asked, "--pairs", "1"]) == 0
    assert json.loads((out / "results.json").read_text())["size"] == 16  # as trained
    told = refused(capsys, [*asked, "--allow-missing"])
    assert "--allow-missing belongs to a folder of pictures, and" in told
    told = refused(capsys, [*asked, "--drift", "--data", str(inputs)])
    assert "--data is about single edits; with --drift leave it out" in told
