"""Which device a command computes on."""

import torch

from emu_edit.errors import InputError


def choose_device(name: str | None) -> str:
    """Return `name` if torch can use it; None means an accelerator if there is one, else the CPU.

    Raises:
        InputError: if this machine has no such device.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch uses both, e.g. without CUDA
        raise InputError(f"device {name!r} cannot be used here; try --device cpu") from error
    return name
