"""The released model: what an installation edits with before anything is trained."""

import json
from pathlib import Path

import pytest
import torch

from datamodules.world.pair import make_pair
from emu_edit.cli.main import main
from emu_edit.editing.find import RELEASED
from emu_edit.evaluation.world import truth_of
from emu_edit.images import read_image, save_png
from emu_edit.metrics.world import score
from emu_edit.tasks import SIXTEEN

MOST_BYTES = 40 * 2**20


def test_it_is_small_complete_and_holds_no_pickles():
    files = [path for path in RELEASED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors", ".md"}
    assert json.loads((RELEASED / "tasks" / "tasks.json").read_text())["names"] == list(
        SIXTEEN.names
    )


def test_its_card_says_what_it_is_made_of():
    card = (RELEASED / "MODEL_CARD.md").read_text()
    for word in ("## Data", "## Training", "## Results", "## Limits", "emu-edit fit", "seed"):
        assert word in card


@pytest.mark.parametrize("task", ["remove", "add", "pose"])
def test_it_edits_without_training_without_a_task_and_without_network(
    task: str, workplace: Path, capsys: pytest.CaptureFixture[str]
):
    pair = make_pair(1, 3, task=task, size=64, split="heldout")
    truth = truth_of(pair)
    save_png(workplace / "photo.png", truth.source)
    assert main(["edit", "photo.png", pair.instruction, "-o", "edited.png"]) == 0
    printed = capsys.readouterr()
    assert "model released" in printed.out
    assert f"task {task}" in printed.out
    result = score(read_image(workplace / "edited.png"), truth)
    assert result.relative_error < 0.75
    again = workplace / "again.png"
    assert main(["edit", "photo.png", pair.instruction, "-o", str(again)]) == 0
    assert torch.equal(read_image(again), read_image(workplace / "edited.png"))
