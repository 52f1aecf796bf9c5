"""Recipes of what hangs on a picture model: videos, edit adapters, EVE."""

from pathlib import Path

import pytest

from datamodules.clip import ClipDataModule
from datamodules.edit import EditDataModule
from emu_edit.diffusion.prediction import Prediction
from emu_edit.tasks import CAPTION
from emu_edit.training.edit_adapter_module import EditAdapterModule
from emu_edit.training.eve_module import EveModule
from emu_edit.training.teachers import Distillation
from emu_edit.training.video_module import VideoModule
from tests.runs.test_runs_configs import VIDEOS, build
from tests.training.eve_stage import write_parts
from tests.training.stage import make_module


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.mark.parametrize("recipe", sorted(VIDEOS))
def test_a_recipe_of_videos_builds_from_a_picture_model_that_draws(
    recipe: str, workplace: Path, tmp_path: Path
) -> None:
    drawing = make_module(prediction=Prediction.z0, tasks=[CAPTION])
    drawing.make_editor().save_pretrained(tmp_path / "drawing")
    layers = ("--model.temporal.head_dim=8", f"--model.model={tmp_path / 'drawing'}")
    built = build(recipe, workplace / "run", *layers)
    assert isinstance(built.model, VideoModule)
    assert built.model.given == VIDEOS[recipe]
    assert isinstance(built.datamodule, ClipDataModule)
    assert built.datamodule.table.names == (CAPTION,)
    assert built.datamodule.settings()["frames"] == built.model.frames
    assert built.trainer.max_epochs == 5  # as emu_video, which it changes


def test_the_recipe_of_an_edit_adapter_builds_from_a_picture_model_that_draws(
    workplace: Path, tmp_path: Path
) -> None:
    drawing = make_module(prediction=Prediction.z0, tasks=[CAPTION])
    drawing.make_editor().save_pretrained(tmp_path / "drawing")
    built = build("edit_adapter", workplace / "run", f"--model.model={tmp_path / 'drawing'}")
    assert isinstance(built.model, EditAdapterModule)
    assert isinstance(built.datamodule, EditDataModule)


def test_the_recipe_of_eve_builds_from_an_edit_adapter_and_temporal_layers(
    workplace: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    edits, moves = write_parts(tmp_path)
    named = (f"--model.model={edits}", f"--model.video={moves}")
    built = build("eve", workplace / "run", *named)
    assert isinstance(built.model, EveModule)
    assert isinstance(built.datamodule, ClipDataModule)
    assert built.model.distillation == Distillation()


@pytest.mark.parametrize(("recipe", "lr"), [("emu_video_high", 1e-4), ("emu_video_motion", 2.5e-5)])
def test_the_later_stages_of_videos_are_the_papers(
    recipe: str, lr: float, workplace: Path, tmp_path: Path
) -> None:
    drawing = make_module(prediction=Prediction.z0, tasks=[CAPTION])
    drawing.make_editor().save_pretrained(tmp_path / "drawing")
    layers = ("--model.temporal.head_dim=8", f"--model.model={tmp_path / 'drawing'}")
    built = build(recipe, workplace / "run", *layers)
    assert isinstance(built.model, VideoModule)
    assert built.model.prediction is Prediction.v
    assert built.model.schedule.has_zero_terminal_snr
    assert (built.model.rate, built.model.optimizer_settings.lr) == (4, lr)
