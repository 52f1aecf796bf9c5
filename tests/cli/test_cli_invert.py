"""`emu-edit invert`, through the program's own entrance; and the same as a recipe of `fit`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emu_edit.cli.main import main
from emu_edit.editing.editor import Editor
from emu_edit.editing.predictor import TaskPredictor
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import LearnedTask
from emu_edit.models.task_files import read_task_table
from emu_edit.models.tiny import TinyText
from emu_edit.tasks import SIXTEEN
from tests.datamodules.toy_shards import make_folder

SHORT = ("--steps=2", "--batch=2", "--init=mean", "--device=cpu")


@pytest.fixture
def own(model: Path, workplace: Path) -> Path:
    """A model directory that a test may change."""
    shutil.copytree(model, workplace / "own")
    return workplace / "own"


@pytest.fixture
def pairs(workplace: Path) -> Path:
    """Three pairs of the new task, without an instruction."""
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for side, image in (("source", pixels), ("target", 255 - pixels)):
            (workplace / "pairs" / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(workplace / "pairs" / side / f"{i}.png")
    return workplace / "pairs"


def command(own: Path, pairs: Path, *options: str) -> list[str]:
    arguments = ["invert", "--task=invert", f"--data={pairs}", f"--model={own}", *SHORT]
    return [*arguments, "--instruction=invert the colours", *options]


def test_a_task_is_learnt_and_written(
    own: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(own, pairs, "--description=colours the other way", "--seed=7")) == 0
    task = LearnedTask.load("invert.safetensors")
    assert (task.name, task.pairs, task.steps, task.seed) == ("invert", 3, 2, 7)
    assert task.description == "colours the other way"
    assert task.instruction == "invert the colours"
    assert task.base == model_hash(Editor.from_pretrained(own).networks)
    assert Path("invert.safetensors").stat().st_size < 4096
    with Image.open("invert.png") as picture:
        assert picture.height > 3 * 128
    out = capsys.readouterr().out
    assert "invert: 3 pairs learnt from; error on training pairs" in out
    assert "--task invert.safetensors -o edited.png --model" in out
    assert f"emu-edit tasks add {own} invert.safetensors" in out
    assert read_task_table(own) == SIXTEEN


def test_what_it_says_to_do_next_works(own: Path, pairs: Path, photo: Path) -> None:
    assert main(command(own, pairs)) == 0
    edit = ["edit", str(photo), "invert the colours", "-o", "edited.png", f"--model={own}"]
    assert main([*edit, "--task=invert.safetensors", "--device=cpu"]) == 0
    assert Path("edited.png").is_file()
    assert main(["tasks", "add", str(own), "invert.safetensors"]) == 0
    assert read_task_table(own).names == (*SIXTEEN.names, "invert")
    assert main([*edit, "--task=invert", "--device=cpu"]) == 0


def test_install_puts_it_into_the_model(
    own: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(own, pairs, "--install", "-o", "learned.safetensors")) == 0
    assert read_task_table(own).names[-1] == "invert"
    out = capsys.readouterr().out
    assert "--task invert -o edited.png" in out
    assert "tasks add" not in out
    assert Path("learned.safetensors").is_file()
    assert Path("learned.png").is_file()


def test_json_tells_everything(
    own: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(workplace / "shards", {"local": 6})
    assert main(command(own, workplace / "shards", "--json", "--pairs=5")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["task"] == "invert"
    assert told["file"] == "invert.safetensors"
    assert (told["trained_on"], told["held_out"], told["shown"]) == (4, 1, 1)
    assert told["began_at"] == "mean"
    assert [check["step"] for check in told["history"]] == [0, 2]
    assert told["installed"] is False
    kept = next(check for check in told["history"] if check["step"] == told["best_step"])
    assert told["error_before"] == told["history"][0]["held_out"]
    assert told["error_after"] == kept["held_out"]
    assert told["error_over_copy"] > 0


def test_the_predictor_may_know_it(
    own: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from datamodules.world import predictor_texts as instructions

    monkeypatch.setattr(instructions, "WORLD_TEXTS", 32)
    monkeypatch.setattr(instructions, "PARAPHRASED_TEXTS", 32)
    monkeypatch.setattr(instructions, "EVERYDAY_TEXTS", 32)
    monkeypatch.setattr(instructions, "UNSEEN_TEXTS", 32)
    refused = refusal(command(own, pairs, "--predictor"), capsys)
    assert "has no task predictor that could know the task" in refused
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)  # whatever test came before
        predictor = TaskPredictor(TinyText(dim=16, num_layers=1, num_heads=2), SIXTEEN)
    predictor.save_pretrained(own / "predictor")
    assert main(command(own, pairs, "--predictor", "--install")) == 0
    assert LearnedTask.load("invert.safetensors").predictor_row is not None
    (prediction,) = Editor.from_pretrained(own).predict_tasks(["invert the colours"])
    assert prediction.task == "invert"


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect one line and status 2, return the line."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task=local"], "has a task 'local' already; give another name"),
        (["--task=My task"], "a task's name must begin with a-z"),
        (["--task=best"], "a task cannot be called 'best': 'invert --init best' means"),
        (["--task=../x"], "a task's name must begin with a-z"),
        (["--data=nowhere"], "nowhere: no such file or folder; give a folder of shards"),
        (["--data=."], "has no pairs of a known layout"),
        (["--model=nowhere"], "there is no model at nowhere"),
        (["--model=pairs"], "pairs is not a model directory"),
        (["--model=released", "--install"], "the released model belongs to the installation"),
        (
            ["--instruction="],
            "0.txt: no such file; add it, or give one for all (--instruction TEXT)",
        ),
        (["--instruction=" + "\u200b"], "the instruction is empty"),
        (["--description=\u200b"], "the description is empty"),
        (["--init=locale"], "cannot begin at 'locale'"),
        (["--init=nearest"], "this model has no task predictor to find the nearest task"),
        (["--pairs=4"], "has 3 pairs, fewer than the 4 asked for"),
        (["--max-pairs=2"], "has 3 pairs, a new task takes at most 2"),
        (["--lr=0"], "lr of an inversion must be above 0, got 0.0"),
        (["--steps=0"], "--steps: needs a whole number of at least 1, got '0'"),
        (["-o", "learned.bin"], "a learned task is a .safetensors file"),
        (["-o", "no/where.safetensors"], "it is a folder or lies in none"),
        (["-o", "taken.safetensors"], "taken.safetensors is no learned task"),
        (["--flips"], "unknown argument '--flips'. Did you mean '--flip'?"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_learnt(
    own: Path,
    pairs: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1)}, "taken.safetensors")
    monkeypatch.setattr("emu_edit.training.inversion.invert", None)
    assert message in refusal(command(own, pairs, *options), capsys)
    assert not Path("invert.safetensors").exists()


def test_a_learned_task_may_be_learnt_again(own: Path, pairs: Path) -> None:
    for seed in ("1", "2"):
        assert main(command(own, pairs, f"--seed={seed}")) == 0
    assert LearnedTask.load("invert.safetensors").seed == 2


def test_an_instruction_that_is_too_long_for_the_model_is_refused(
    own: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command(own, pairs), "--instruction=" + "x" * 1999]
    assert "the text encoder takes at most" in refusal(arguments, capsys)


def test_mirrored_pairs_are_learnt_from_if_asked(
    own: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = []
    for options in ((), ("--flip",)):
        assert main(command(own, pairs, "--json", *options)) == 0
        errors.append(json.loads(capsys.readouterr().out)["history"][0]["train"])
    assert errors[0] != errors[1]


def test_the_help_page_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["invert", "--help"])
    assert stop.value.code == 0
    assert "without changing it" in capsys.readouterr().out
