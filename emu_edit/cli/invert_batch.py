"""What `fit --config inversion` leaves behind: the same files as `invert`, in the run's folder."""

import sys
from pathlib import Path

from lightning.pytorch import Trainer

from callbacks.ema import Ema
from datamodules.fewshot_data import FewShotData
from emu_edit.cli.curves import draw_curves, read_curves
from emu_edit.cli.invert_report import NewTaskReport, write_new_task
from emu_edit.cli.run_folder import METRICS
from emu_edit.errors import InputError
from emu_edit.models.learned_task import SUFFIX
from emu_edit.training.inversion_module import InversionModule


def write_inversion(
    trainer: Trainer, module: InversionModule, folder: Path, seconds: float
) -> None:
    """Write the learned task, its picture and the curves, and tell what to do next.

    Raises:
        InputError: if the data were no few pairs, or a file cannot be written.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, FewShotData):
        raise InputError("data: a new task is learnt from datamodules.fewshot_data.FewShotData")
    ema = next((c for c in trainer.callbacks if isinstance(c, Ema)), None)  # type: ignore[attr-defined]
    average = None if ema is None or ema.average is None else ema.average["new_task.vector"]
    report = NewTaskReport(
        name=module.name,
        description=module.description,
        pairs=[*data.train_pairs, *data.held_out_pairs],
        inverted=module.outcome(average),
        seed=module.seed,
        seconds=seconds,
    )
    told = write_new_task(
        report,
        module.editor,
        module.model,
        output=folder / f"{module.name}{SUFFIX}",
        install=False,
        with_predictor=False,
    )
    metrics = folder / METRICS
    if metrics.is_file():
        draw_curves(read_curves(metrics), folder / "curves.png")
    sys.stdout.write(told.to_words())
