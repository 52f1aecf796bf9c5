"""What a finished training leaves behind: model, predictor, curves, grid, table.

The exported model directory is scored, not the live module, so that the numbers are those of what a
user will get.
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch import Trainer
from torch import Tensor

from callbacks.durable import Checkpoints
from callbacks.ema import Ema
from datamodules.edit import EditDataModule
from datamodules.remote.address import parse_place
from datamodules.world.data import WorldData
from datamodules.world.write import PHOTOGRAPHS
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import MODEL
from emu_edit.editing.settings import PHOTOGRAPHS_TOO, WORLD
from emu_edit.errors import InputError
from emu_edit.evaluation.world import (
    GRID,
    RESULTS,
    TABLE,
    WorldBenchmark,
    evaluate_world,
    write_results,
)
from emu_edit.files import write_json
from emu_edit.metrics.table import Report, format_table
from emu_edit.models.directory import read_index
from emu_edit.models.unet import UNetDenoiser
from emu_edit.runs.curves import draw_curves, draw_mixture, read_curves
from emu_edit.runs.folder import METRICS
from emu_edit.runs.inversion import write_inversion
from emu_edit.runs.options import TrainOptions
from emu_edit.runs.predictor import add_predictor, describe_training
from emu_edit.tasks import CAPTION
from emu_edit.terminal import fitted, step_bar, terminal_width
from emu_edit.training.based import ClipModule
from emu_edit.training.eve_module import EveModule
from emu_edit.training.export import export_model
from emu_edit.training.inversion_module import InversionModule
from emu_edit.training.loggers import wandb_loggers
from emu_edit.training.module import EditModule
from emu_edit.training.sharding import ShardedStrategy
from emu_edit.training.stored import load_ema, load_module
from emu_edit.training.video_module import VideoModule

CURVES = "curves.png"
MIXTURE = "mixture.png"


def write_report(trainer: Trainer, folder: Path, options: TrainOptions, seconds: float) -> None:
    """Export what a training has learnt; draw its curves and edits, and score it on the world.

    Args:
        trainer: which has trained to its end.
        folder: of the run.
        options: of the command line.
        seconds: since the start of the program.

    Raises:
        InputError: if the module is none of ours.
    """
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(module, InversionModule):
        write_inversion(trainer, module, folder, seconds)
        return
    if not isinstance(module, EditModule):
        raise InputError("model: only an EditModule can be exported")
    ema = next((c for c in trainer.callbacks if isinstance(c, Ema)), None)  # type: ignore[attr-defined]
    average = None if ema is None else ema.average
    seen = what_it_has_seen(module, data, options.start)
    whole, average = _whole(trainer, module, average)
    with step_bar("writing the model"):
        export_model(whole, folder / MODEL, ema=average, trained_on=seen)
    _keep_credits(data, folder / MODEL)
    lines = [f"model       {folder / MODEL}", f"checkpoint  {last_checkpoint(trainer)}"]
    numbers: dict[str, float] = {}
    table: list[dict[str, object]] = []
    names = module.networks.tasks.names
    draws = names == (CAPTION,)  # no edits, of which a predictor could tell one from another
    edits = not draws and not isinstance(module, ClipModule)
    has_predictor = options.predictor and isinstance(data, EditDataModule) and edits
    if has_predictor:
        lines.append(f"predictor   {train_predictor_on(data, folder / MODEL, module, numbers)}")
    metrics = folder / METRICS
    curves = read_curves(metrics) if metrics.is_file() else {}
    if draw_curves(curves, folder / CURVES):
        lines.append(f"curves      {folder / CURVES}")
    if draw_mixture(curves, folder / MIXTURE):
        lines.append(f"mixture     {folder / MIXTURE}")
    about = about_training(trainer, module, folder, seconds)
    if isinstance(data, WorldData) and options.score_pairs > 0:
        benchmark = WorldBenchmark(options.score_pairs)
        result = score_on_world(folder, benchmark, about, str(module.device))
        sys.stdout.write(f"\n{fitted(format_table(result), terminal_width())}\n\n")
        numbers |= world_numbers(result)
        table = world_table(result)
        lines += [f"table       {folder / TABLE}", f"grid        {folder / GRID}"]
    else:
        write_json(folder / RESULTS, about)
        lines += [f"grid        {grid}" for grid in sorted((folder / "grids").glob("*.png"))[-1:]]
    lines.append(f"numbers     {folder / RESULTS}")
    for logger in wandb_loggers(trainer):
        logger.log_results(
            trainer.global_step,
            numbers | {"seconds": seconds, "parameters": float(str(about["parameters"]))},
            table=table,
            pictures={
                "curves": folder / CURVES,
                "mixture": folder / MIXTURE,
                "grid": folder / GRID,
            },
            artifact=folder / MODEL,
        )
    # without a predictor the task has to be named
    task = "" if has_predictor else f" --task {names[0]}"
    use = f'edit a picture with it:\n  emu-edit edit PICTURE "make the sky red"{task} -o edited.png'
    if draws:
        made = "video.mp4" if isinstance(module, VideoModule) else "picture.png"
        use = f'draw with it:\n  emu-edit generate "CAPTION" -o {made}'
    if isinstance(module, EveModule):
        use = f'edit a video with it:\n  emu-edit video CLIP "make the sky red"{task} -o edited.mp4'
    sys.stdout.write("\n".join([*lines, "", f"{use} --model {folder}", ""]))


def _whole(
    trainer: Trainer, module: EditModule, average: dict[str, Tensor] | None
) -> tuple[EditModule, dict[str, Tensor] | None]:
    """Return both with all weights: those of the last checkpoint where this rank has parts."""
    if not isinstance(trainer.strategy, ShardedStrategy):
        return module, average
    latest = Path(last_checkpoint(trainer))
    if not latest.is_file():
        raise InputError(
            "a sharded training is exported from its last checkpoint, and there is none; keep "
            "callbacks.durable.Checkpoints in trainer.callbacks"
        )
    return load_module(latest), load_ema(latest)


def what_it_has_seen(module: EditModule, data: object, start: Path | None) -> str | None:
    """Return what a model was trained on, as `Editor.trained_on`; None where that is not known.

    Of a pretrained base nothing is known, nor of a start that is no model directory.
    """
    if not isinstance(data, WorldData) or type(module.networks.denoiser) is not UNetDenoiser:
        return None
    seen: set[str | None] = {WORLD if data.photos is None else PHOTOGRAPHS_TOO}
    if start is not None:
        seen.add(read_index(start)["_emu_edit"].get("trained_on") if start.is_dir() else None)
    if not seen <= {WORLD, PHOTOGRAPHS_TOO}:
        return None
    return PHOTOGRAPHS_TOO if PHOTOGRAPHS_TOO in seen else WORLD


def _keep_credits(data: object, model: Path) -> None:
    """Keep with a model whose photographs it learnt from, if from any."""
    if isinstance(data, WorldData) and (data.train_folder / PHOTOGRAPHS).is_file():
        shutil.copyfile(data.train_folder / PHOTOGRAPHS, model / PHOTOGRAPHS)


def about_training(
    trainer: Trainer, module: EditModule, folder: Path, seconds: float
) -> dict[str, object]:
    """Return what was done and how long it took, as JSON-able values."""
    return {
        "run": str(folder),
        "steps": trainer.global_step,
        "training_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }


def train_predictor_on(
    data: EditDataModule, model: Path, module: EditModule, numbers: dict[str, float]
) -> str:
    """Train the predictor on the training instructions, if they are here; say how good it is.

    What was measured is added to `numbers`.
    """
    places = [parse_place(place, insecure_http=True) for place in data.train_folders.values()]
    folders = [place for place in places if isinstance(place, Path)]
    if len(folders) < len(places):
        return "none, data.train is on another machine; see emu-edit predictor fit"
    networks = module.networks
    calibration = add_predictor(model, folders, networks.tasks, networks.text_encoder.limit)
    numbers["predictor/accuracy"] = calibration.accuracy
    numbers["predictor/calibration_error"] = calibration.error
    return describe_training(calibration)


def score_on_world(
    folder: Path, benchmark: WorldBenchmark, about: dict[str, object], device: str
) -> Report:
    """Score the exported model on held-out pairs and write results."""
    editor = Editor.from_pretrained(folder / MODEL, device=device)
    with step_bar("evaluating", "pairs") as on_step:
        result = evaluate_world(editor, benchmark, on_step)
    title = f"{folder.name} after {about['steps']} steps, held-out world"
    write_results(folder, result, title=title, about={**about, **benchmark.to_dict()})
    return result.report


def world_numbers(result: Report) -> dict[str, float]:
    """Return the scores over all tasks, and each task's clean, read and success."""
    overall = {
        name: value for name, value in asdict(result.model.overall).items() if name != "name"
    }
    found = {f"world/{name}": float(value) for name, value in overall.items() if value is not None}
    by_task = {f"world/clean/{row.name}": row.clean for row in result.model.tasks}
    by_task |= {f"world/read/{row.name}": row.read for row in result.model.tasks}
    by_task |= {f"world/success/{row.name}": row.success for row in result.model.tasks}
    return found | by_task


def world_table(result: Report) -> list[dict[str, object]]:
    """Return a row for each task and family, and for the model and its floor and ceiling."""
    bounds = [("copy-input", result.copy_input), ("oracle", result.oracle)]
    return [
        *(asdict(row) for row in (*result.model.tasks, *result.model.families)),
        asdict(result.model.overall),
        *({**asdict(summary.overall), "name": name} for name, summary in bounds),
    ]


def last_checkpoint(trainer: Trainer) -> str:
    """Return the checkpoint to go on from, or say that there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpoints) and callback.latest is not None:
            return str(callback.latest)
    return "none (no callbacks.durable.Checkpoints in trainer.callbacks)"
