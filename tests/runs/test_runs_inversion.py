"""`emu-edit fit --config inversion`: the run's folder has what `invert` writes."""

from pathlib import Path

import pytest

from emu_edit.cli.main import main
from emu_edit.models.learned_task import LearnedTask
from emu_edit.training.checkpoint_io import read_checkpoint
from tests.datamodules.toy_shards import make_folder

QUICK = (
    "--model.init=mean",
    "--data.image_size=16",
    "--data.batch_size=2",
    "--data.steps_per_epoch=2",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def arguments(model: Path, folder: Path, *options: str) -> list[str]:
    return [
        "fit",
        "--config=inversion",
        f"--model.model={model}",
        "--model.task=invert",
        f"--data.data={folder}",
        "--run=run",
        *QUICK,
        *options,
    ]


@pytest.mark.parametrize("count", [3, 6])
def test_the_recipe_writes_task_picture_curves_and_checkpoint(
    count: int, model: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(workplace / "shards", {"local": count})
    assert main(arguments(model, workplace / "shards")) == 0
    task = LearnedTask.load("run/invert.safetensors")
    assert (task.name, task.pairs) == ("invert", count)
    assert task.steps in {0, 2, 4}
    for name in ("invert.png", "curves.png", "config.yaml", "logs/metrics.csv"):
        assert (workplace / "run" / name).is_file(), name
    state = read_checkpoint(workplace / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert list(state) == ["new_task.vector"]
    out = capsys.readouterr().out
    assert "invert: " in out
    assert "--task run/invert.safetensors -o edited.png" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.task=local"], "model.task='local': "),
        (["--model.model=nowhere"], "there is no model at nowhere"),
        (["--data.data=nowhere"], "nowhere: no such file or folder"),
        (["--model.init=meen"], "cannot begin at 'meen'"),
        (["--start_from=model"], "--start_from is for weights; a new task begins at model.init"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    message: str,
    model: Path,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_folder(workplace / "shards", {"local": 1})
    (workplace / "model").symlink_to(model)
    assert main(arguments(model, workplace / "shards", *options)) == 78
    error = capsys.readouterr().err
    assert error.startswith("emu-edit: error: ")
    assert error.count("\n") == 1
    assert message in error
