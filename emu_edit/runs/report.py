"""What a finished training leaves behind: model, predictor, curves, grid, table, and where it is.

Everything is made from the exported model directory and the metrics file, not from the live module,
so that what is reported is what a user will get.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import LightningDataModule, Trainer

from callbacks.durable import Checkpoints
from callbacks.ema import Ema
from datamodules.edit import EditDataModule
from datamodules.remote.address import parse_place
from datamodules.world.backgrounds import Photos
from datamodules.world.data import WorldData
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import MODEL
from emu_edit.evaluation.world import (
    GRID,
    RESULTS,
    TABLE,
    WorldBenchmark,
    evaluate_world,
    write_results,
)
from emu_edit.metrics.table import format_table
from emu_edit.runs.curves import draw_curves, read_curves
from emu_edit.runs.folder import METRICS
from emu_edit.runs.predictor import add_predictor
from emu_edit.terminal import step_bar
from emu_edit.training.export import export_model
from emu_edit.training.module import EditModule

CURVES = "curves.png"


@dataclass(frozen=True)
class FinishedRun:
    """A training that has just ended.

    Attributes:
        folder: the run's folder.
        trainer: what trained.
        module: what was trained.
        data: what it was trained on.
        photos: the photographs behind the world's edits, if any.
        score_pairs: pairs of each task to score on the world; 0 for no score.
        has_predictor: whether to train a task predictor on the data's instructions.
        seconds: from the start of the program to the end of training.
    """

    folder: Path
    trainer: Trainer
    module: EditModule
    data: LightningDataModule | None
    photos: str | None
    score_pairs: int
    has_predictor: bool
    seconds: float


def write_report(run: FinishedRun) -> None:
    """Export the model, draw curves and edits, score it on the world if that is its data."""
    ema = next((c for c in run.trainer.callbacks if isinstance(c, Ema)), None)  # type: ignore[attr-defined]
    export_model(run.module, run.folder / MODEL, ema=None if ema is None else ema.average)
    lines = [f"model       {run.folder / MODEL}", f"checkpoint  {last_checkpoint(run.trainer)}"]
    if run.has_predictor and isinstance(run.data, EditDataModule):
        lines.append(f"predictor   {add_own_predictor(run, run.data)}")
    metrics = run.folder / METRICS
    if metrics.is_file() and draw_curves(read_curves(metrics), run.folder / CURVES):
        lines.append(f"curves      {run.folder / CURVES}")
    about = about_run(run)
    if isinstance(run.data, WorldData) and run.score_pairs > 0:
        sys.stdout.write(score_on_world(run, about))
        lines += [f"table       {run.folder / TABLE}", f"grid        {run.folder / GRID}"]
    else:
        text = json.dumps(about, indent=2) + "\n"
        (run.folder / RESULTS).write_text(text, encoding="utf-8")
        grids = sorted((run.folder / "grids").glob("*.png"))
        lines += [f"grid        {grid}" for grid in grids[-1:]]
    lines.append(f"numbers     {run.folder / RESULTS}")
    sys.stdout.write("\n".join(lines) + "\n\n" + next_command(run))


def add_own_predictor(run: FinishedRun, data: EditDataModule) -> str:
    """Train the predictor on the training instructions, if they are here; say what became of it."""
    places = [parse_place(place, insecure_http=True) for place in data.train_folders.values()]
    folders = [place for place in places if isinstance(place, Path)]
    if len(folders) < len(places):
        return "none, data.train is on another machine; see emu-edit predictor fit"
    return add_predictor(run.folder / MODEL, folders, run.module.networks.tasks)


def about_run(run: FinishedRun) -> dict[str, object]:
    """Return what was done and how long it took, as JSON-able values."""
    measured = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    return {
        "run": str(run.folder),
        "steps": run.trainer.global_step,
        "training_seconds": round(run.seconds, 1),
        "parameters": sum(p.numel() for p in run.module.parameters() if p.requires_grad),
        "metrics": measured,
    }


def score_on_world(run: FinishedRun, about: dict[str, object]) -> str:
    """Score the exported model on held-out pairs, write results, and return the table."""
    editor = Editor.from_pretrained(run.folder / MODEL, device=str(run.module.device))
    benchmark = WorldBenchmark(
        pairs_per_task=run.score_pairs, photos=None if run.photos is None else Photos(run.photos)
    )
    with step_bar("evaluating", "pairs") as on_step:
        result = evaluate_world(editor, benchmark, on_step)
    title = f"{run.folder.name} after {run.trainer.global_step} steps, held-out world"
    write_results(run.folder, result, title=title, about={**about, **benchmark.describe()})
    return f"\n{format_table(result.report)}\n\n"


def last_checkpoint(trainer: Trainer) -> str:
    """Return the checkpoint to go on from, or say that there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpoints) and callback.latest is not None:
            return str(callback.latest)
    return "none (no callbacks.durable.Checkpoints in trainer.callbacks)"


def next_command(run: FinishedRun) -> str:
    """Tell how to use what was trained."""
    # without a predictor the task has to be named
    told = run.has_predictor and isinstance(run.data, EditDataModule)
    task = "" if told else f" --task {run.module.networks.tasks.names[0]}"
    return (
        "edit a picture with it:\n"
        f'  emu-edit edit PICTURE "make the sky red"{task} -o edited.png --model {run.folder}\n'
    )
