"""What callbacks say to each other over ranks."""

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def from_all_ranks(value: Value) -> list[Value]:
    """Return the value each rank gave, rank 0 first; every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone
