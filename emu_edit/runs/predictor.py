"""What `predictor fit` and the end of `fit` share: gather instructions, train with a bar."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.world.predictor_texts import (
    Instruction,
    training_instructions,
    unseen_instructions,
)
from emu_edit.editing.find import PREDICTOR
from emu_edit.editing.predictor import TaskPredictor
from emu_edit.errors import InputError
from emu_edit.models.interfaces import TextLimit
from emu_edit.tasks import TaskTable
from emu_edit.terminal import step_bar
from emu_edit.training.predictor import (
    Calibration,
    PredictorSettings,
    tiny_predictor,
    train_predictor,
)


def gather(folder: Path | None, tasks: TaskTable, *, seed: int = 0) -> list[Instruction]:
    """Return the instructions to train on: of a shard folder, or of the tasks the world has.

    Raises:
        InputError: if the folder cannot be read, or has tasks the model does not know.
    """
    with step_bar("reading", "instructions") as on_step:
        found = training_instructions(folder, seed=seed, on_step=on_step)
    if folder is None:
        found = [(text, task) for text, task in found if task in tasks.names]
    unknown = {task for _, task in found}.difference(tasks.names)
    if unknown:
        raise InputError(
            f"{folder} has instructions of {', '.join(sorted(unknown))}, which the model does not "
            f"know; it knows {', '.join(tasks.names)}; leave those shards out"
        )
    return found


def gather_unseen(folder: Path | None, tasks: TaskTable, *, seed: int = 0) -> list[Instruction]:
    """Return what the temperature is fitted on: texts `gather` gives nothing like, or none."""
    found = unseen_instructions(folder, seed=seed)
    return [(text, task) for text, task in found if task in tasks.names]


def train_with_bar(
    predictor: TaskPredictor,
    instructions: list[Instruction],
    settings: PredictorSettings,
    limit: TextLimit | None = None,
    unseen: Sequence[Instruction] = (),
) -> Calibration:
    """Train and show how far it is.

    Instructions are cut to `limit`, by default what the predictor takes: one of hundreds of tokens
    would make every batch as long, or end the training of a model that is done.
    """
    most = predictor.encoder.limit if limit is None else limit
    within = [(most.cut(text), task) for text, task in instructions]
    with step_bar("training the task predictor") as on_step:
        return train_predictor(predictor, within, settings, on_step, unseen=unseen)


def add_predictor(
    model: Path, folders: Sequence[Path], tasks: TaskTable, limit: TextLimit | None = None
) -> Calibration:
    """Train a tiny predictor on shard folders, put it into a model; say how good it is.

    `limit` is that of the model's text encoder, to which the instructions were cut for it, too.
    """
    predictor = tiny_predictor(tasks)
    instructions = [one for folder in folders for one in gather(folder, tasks)]
    unseen = [one for folder in folders for one in gather_unseen(folder, tasks)]
    calibration = train_with_bar(predictor, instructions, PredictorSettings(), limit, unseen)
    predictor.save_pretrained(model / PREDICTOR)
    return calibration


def describe_training(calibration: Calibration) -> str:
    """Word what was measured on the texts held back from training."""
    without = calibration.tasks_without_texts
    warning = f"\nno instructions of {', '.join(without)}: never predicted" if without else ""
    return (
        f"{calibration.accuracy:.1%} of {calibration.texts} instructions held back from "
        f"training are right; expected calibration error {calibration.error:.3f} "
        f"({calibration.error_before:.3f} before), temperature {calibration.temperature:.2f}"
        f"{warning}"
    )
