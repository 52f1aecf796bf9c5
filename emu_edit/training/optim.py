"""The optimizer and its learning rate: AdamW, linear warm-up, then half a cosine down to zero.

Weight decay pulls weights towards zero, which makes sense for matrices that multiply; biases, norms
and tables of vectors (tokens, tasks) are left alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from emu_edit.errors import InputError
from emu_edit.models.task_embedding import TaskEmbedding

TABLES = (nn.Embedding, TaskEmbedding)


@dataclass(frozen=True)
class OptimizerSettings:
    """How the weights are learnt.

    Attributes:
        lr: peak learning rate, reached at the end of the warm-up.
        weight_decay: of weight matrices and convolutions only.
        betas: decay of AdamW's two running means.
        warmup_steps: optimizer steps over which the rate rises from near 0; 0 starts at the peak.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 500

    def __post_init__(self) -> None:
        """Refuse values no optimizer can use."""
        if not self.lr > 0:
            raise InputError(f"optimizer.lr must be above 0, got {self.lr!r}")
        if not self.weight_decay >= 0:
            raise InputError(
                f"optimizer.weight_decay must be at least 0, got {self.weight_decay!r}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas must be in [0, 1), got {list(self.betas)}")
        if self.warmup_steps < 0:
            raise InputError(f"optimizer.warmup_steps must be at least 0, got {self.warmup_steps}")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters into those that decay and those that don't.

    Decays: everything with two or more axes outside embedding tables. Does not: biases, norms,
    tables. A parameter shared by two modules counts once and does not decay when one of them is a
    table.
    """
    tables = {
        id(p)
        for m in module.modules()
        if isinstance(m, TABLES)
        for p in m.parameters(recurse=False)
    }
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in tables]
    kept = [p for p in trainable if p.ndim < 2 or id(p) in tables]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Build AdamW in its fused form over the trainable parameters of `module`.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.

    Raises:
        InputError: if nothing in `module` is trainable.
    """
    groups = parameter_groups(module, settings.weight_decay)
    if not groups:
        raise InputError("nothing to train: every parameter of the model is frozen")
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return the factor of the peak rate that optimizer step `step` (0, 1, …) uses.

    step < warmup:  (step + 1) / (warmup + 1)
    else:           (1 + cos(pi (step - warmup) / (total - warmup))) / 2, and 0 from `total_steps`
    on

    With warmup >= total the peak is never reached. Source: Loshchilov & Hutter 2017,
    arXiv:1608.03983, eq. 5.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def warmup_cosine_schedule(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, total_steps: int | float
) -> LambdaLR:
    """Attach `warmup_cosine` to an optimizer, stepped once per optimizer step.

    The shape comes from the present configuration, not from a checkpoint: a resumed run with more
    steps gets the longer cosine.

    Raises:
        InputError: if the number of steps is not finite.
    """
    if not math.isfinite(total_steps):
        raise InputError(
            "the learning rate needs to know how long training is, got no limit; "
            "set trainer.max_epochs"
        )
    total = int(total_steps)
    return LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total)
    )
