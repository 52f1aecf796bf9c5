"""What a model was not trained for is said in a line: in the API and on the command line."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import get_data_path

from datamodules.world.pair import make_pair
from datamodules.world.phrasings import PHOTOGRAPH_PHRASINGS
from emu_edit.cli.main import main
from emu_edit.editing.doubts import (
    LEARNT_ON_PHOTOGRAPHS,
    about_training,
    doubt_about,
)
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import RELEASED
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.editing.session import EditSession
from emu_edit.editing.settings import PHOTOGRAPHS_TOO, WORLD
from emu_edit.images import is_photograph, read_image

PHOTOGRAPH = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
UNSURE = TaskPrediction("add", 0.4, (("add", 0.4), ("local", 0.35), ("text", 0.25)))
PHOTO = "this looks like a photograph, and the model has never seen one"
NOT_SURE = "not sure which task is meant: add (40%), local (35%), text (25%)"


class Unsure:
    def predict(self, texts: Sequence[str]) -> list[TaskPrediction]:
        return [UNSURE for _ in texts]


@pytest.fixture
def editor(model: Path) -> Editor:
    editor = Editor.from_pretrained(model, "cpu")
    editor.trained_on = WORLD
    return editor


def drawn(index: int) -> torch.Tensor:
    source = make_pair(0, index, size=64).source
    return torch.from_numpy(np.ascontiguousarray(source)).permute(2, 0, 1)


def test_a_photograph_is_told_from_every_picture_of_the_world():
    assert is_photograph(read_image(PHOTOGRAPH))
    assert not any(is_photograph(drawn(index)) for index in range(96))


def test_only_a_model_known_to_be_of_the_world_doubts_a_photograph(editor: Editor):
    photograph = read_image(PHOTOGRAPH)
    assert doubt_about(editor, photograph) == PHOTO
    assert doubt_about(editor, drawn(0)) == ""
    editor.trained_on = None
    assert doubt_about(editor, photograph) == ""


def test_a_model_that_has_seen_photographs_doubts_only_what_it_did_not_learn_on_them(
    editor: Editor,
):
    editor.trained_on = PHOTOGRAPHS_TOO
    photograph = read_image(PHOTOGRAPH)
    assert doubt_about(editor, photograph) == ""
    assert doubt_about(editor, photograph, tasks=["style", "of_my_own"]) == ""
    said = "remove, add: learnt on drawn scenes, and this looks like a photograph"
    assert doubt_about(editor, photograph, tasks=["remove", "style", "add", "remove"]) == said
    assert doubt_about(editor, drawn(0), tasks=["remove"]) == ""
    assert "before a photograph" in about_training(editor)
    taught = {task for task, kinds in PHOTOGRAPH_PHRASINGS.items() if set(kinds) != {"photo_sky"}}
    assert taught == LEARNT_ON_PHOTOGRAPHS


def test_a_session_says_its_doubts_turn_by_turn_and_forgets_them_with_the_turn(editor: Editor):
    editor.predictor = Unsure()  # type: ignore[assignment]
    session = EditSession.start(editor, drawn(0)).edit("juggle")
    assert session.doubts == (NOT_SURE,)
    second = session.play(session.turns[0])
    assert second.doubts == (NOT_SURE, "")
    assert second.undo().doubts == (NOT_SURE,)
    small = read_image(PHOTOGRAPH)[:, 200:260, 200:260]
    assert EditSession.start(editor, small).edit("juggle").doubts == (f"{PHOTO}; {NOT_SURE}",)


def test_what_a_model_was_trained_on_is_kept_in_its_directory(editor: Editor, tmp_path: Path):
    assert "drawn scenes of the built-in world only" in about_training(editor)
    editor.save_pretrained(tmp_path / "again")
    assert Editor.from_pretrained(tmp_path / "again", "cpu").trained_on == WORLD
    assert json.loads((RELEASED / "model_index.json").read_text())["_emu_edit"]["trained_on"]


@pytest.mark.usefixtures("workplace")
def test_the_command_line_says_it_once_and_writes_it_into_the_json(
    editor: Editor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    editor.save_pretrained(tmp_path / "world")
    command = ["edit", str(PHOTOGRAPH), "x", "y", "--task=local", f"--model={tmp_path / 'world'}"]
    assert main([*command, "--size=16", "-o", "out", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count(f"{PHOTOGRAPH}: {PHOTO}\n") == 1
    assert json.loads(printed.out)["doubt"] == PHOTO
