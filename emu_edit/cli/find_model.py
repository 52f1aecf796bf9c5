"""Where a model is: a model directory, a run folder, or the newest run of the current directory."""

from pathlib import Path

from emu_edit.errors import InputError

RUNS = Path("runs")
MODEL = "model"  # the exported model directory inside a run folder
INDEX = "model_index.json"  # diffusers' name; what makes a directory a model directory


def find_model(path: Path | None) -> Path:
    """Return the model directory meant by `path`; None means the newest run's.

    Raises:
        InputError: if there is none, or `path` is neither a model directory nor a run folder.
    """
    if path is None:
        return newest_model(RUNS)
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


def newest_model(runs: Path) -> Path:
    """Return the model directory of the run that was exported last.

    Raises:
        InputError: if no run has one.
    """
    found = sorted(runs.glob(f"*/{MODEL}/{INDEX}"), key=lambda index: index.stat().st_mtime)
    if not found:
        raise InputError(
            f"no trained model in {runs.absolute()}; train one with 'emu-edit fit' "
            "or give --model DIR"
        )
    return found[-1].parent
