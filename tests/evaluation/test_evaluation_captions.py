"""`evaluate --benchmark world-captions`: what a model draws, by what the scene reader sees."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.world.captions import caption_scene
from datamodules.world.read import READABLE, ReadFigure, Reading, read_scene
from datamodules.world.scene import Scene
from emu_edit.cli.main import main
from emu_edit.diffusion.prediction import Prediction
from emu_edit.evaluation.captions import agreement
from emu_edit.tasks import CAPTION
from tests.training.stage import make_module


def two_figures() -> Scene:
    scenes = (caption_scene(0, index)[1] for index in range(99))
    return next(scene for scene in scenes if len({f.colour for f in scene.figures}) == 2)


def read(scene: Scene) -> Reading:
    """What a reader who is never wrong would say."""
    figures = tuple(ReadFigure(figure, (0.0, 0.0, 1.0, 1.0), 0.0) for figure in scene.figures)
    return Reading(figures, scene.background.name, None, 0.0)


def test_a_picture_is_right_when_all_is_there_and_nothing_else() -> None:
    scene = two_figures()
    first = scene.figures[0]
    assert set(agreement(scene, read(scene)).values()) == {1.0}
    one = agreement(scene, read(replace(scene, figures=(first,))))
    assert (one["right"], one["figures"], one["background"], one["number"]) == (0, 0.5, 1, 0)
    third = agreement(replace(scene, figures=(first,)), read(scene))
    assert (third["right"], third["figures"], third["number"]) == (0, 1, 0)
    nowhere = agreement(scene, Reading((), None, None, 1.0))
    assert set(nowhere.values()) == {0.0}


def test_colours_and_shapes_that_changed_places_are_no_figures() -> None:
    scene = two_figures()
    first, second = scene.figures
    swapped = (replace(first, colour=second.colour), replace(second, colour=first.colour))
    found = agreement(scene, read(replace(scene, figures=swapped)))
    assert (found["figures"], found["colours"], found["shapes"], found["number"]) == (0, 1, 1, 1)


def test_a_true_picture_is_read_as_its_caption_says() -> None:
    for index in range(4):
        studio, scene = caption_scene(5, index, split="heldout", size=32)
        picture = np.ascontiguousarray(studio.render(scene).transpose(2, 0, 1))
        assert agreement(scene, read_scene(picture))["right"] == 1


@pytest.mark.usefixtures("quick_intervals")
def test_a_model_is_drawn_from_and_read_beside_the_oracle(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_module(prediction=Prediction.z0, tasks=[CAPTION]).make_editor().save_pretrained(folder)
    out = tmp_path / "out"
    command = ["evaluate", str(folder), "--benchmark", "world-captions", "--pairs", "3"]
    assert main([*command, "--size", "32", "--steps", "1", "-o", str(out)]) == 0
    rows = json.loads((out / "results.json").read_text())["blocks"]["single edits"]["rows"]
    assert rows["oracle"]["all"]["right"]["mean"] == 1
    assert rows["model"]["all"]["right"]["mean"] == 0  # it has learnt nothing
    page = (out / "index.html").read_text()
    assert page.count("<figcaption>drawn</figcaption>") == 3
    assert "<figcaption>input</figcaption>" not in page


def test_models_that_edit_and_folders_are_refused(
    model: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(model), "--benchmark", "world-captions"]) == 2
    assert "was not trained to draw" in capsys.readouterr().err
    (workplace / "a.png").write_bytes(b"")
    assert main(["evaluate", str(workplace), "--benchmark", "world-captions"]) == 2
    assert "is a folder of pictures" in capsys.readouterr().err


def test_a_figure_in_doubt_is_no_figure() -> None:
    scene = two_figures()
    sure, doubted = read(scene).figures
    reading = read(scene)
    for doubt, count in ((READABLE, 2), (READABLE + 0.01, 1)):
        seen = replace(reading, figures=(sure, replace(doubted, doubt=doubt))).readable
        assert len(seen.figures) == count
        assert agreement(scene, seen)["figures"] == count / 2
        assert seen.background == reading.background
