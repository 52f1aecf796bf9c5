"""Editing with a learned task: by name, in sessions and mixes; the base's edits keep their bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from emu_edit.editing.editor import Editor
from emu_edit.editing.manifest import fingerprint
from emu_edit.editing.predictor import TaskPredictor
from emu_edit.editing.session import EditSession, TurnSettings, replay
from emu_edit.editing.task_mix import TaskMix
from emu_edit.errors import InputError
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import LearnedTask
from emu_edit.models.task_files import install_task
from emu_edit.tasks import SIXTEEN, TaskTable
from tests.editing.conftest import make_editor, make_pipeline, picture
from tests.editing.test_editing_predictor import TEXTS, make_predictor

WIDTH = 8  # of the task table of `make_editor`


def task_of(
    editor: Editor, name: str = "contour", vector: torch.Tensor | None = None, **entries: Any
) -> LearnedTask:
    """A task learnt with the editor's model."""
    task = LearnedTask(
        name=name,
        description="draw the outlines",
        vector=torch.linspace(-3, 3, WIDTH) if vector is None else vector,
        base=model_hash(editor.networks),
        pairs=3,
        steps=10,
        seed=0,
        created="2026-11-20",
        instruction="",
    )
    return replace(task, **entries)


def row_for(predictor: TaskPredictor, *, bias: float = 0.0) -> dict[str, Any]:
    weights = torch.linspace(-1, 1, predictor.encoder.dim)
    row = torch.cat([weights, torch.tensor([bias])])
    return {"predictor_row": row, "predictor": predictor.hash()}


def test_a_learned_vector_edits_as_the_table_row_with_the_same_numbers() -> None:
    editor = make_editor()
    copy = editor.networks.task_vectors(["style"])[0].detach().clone()
    editor.add_task(task_of(editor, "again", copy))
    editor.add_task(task_of(editor))
    edits = {
        name: editor.edit(picture(), "draw it", task=name) for name in ("style", "again", "contour")
    }
    assert torch.equal(edits["style"], edits["again"])
    assert not torch.equal(edits["style"], edits["contour"])


def test_all_sixteen_tasks_edit_bit_for_bit_as_before() -> None:
    editor = make_editor()

    def edits() -> list[torch.Tensor]:
        return [editor.edit(picture(), "make it red", task=name) for name in SIXTEEN.names]

    before = edits()
    editor.add_task(task_of(editor))
    assert all(torch.equal(a, b) for a, b in zip(before, edits(), strict=True))


def test_mixes_and_the_pipeline_take_a_learned_task() -> None:
    editor = make_editor()
    editor.add_task(task_of(editor))
    mixed = editor.edit(picture(), "draw it", task=TaskMix("style", "contour", 1.0), seed=4)
    plain = editor.edit(picture(), "draw it", task="contour", seed=4)
    assert torch.equal(mixed, plain)
    result = make_pipeline(editor)(
        "draw it",
        picture(),
        task="contour",
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
    )
    assert isinstance(result, ImagePipelineOutput)
    torch.testing.assert_close(torch.as_tensor(result.images[0]) * 255, plain.float())


def test_a_task_of_another_model_needs_to_be_allowed() -> None:
    editor = make_editor()
    stranger = task_of(editor, base="0" * 64)
    with pytest.raises(InputError, match="was learnt with the model 000000000000, this one is"):
        editor.add_task(stranger)
    assert editor.networks.tasks == SIXTEEN
    editor.add_task(stranger, allow_mismatch=True)
    assert editor.networks.tasks.names[-1] == "contour"


def test_a_manifest_names_the_learned_vectors_its_turns_use_and_replays_with_them() -> None:
    editor = make_editor()
    editor.add_task(task_of(editor))
    editor.add_task(task_of(editor, "unused"))
    session = EditSession.start(editor, picture(), seed=2).edit(
        "make it red", TurnSettings("local")
    )
    session = session.edit("draw it", TurnSettings("style+contour:0.5"))
    manifest = session.manifest()
    assert manifest["learned_tasks"] == {"contour": task_of(editor).vector_hash()}
    other = make_editor()
    other.add_task(task_of(editor))
    again = replay(other, picture(), manifest)
    assert again.manifest()["results"] == manifest["results"]


