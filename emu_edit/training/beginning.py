"""Where a new task's vector begins: what the base already does is seldom far from what is wanted.

"best" tries every task of the base on the pairs, the mean of all, and no task at all: forward
passes only, a few seconds for the tiny model. Source: ours; the paper names no beginning.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError, closest
from emu_edit.models.learned_task import BEGINNINGS, BEST, MEAN, NEAREST, NONE
from emu_edit.training.draws import DrawnBatch
from emu_edit.training.new_task import NewTask


@dataclass(frozen=True)
class Beginning:
    """A vector to begin with, and what it was called before."""

    name: str
    vector: Float[Tensor, " k"]


def check_init(init: str, editor: Editor) -> None:
    """Refuse a word for a beginning that means none; call it before long work.

    Raises:
        InputError: for an unknown word, with the nearest, or "nearest" without a predictor.
    """
    known = [*BEGINNINGS, *editor.networks.tasks.names]
    if init not in known:
        raise InputError(
            f"cannot begin at {init!r}; give one of {', '.join(known)}.{closest(init, known)}"
        )
    if init == NEAREST and editor.predictor is None:
        raise InputError(
            "this model has no task predictor to find the nearest task; begin at 'best' or at a "
            "task by its name"
        )


@torch.no_grad()
def beginning(task: NewTask, init: str, batches: Sequence[DrawnBatch]) -> Beginning:
    """Return where to begin.

    Args:
        task: the new task, whose own vector is not looked at.
        init: "best", "mean", "nearest", "none" or a task's name, see `InversionSettings`.
        batches: pairs to learn from, with their noise.

    Raises:
        InputError: see `check_init`.
    """
    editor = task.editor
    check_init(init, editor)
    mean = editor.networks.base_table().mean(dim=0)
    if init == MEAN:
        return Beginning(MEAN, mean)
    if init == NONE:  # the base has learnt it as "no task was told"
        return Beginning(NONE, torch.zeros_like(mean))
    if init == BEST:
        return _best(task, batches)
    name = _nearest(editor, batches) if init == NEAREST else init
    return Beginning(name, editor.networks.task_vectors([name])[0])


def _nearest(editor: Editor, batches: Sequence[DrawnBatch]) -> str:
    """Return the task that the predictor gives most, summed over the instructions."""
    shares: defaultdict[str, float] = defaultdict(float)
    texts = list(dict.fromkeys(text for batch in batches for text in batch.instruction))
    for prediction in editor.predict_tasks(texts):
        for name, share in prediction.ranking:
            shares[name] += share
    return max(shares, key=lambda name: shares[name])


def _best(task: NewTask, batches: Sequence[DrawnBatch]) -> Beginning:
    networks = task.editor.networks
    mean = networks.base_table().mean(dim=0)
    rows = zip(networks.tasks.names, networks.task_embedding.table, strict=True)
    candidates = [Beginning(name, vector) for name, vector in rows]
    candidates += [Beginning(MEAN, mean), Beginning(NONE, torch.zeros_like(mean))]
    losses = [task.loss(batches, candidate.vector) for candidate in candidates]
    return candidates[losses.index(min(losses))]
