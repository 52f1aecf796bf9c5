"""What a checkpoint's parts must be, checked once where one is read.

Everything behind `read_checkpoint` may then take the parts for what they are; a file in which, say,
a list stands for the weights is refused here in one line, whoever asks for it.
"""

from typing import Any

import torch

from emu_edit.errors import BrokenCheckpointError

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
}


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
