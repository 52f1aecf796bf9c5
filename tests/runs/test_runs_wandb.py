"""What a training leaves in Weights & Biases, read from its offline records; and sweeps."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from emu_edit.cli.fit import parse
from emu_edit.cli.main import main
from emu_edit.runs import predictor as predictor_training
from emu_edit.runs.options import config_arguments, configs_folder, find_config
from emu_edit.runs.trainer_cli import UntrainedCLI, quiet
from emu_edit.tasks import SIXTEEN
from emu_edit.training.loggers import WandbLogger
from emu_edit.training.predictor import PredictorSettings
from tests.datamodules.toy_shards import make_folder
from tests.runs.wandb_records import OfflineRun, read_run

SMALL = (
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--data.pairs=32",
    "--data.global_batch=8",
    "--data.steps_per_epoch=2",
    "--score_pairs=1",
)
DOCS = configs_folder().parent / "docs"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("PROJECT", "NAME", "RUN_ID", "TAGS", "RUN_GROUP", "ENTITY"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("CACHE", "DATA", "CONFIG"):  # artifacts go through folders of the user
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home" / name))
    monkeypatch.setattr(
        predictor_training, "PredictorSettings", partial(PredictorSettings, steps=2, batch_size=16)
    )
    wandb.teardown()  # its process has read the variables of an earlier test
    yield
    wandb.teardown()


def runs_in(folder: Path) -> list[OfflineRun]:
    wandb.teardown()  # as at the end of a program: everything is written
    return [read_run(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]


def table_of(run: OfflineRun) -> tuple[list[str], list[list[object]]]:
    (path,) = run.history["results.path"]
    table = json.loads((run.folder / "files" / path).read_text())
    return table["columns"], table["data"]


@pytest.mark.slow
def test_a_training_leaves_config_results_table_pictures_and_model_in_wandb(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--wandb.project=demo", "--wandb.tags=[a, b]", "--wandb.group=g")
    options = ("--config=smoke", *SMALL, *chosen, "--wandb.log_model=true", "--run=runs/first")
    assert main(["fit", *options]) == 0
    told = capsys.readouterr()
    (run,) = runs_in(workplace / "runs" / "first")
    assert (run.run.display_name, run.run.project, run.run.run_group) == ("first", "demo", "g")
    assert list(run.run.tags) == ["a", "b"]
    last = told.err.splitlines()[-1]
    assert last == f"W&B         kept offline; wandb sync {run.folder.relative_to(workplace)}"

    # flat, once, and by the names of the options
    options_kept = {"model.optimizer.lr": 0.001, "data.pairs": 32, "trainer.max_epochs": 1}
    assert run.config.items() >= options_kept.items()
    assert run.config["model.denoiser.class_path"].endswith("UNetDenoiser")
    assert run.config["trainer.callbacks.Ema.decay"] == 0.999
    assert {"denoiser", "model", "data", "trainer"}.isdisjoint(run.config)
    assert not [name for name, value in run.config.items() if isinstance(value, dict) and value]

    shares = {
        f"world/{share}/{name}" for share in ("clean", "read", "success") for name in SIXTEEN.names
    }
    expected = {
        "world/clean",
        "world/success",
        "predictor/accuracy",
        "val/loss",
        "train/loss",
        "parameters",
    }
    assert run.summary.keys() >= shares | expected
    columns, rows = table_of(run)
    assert {"name", "count", "clean", "success", "relative_error"} <= set(columns)
    assert [row[0] for row in rows][:16] == list(SIXTEEN.names)
    assert [row[0] for row in rows][-3:] == ["overall", "copy-input", "oracle"]
    assert run.summary["world/clean"] == rows[-3][columns.index("clean")]
    assert run.history["edits.captions"] == [["step 2, averaged weights"]]
    assert run.history["curves._type"] == run.history["grid._type"] == ["image-file"]
    assert "unet/diffusion_pytorch_model.safetensors" in run.artifacts["first-model"]


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_the_same_run_of_wandb(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("fit", "--config=smoke", *SMALL[:-1], "--score_pairs=0", "--no_predictor")
    assert main([*options, "--run=run", "--wandb.project=demo"]) == 0
    again = ("fit", "--resume=auto", "--run=run", "--score_pairs=0", "--no_predictor")
    assert main([*again, "--trainer.max_epochs=2"]) == 0
    first, second = runs_in(workplace / "run")
    assert first.run.run_id == second.run.run_id
    assert second.run.project == "demo"
    folders = " ".join(str(run.folder.relative_to(workplace)) for run in (first, second))
    assert capsys.readouterr().err.endswith(f"kept offline; wandb sync {folders}\n")


def test_a_new_task_leaves_its_errors_its_checks_and_its_picture_in_wandb(
    model: Path, workplace: Path
) -> None:
    make_folder(workplace / "shards", {"local": 6})
    options = (
        "--config=inversion",
        f"--model.model={model}",
        "--model.task=invert",
        "--model.init=mean",
        "--data.data=shards",
        "--data.image_size=16",
        "--data.batch_size=2",
        "--data.steps_per_epoch=2",
        "--trainer.max_epochs=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.accelerator=cpu",
    )
    assert main(["fit", *options, "--run=run", "--wandb.log_model=true"]) == 0
    (run,) = runs_in(workplace / "run")
    assert run.run.display_name == "run"
    assert run.summary.keys() >= {"error_before", "error_after", "error_over_copy", "nearer"}
    columns, rows = table_of(run)
    assert columns == ["step", "train", "held_out"]
    assert [row[0] for row in rows] == [0, 2, 4]
    assert run.history["edits._type"] == ["image-file"]
    assert run.artifacts["run-model"] == ["invert.safetensors"]
    assert run.config["model.task"] == "invert"


@pytest.mark.parametrize(
    ("recipe", "options", "kinds"),
    [
        ("smoke", [], ["CSVLogger"]),
        ("smoke", ["--wandb.project=p"], ["CSVLogger", "WandbLogger"]),
        ("smoke", ["--trainer.logger=false", "--wandb.project=p"], ["WandbLogger"]),
        ("tiny", ["--wandb.project=p"], ["CSVLogger", "WandbLogger"]),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_an_option_of_wandb_adds_its_logger_once(
    recipe: str, options: list[str], kinds: list[str]
) -> None:
    loggers = build(recipe, *options).trainer.loggers
    assert [type(logger).__name__ for logger in loggers] == kinds
    assert [x.name for x in loggers if isinstance(x, WandbLogger)] == ["p"] * (len(options) > 0)


def build(recipe: str, *options: str) -> UntrainedCLI:
    flags = ("--trainer.accelerator=cpu", "--trainer.precision=32", *options)
    with quiet():
        return UntrainedCLI([*config_arguments([find_config(recipe)]), *flags], Path("run"))


def sweeps() -> dict[str, dict]:
    """Return the sweep file and the one in the page."""
    page = (DOCS / "wandb.md").read_text()
    (text,) = page.partition("```yaml\n")[2:]
    return {
        "file": yaml.safe_load((DOCS / "sweep.yaml").read_text()),
        "page": yaml.safe_load(text.partition("```")[0]),
    }


@pytest.mark.parametrize("where", ["file", "page"])
@pytest.mark.parametrize("end", [0, -1])
def test_the_command_of_a_sweep_is_one_that_fit_takes(
    where: str, end: int, model: Path, workplace: Path
) -> None:
    (workplace / "runs").mkdir()
    (workplace / "runs" / "base").symlink_to(model)
    sweep = sweeps()[where]
    values = {
        name: choice["values"][end] if "values" in choice else [choice["min"], choice["max"]][end]
        for name, choice in sweep["parameters"].items()
    }
    given = create_sweep_command_args({"args": {n: {"value": v} for n, v in values.items()}})
    made = {**given, "env": ["/usr/bin/env"], "interpreter": ["python"]}
    command = [
        word
        for part in create_sweep_command(list(sweep["command"]))
        for word in (made[part[2:-1]] if part.startswith("${") else [part])
    ]
    assert command[:5] == ["/usr/bin/env", "python", "-m", "emu_edit", "fit"]
    options = parse("fit", command[5:])
    with quiet():
        built = UntrainedCLI(
            [*options.to_arguments(), "--trainer.accelerator=cpu", "--trainer.precision=32"],
            workplace / "run",
        )
    section = built.config["fit"]
    for name, value in values.items():
        group, _, rest = name.partition(".")
        assert section[f"{group}.init_args.{rest}"] == value
    assert sweep["method"] in {"random", "grid", "bayes"}
    assert sweep["metric"]["name"] in {"world/clean", "error_over_copy"}


def test_variables_of_wandb_hold_where_no_option_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"PROJECT": "p", "NAME": "n", "RUN_ID": "i", "TAGS": "a,b", "RUN_GROUP": "g"}
    for name, value in names.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = WandbLogger(save_dir=str(tmp_path / "run")).experiment
    assert (run.project, run.name, run.id, run.group) == ("p", "n", "i", "g")
    assert run.tags == ("a", "b")
    wandb.finish()
    run = WandbLogger(save_dir=str(tmp_path / "run"), project="q", name="m", id="j").experiment
    assert (run.project, run.name, run.id) == ("q", "m", "j")
    wandb.finish()
