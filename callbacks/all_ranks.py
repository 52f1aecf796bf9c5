"""What callbacks say to each other over ranks, and what they write into the run's folder."""

import os
from pathlib import Path
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


def write_whole(path: Path, text: str) -> None:
    """Write a small file, complete or not at all, over what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
