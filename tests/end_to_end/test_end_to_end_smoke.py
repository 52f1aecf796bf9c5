import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emu_edit.cli.main import main
from emu_edit.editing.editor import Editor
from emu_edit.images import read_image
from emu_edit.runs.folder import PLACEHOLDER
from emu_edit.tasks import SIXTEEN
from emu_edit.training.export import export_model
from emu_edit.training.stored import load_ema, load_module
from tests.end_to_end.conftest import SHORT

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
QUICK = ("--score_pairs=0", "--no_predictor")  # what one training has shown is not shown again


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_fit_leaves_everything_a_run_promises(run: Path) -> None:
    for name in (
        "config.yaml",
        "checkpoints/last.ckpt",
        "logs/metrics.csv",
        "model/model_index.json",
        "curves.png",
        "grid.png",
        "table.md",
        "results.json",
    ):
        assert (run / name).is_file(), name
    assert run.name.startswith("smoke-")
    results = json.loads((run / "results.json").read_text())
    assert results["steps"] == 4
    rows = results["report"]["model"]["tasks"]
    assert len(rows) == 16
    assert results["report"]["oracle"]["overall"]["success"] == 1
    assert results["report"]["copy-input"]["overall"]["success"] == 0


def test_the_table_has_every_task_and_both_yardsticks(run: Path) -> None:
    table = (run / "table.md").read_text()
    for name in ("local", "segmap", "copy-input", "oracle"):
        assert f"| {name} " in table


def test_the_saved_config_keeps_the_placeholder_and_trains_again_elsewhere(
    run: Path, trained: Path
) -> None:
    assert f"{PLACEHOLDER}/checkpoints" in (run / "config.yaml").read_text()
    again = [
        "fit",
        f"--config={run / 'config.yaml'}",
        "--run=runs2/again",
        "--trainer.max_epochs=1",
        *QUICK,
    ]
    assert main(again) == 0
    assert (trained / "runs2" / "again" / "model" / "model_index.json").is_file()


def test_a_second_run_is_not_written_into_the_folder_of_the_first(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *SHORT, f"--run={run}"]) == 78
    assert "already holds a run; choose another --run folder" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_a_checkpoint_is_measured_with_its_own_config(
    verb: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(run.rglob("*"))
    assert main([verb, f"--ckpt_path={run}"]) == 0
    name = "val" if verb == "validate" else "test"
    assert f"{name}/loss" in capsys.readouterr().out
    assert sorted(run.rglob("*")) == files


def test_training_goes_on_from_a_run(run: Path, trained: Path) -> None:
    more = [f"--ckpt_path={run}", "--run=runs2/more", "--trainer.max_epochs=3", *QUICK]
    assert main(["fit", *more]) == 0
    results = json.loads((trained / "runs2" / "more" / "results.json").read_text())
    assert results["steps"] == 6


def test_a_new_training_starts_from_the_weights_of_a_run(
    run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a rate of next to nothing: what comes out is what went in
    still = [
        "--model.optimizer.lr=1e-30",
        "--model.optimizer.warmup_steps=0",
        "--run=runs2/started",
        *QUICK,
    ]
    assert main(["fit", *SHORT, *still, f"--start_from={run}"]) == 0
    assert "starts with the weights of" in capsys.readouterr().err
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    before, after = (
        Editor.from_pretrained(path).edit(image, "make it red", task="local")
        for path in (run / "model", trained / "runs2" / "started" / "model")
    )
    assert torch.equal(before, after)


def test_the_exported_model_gives_the_pixels_of_the_checkpoint(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "-o", str(tmp_path / "model")]) == 0
    checkpoint = run / "checkpoints" / "last.ckpt"
    module = load_module(checkpoint)
    export_model(module, tmp_path / "by_hand", ema=load_ema(checkpoint))
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    first, second, third = (
        Editor.from_pretrained(path).edit(image, "make it red", task="local")
        for path in (tmp_path / "model", tmp_path / "by_hand", run / "model")
    )
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    seen = [Editor.from_pretrained(path).trained_on for path in (tmp_path / "model", run / "model")]
    assert seen[0] == seen[1]
    assert seen[0] is not None


def test_an_exported_model_has_the_predictor_of_its_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "-o", str(tmp_path / "model")]) == 0
    assert "with the task predictor of its run" in capsys.readouterr().out
    texts = ["remove the red circle", "turn it into a pencil sketch", "make it night"]
    first, second = (
        Editor.from_pretrained(path).predict_tasks(texts)
        for path in (tmp_path / "model", run / "model")
    )
    assert first == second
    stray = tmp_path / "stray.ckpt"
    stray.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    assert main(["export", str(stray), "-o", str(tmp_path / "alone")]) == 0
    assert "no task predictor; train one with 'emu-edit predictor fit" in capsys.readouterr().out
    assert Editor.from_pretrained(tmp_path / "alone").predictor is None


