"""Which task an edit is: one by name, or a point between two tasks' vectors.

The task reaches the network as a vector, so two tasks can be mixed like colours: half `style` and
half `global`, say.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.models.networks import EditNetworks


@dataclass(frozen=True)
class TaskMix:
    """A point on the line between the vectors of two tasks.

    Args:
        first: name of a task.
        second: name of another.
        share: how far towards the second; 0 is the first alone, 1 the second alone. Beyond them the
            line goes on.
    """

    first: str
    second: str
    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a share that is infinite or NaN."""
        if not math.isfinite(self.share):
            raise InputError(
                f"the share of a task mix must be finite, got {self.share!r}; give 0 to 1"
            )

    def __str__(self) -> str:
        return f"{self.first}+{self.second}:{self.share:g}"


TaskChoice = str | TaskMix


def parse_task(text: str) -> TaskChoice:
    """Read `NAME` or `FIRST+SECOND:SHARE` (the share of the second; 0.5 when left out).

    Raises:
        InputError: if the share is no number, or one is given to the first. Names are checked where
            the model's table is known.
    """
    if "+" not in text:
        return text
    first, _, rest = text.partition("+")
    if ":" in first:
        raise InputError(
            f"task {text!r}: the share is that of the second task alone; write FIRST+SECOND:0.5"
        )
    second, colon, share = rest.partition(":")
    try:
        return TaskMix(first, second, float(share) if colon else 0.5)
    except ValueError as error:
        raise InputError(
            f"task {text!r}: the share {share!r} is no number; write FIRST+SECOND:0.5"
        ) from error


def task_names(task: TaskChoice) -> tuple[str, ...]:
    """Name the tasks of a choice: one, or the two of a mix."""
    return (task.first, task.second) if isinstance(task, TaskMix) else (task,)


def task_vectors(networks: EditNetworks, tasks: Sequence[TaskChoice]) -> Float[Tensor, "b k"]:
    """Look up v_task of each choice, where the networks are; an unknown name is refused."""
    return torch.stack([_vector(networks, task) for task in tasks])


def _vector(networks: EditNetworks, task: TaskChoice) -> Float[Tensor, " k"]:
    if isinstance(task, str):
        return networks.task_vectors([task])[0]
    first, second = networks.task_vectors([task.first, task.second])
    return torch.lerp(first, second, task.share)
