import csv
import json
import re

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks.task_loss import ErrorTable, TaskLoss
from callbacks.throughput import Throughput, peak_memory
from emu_edit.errors import InputError
from tests.training.stage import (
    TASKS,
    TRAINER_WARNINGS,
    Squares,
    make_batch,
    make_module,
    make_trainer,
)

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def table_of(task: list[int], t: list[int], error: list[float]) -> ErrorTable:
    table = ErrorTable(("add", "style"), 1000)
    table.update(torch.tensor(task), torch.tensor(t), torch.tensor(error))
    return table


def test_errors_are_averaged_by_task_and_quarter_of_the_noise_levels():
    table = table_of([0, 0, 0, 0, 1], [0, 249, 250, 999, 500], [1.0, 3.0, 5.0, 7.0, 9.0])
    assert table.scalars("loss") == {
        "loss/add/t0-250": 2.0,
        "loss/add/t250-500": 5.0,
        "loss/add/t750-1000": 7.0,
        "loss/style/t500-750": 9.0,
    }
    assert table.task_means("val") == {"val/add": 4.0, "val/style": 9.0}


def test_tables_add_up_over_batches_and_tasks_without_samples_are_left_out():
    table = table_of([0], [10], [1.0])
    table.update(torch.tensor([0]), torch.tensor([20]), torch.tensor([2.0]))
    assert table.compute() == {
        "add": {"t0-250": {"mean": 1.5, "count": 2.0}, "all": {"mean": 1.5, "count": 2.0}}
    }


def test_training_logs_the_table_at_its_interval_and_writes_it_at_the_end(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="logs")
    trainer = make_trainer(tmp_path, TaskLoss(every=2), logger=logger)
    trainer.fit(make_module(), datamodule=Squares(steps=4))
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if re.fullmatch(r"loss/(local|add|style)/t\d+-\d+", name)]
    assert columns
    assert [row["step"] for row in rows if any(row[name] for name in columns)] == ["2", "4"]
    content = json.loads((tmp_path / "task_loss.json").read_text())
    assert content["step"] == 4
    assert sum(row["all"]["count"] for row in content["train"].values()) == 8  # two steps of four
    assert {task: row["all"]["count"] for task, row in content["val"].items()} == dict.fromkeys(
        TASKS, 2
    )


def test_the_mean_over_tasks_and_levels_is_the_unweighted_validation_loss(tmp_path):
    trainer = make_trainer(tmp_path, TaskLoss())
    trainer.fit(make_module(), datamodule=Squares(steps=1))
    rows = json.loads((tmp_path / "task_loss.json").read_text())["val"].values()
    total = sum(row["all"]["mean"] * row["all"]["count"] for row in rows) / 6
    assert total == pytest.approx(trainer.callback_metrics["val/loss"].item(), rel=1e-5)


def test_throughput_counts_samples_of_all_ranks_waiting_and_no_validation(monkeypatch, tmp_path):
    module, callback = make_module(), Throughput()
    now = iter([10.0, 13.0, 14.0, 17.0, 100.0, 103.0])  # start, end, start, end, pause, start, end
    monkeypatch.setattr("callbacks.throughput.time.perf_counter", lambda: next(now))
    trainer, batch = make_trainer(tmp_path), make_batch([0, 1, 2])
    for pause in (False, False, True):
        if pause:
            callback.on_validation_start(trainer, module)
        callback.on_train_batch_start(trainer, module, batch, 0)
        callback.on_train_batch_end(trainer, module, {}, batch, 0)
    measured = callback.measured(torch.device("cpu"))
    assert measured["throughput/samples_per_s"] == pytest.approx(9 / 10)
    assert measured["throughput/data_wait"] == pytest.approx(1 / 10)


def test_throughput_is_logged_at_its_interval(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="logs")
    trainer = make_trainer(tmp_path, Throughput(every=2), logger=logger, accumulate_grad_batches=2)
    trainer.fit(make_module(), datamodule=Squares(steps=8))
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["throughput/samples_per_s"]]
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(float(row["throughput/samples_per_s"]) > 0 for row in rows)
    assert all(0 <= float(row["throughput/data_wait"]) < 1 for row in rows)


def test_peak_memory_is_that_of_the_process_on_a_cpu():
    assert 50e6 < peak_memory(torch.device("cpu")) < 1e12


@pytest.mark.parametrize(("kind", "name"), [(TaskLoss, "TaskLoss"), (Throughput, "Throughput")])
def test_an_interval_below_one_is_refused(kind, name):
    with pytest.raises(InputError, match=f"{name}.every must be at least 1, got 0"):
        kind(every=0)
