"""A model directory says what the model was trained to make small."""

import json
from pathlib import Path

import pytest

from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.diffusion.weighting import Weighting
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.training.export import export_model
from emu_edit.training.objective import Objective
from tests.training.stage import make_module

ODD = Objective(
    Weighting.one_plus_min_snr,
    timestep_shift=7.0,
    balance=0.25,
    huber_c=0.125,
    region_weight=2.5,
)


def exported(folder: Path) -> Path:
    module = make_module()
    module.objective = ODD
    export_model(module, folder, ema=None)
    return folder


def test_export_writes_the_objective_and_loading_finds_it(tmp_path: Path) -> None:
    editor = Editor.from_pretrained(exported(tmp_path / "model"))
    assert Objective.of_editor(editor) == ODD


def test_saving_a_loaded_model_keeps_the_objective(tmp_path: Path) -> None:
    Editor.from_pretrained(exported(tmp_path / "model")).save_pretrained(tmp_path / "again")
    assert Objective.of_editor(Editor.from_pretrained(tmp_path / "again")) == ODD


@pytest.mark.parametrize("prediction", [p for p in Prediction if p is not Prediction.flow])
def test_a_directory_of_before_gets_the_usual_objective(
    prediction: Prediction, tmp_path: Path
) -> None:
    folder = exported(tmp_path / "model")
    index = folder / "model_index.json"
    values = json.loads(index.read_text())
    del values["_emu_edit"]["objective"]
    index.write_text(json.dumps(values))
    editor = Editor.from_pretrained(folder)
    editor.prediction = prediction
    usual = Objective.of_editor(editor)
    assert usual.huber_c is None
    assert usual.region_weight is None
    assert (usual.timestep_shift > 1) == (prediction is Prediction.change)
    usual.check(prediction, NoiseSchedule.scaled_linear(zero_terminal_snr=False))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "the model's objective must be a JSON object"),
        ({}, "weighting must be one of uniform"),
        ({"weighting": "uniforms"}, "got 'uniforms'. Did you mean 'uniform'"),
        ({"weighting": "uniform", "timestep_shift": 0.5, "balance": 0}, "must be at least 1"),
        ({"weighting": "uniform", "timestep_shift": 1, "balance": "0"}, "balance must be a number"),
        (
            {"weighting": "uniform", "timestep_shift": 1, "balance": 0, "huber_c": -1},
            r"huber_c above 0, got 1\.0 and -1\.0",
        ),
    ],
)
def test_a_damaged_objective_is_refused(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective.from_dict(values, where="the model's objective")


def test_a_weighting_that_does_not_fit_the_prediction_is_refused() -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    with pytest.raises(InputError, match="min_snr' gives weight 0 to the last step"):
        Objective(Weighting.min_snr).check(Prediction.change, schedule)
