"""The folder of one training run: where it is, and what lies in it.

runs/tiny-20250131-235959/
    config.yaml          the resolved config; {run} in it stands for the folder
    checkpoints/         last.ckpt and the best ones
    logs/                metrics.csv
    model/               the exported model directory (weights averaged over training)
    grid.png curves.png table.md results.json
"""

import os
import re
from datetime import datetime
from pathlib import Path

from emu_edit.cli.find_model import RUNS
from emu_edit.errors import InputError

PLACEHOLDER = "{run}"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
METRICS = Path("logs", "metrics.csv")
FROM_PARENT = "EMU_EDIT_RUN"  # how the processes that Lightning starts learn the folder


def new_run_folder(recipe: str, chosen: str | None) -> Path:
    """Return the folder of a new run, the same on every rank.

    Raises:
        InputError: if `chosen` already holds a run, or ranks started from outside could not agree.
    """
    local_rank = os.environ.get("LOCAL_RANK", "0")
    if local_rank != "0" and FROM_PARENT in os.environ:
        return Path(os.environ[FROM_PARENT])
    if chosen is not None:
        folder = Path(chosen)
        if (folder / CONFIG).exists() and local_rank == "0":
            raise InputError(f"{folder} already holds a run; choose another --run folder")
    else:
        folder = RUNS / f"{recipe}-{_stamp()}"
    os.environ[FROM_PARENT] = str(folder.absolute())
    return folder


def recipe_of(config: Path) -> str:
    """Return what to name a run after: its recipe, also when the config is that of another run."""
    name = config.parent.name if config.name == CONFIG else config.stem
    return re.sub(r"-\d{8}-\d{6}$", "", name)


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

    Raises:
        InputError: if there is none.
    """
    candidates = (path, path / CHECKPOINTS / LAST, path / LAST)
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
