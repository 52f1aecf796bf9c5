"""What a user sees of bad samples and broken numbers: files, one line, an exit status."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from datamodules.shards.index import load_index
from datamodules.shards.manifest import read_manifest
from emu_edit.cli.main import main
from tests.datamodules.bad_shards import spoil
from tests.end_to_end.conftest import SHORT

pytestmark = pytest.mark.slow


@pytest.fixture
def world(trained: Path, tmp_path: Path) -> Path:
    """A copy of the world in which the first sample of every training shard is broken."""
    folder = tmp_path / "world"
    shutil.copytree(trained / "world" / "32px", folder)
    train = folder / "train"
    entries = read_manifest(train).entries
    firsts = [load_index(train / entry.file, entry)["key"][0].decode() for entry in entries]
    spoil(train, dict.fromkeys(firsts, "target"))
    return folder


def fit(world: Path, folder: Path, *options: str) -> int:
    short = [f"--data.folder={world}", f"--run={folder}", "--score_pairs=0", "--no_predictor"]
    return main(["fit", *SHORT, *short, *options])


def test_bad_samples_are_listed_and_logged_and_training_ends_well(
    world: Path, tmp_path: Path
) -> None:
    assert fit(world, tmp_path / "run") == 0
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert listed
    assert {sample["kind"] for sample in listed} == {"target_unreadable"}
    assert {sample["index"] for sample in listed} == {0}
    header = (tmp_path / "run" / "logs" / "metrics.csv").read_text().splitlines()[0]
    assert f"data/skipped/{listed[0]['task']}" in header.split(",")


def test_too_many_bad_samples_end_training_with_status_65_and_one_line(
    world: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (skipped,) = (
        callback
        for callback in config["trainer"]["callbacks"]
        if callback["class_path"] == "callbacks.skipped.Skipped"
    )
    skipped["init_args"] |= {"every": 1, "after": 8, "max_fraction": 0.0}
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump(config))
    strict = f"--config={tmp_path / 'strict.yaml'}"
    assert fit(world, tmp_path / "run", strict) == 65
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("emu-edit: error: ")
    assert "samples (" in error
    assert f"are listed in {tmp_path / 'run' / 'skipped.jsonl'}" in error


def test_numbers_that_break_end_training_with_status_70_and_a_report(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model.optimizer.lr=1e30", "--model.optimizer.warmup_steps=0")
    assert fit(trained / "world" / "32px", tmp_path / "run", *options) == 70
    error = capsys.readouterr().err.splitlines()[-1]
    assert "is not finite, the weights are still those of the step before; samples: " in error
    (event,) = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert event["action"] == "stopped"
    assert len(event["samples"]) == 4