def test_a_half_sized_model_differs_by_a_grey_level(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "-o", str(tmp_path / "half"), "--half"]) == 0
    whole, half = (
        sum(f.stat().st_size for f in (path / "unet").glob("*.safetensors"))
        for path in (run / "model", tmp_path / "half")
    )
    assert half < 0.6 * whole
    editors = [Editor.from_pretrained(path) for path in (tmp_path / "half", run / "model")]
    assert {p.dtype for p in editors[0].networks.parameters()} == {torch.float32}
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    first, second = (editor.edit(image, "make it red", task="local") for editor in editors)
    assert (first.int() - second.int()).abs().max() <= 2


def test_raw_weights_are_exported_when_asked_for(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "-o", str(tmp_path / "raw"), "--weights", "raw"]) == 0
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    raw, ema = (
        Editor.from_pretrained(path).edit(image, "make it red", task="local")
        for path in (tmp_path / "raw", run / "model")
    )
    assert not torch.equal(raw, ema)


@pytest.mark.usefixtures("run")
def test_edit_uses_the_run_just_trained(photo: Path) -> None:
    arguments = ["edit", str(photo), "make it red", "--task", "local", "-o", "edited.png"]
    assert main([*arguments, "--steps", "2"]) == 0
    assert read_image(Path("edited.png")).shape == (3, 32, 40)


@pytest.mark.parametrize("what", ["folder", "model", "checkpoint"])
def test_evaluate_takes_a_run_a_model_or_a_checkpoint(
    what: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {
        "folder": run,
        "model": run / "model",
        "checkpoint": run / "checkpoints" / "last.ckpt",
    }
    out = tmp_path / "scores"
    assert main(["evaluate", str(paths[what]), "--pairs", "1", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| copy-input | 16 " in printed
    assert "| oracle     | 16 " in printed
    for name in ("results.json", "table.md", "grid.png", "index.html"):
        assert (out / name).is_file()


def test_a_checkpoint_of_another_task_table_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SHORT, f"--model.tasks=[{', '.join([*SIXTEEN.names, 'contour'])}]"]
    assert main(["fit", *arguments, f"--ckpt_path={run}", "--run=runs2/other"]) == 78
    error = capsys.readouterr().err
    assert "the checkpoint was trained for other tasks" in error
    assert error.count("\n") == 1


def test_a_truncated_checkpoint_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    assert main(["export", str(cut), "-o", str(tmp_path / "model")]) == 74
    assert "is truncated or not a checkpoint" in capsys.readouterr().err


def test_packages_of_a_user_do_not_stand_in_for_ours(tmp_path: Path) -> None:
    names = ("callbacks", "configs", "datamodules")
    for name in ("emu_edit", *names):  # as `pip install .` leaves them
        shutil.copytree(ROOT / name, tmp_path / "site" / name)
    for name in names:
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "__init__.py").write_text("raise SystemExit('a stranger')")
    (tmp_path / "work" / "mine.py").write_text("from lightning import Callback as Mine")
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.callbacks+=mine.Mine"]
    options = ["--config=smoke", "--trainer.max_steps=1", "--score_pairs=0", "--no_predictor"]
    done = subprocess.run(
        [sys.executable, "-m", "emu_edit", "fit", *options, *two, "--data.num_workers=1"],
        cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stranger" not in done.stdout + done.stderr
