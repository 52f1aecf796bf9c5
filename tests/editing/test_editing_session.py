import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from emu_edit.cli.main import main
from emu_edit.diffusion.samplers import Sampler
from emu_edit.editing.editor import Editor
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.editing.session import EditSession, Turn, TurnSettings, replay, turn_seed
from emu_edit.editing.settings import Sampling
from emu_edit.editing.task_mix import TaskMix
from emu_edit.editing.threshold import ALPHA, keep_unchanged
from emu_edit.errors import InputError
from emu_edit.images import to_pil
from tests.editing.conftest import make_editor, make_networks, picture


@pytest.fixture(scope="module")
def session(editor: Editor) -> EditSession:
    """Three turns with all that can be chosen, one of them after an undo."""
    started = EditSession.start(editor, picture(), seed=5)
    first = started.edit("make it red", TurnSettings("local"))
    mix = TaskMix("add", "local", 1 / 3)
    strong = TurnSettings(
        "local", sampling=Sampling(guidance_text=3.0, guidance_image=1.0), threshold=1.0, seed=9
    )
    second = first.edit("add a hat", TurnSettings(mix, "a dog")).undo()
    second = second.edit(
        "paint it", TurnSettings("style", sampling=Sampling(3, sampler=Sampler.euler_ancestral))
    )
    return second.edit("blur", strong)


def test_editing_makes_a_new_session_and_leaves_the_old_one_alone(editor: Editor) -> None:
    image = picture()
    started = EditSession.start(editor, image)
    edited = started.edit("make it red", TurnSettings("local"))
    assert (len(started.turns), len(started.images)) == (0, 1)
    assert (len(edited.turns), len(edited.images)) == (1, 2)
    assert torch.equal(edited.original, picture())
    assert not torch.equal(edited.image, image)


def test_a_session_of_one_turn_is_the_plain_edit_with_the_sessions_seed(editor: Editor) -> None:
    edited = EditSession.start(editor, picture(), seed=3).edit("make it red", TurnSettings("local"))
    assert torch.equal(edited.image, editor.edit(picture(), "make it red", task="local", seed=3))


def test_a_pil_picture_starts_the_same_session_as_its_pixels(editor: Editor) -> None:
    assert torch.equal(EditSession.start(editor, to_pil(picture())).image, picture())
    assert isinstance(to_pil(picture()), Image.Image)


