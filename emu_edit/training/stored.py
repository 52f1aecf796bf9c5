"""Checkpoint -> module: what was trained, built again from the config that is stored with it.

Checkpoints hold tensors and primitives only; the classes that the config names must be subclasses
of the slots they fill.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

from jsonargparse import ArgumentError
from torch import Tensor

from emu_edit.errors import BrokenCheckpointError, InputError
from emu_edit.tasks import TaskTable
from emu_edit.training.checkpoint_io import read_checkpoint
from emu_edit.training.checkpoint_parts import ADVICE, check_tasks, tensors_of
from emu_edit.training.edit_adapter_module import EditAdapterModule
from emu_edit.training.eve_module import EveModule
from emu_edit.training.module import EditModule
from emu_edit.training.optim import EMA_STATE_KEY
from emu_edit.training.video_module import VideoModule

# which a checkpoint may be of, by the name under which Lightning's command line keeps them
KINDS = (EditModule, EditAdapterModule, EveModule, VideoModule)
MODULES = {f"{one.__module__}.{one.__qualname__}": one for one in KINDS}


def load_module(path: Path | str, *, tasks: TaskTable | None = None) -> EditModule:
    """Build the module a checkpoint was written by, with its weights, on the CPU and in eval mode.

    Args:
        path: a .ckpt file.
        tasks: the task table the caller needs; none accepts the checkpoint's own.

    Raises:
        InputError: if the file is no checkpoint, stores no config, its config no longer fits the
            program, or its tasks are others.
    """
    checkpoint = read_checkpoint(path)
    if tasks is not None:
        check_tasks(checkpoint, tasks)
    if not checkpoint.get("hyper_parameters"):
        raise InputError(
            f"{path} stores no config, so the model cannot be built from it; "
            "use a checkpoint written by `emu-edit fit`"
        )
    try:
        with warnings.catch_warnings():
            # Lightning lists every weight of the frozen parts, which are absent on purpose; the
            # module itself refuses a checkpoint that lacks others
            warnings.filterwarnings("ignore", message="Found keys that are in the model state dict")
            kind = MODULES.get(checkpoint["hyper_parameters"].get("_class_path"), EditModule)
            module = kind.load_from_checkpoint(
                path, map_location="cpu", weights_only=True, strict=False
            )
    except (ArgumentError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: its config does not build a model ({reason}); "
            "was it written by an older version?"
        ) from error
    return module.eval()


def load_ema(path: Path | str) -> dict[str, Tensor] | None:
    """Return the averaged weights of a checkpoint, or None when it was trained without averaging.

    Raises:
        InputError: if the file is no checkpoint.
    """
    return average_in(read_checkpoint(path), path)


def average_in(checkpoint: Mapping, path: Path | str) -> dict[str, Tensor] | None:
    """Return the averaged weights that are in a checkpoint, None where there are none.

    Raises:
        InputError: if they are damaged; `path` is the file.
    """
    state = checkpoint.get("callbacks", {}).get(EMA_STATE_KEY)
    if state is None:
        return None
    if not isinstance(state, dict) or "average" not in state:
        raise BrokenCheckpointError(f"{path}: {EMA_STATE_KEY} holds no averaged weights; {ADVICE}")
    return tensors_of(state["average"], f"{path}: {EMA_STATE_KEY}")
