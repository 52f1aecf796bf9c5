"""The metrics file of a run, which goes on when the run does.

Lightning's logger deletes the file it finds. Here its rows stay, except those of steps that are
trained again and so are logged anew.
"""

import csv
from io import TextIOWrapper
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch import Tensor

from emu_edit.files import atomic_file


class CSVLogger(LightningCSVLogger):
    """Log to `save_dir/name/version/metrics.csv`, and go on with a file that is there.

    Args:
        save_dir: the run's folder.
        name: a folder in it; "" for none.
        version: a folder in that.
    """

    def __init__(self, save_dir: str, name: str = "", version: str = "logs") -> None:
        super().__init__(save_dir, name=name, version=version)
        self._is_new = True

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the files; Lightning makes it before training begins."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _KeepingWriter(self.log_dir)
        return self._experiment  # type: ignore[return-value]  always the one above

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:
        """Write a row, in memory until the next save."""
        if self._is_new and step is not None:
            self._is_new = False
            forget_from(step, Path(self.experiment.metrics_file_path))
        super().log_metrics(metrics, step)


class _KeepingWriter(ExperimentWriter):
    """Lightning's writer, but for deleting an existing file."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as stream:
                self.metrics_keys = next(csv.reader(stream), [])

    def _check_log_dir_exists(self) -> None:
        """Leave what is there."""


def forget_from(step: int, metrics: Path) -> None:
    """Drop the rows of a metrics file from an optimizer step on; there need not be a file."""
    if not metrics.is_file():
        return
    with metrics.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        names = reader.fieldnames or []
        whole = [row for row in reader if None not in row.values()]  # a killed run cuts its last
        kept = [row for row in whole if int(row["step"]) < step]
    with atomic_file(metrics) as raw:
        stream = TextIOWrapper(raw, "utf-8", newline="")
        writer = csv.DictWriter(stream, fieldnames=names)
        writer.writeheader()
        writer.writerows(kept)
        stream.detach()  # flushes; the file is closed by who opened it