def test_every_turn_has_a_seed_of_its_own_that_depends_on_the_sessions() -> None:
    seeds = [turn_seed(seed, turn) for seed in (0, 1, 2**63 - 1) for turn in range(1, 20)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [turn_seed(seed, turn) for seed in (0, 1, 2**63 - 1) for turn in range(1, 20)]
    assert turn_seed(5, 1) == 5


def test_a_turn_says_all_that_decided_its_pixels(session: EditSession) -> None:
    assert session.turns == (
        Turn("make it red", "local", 5, "", 2.0, 1.2, 2, "ddim", None),
        Turn("paint it", "style", turn_seed(5, 2), "", 2.0, 1.2, 3, "euler_ancestral", None),
        Turn("blur", "local", 9, "", 3.0, 1.0, 2, "ddim", 1.0),
    )


def test_the_second_turn_is_thresholded_unless_it_is_switched_off(editor: Editor) -> None:
    first = EditSession.start(editor, picture()).edit("make it red", TurnSettings("local"))
    usual = first.edit("add a hat", TurnSettings("add"))
    free = first.edit("add a hat", TurnSettings("add", threshold=None))
    strong = first.edit("add a hat", TurnSettings("add", threshold=0.5))
    assert [s.turns[-1].threshold for s in (usual, free, strong)] == [ALPHA, None, 0.5]
    assert torch.equal(usual.image, keep_unchanged(first.image, free.image))
    assert torch.equal(strong.image, keep_unchanged(first.image, free.image, alpha=0.5))
    assert not torch.equal(strong.image, free.image)


def test_undo_goes_back_to_the_very_same_picture_and_a_branch_goes_on_from_it(
    session: EditSession,
) -> None:
    assert session.undo().images == session.images[:-1]
    assert session.undo().turns == session.turns[:-1]
    branch = session.at(1).edit("make it green", TurnSettings("local"))
    assert branch.images[:2] == session.images[:2]
    assert [turn.instruction for turn in branch.turns] == ["make it red", "make it green"]
    assert len(session.turns) == 3
    assert session.at(3).images == session.images


def test_undoing_the_original_is_refused(editor: Editor) -> None:
    with pytest.raises(InputError, match="there is no turn to undo: the picture is the original"):
        EditSession.start(editor, picture()).undo()


@pytest.mark.parametrize("turn", [-1, 4])
def test_branching_from_a_turn_that_is_not_there_is_refused(
    session: EditSession, turn: int
) -> None:
    with pytest.raises(InputError, match=f"the session has turns 0 to 3, there is no {turn}"):
        session.at(turn)


def test_replaying_a_manifest_from_its_file_gives_identical_pixels(session: EditSession) -> None:
    manifest = json.loads(json.dumps(session.manifest()))
    told = []
    again = replay(
        make_editor(), picture(), manifest, lambda done, total: told.append((done, total))
    )
    assert again.turns == session.turns
    for mine, theirs in zip(again.images, session.images, strict=True):
        assert torch.equal(mine, theirs)
    assert again.manifest() == manifest
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_branch_replays_to_identical_pixels_too(editor: Editor, session: EditSession) -> None:
    branch = session.at(1).edit("add a hat", TurnSettings(TaskMix("add", "local", 1 / 3)))
    again = replay(editor, picture(), json.loads(json.dumps(branch.manifest())))
    assert torch.equal(again.image, branch.image)
    assert again.undo().manifest() == session.at(1).manifest()


def test_a_replayed_session_goes_on_like_the_first(editor: Editor, session: EditSession) -> None:
    again = replay(editor, picture(), session.manifest())
    assert torch.equal(
        again.edit("add a hat", TurnSettings("add")).image,
        session.edit("add a hat", TurnSettings("add")).image,
    )


def test_another_picture_is_refused(editor: Editor, session: EditSession) -> None:
    with pytest.raises(InputError, match=r"the manifest is of another picture: the size agrees"):
        replay(editor, picture(seed=1), session.manifest())
    with pytest.raises(
        InputError, match=r"is of a picture of 16x16, this one is 17x16; .* --size 16 if it was"
    ):
        replay(editor, picture(16, 17), session.manifest())


def test_another_model_is_refused(session: EditSession) -> None:
    with pytest.raises(InputError, match=r"with another model \(its weights differ\); give"):
        replay(make_editor(make_networks(seed=8)), picture(), session.manifest())


class FixedPredictor(torch.nn.Module):
    def predict(self, instructions: list[str]) -> list[TaskPrediction]:
        return [TaskPrediction("add", 0.9, (("add", 0.9), ("local", 0.1))) for _ in instructions]


def test_the_predictor_chooses_the_task_when_none_is_named(editor: Editor) -> None:
    told = EditSession.start(editor, picture()).edit("add a hat", TurnSettings("add"))
    asked = make_editor()
    asked.predictor = FixedPredictor()  # type: ignore[assignment]
    guessed = EditSession.start(asked, picture()).edit("add a hat")
    assert guessed.turns == told.turns
    assert torch.equal(guessed.image, told.image)


def test_a_turn_without_task_is_refused_on_a_model_without_predictor(editor: Editor) -> None:
    with pytest.raises(InputError, match="this model has no task predictor; name the task"):
        EditSession.start(editor, picture()).edit("add a hat")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instruction": " "}, "the instruction is empty"),
        ({"negative": "\x00"}, r"the negative text has the character U\+0000"),
        ({"task": "lokal"}, "unknown task 'lokal'.* Did you mean 'local'"),
        ({"threshold": -1.0}, "the threshold must be a number of at least 0"),
        ({"seed": -1}, r"a seed must be at least 0 and below 2\^63, got -1"),
        ({"sampling": Sampling(num_steps=1001)}, "num_steps must be 1 to 1000, got 1001"),
    ],
)
def test_a_turn_that_cannot_be_made_is_refused(
    editor: Editor, change: dict[str, object], words: str
) -> None:
    asked: dict[str, Any] = {"instruction": "make it red", "task": "local", **change}
    with pytest.raises(InputError, match=words):
        EditSession.start(editor, picture()).edit(asked.pop("instruction"), TurnSettings(**asked))


def test_one_guard_of_size_stands_before_sessions_edits_and_the_command_lines_size(
    model: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    editor = Editor.from_pretrained(model, "cpu")
    words = r"is 257x16, more than 16 times the 16 px this model .* --size 16"
    wide = torch.zeros(3, 16, 257, dtype=torch.uint8)
    with pytest.raises(InputError, match=words):
        EditSession.start(editor, wide)
    with pytest.raises(InputError, match=words):
        editor.edit(wide, "x", task="local")
    assert EditSession.start(editor, wide[..., :256]).image.shape == (3, 16, 256)
    command = ["edit", str(photo), "x", "--task=local", f"--model={model}", "--size=206"]
    command.append("--large=whole")
    assert main([*command, "-o", str(tmp_path / "out.png")]) == 2
    assert "photo.png: the picture is 258x206, more than 16 times" in capsys.readouterr().err
