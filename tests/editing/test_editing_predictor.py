"""The task predictor: what it says, and the directory it lies in."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emu_edit.editing.editor import Editor
from emu_edit.editing.find import PREDICTOR
from emu_edit.editing.predictor import TEXTS_AT_ONCE, TaskPrediction, TaskPredictor
from emu_edit.errors import InputError
from emu_edit.models.tiny import TinyText
from emu_edit.tasks import SIXTEEN, TaskTable

TEXTS = ["make the red circle blue", "add a star", "a much longer text that has many more tokens"]


def make_predictor(tasks: TaskTable = SIXTEEN, temperature: float = 1.5) -> TaskPredictor:
    """A predictor with random weights, so that it has opinions."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        encoder = TinyText(dim=16, num_layers=1, num_heads=2, max_tokens=40)
        made = TaskPredictor(encoder, tasks, temperature=temperature)
        torch.nn.init.normal_(made.head.weight)
    return made.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_predictor().save_pretrained(tmp_path / "predictor")
    return tmp_path / "predictor"


def change_index(folder: Path, **values: object) -> None:
    file = folder / "predictor.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_sure_prediction_names_the_task_and_an_unsure_one_the_first_three() -> None:
    ranking = (("add", 0.81), ("text", 0.1), ("local", 0.05), ("style", 0.04))
    assert TaskPrediction("add", 0.81, ranking).describe() == "add (81%)"
    ranking = (("add", 0.5), ("text", 0.25), ("local", 0.15), ("style", 0.1))
    unsure = TaskPrediction("add", 0.5, ranking)
    assert not unsure.is_sure
    assert unsure.describe() == "add (50%), text (25%), local (15%)"


def test_before_training_every_task_is_equally_probable() -> None:
    predictor = TaskPredictor(TinyText(dim=16, num_layers=1, num_heads=2), SIXTEEN)
    (prediction,) = predictor.predict(["make it red"])
    assert prediction.confidence == pytest.approx(1 / 16)
    assert prediction.task == "local"  # ties keep the order of the table


def test_the_ranking_has_every_task_once_and_sums_to_one() -> None:
    for prediction in make_predictor().predict(TEXTS):
        assert sorted(task for task, _ in prediction.ranking) == sorted(SIXTEEN.names)
        shares = [share for _, share in prediction.ranking]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
        assert prediction.ranking[0] == (prediction.task, prediction.confidence)


def test_a_text_is_predicted_the_same_alone_and_in_any_batch() -> None:
    predictor = make_predictor()
    many = [f"{TEXTS[i % 3]} {i}" for i in range(TEXTS_AT_ONCE + 2)]
    together = predictor.probabilities(many)
    assert together.shape == (len(many), len(SIXTEEN))
    for i in (0, 1, 2, TEXTS_AT_ONCE - 1, TEXTS_AT_ONCE, TEXTS_AT_ONCE + 1):
        torch.testing.assert_close(
            predictor.probabilities(many[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-6
        )


def test_no_instructions_give_no_predictions() -> None:
    assert make_predictor().predict([]) == []


def test_the_temperature_changes_the_confidence_and_not_the_order() -> None:
    sharp, flat = make_predictor(temperature=0.5), make_predictor(temperature=5.0)
    for first, second in zip(sharp.predict(TEXTS), flat.predict(TEXTS), strict=True):
        assert [task for task, _ in first.ranking] == [task for task, _ in second.ranking]
        assert first.confidence > second.confidence


def test_an_encoder_that_attends_to_padding_is_refused() -> None:
    encoder = TinyText(dim=16, num_layers=1, num_heads=2)
    encoder.attend_padding = True
    with pytest.raises(ValueError, match="give attend_padding=False"):
        TaskPredictor(encoder, SIXTEEN)


def test_a_text_that_is_too_long_is_refused_not_cut() -> None:
    with pytest.raises(InputError, match="tokens, the text encoder takes at most 40"):
        make_predictor().predict(["fine", "é" * 60])


def test_a_loaded_predictor_says_what_the_saved_one_said(saved: Path) -> None:
    loaded = TaskPredictor.from_pretrained(saved, tasks=SIXTEEN)
    assert torch.equal(loaded.probabilities(TEXTS), make_predictor().probabilities(TEXTS))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_predictor_directory_holds_safetensors_and_json_only(saved: Path) -> None:
    suffixes = {file.suffix for file in saved.rglob("*") if file.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_a_saved_predictor_replaces_an_older_one_and_nothing_else(saved: Path) -> None:
    (saved / "stale").write_text("from before")
    make_predictor().save_pretrained(saved)
    assert not (saved / "stale").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["predictor"]
    (saved / "predictor.json").unlink()
    with pytest.raises(InputError, match="exists and is no task predictor; it is left alone"):
        make_predictor().save_pretrained(saved)
    assert (saved / "head.safetensors").is_file()


def test_a_predictor_of_another_table_is_refused(saved: Path) -> None:
    with pytest.raises(InputError, match=r"predicts other tasks than the model has: local, .*"):
        TaskPredictor.from_pretrained(saved, tasks=TaskTable((*SIXTEEN.names, "new")))
    with pytest.raises(InputError, match="predicts other tasks"):
        TaskPredictor.from_pretrained(saved, tasks=TaskTable(SIXTEEN.names[::-1]))


def test_what_is_no_predictor_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"is no task predictor \(it has no predictor\.json\)"):
            TaskPredictor.from_pretrained(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 2}, "is of version 2, this program reads 1"),
        ({"tasks": "local"}, "has no list of task names"),
        ({"tasks": []}, "needs at least one task"),
        ({"temperature": 0.0}, "must be numbers above 0, got 0.0 and 40"),
        ({"temperature": float("nan")}, "NaN is not a number"),
        ({"temperature": None}, "must be numbers above 0, got None"),
        ({"max_tokens": "many"}, "must be numbers above 0, got 1.5 and 'many'"),
    ],
)
def test_a_broken_index_is_refused(saved: Path, values: dict[str, object], message: str) -> None:
    change_index(saved, **values)
    with pytest.raises(InputError, match=message):
        TaskPredictor.from_pretrained(saved)


