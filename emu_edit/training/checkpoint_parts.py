"""What a checkpoint's parts must be, checked once where one is read.

Everything behind `read_checkpoint` may then take the parts for what they are; a file in which, say,
a list stands for the weights is refused here in one line, whoever asks for it.
"""

from typing import Any

import torch
from packaging.version import InvalidVersion, Version

from emu_edit.errors import BrokenCheckpointError, InputError
from emu_edit.tasks import TaskTable

ADVICE = "give a .ckpt file written by `emu-edit fit`"
KINDS = {
    "state_dict": dict,
    "callbacks": dict,
    "hyper_parameters": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "global_step": int,
    "epoch": int,
    "pytorch-lightning_version": str,
}

# how far Lightning's loops are
COUNTS = ("ready", "started", "processed", "completed", "is_last_batch", "_batches_that_stepped")


def check_parts(checkpoint: dict[str, Any], where: str) -> None:
    """Refuse a checkpoint with a part of a wrong type.

    Raises:
        BrokenCheckpointError: naming the part.
    """
    for name, kind in KINDS.items():
        if not isinstance(checkpoint.get(name, kind()), kind):
            raise BrokenCheckpointError(
                f"{where}: {name} is {type(checkpoint[name]).__name__}, needs {kind.__name__}; "
                f"{ADVICE}"
            )
    tensors_of(checkpoint["state_dict"], f"{where}: state_dict")
    try:
        Version(checkpoint.get("pytorch-lightning_version") or "0")
    except InvalidVersion as error:
        raise BrokenCheckpointError(
            f"{where}: pytorch-lightning_version: {error}; {ADVICE}"
        ) from error
    _check_counts(checkpoint.get("loops", {}), f"{where}: loops")
    for number, state in enumerate(checkpoint.get("optimizer_states", [])):
        _check_optimizer(state, f"{where}: optimizer_states.{number}")


def _check_counts(loops: dict[Any, Any], where: str) -> None:
    """Refuse progress that is no number of steps or batches; what loaders keep is theirs."""
    for name, value in loops.items():
        if name in COUNTS and (not isinstance(value, int) or value < 0):
            raise BrokenCheckpointError(
                f"{where}.{name} is {_shown(value)}, needs a count; {ADVICE}"
            )
        if isinstance(value, dict):
            _check_counts(value, f"{where}.{name}")
        elif str(name).endswith(("loop", "progress", "total", "current")):
            raise BrokenCheckpointError(f"{where}.{name} is {_shown(value)}, needs dict; {ADVICE}")


def _check_optimizer(state: object, where: str) -> None:
    """Refuse what no optimizer of torch has made; shapes are judged where weights are known."""
    memory = state.get("state") if isinstance(state, dict) else None
    groups = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(memory, dict) or not isinstance(groups, list):
        raise BrokenCheckpointError(
            f"{where} is {_shown(state)}, needs state and param_groups; {ADVICE}"
        )
    for name, entry in [*memory.items(), *enumerate(groups)]:
        if not isinstance(entry, dict):
            raise BrokenCheckpointError(
                f"{where}.{name} is {_shown(entry)}, needs the numbers of a parameter; {ADVICE}"
            )


def _shown(value: object) -> str:
    return str(value) if isinstance(value, int | float) else type(value).__name__


def tensors_of(value: object, where: str) -> dict[str, torch.Tensor]:
    """Return weights by name.

    Raises:
        BrokenCheckpointError: if that is not what `value` holds.
    """
    entries: dict[Any, Any] = value if isinstance(value, dict) else {None: value}
    for name, entry in entries.items():
        if not isinstance(name, str) or not isinstance(entry, torch.Tensor):
            raise BrokenCheckpointError(
                f"{where} holds {type(entry).__name__} under {name!r}, needs names and tensors; "
                f"{ADVICE}"
            )
    return entries


def check_tasks(checkpoint: dict, table: TaskTable) -> None:
    """Refuse a checkpoint whose embedding rows stand for other tasks.

    Raises:
        InputError: with both lists.
    """
    names = checkpoint.get("tasks")
    if names != list(table.names):
        raise InputError(
            f"the checkpoint was trained for other tasks: it knows {names}, the model "
            f"{list(table.names)}; set model.tasks to the checkpoint's list"
        )


def check_optimizer(checkpoint: dict, kind: str | None) -> None:
    """Refuse a checkpoint of another class of optimizer, whose memory means something else.

    Args:
        checkpoint: says `optimizer` where it is not torch's AdamW.
        kind: where the class of the present one is; none means AdamW.

    Raises:
        InputError: with both.
    """
    given = checkpoint.get("optimizer")
    if given != kind:
        raise InputError(
            f"the checkpoint's optimizer is {given or 'AdamW'}, the config's {kind or 'AdamW'}; "
            f"set model.optimizer.kind to {given or 'null'}, or begin anew with --start_from"
        )