def test_a_replay_without_the_task_or_with_another_vector_is_refused() -> None:
    editor = make_editor()
    editor.add_task(task_of(editor))
    manifest = (
        EditSession.start(editor, picture()).edit("draw it", TurnSettings("contour")).manifest()
    )
    other = make_editor()
    words = r"uses the learned task 'contour', which this model has not; give its file \(--task co"
    with pytest.raises(InputError, match=words):
        replay(other, picture(), manifest)
    other.add_task(task_of(editor, vector=torch.ones(WIDTH)))
    with pytest.raises(InputError, match="made with another vector of the learned task 'contour'"):
        replay(other, picture(), manifest)


def test_a_session_of_base_tasks_replays_after_a_task_was_added() -> None:
    editor = make_editor()
    before = fingerprint(editor)
    manifest = (
        EditSession.start(editor, picture()).edit("make it red", TurnSettings("local")).manifest()
    )
    assert manifest["learned_tasks"] == {}
    editor.add_task(task_of(editor))
    assert fingerprint(editor) == before
    assert replay(editor, picture(), manifest).manifest() == manifest


def test_the_predictor_names_a_learned_task_by_its_row_and_keeps_the_others_logits() -> None:
    predictor = make_predictor()
    editor = make_editor()
    before = predictor.logits(TEXTS)
    assert predictor.know(task_of(editor, **row_for(predictor, bias=1e4)))
    assert predictor.tasks.names == (*SIXTEEN.names, "contour")
    assert torch.equal(predictor.logits(TEXTS)[:, :16], before)
    assert [prediction.task for prediction in predictor.predict(TEXTS)] == ["contour"] * 3


def test_the_logit_of_a_row_is_its_weights_times_the_features_plus_its_bias() -> None:
    predictor = make_predictor()
    row = row_for(predictor, bias=0.25)
    predictor.know(task_of(make_editor(), **row))
    features = predictor.encoder(TEXTS).mean()
    weights = torch.linspace(-1, 1, predictor.encoder.dim)
    wanted = (features * weights).sum(dim=1) + 0.25
    torch.testing.assert_close(predictor.logits(TEXTS)[:, 16], wanted)


def test_a_row_of_another_predictor_is_left_alone() -> None:
    predictor = make_predictor()
    row = row_for(make_predictor(temperature=1.25))
    assert not predictor.know(task_of(make_editor(), **row))
    assert not predictor.know(task_of(make_editor()))
    assert predictor.tasks == SIXTEEN


def test_a_newer_task_of_the_same_name_takes_the_place_of_its_row() -> None:
    predictor, editor = make_predictor(), make_editor()
    for name, bias in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        predictor.know(task_of(editor, name, **row_for(predictor, bias=bias)))
    assert predictor.tasks.names[16:] == ("b", "a")
    assert predictor.rows[:, -1].tolist() == [2.0, 3.0]
    predictor.know(task_of(editor, "b"))
    assert predictor.tasks.names[16:] == ("a",)


def test_a_learned_task_may_not_bear_the_name_of_a_trained_one() -> None:
    predictor = make_predictor()
    with pytest.raises(InputError, match="the predictor was trained with a task 'add'; give"):
        predictor.know(task_of(make_editor(), "add", **row_for(predictor)))


def test_model_and_predictor_know_the_task_after_saving_and_loading(tmp_path: Path) -> None:
    editor = make_editor()
    editor.predictor = make_predictor()
    editor.save_pretrained(tmp_path / "model")
    task = task_of(editor, **row_for(editor.predictor, bias=1e4))
    install_task(tmp_path / "model", task, base=task.base)
    loaded = Editor.from_pretrained(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "copy")
    for again in (loaded, Editor.from_pretrained(tmp_path / "copy")):
        assert again.predict_tasks(["draw it"])[0].task == "contour"
        assert again.predictor is not None
        assert again.predictor.trained_tasks == SIXTEEN
    kept = TaskPredictor.from_pretrained(tmp_path / "copy" / "predictor", tasks=SIXTEEN)
    assert kept.tasks == SIXTEEN
    edited = loaded.edit(picture(), "draw it", seed=1)
    editor.add_task(task)
    assert torch.equal(edited, editor.edit(picture(), "draw it", task="contour", seed=1))


def test_a_predictors_hash_tells_apart_all_that_decides_its_predictions() -> None:
    hashes = {
        make_predictor().hash(),
        make_predictor(temperature=1.25).hash(),
        make_predictor(TaskTable(tuple(reversed(SIXTEEN.names)))).hash(),
    }
    changed = make_predictor()
    changed.head.bias.data[3] += 1e-3
    hashes.add(changed.hash())
    changed = make_predictor()
    next(changed.encoder.parameters()).data.view(-1)[0] += 1e-3
    hashes.add(changed.hash())
    assert len(hashes) == 5
    assert make_predictor().hash() in hashes
