"""Which model a command means: one by name, the newest run's, or the released one."""

import os
from pathlib import Path

import pytest

from emu_edit.cli.main import main
from emu_edit.editing import find as finding
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import INDEX, PREDICTOR, find_model, newest_model
from emu_edit.errors import InputError


def make_model(folder: Path, *, age: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / INDEX).write_text("{}")
    os.utime(folder / INDEX, (1e9 - age, 1e9 - age))
    return folder


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a model with the package, and work in an empty folder."""
    model = make_model(tmp_path / "site-packages" / "released")
    monkeypatch.setattr(finding, "RELEASED", model)
    monkeypatch.setattr("emu_edit.cli.predictor.RELEASED", model)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return model


def test_without_a_run_the_released_model_is_meant(released: Path):
    assert find_model(None) == released
    assert find_model(Path("released")) == released


def test_the_newest_run_comes_before_the_released_model(released: Path):
    make_model(Path("runs/a/model"), age=5)
    newest = make_model(Path("runs/b/model"), age=1)
    make_model(Path("runs/c/model"), age=9)
    assert find_model(None) == newest
    assert find_model(Path("released")) == released


def test_a_folder_called_released_is_the_users(released: Path):
    own = make_model(Path("released"))
    assert find_model(Path("released")) == own != released


def test_an_installation_without_it_says_what_to_do(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(finding, "RELEASED", tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no trained model in .*; train one with 'emu-edit fit'"):
        find_model(None)
    with pytest.raises(InputError, match="there is no model at released"):
        find_model(Path("released"))


@pytest.mark.usefixtures("released")
def test_training_results_are_looked_for_among_the_users_runs_only():
    with pytest.raises(InputError, match="no trained model"):
        newest_model(Path("runs"))


@pytest.mark.usefixtures("released")
def test_the_released_model_is_not_given_another_predictor(capsys: pytest.CaptureFixture[str]):
    assert main(["predictor", "fit", "released"]) == 2
    assert "the released model belongs to the installation" in capsys.readouterr().err
    assert main(["predictor", "fit"]) == 2
    assert "no trained model in" in capsys.readouterr().err


def test_a_run_without_predictor_is_passed_over_by_who_needs_one_and_named(
    released: Path, capsys: pytest.CaptureFixture[str]
):
    able = make_model(Path("runs/a/model"), age=5)
    newest = make_model(Path("runs/b/model"), age=1)
    with pytest.raises(InputError, match=r"none of the models .* --task, .*--model released"):
        find_model(None, predicting=True)
    (able / PREDICTOR).mkdir()
    assert find_model(None, predicting=True) == able
    said = capsys.readouterr().err
    assert said.startswith(f"takes {able}: the newest run's model {newest} has no task predictor")
    assert said.count("\n") == 1
    assert find_model(None) == newest
    (newest / PREDICTOR).mkdir()
    assert find_model(None, predicting=True) == newest
    assert find_model(Path("released"), predicting=True) == released
    assert capsys.readouterr().err == ""


def test_the_editor_finds_what_the_command_line_finds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(finding, "RELEASED", model)
    monkeypatch.chdir(tmp_path)
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/model").symlink_to(model)
    asked = []
    monkeypatch.setattr(
        "emu_edit.editing.model_parts.choose_device", lambda name: asked.append(name) or "cpu"
    )
    for name in ("released", "runs/a", Path("runs/a/model")):
        assert Editor.from_pretrained(name).settings.image_size == 16
    assert asked == [None, None, None]
    with pytest.raises(InputError, match="there is no model at nowhere"):
        Editor.from_pretrained("nowhere")
    monkeypatch.undo()
    with pytest.raises(InputError, match="device 'abacus' cannot be used here; try --device cpu"):
        Editor.from_pretrained(model, "abacus")
