"""The folder of one training run: where it is, and what lies in it.

runs/tiny-20250131-235959/
    config.yaml          the resolved config; {run} in it stands for the folder
    run.lock             who trains here, while it does
    checkpoints/         the newest step-*.ckpt, each with its sidecar, and last.ckpt, a link
    logs/                metrics.csv
    model/               the exported model directory (weights averaged over training)
    grid.png curves.png mixture.png table.md results.json
"""

import os
import re
from collections.abc import Mapping
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from emu_edit.editing.find import CONFIG, RUNS
from emu_edit.errors import InputError

PLACEHOLDER = "{run}"
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
METRICS = Path("logs", "metrics.csv")
RANKS_FROM_OUTSIDE = {"SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"}  # they cannot ask what is newest
FROM_PARENT = "EMU_EDIT_RUN"  # how the processes that Lightning starts learn the folder


def new_run_folder(recipe: str, chosen: str | None, *, is_taken: bool = True) -> Path:
    """Return the folder of a new run, the same on every rank.

    One named after the time is made at once, so that no other run gets it, unless `is_taken` is
    False.

    Raises:
        InputError: if `chosen` already holds a run, or ranks started from outside could not agree.
    """
    if (inherited := _of_parent()) is not None:
        return inherited
    folder = _stamped(recipe, is_taken=is_taken) if chosen is None else Path(chosen)
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if chosen is not None and is_first and (folder / CONFIG).exists():
        raise InputError(
            f"{folder} already holds a run; choose another --run folder, or go on with this one: "
            "--resume auto"
        )
    return _shared_with_children(folder)


def resumed_run_folder(recipe: str, chosen: str | None) -> Path:
    """Return the folder of the run to go on with, the same on every rank.

    That is the chosen one, that of this SLURM job (also after a requeue), or the newest run of the
    recipe; a new one if there is none.

    Raises:
        InputError: if ranks started from outside could not agree.
    """
    if (inherited := _of_parent()) is not None:
        return inherited
    if chosen is not None:
        return _shared_with_children(Path(chosen))
    runs = [] if RANKS_FROM_OUTSIDE.intersection(os.environ) else runs_of(recipe)
    return _shared_with_children(runs[-1] if runs else _stamped(recipe, is_taken=True))


def runs_of(recipe: str) -> list[Path]:
    """Return the runs of a recipe in this folder, the one started last at the end."""
    configs = [file for file in RUNS.glob(f"*/{CONFIG}") if recipe_of(file) == recipe]
    return [file.parent for file in sorted(configs, key=lambda file: file.stat().st_mtime)]


def _of_parent() -> Path | None:
    """Return the folder if Lightning started this process as a further rank."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    folder = os.environ.get(FROM_PARENT)
    return None if is_first or folder is None else Path(folder)


def _shared_with_children(folder: Path) -> Path:
    """Return the folder, and leave its name to the processes that Lightning starts."""
    os.environ[FROM_PARENT] = str(folder.absolute())
    return folder


def recipe_of(config: Path) -> str:
    """Return what to name a run after: its recipe, also when the config is that of another run."""
    name = config.parent.name if config.name == CONFIG else config.stem
    return re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", name)


def _stamped(recipe: str, *, is_taken: bool) -> Path:
    """Return a folder named after the job, or after the time and then of this run alone."""
    first = folder = RUNS / f"{recipe}-{_stamp()}"
    if not is_taken or "SLURM_JOB_ID" in os.environ:
        return folder
    for number in count(2):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # of a run that was started in the same second
            folder = first.with_name(f"{first.name}-{number}")
        else:
            break
    return folder


def _stamp() -> str:
    """Return what makes the name of a run unique: the job's number, or the time."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None:
        return job
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("under torchrun the ranks cannot agree on a folder name; give --run DIR")
    return datetime.now().strftime("%Y%m%d-%H%M%S")


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint file meant by `path`: a file, or the last one of a run folder.

    A copy of a run may lack the link `last.ckpt`; the newest file is taken then.

    Raises:
        InputError: if there is none.
    """
    numbered = sorted((path / CHECKPOINTS).glob("step-*.ckpt"), reverse=True)
    candidates = (path, path / CHECKPOINTS / LAST, path / LAST, *numbered)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"there is no checkpoint at {path}; give a .ckpt file or the folder of a run that has "
        f"{CHECKPOINTS}/{LAST}"
    )


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder a checkpoint lies in, None when it lies elsewhere."""
    folder = checkpoint.absolute().parent.parent
    return folder if (folder / CONFIG).is_file() else None


def filled(value: Any, folder: str) -> Any:
    """Replace `{run}` in all strings of a config."""
    match value:
        case str():
            return value.replace(PLACEHOLDER, folder)
        case Namespace():
            return Namespace(**{key: filled(entry, folder) for key, entry in vars(value).items()})
        case Mapping():
            return {key: filled(entry, folder) for key, entry in value.items()}
        case list():
            return [filled(entry, folder) for entry in value]
        case _:
            return value
