"""`evaluate MODEL --benchmark`: a model edits a benchmark, is stopped, goes on, and is scored."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emu_edit.cli.main import main
from emu_edit.editing.editor import Editor
from emu_edit.editing.predictor import TaskPredictor
from emu_edit.editing.settings import Sampling
from emu_edit.errors import InputError
from emu_edit.evaluation.edits import read_lines, seed_of
from emu_edit.images import read_image
from emu_edit.models.tiny import TinyText
from emu_edit.tasks import SIXTEEN
from tests.datamodules.benchmark_files import picture
from tests.evaluation.benchmark_runs import arguments

pytestmark = pytest.mark.usefixtures("quick_intervals")


@pytest.fixture(scope="module")
def predicting(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a task predictor."""
    folder = tmp_path_factory.mktemp("predicting") / "model"
    shutil.copytree(model, folder)
    encoder = TinyText(dim=16, num_layers=1, num_heads=2)
    TaskPredictor(encoder, SIXTEEN).save_pretrained(folder / "predictor")
    return folder


class Edits:
    """Counts the edits, and lets some of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.instructions: list[str] = []
        self.sources: list[Tensor] = []
        self.tasks: list[object] = []
        self.failing: dict[str, BaseException] = {}
        edit = Editor.edit

        def spy(editor: Editor, image: Tensor, instruction: str, **more: Any) -> Tensor:
            self.instructions.append(instruction)
            self.sources.append(image)
            self.tasks.append(more["task"])
            if instruction in self.failing:
                raise self.failing[instruction]
            return edit(editor, image, instruction, **more)

        monkeypatch.setattr(Editor, "edit", spy)


@pytest.fixture
def edits(monkeypatch: pytest.MonkeyPatch) -> Edits:
    return Edits(monkeypatch)


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_the_seed_of_an_edit_is_a_hash_of_its_key_alone() -> None:
    assert seed_of("test-add-0") == int(hashlib.sha256(b"test-add-0").hexdigest()[:8], 16)
    assert seed_of("test-add-0") != seed_of("test-global-0")


def test_a_model_edits_each_item_with_its_seed_and_task(
    model: Path, emu: Path, backbones: Path, tmp_path: Path, edits: Edits
) -> None:
    out = tmp_path / "out"
    assert main(arguments(model, emu, backbones, out, "--size", "12", "--steps", "2")) == 0
    lines = read_lines(out / "edits.jsonl")
    assert list(lines) == ["test-add-0", "test-global-0", "test-add-2", "test-remove-5"]
    assert edits.tasks == ["add", "global", "add", "remove"]  # no predictor: the benchmark's word
    sources = list(edits.sources)  # before the editor below adds its own
    editor = Editor.from_pretrained(model)
    for key, source in zip(lines, sources, strict=True):
        assert source.shape == (3, 12, 16)
        line = lines[key]
        made = editor.edit(
            source, line["instruction"], task=line["task"], seed=line["seed"], sampling=Sampling(2)
        )
        assert torch.equal(read_image(out / "images" / f"{key}.png"), made)
        data = (out / "images" / f"{key}.png").read_bytes()
        assert line["output_sha256"] == hashlib.sha256(data).hexdigest()
    found = results(out)
    assert found["model"]["name"] == model.name
    assert found["settings"]["size"] == 12
    assert found["settings"]["num_steps"] == 2
    assert found["settings"]["tasks"] == "given"
    assert found["resampled"]["count"] == 4
    assert str(tmp_path) not in json.dumps(found)


def test_results_of_a_model_can_be_scored_again_as_pictures(
    model: Path, emu: Path, backbones: Path, tmp_path: Path
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(arguments(model, emu, backbones, out)) == 0
    assert main(arguments(out / "images", emu, backbones, again)) == 0
    assert results(out)["blocks"] == results(again)["blocks"]


def test_a_session_goes_on_from_our_own_result(
    predicting: Path, brush: Path, backbones: Path, tmp_path: Path, edits: Edits
) -> None:
    out = tmp_path / "out"
    assert main(arguments(predicting, brush, backbones, out)) == 0
    names = [path.stem for path in sorted((out / "images").iterdir())]
    assert len(names) == 9
    assert "1001_iter_2" in names
    assert edits.tasks == [None] * 9  # the predictor's word
    order = [
        "1001_1",
        "1001_inde_2",
        "1001_inde_3",
        "1001_iter_2",
        "1001_iter_3",
        "1002_1",
        "2001_1",
        "2001_inde_2",
        "2001_iter_2",
    ]
    sources = dict(zip(order, edits.sources, strict=True))
    for key, before in (
        ("1001_iter_2", "1001_1"),
        ("1001_iter_3", "1001_iter_2"),
        ("2001_iter_2", "2001_1"),
    ):
        assert torch.equal(sources[key], read_image(out / "images" / f"{before}.png"))
    found = results(out)
    assert {name: block["items"] for name, block in found["blocks"].items()} == {
        "all turns": 6,
        "final turns": 3,
    }
    assert found["settings"]["tasks"] == "predicted"


def test_a_stopped_run_goes_on_and_ends_like_one_that_was_not(
    predicting: Path,
    brush: Path,
    backbones: Path,
    tmp_path: Path,
    edits: Edits,
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(arguments(predicting, brush, backbones, whole, "--limit", "1")) == 0
    edits.instructions.clear()
    edits.failing["make it night"] = KeyboardInterrupt()
    assert main(arguments(predicting, brush, backbones, out, "--limit", "1")) == 130
    assert not (out / "results.json").exists()
    with (out / "edits.jsonl").open("a") as file:
        file.write('{"key": "1001_in')  # the power went
    edits.failing.clear()
    edits.instructions.clear()
    assert main(arguments(predicting, brush, backbones, out, "--limit", "1")) == 0
    assert len(edits.instructions) == 3  # two of the five were done
    assert results(out)["blocks"] == results(whole)["blocks"]
    assert (out / "items.jsonl").read_text() == (whole / "items.jsonl").read_text()
    edits.instructions.clear()
    assert main(arguments(predicting, brush, backbones, out, "--limit", "1")) == 0
    assert edits.instructions == []


@pytest.mark.slow
def test_what_changed_since_is_edited_again_with_all_that_follows(
    predicting: Path, brush: Path, backbones: Path, tmp_path: Path, edits: Edits
) -> None:
    out = tmp_path / "out"
    command = arguments(predicting, brush, backbones, out)
    assert main(command) == 0
    before = results(out)["blocks"]
    picture(3).save(out / "images" / "2001_1.png")  # somebody painted on it
    edits.instructions.clear()
    assert main(command) == 0
    assert edits.instructions == ["remove the train"]  # which gives the same picture again
    assert results(out)["blocks"] == before
    picture(77).save(brush / "test" / "images" / "2001" / "2001-input.png")
    edits.instructions.clear()
    assert main(command) == 0
    assert edits.instructions == ["remove the train", "add the blue dog"]  # and what follows it
    assert results(out)["blocks"] != before


def test_a_failed_edit_counts_as_not_edited_and_is_tried_again(
    model: Path,
    emu: Path,
    backbones: Path,
    tmp_path: Path,
    edits: Edits,
) -> None:
    out = tmp_path / "out"
    edits.failing["make it night"] = RuntimeError("out of\nmemory")
    edits.failing["remove the dog"] = InputError("no such thing")
    assert main(arguments(model, emu, backbones, out)) == 1
    found = results(out)
    assert found["failed"] == [
        {"key": "test-global-0", "reason": "out of memory"},
        {"key": "test-remove-5", "reason": "no such thing"},
    ]
    assert found["blocks"]["single edits"]["rows"]["model"]["all"]["l1"]["n"] == 4
    assert read_lines(out / "items.jsonl")["test-global-0"]["scores"]["l1"] == 0
    assert not (out / "images" / "test-global-0.png").exists()
    edits.failing.clear()
    edits.instructions.clear()
    assert main(arguments(model, emu, backbones, out)) == 0
    assert edits.instructions == ["make it night", "remove the dog"]
    assert results(out)["failed"] == []


def test_an_edit_that_failed_in_a_session_leaves_the_picture_as_it_was(
    predicting: Path, brush: Path, backbones: Path, tmp_path: Path, edits: Edits
) -> None:
    edits.failing["add a dog"] = InputError("no")
    out = tmp_path / "out"
    assert main(arguments(predicting, brush, backbones, out)) == 1
    assert [one["key"] for one in results(out)["failed"]] == ["1001_inde_2", "1001_iter_2"]
    night = [i for i, text in enumerate(edits.instructions) if text == "make it night"]
    first = read_image(out / "images" / "1001_1.png")
    assert torch.equal(edits.sources[night[-1]], first)


def test_a_model_that_fails_everywhere_is_refused(
    model: Path,
    emu: Path,
    backbones: Path,
    tmp_path: Path,
    edits: Edits,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for text in ("add a hat to the cat", "make it night", "add a dog", "remove the dog"):
        edits.failing[text] = InputError("no such thing")
    assert main(arguments(model, emu, backbones, tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert "not one item could be edited; test-add-0: no such thing" in told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps", "3"], "out was begun with num_steps 1, now it is 3; run it again as before"),
        (["--size", "8"], "out was begun with size 16, now it is 8"),
        (["--protocol", "emu-b32"], "out was begun with protocol 'emu-l14', now it is 'emu-b32'"),
        (["--split", "validation"], "out was begun with split 'test', now it is 'validation'"),
    ],
)
def test_another_run_may_not_go_on_in_the_same_folder(
    more: list[str],
    words: str,
    model: Path,
    emu: Path,
    backbones: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(model, emu, backbones, tmp_path / "out", "--limit", "1")) == 0
    capsys.readouterr()
    assert main(arguments(model, emu, backbones, tmp_path / "out", *more)) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_a_limit_may_be_raised_later(
    model: Path, emu: Path, backbones: Path, tmp_path: Path, edits: Edits
) -> None:
    out = tmp_path / "out"
    assert main(arguments(model, emu, backbones, out, "--limit", "2")) == 0
    assert results(out)["data"]["items"] == 2
    assert main(arguments(model, emu, backbones, out)) == 0
    assert len(edits.instructions) == 4
    assert results(out)["data"]["items"] == 4


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "magicbrush does not say the tasks of its edits, so the model needs a task predictor"),
        (["--tasks", "predicted"], "--tasks predicted needs a model with a task predictor"),
        (["--tasks", "guessed"], "invalid choice: 'guessed'"),
        (["--allow-missing"], "--allow-missing belongs to a folder of pictures"),
        (["--sampler", "ddimm"], "unknown sampler 'ddimm'"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_anything_is_written(
    more: list[str],
    words: str,
    model: Path,
    brush: Path,
    backbones: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(model, brush, backbones, tmp_path / "out", *more)) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_predictors_word_or_the_benchmarks_is_a_choice(
    predicting: Path, emu: Path, backbones: Path, tmp_path: Path, edits: Edits
) -> None:
    command = arguments(predicting, emu, backbones, tmp_path / "a", "--limit", "1")
    assert main([*command, "--tasks", "given"]) == 0
    assert main([*command, "-o", str(tmp_path / "b")]) == 0
    assert edits.tasks == ["add", None]
