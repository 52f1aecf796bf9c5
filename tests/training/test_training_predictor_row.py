"""One task more for a finished predictor: it is known, and the old tasks' texts stay theirs."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from emu_edit.editing.predictor import TaskPredictor
from emu_edit.errors import InputError
from emu_edit.models.learned_task import LearnedTask
from emu_edit.training import predictor_row
from emu_edit.training.predictor import PredictorSettings, tiny_predictor, train_predictor
from emu_edit.training.predictor_row import learn_predictor_row
from tests.training.test_training_predictor import TABLE, TEXTS

OLD = [*TEXTS, ("paint it like a poster", "style"), ("turn it into a comic", "style")]
NEW = ["trace all outlines", "draw contour lines", "show contours only", "outline each shape"]


@pytest.fixture(scope="module", autouse=True)
def _few_texts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor_row, "NEW_TEXTS", 60)
        patch.setattr(predictor_row, "OLD_TEXTS", 120)
        yield


@pytest.fixture(scope="module")
def predictor() -> TaskPredictor:
    made = tiny_predictor(TABLE)
    train_predictor(made, OLD, PredictorSettings(steps=60, batch_size=24))
    return made


@pytest.fixture(scope="module")
def row(predictor: TaskPredictor) -> torch.Tensor:
    return learn_predictor_row(predictor, NEW, OLD)


def knowing(predictor: TaskPredictor, row: torch.Tensor) -> TaskPredictor:
    """A copy of the predictor that knows the task `contour`."""
    made = TaskPredictor(predictor.encoder, TABLE, temperature=predictor.temperature).eval()
    made.head.load_state_dict(predictor.head.state_dict())
    task = LearnedTask(
        name="contour",
        description="",
        vector=torch.ones(2),
        base="0" * 64,
        pairs=1,
        steps=0,
        seed=0,
        created="2026-11-20",
        instruction="",
    )
    assert made.know(replace(task, predictor_row=row, predictor=made.hash()))
    return made


def names(predictor: TaskPredictor, texts: list[str]) -> list[str]:
    return [prediction.task for prediction in predictor.predict(texts)]


def test_the_new_tasks_texts_are_named_by_the_row(
    predictor: TaskPredictor, row: torch.Tensor
) -> None:
    assert names(knowing(predictor, row), NEW) == ["contour"] * len(NEW)


def test_what_is_predicted_for_the_old_tasks_texts_stays(
    predictor: TaskPredictor, row: torch.Tensor
) -> None:
    texts = [text for text, _ in OLD]
    assert names(knowing(predictor, row), texts) == names(predictor, texts)


def test_an_old_text_that_asks_for_the_new_task_stays_the_old_tasks(
    predictor: TaskPredictor,
) -> None:
    contested = [*OLD, (NEW[0], "style")]
    before = names(predictor, [NEW[0]])
    row = learn_predictor_row(predictor, NEW, contested)
    assert names(knowing(predictor, row), [NEW[0]]) == before


def test_the_predictor_is_left_as_it_was_and_the_row_is_a_function_of_texts_and_seed(
    predictor: TaskPredictor, row: torch.Tensor
) -> None:
    before = predictor.hash()
    again = learn_predictor_row(predictor, [f" {text} " for text in NEW], OLD)
    assert predictor.hash() == before
    assert torch.equal(again, row)
    assert row.shape == (predictor.encoder.dim + 1,)
    assert not torch.equal(learn_predictor_row(predictor, NEW, OLD, seed=1), row)


def test_texts_that_are_an_old_tasks_are_refused(predictor: TaskPredictor) -> None:
    stolen = [text for text, task in OLD if task == "remove"]
    words = r"^6 of 6 instructions cannot be told from those of old tasks, e\.g\. 'delete the red"
    with pytest.raises(InputError, match=words):
        learn_predictor_row(predictor, stolen, OLD)


def test_without_texts_of_both_sides_nothing_is_learnt(predictor: TaskPredictor) -> None:
    with pytest.raises(InputError, match="learns a task from instructions; give at least one"):
        learn_predictor_row(predictor, [], OLD)
    with pytest.raises(InputError, match="the instruction is empty"):
        learn_predictor_row(predictor, [" "], OLD)
    with pytest.raises(InputError, match="is learnt against the old ones; give their texts"):
        learn_predictor_row(predictor, NEW, [])
    with pytest.raises(InputError, match="at most 2000 are allowed"):
        learn_predictor_row(predictor, ["x " * 1001], OLD)
