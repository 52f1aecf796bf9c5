"""What a user of Lightning takes for granted: precisions, variables, callbacks, launchers."""

import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest
import torch

from emu_edit.cli.fit import parse
from emu_edit.cli.main import main
from emu_edit.errors import ExitStatus
from emu_edit.runs.status import RunStatus
from emu_edit.training.checkpoint_io import read_checkpoint
from tests.runs.test_runs_configs import ON_A_CPU

TINY = Path(__file__).parents[1] / "training" / "tiny.yaml"
FEW = ("--score_pairs=0", "--no_predictor", "--run=run")
STOPPING = ("--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",)
LOGGED = (
    "--trainer.logger=emu_edit.training.csv_logger.CSVLogger",
    "--trainer.logger.save_dir={run}",
)
ONE_STEP = (
    *("--trainer.max_steps=1", "--trainer.limit_val_batches=0"),
    *("--model.denoiser.channels=[8]", "--model.denoiser.attention=[false]"),
)
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
SMALLEST = (
    *("--config=smoke", *ON_A_CPU[:3], "--trainer.max_epochs=1", "--trainer.max_steps=1"),
    *("--trainer.limit_val_batches=0", "--data.steps_per_epoch=1", "--data.global_batch=2"),
    *("--data.image_size=16", "--data.pairs=16", "--data.num_workers=0"),
)
pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SLURM, "SLURM_NODEID", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


def fit(*options: str) -> int:
    return main(["fit", f"--config={TINY}", *FEW, *options])


def steps() -> int:
    status = RunStatus.read(Path("run"))
    assert status is not None
    assert status.status == "done"
    return status.step


def losses(run: str) -> list[float]:
    with next(Path(run).rglob("metrics.csv")).open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert fit(*options) == ExitStatus.config == 78
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("emu-edit: error: trainer: ")
    return error.splitlines()[-1]


def test_networks_in_bf16_throughout_train_with_a_finite_loss() -> None:
    assert fit("--trainer.precision=bf16-true", *LOGGED) == 0
    assert steps() == 2
    found = losses("run")
    assert len(found) == 2
    assert all(map(math.isfinite, found))
    weights = read_checkpoint(next(Path("run").rglob("last.ckpt")))["state_dict"]
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {
        torch.bfloat16
    }


def test_a_packaged_recipe_without_loggers_trains_without_its_rate_monitor() -> None:
    assert main(["fit", *SMALLEST, *FEW, "--trainer.logger=false"]) == 0
    assert steps() == 1
    assert not Path("run", "logs").exists()


def test_early_stopping_that_is_added_ends_the_training() -> None:
    never_better = ("--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=1e6")
    watched = ("--trainer.callbacks.monitor=val/loss", "--trainer.max_epochs=5")
    assert fit(*STOPPING, *watched, *never_better) == 0
    assert steps() == 4  # two epochs of five


def test_early_stopping_on_a_number_that_is_not_logged_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = refused(capsys, *STOPPING, "--trainer.callbacks.monitor=val/losss")
    assert "`val/losss` which is not available" in words
    assert "`val/loss`" in words


def test_variables_of_the_environment_win_over_configs_and_flags_over_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PL_FIT__TRAINER__MAX_EPOCHS", "3")  # the config says 1
    monkeypatch.setenv("PL_FIT__DATA__STEPS", "5")
    monkeypatch.setenv("PL_TEST__DATA__STEPS", "7")  # of another verb
    assert fit("--data.steps=1") == 0
    assert steps() == 3


def test_our_own_options_are_variables_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_FIT__CONFIG", "smoke")
    monkeypatch.setenv("PL_FIT__RUN", "elsewhere")
    options = parse("fit", ["--config=tiny"])
    assert [config.stem for config in options.configs] == ["smoke", "tiny"]
    assert options.run == "elsewhere"


def test_a_variable_that_names_no_option_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PL_FIT__TRAINER__MAX_STPES", "1")
    assert fit() == 78
    words = r"unrecognized arguments: --trainer\.max_stpes=1\. Did you mean 'max_steps'"
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (SLURM, "no SLURM_NODEID, so srun did not start this .* unset SLURM_NTASKS to train"),
        ({"SLURM_NTASKS": "2"}, "Use `--ntasks-per-node=2` instead"),
    ],
)
def test_variables_of_slurm_without_srun_are_one_line(
    variables: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert re.search(words, refused(capsys, "--trainer.devices=2"))


def test_more_graphics_cards_than_there_are_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    error = refused(capsys, "--trainer.accelerator=gpu", "--trainer.devices=8")
    assert "You requested gpu: [0, 1, 2, 3, 4, 5, 6, 7] But your machine only has: [0]" in error


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(which, (os.environ.get("CXX", "g++"), "g++", "clang++"))),
    reason="torch.compile needs a C++ compiler on a CPU: none of CXX, g++ and clang++ is there",
)
def test_a_compiled_denoiser_finishes_a_step_with_the_loss_of_one_that_is_not() -> None:
    # in processes of their own: the compiler does not see through the tests' checks of shapes
    program = [sys.executable, "-m", "emu_edit", "fit", f"--config={TINY}", *FEW[:2]]
    environment = {**os.environ, "PYTHONPATH": str(TINY.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    for choice in ("true", "false"):
        options = [*ONE_STEP, *LOGGED, f"--run={choice}", f"--model.compile={choice}"]
        done = subprocess.run(
            [*program, *options], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    (compiled,), (plain,) = losses("true"), losses("false")
    assert compiled == pytest.approx(plain, rel=1e-4)
    files = [next(Path(run).rglob("last.ckpt")) for run in ("true", "false")]
    names, others = (set(read_checkpoint(file)["state_dict"]) for file in files)
    assert names == others  # a checkpoint of either goes on as the other
