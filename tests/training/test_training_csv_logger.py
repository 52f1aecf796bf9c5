import csv
from pathlib import Path

import torch

from emu_edit.training.csv_logger import CSVLogger, forget_from


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log(folder: Path, *steps: int, name: str = "loss") -> None:
    """Be one start of the program that logs these steps."""
    logger = CSVLogger(str(folder))
    _ = logger.experiment  # Lightning makes it before training begins
    for step in steps:
        logger.log_metrics({name: torch.tensor(float(step))}, step)
    logger.finalize("success")


def test_a_run_that_goes_on_keeps_its_metrics_and_has_each_step_once(tmp_path):
    log(tmp_path, 0, 1, 2, 3, 4)
    log(tmp_path, 3, 4, 5)  # killed after step 4, gone on from step 3
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        (str(step), str(float(step))) for step in range(6)
    ]


def test_a_run_that_goes_on_may_log_other_things(tmp_path):
    log(tmp_path, 0, 1)
    log(tmp_path, 2, 3, name="error")
    assert [(row["step"], row["loss"], row["error"]) for row in rows(tmp_path)] == [
        ("0", "0.0", ""),
        ("1", "1.0", ""),
        ("2", "", "2.0"),
        ("3", "", "3.0"),
    ]


def test_nothing_is_lost_when_the_program_dies_before_it_logs(tmp_path):
    log(tmp_path, 0, 1)
    _ = CSVLogger(str(tmp_path)).experiment
    assert len(rows(tmp_path)) == 2


def test_a_row_that_a_kill_has_cut_is_dropped(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,train/loss\n0,7,1.5\n0,8,1.25\n0,9\n")
    forget_from(9, file)
    assert file.read_text().split() == ["epoch,step,train/loss", "0,7,1.5", "0,8,1.25"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
