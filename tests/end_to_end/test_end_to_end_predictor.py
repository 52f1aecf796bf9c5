from pathlib import Path

import pytest
import torch

from emu_edit.editing.editor import Editor

pytestmark = pytest.mark.slow


def test_the_model_of_a_run_is_told_the_task_by_its_predictor(run: Path) -> None:
    editor = Editor.from_pretrained(run / "model")
    # the smoke run has forty sentences per task: enough for this one, not for every sentence
    text = "Draw a lime box around the blue star."
    assert [p.task for p in editor.predict_tasks([text])] == ["detect"]
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    by_itself, told = editor.edit(image, text), editor.edit(image, text, task="detect")
    assert torch.equal(by_itself, told)