def test_an_index_that_is_no_json_is_refused(saved: Path) -> None:
    (saved / "predictor.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*predictor\.json"):
        TaskPredictor.from_pretrained(saved)


def test_a_head_that_does_not_fit_or_is_damaged_is_refused(saved: Path) -> None:
    file = saved / "head.safetensors"
    head = load_file(file)
    save_file({"weight": head["weight"][:, :8].contiguous(), "bias": head["bias"]}, file)
    with pytest.raises(InputError, match="its encoder or its tasks are another predictor's"):
        TaskPredictor.from_pretrained(saved)
    save_file({**head, "bias": head["bias"] * float("nan")}, file)
    with pytest.raises(
        InputError, match=r"head.safetensors: bias holds values that are not numbers"
    ):
        TaskPredictor.from_pretrained(saved)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match=r"cannot read .*head\.safetensors"):
        TaskPredictor.from_pretrained(saved)


def test_a_missing_or_pickled_encoder_is_refused(saved: Path) -> None:
    weights = saved / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(InputError, match="holds pickled weights"):
        TaskPredictor.from_pretrained(saved)
    shutil.rmtree(saved / "text_encoder")
    with pytest.raises(InputError, match=r"text_encoder has no config\.json"):
        TaskPredictor.from_pretrained(saved)


def test_an_editor_carries_its_predictor_into_its_directory(model: Path, tmp_path: Path) -> None:
    editor = Editor.from_pretrained(model)
    assert editor.predictor is None
    editor.predictor = make_predictor()
    editor.save_pretrained(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    loaded = Editor.from_pretrained(tmp_path / "model")
    assert loaded.predict_tasks(TEXTS) == editor.predict_tasks(TEXTS)


def test_an_edit_without_a_task_is_told_the_predicted_one(model: Path) -> None:
    editor = Editor.from_pretrained(model)
    editor.networks.task_embedding.table.data.normal_(generator=torch.Generator().manual_seed(0))
    editor.predictor = make_predictor()
    (prediction,) = editor.predict_tasks([TEXTS[0]])
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    asked = editor.edit(image, TEXTS[0])
    assert torch.equal(asked, editor.edit(image, TEXTS[0], task=prediction.task))


def test_a_model_directory_with_a_predictor_of_another_table_is_refused(
    model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "model")
    make_predictor(TaskTable(("a", "b"))).save_pretrained(tmp_path / "model" / PREDICTOR)
    with pytest.raises(InputError, match="predicts other tasks than the model has: a, b"):
        Editor.from_pretrained(tmp_path / "model")


def test_a_model_directory_whose_predictor_is_broken_is_refused(
    model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / PREDICTOR).mkdir()
    with pytest.raises(InputError, match="is no task predictor"):
        Editor.from_pretrained(tmp_path / "model")


def test_a_predictor_that_cannot_be_written_leaves_the_old_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "model")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    editor = Editor.from_pretrained(model)
    editor.predictor = make_predictor()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TaskPredictor, "write_parts", full)
    with pytest.raises(OSError, match="No space left"):
        editor.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
