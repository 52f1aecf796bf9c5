"""What a user reads when a device has no memory left: one line with what was tried and what helps.

torch raises a class of its own for accelerators, and a plain RuntimeError for the CPU and for
libraries that could not set up their workspace; the words tell.
"""

import re

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from emu_edit.errors import ExitStatus, InputError
from emu_edit.training.checkpoint_io import in_words

_WORDS = re.compile(
    r"out of memory|DefaultCPUAllocator: can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED"
)
_ASKED = re.compile(r"ried to allocate (?P<number>[\d.]+) (?P<unit>bytes|[KMGT]iB)")


class OutOfMemoryError(InputError):
    """The pictures of a step do not fit into the memory of the device."""

    status = ExitStatus.out_of_memory


def out_of_memory(error: Exception, trainer: Trainer, data: Namespace) -> OutOfMemoryError | None:
    """Word an error of training or measuring; None if it is about something else.

    Args:
        error: that has left the trainer.
        trainer: whose step it was.
        data: the arguments of the data module, as the config has them.
    """
    is_ours = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None
    )
    if not is_ours:
        return None
    found = _ASKED.search(str(error))
    asked = "" if found is None else f" ({_amount(found['number'], found['unit'])} were asked for)"
    micro, advice = _micro_batch(trainer, data)
    size = data.get("image_size")
    pictures = "" if size is None else f" of {size}x{size} pixels"
    return OutOfMemoryError(
        f"no memory was left on {trainer.strategy.root_device} at optimizer step "
        f"{trainer.global_step}, with {micro} pictures{pictures} at a time{asked}; {advice}"
    )


def _micro_batch(trainer: Trainer, data: Namespace) -> tuple[int, str]:
    """Return how many pictures one device has at a time, and what would make it fewer."""
    if data.get("global_batch") is None:
        return data.get("batch_size"), "lower data.batch_size or data.image_size"
    micro = data.global_batch // (trainer.world_size * trainer.accumulate_grad_batches)
    if micro == 1:
        return 1, "lower data.image_size, or set trainer.precision: bf16-mixed"
    return micro, (
        f"set data.micro_batch below {micro}, which leaves optimizer steps as they are, or lower "
        "data.image_size"
    )


def _amount(number: str, unit: str) -> str:
    return in_words(int(number)) if unit == "bytes" else f"{number} {unit}"
