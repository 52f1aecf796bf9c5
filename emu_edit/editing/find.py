"""Which model is meant, and which device it runs on.

A model is a directory, in a run's folder or by itself; without one, the newest run here or the
released model, which is package data: `edit` edits without any training and without network. The
command line imports this file for its help pages, so torch is imported only to choose a device.
"""

import sys
from pathlib import Path

from emu_edit.errors import InputError

RUNS = Path("runs")
MODEL = "model"  # the exported model directory inside a run folder
PREDICTOR = "predictor"  # the folder of a model directory that holds its task predictor
CONFIG = "config.yaml"  # what a run was started with, in its folder
INDEX = "model_index.json"  # diffusers' name; what makes a directory a model directory
RELEASED = Path(__file__).parents[1] / "released"  # the model that is installed with the package
RELEASED_NAME = "released"  # what it is called on the command line


def find_model(path: Path | str | None, *, predicting: bool = False) -> Path:
    """Find the model directory that `path` means.

    None means the newest run of this folder, and the released model where there is no run; the word
    `released` means that model, unless something here is called so. The command line, the page and
    `Editor.from_pretrained` all find their model here.

    Args:
        path: a model directory, a run folder, `released`, or None.
        predicting: whether the model has to tell tasks from words; of the runs, the newest whose
            model can is taken then, and one that was passed over for it is named.

    Raises:
        InputError: if there is none, or `path` is neither a model directory nor a run folder.
    """
    if path is None:
        return _newest_or_released(predicting=predicting)
    path = Path(path).expanduser()
    if str(path) == RELEASED_NAME and not path.exists() and is_released():
        return RELEASED
    for candidate in (path, path / MODEL):
        if (candidate / INDEX).is_file():
            return candidate
    if not path.exists():
        raise InputError(
            f"there is no model at {path}; train one with 'emu-edit fit' or name another"
        )
    raise InputError(
        f"{path} is not a model directory (it has no {INDEX}); give a run folder, a model "
        f"directory, or make one with 'emu-edit export CHECKPOINT -o DIR'"
    )


def _newest_or_released(*, predicting: bool) -> Path:
    found = runs_with_model(RUNS)
    if not found:
        return RELEASED if is_released() else newest_model(RUNS)
    able = [model for model in found if has_predictor(model)] if predicting else found
    if not able:
        raise InputError(
            f"none of the models in {RUNS} has a task predictor; name the task with --task, take "
            f"another model (--model {RELEASED_NAME}), or train a predictor with 'emu-edit "
            f"predictor fit {found[-1]}'"
        )
    if able[-1] != found[-1]:
        sys.stderr.write(
            f"takes {able[-1]}: the newest run's model {found[-1]} has no task predictor; name the "
            f"task (--task), or choose with --model\n"
        )
    return able[-1]


def has_predictor(model: Path) -> bool:
    """Whether a model directory carries a task predictor; nothing is loaded to know."""
    return (model / PREDICTOR).is_dir()


def newest_model(runs: Path) -> Path:
    """Find the model of the run that was exported last: one of the user's own.

    Raises:
        InputError: if no run has one.
    """
    found = runs_with_model(runs)
    if not found:
        raise InputError(
            f"no trained model in {runs.absolute()}; train one with 'emu-edit fit' "
            "or give --model DIR"
        )
    return found[-1]


def runs_with_model(runs: Path) -> list[Path]:
    """List the model directories of all runs, the one exported last at the end."""
    found = sorted(runs.glob(f"*/{MODEL}/{INDEX}"), key=lambda index: index.stat().st_mtime)
    return [index.parent for index in found]


def is_released() -> bool:
    """Whether this installation has the released model."""
    return (RELEASED / INDEX).is_file()


def shown_path(model: Path) -> str:
    """Say where a model is: its path, or that it is the released one."""
    return RELEASED_NAME if model == RELEASED else str(model)


def model_name(model: Path) -> str:
    """Name a model in files: by its folder or its run's, without the way to it."""
    path = model.resolve()
    in_run = path.name == MODEL and path.parent.parent.name == RUNS.name
    return path.parent.name if in_run else path.name


def choose_device(name: str | None) -> str:
    """Check that torch can use a device; None takes an accelerator if there is one, else the CPU.

    Raises:
        InputError: if this machine has no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch uses both, e.g. without CUDA
        raise InputError(f"device {name!r} cannot be used here; try --device cpu") from error
    return name
