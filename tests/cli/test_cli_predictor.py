"""`emu-edit predictor fit | evaluate`, through the program's own entrance."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from datamodules.world import predictor_texts as instructions
from datamodules.world.write import write_world
from emu_edit.cli.main import main
from emu_edit.editing.editor import Editor
from emu_edit.editing.predictor import TaskPredictor
from emu_edit.evaluation.predictor import score
from emu_edit.models.interfaces import TextLimit
from emu_edit.models.tiny import TinyText
from emu_edit.runs import predictor as predictor_training
from emu_edit.tasks import SIXTEEN, TaskTable
from emu_edit.training.predictor import PredictorSettings
from tests.datamodules.toy_shards import make_folder

SHORT = ("--steps=2", "--batch=16")


@pytest.fixture(autouse=True)
def _small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "WORLD_TEXTS", 32)
    monkeypatch.setattr(instructions, "PARAPHRASED_TEXTS", 32)
    monkeypatch.setattr(instructions, "EVERYDAY_TEXTS", 32)
    monkeypatch.setattr(instructions, "UNSEEN_TEXTS", 32)


@pytest.fixture
def own_model(model: Path, workplace: Path) -> Path:
    """A model directory that a test may change."""
    shutil.copytree(model, workplace / "own")
    return workplace / "own"


def save_predictor(folder: Path, tasks: TaskTable = SIXTEEN) -> Path:
    """An untrained predictor: it takes everything for the first task."""
    TaskPredictor(TinyText(dim=16, num_layers=1, num_heads=2), tasks).save_pretrained(folder)
    return folder


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], *, status: int = 2) -> str:
    """Run, expect one line and this status, return the line."""
    assert main(["predictor", *arguments]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_fit_puts_a_predictor_into_the_model_directory(
    own_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predictor", "fit", str(own_model), *SHORT]) == 0
    out = capsys.readouterr().out
    assert f"wrote {own_model / 'predictor'} (96 instructions" in out
    assert "expected calibration error" in out
    (prediction,) = Editor.from_pretrained(own_model).predict_tasks(["make it red"])
    assert prediction.task in SIXTEEN.names


def test_fit_twice_with_one_seed_writes_the_same_bytes(workplace: Path) -> None:
    for name in ("a", "b"):
        assert main(["predictor", "fit", "-o", name, *SHORT, "--seed=5"]) == 0
    for file in ("head.safetensors", "predictor.json", "text_encoder/model.safetensors"):
        assert (workplace / "a" / file).read_bytes() == (workplace / "b" / file).read_bytes()


def test_fit_learns_from_shards_and_says_which_tasks_they_lack(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(workplace / "shards", {"local": 6, "add": 3})
    assert main(["predictor", "fit", "-o", "made", "--data", "shards", *SHORT]) == 0
    out = capsys.readouterr().out
    assert "no instructions of remove, texture" in out
    assert "(9 instructions" in out
    assert TaskPredictor.from_pretrained(workplace / "made").tasks == SIXTEEN


def test_fit_takes_a_pretrained_encoder_tuned_or_frozen(workplace: Path) -> None:
    tiny = save_predictor(workplace / "tiny")
    frozen = ["predictor", "fit", "-o", "frozen", f"--encoder={tiny}", "--device=cpu", *SHORT]
    assert main([*frozen, "--freeze"]) == 0
    assert main([*frozen, "-o", "tuned"]) == 0
    weights = "text_encoder/model.safetensors"
    given = (tiny / weights).read_bytes()
    assert (workplace / "frozen" / weights).read_bytes() == given
    assert (workplace / "tuned" / weights).read_bytes() != given


@pytest.mark.slow
def test_the_end_of_a_training_puts_a_predictor_beside_the_networks(
    own_model: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(PredictorSettings, steps=2, batch_size=16)
    monkeypatch.setattr(predictor_training, "PredictorSettings", quick)
    write_world(workplace / "world", 32, size=16, workers=1)
    measured = predictor_training.add_predictor(own_model, [workplace / "world"], SIXTEEN)
    told = predictor_training.describe_training(measured)
    assert "held back from training are right" in told
    assert Editor.from_pretrained(own_model).predictor is not None


def test_an_instruction_of_any_length_does_not_end_the_training_of_a_predictor() -> None:
    predictor = TaskPredictor(TinyText(dim=16, num_layers=1, num_heads=2), SIXTEEN)
    texts = [("make it " + "very " * 3000 + "blue", "local"), ("add a hat", "add")]
    quick = PredictorSettings(steps=1, batch_size=4)
    limit = TextLimit(8, predictor.encoder.limit.count)
    measured = predictor_training.train_with_bar(predictor, texts, quick, limit)
    assert measured.texts > 0


def test_evaluate_writes_numbers_and_a_picture(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_predictor(workplace / "p")
    assert main(["predictor", "evaluate", "p", "--texts=32", "--device=cpu"]) == 0
    folder = workplace / "p-predictor-heldout"
    values = json.loads((folder / "confusion.json").read_text())
    assert values["accuracy"] == 1 / 16
    assert values["accuracy_by_task"]["local"] == 1
    assert values["accuracy_by_task"]["segmap"] == 0
    assert [row[0] for row in values["confusion"]] == [2] * 16
    assert values["expected_calibration_error"] == pytest.approx(0, abs=1e-9)
    assert values["num_mistakes"] == len(values["mistakes"]) == 30
    assert len(values["mistakes"][0]["first_three"]) == 3
    with Image.open(folder / "confusion.png") as picture:
        assert min(picture.size) >= 600
    out = capsys.readouterr().out
    assert "accuracy 6.25% on 32 instructions" in out
    assert "segmap            2    0.0%  local (2)" in out


def test_evaluate_measures_a_model_directory_on_shards(own_model: Path, workplace: Path) -> None:
    save_predictor(own_model / "predictor")
    make_folder(workplace / "shards", {"local": 3, "add": 1})
    arguments = [str(own_model), "--data", "shards", "-o", "out", "--device=cpu"]
    assert main(["predictor", "evaluate", *arguments]) == 0
    values = json.loads((workplace / "out" / "confusion.json").read_text())
    assert values["accuracy"] == 0.75
    assert values["accuracy_by_task"]["style"] is None


def test_sentences_of_a_file_may_have_two_right_answers_and_predictors_stand_side_by_side(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_predictor(workplace / "p")
    save_predictor(workplace / "q")
    file = workplace / "said.jsonl"
    file.write_text('{"text": "a", "tasks": ["add", "local"]}\n{"text": "b", "task": "add"}\n')
    assert main(["predictor", "evaluate", "p", "q", "--sentences=said.jsonl", "--device=cpu"]) == 0
    values = json.loads((workplace / "q-predictor-said" / "confusion.json").read_text())
    assert (values["accuracy"], values["mistakes"][0]["asked"]) == (0.5, "add")
    assert (workplace / "p-predictor-said" / "calibration.png").is_file()
    assert "all                    50.0%           50.0%" in capsys.readouterr().out


def test_lines_of_a_text_file_are_shown_with_what_is_said_of_them(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_predictor(workplace / "p")
    (workplace / "lines.txt").write_text("juggle\n\nwipe it\n")
    assert main(["predictor", "evaluate", "p", "--sentences=lines.txt", "--device=cpu"]) == 0
    three = "    local (6%), remove (6%), add (6%)\n"
    assert capsys.readouterr().out == f"juggle\n{three}wipe it\n{three}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", 'said.jsonl:1 is no JSON object with a "text" and its "tasks"'),
        ('{"text": "a"}', 'said.jsonl:1 is no JSON object with a "text" and its "tasks"'),
        ('{"text": "a", "task": "stle"}', "unknown task 'stle'"),
        ('{"text": " ", "task": "style"}', "said.jsonl:1: the instruction is empty"),
        ("", "said.jsonl has no sentences"),
    ],
)
def test_a_file_that_holds_no_sentences_is_refused(
    line: str, message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_predictor(workplace / "p")
    (workplace / "said.jsonl").write_text(line)
    assert message in refusal(["evaluate", "p", "--sentences=said.jsonl"], capsys)


def test_sure_answers_are_counted_apart(workplace: Path) -> None:
    predictor = TaskPredictor.from_pretrained(save_predictor(workplace / "p"))
    predictor.head.bias[0] = 9.0
    asked = [("a", ("local",)), ("b", ("add", "local")), ("c", ("add",)), ("d", ("local",))]
    result = score(predictor, asked)
    assert (result.sure, result.right_when_sure, result.accuracy) == (1, 0.75, 0.75)
    assert result.wrong_when_very_sure == 0.25
    assert [(entry.count, entry.accuracy) for entry in result.calibration] == [(4, 0.75)]
    assert [mistake.instruction for mistake in result.mistakes] == ["c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "unknown command 'predictor fitt'; known: fit, evaluate. Did you mean 'fit'?"),
        (["fit"], "no trained model in"),
        (["fit", "nowhere"], "there is no model at nowhere"),
        (["fit", "-o", "x", "--freeze"], "--freeze needs --encoder"),
        (["fit", "-o", "x", "--encoder", "nowhere"], "no directory 'nowhere', and it is no hub"),
        (
            ["evaluate", "p", "--data=a", "--sentences=b"],
            "are two sources of instructions; give one",
        ),
        (["evaluate", "p", "q", "-o", "x"], "-o is the folder of one predictor"),
        (["fit", "-o", "x", "--lr", "0"], "lr of the predictor must be above 0, got 0.0"),
        (["fit", "-o", "taken"], "exists and is no task predictor; it is left alone"),
        (["evaluate"], "the following arguments are required: model"),
        (["evaluate", "nowhere"], "there is no model at nowhere"),
        (["evaluate", "nowhere", "--split", "val"], "invalid choice: 'val'"),
    ],
)
def test_bad_input_is_one_line(
    workplace: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "taken").mkdir()
    (workplace / "taken" / "thesis.tex").write_text("years of work")
    assert message in refusal(arguments, capsys)
    assert not (workplace / "x").exists()


@pytest.mark.usefixtures("workplace")
def test_a_missing_shard_folder_is_bad_data(capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(["fit", "-o", "x", "--data", "nowhere"], capsys, status=65)
    assert "nowhere is not a shard folder" in error


def test_a_model_without_a_predictor_says_how_to_get_one(
    own_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(["evaluate", str(own_model)], capsys)
    assert f"has no task predictor; train one with 'emu-edit predictor fit {own_model}'" in error


def test_shards_of_tasks_the_model_does_not_know_are_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(workplace / "shards", {"local": 2, "sharpen": 2})
    error = refusal(["fit", "-o", "x", "--data", "shards", *SHORT], capsys)
    assert "shards has instructions of sharpen, which the model does not know" in error
    save_predictor(workplace / "p", TaskTable(("local", "add")))
    error = refusal(["evaluate", "p", "--data", "shards", "--device=cpu"], capsys)
    assert "unknown task 'sharpen'; known tasks: local, add" in error


def test_the_help_pages_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predictor"]) == 0
    assert "fit       train a predictor" in capsys.readouterr().out
    for command in ("fit", "evaluate"):
        with pytest.raises(SystemExit) as stop:
            main(["predictor", command, "--help"])
        assert stop.value.code == 0


def test_rows_of_the_confusion_matrix_are_what_was_asked(workplace: Path) -> None:
    predictor = TaskPredictor.from_pretrained(save_predictor(workplace / "p"))
    predictor.head.bias[0] = 9.0
    result = score(predictor, [("a", ("local",)), ("b", ("add",)), ("c", ("add",))])
    local, add = (predictor.tasks.index(task) for task in ("local", "add"))
    assert result.confusion[:, local].nonzero().flatten().tolist() == sorted([local, add])
    assert result.confusion[[local, add], local].tolist() == [1, 2]
    assert result.num_texts == 3
