"""What each process of the two-process tests does; torchrun starts it with a folder.

It writes one file per rank: gradients of the first step, weights and averages at the end, and how a
spoilt run ended.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import sys
import warnings
from pathlib import Path

import torch
from lightning import Callback
from torch import Tensor

from callbacks.ema import Ema
from callbacks.finite import Finite, NonFiniteError
from callbacks.task_loss import TaskLoss
from emu_edit.runs.failures import closing_connections
from emu_edit.training.optim import copy_of, trainable
from tests.training.stage import TRAINER_WARNINGS, Squares, make_module, make_trainer

STEPS, BATCH = 3, 4


class FirstGradients(Callback):
    """Keep the gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not self.gradients:
            self.gradients = {
                name: p.grad.clone()
                for name, p in trainable(pl_module).items()
                if p.grad is not None
            }


def train(folder: Path, devices: int) -> dict:
    """Train a few steps on one or two processes; return gradients, weights and averages."""
    module, ema, first = make_module(), Ema(), FirstGradients()
    trainer = make_trainer(
        folder,
        ema,
        first,
        TaskLoss(every=STEPS),
        Finite(),
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
    )
    trainer.fit(module, datamodule=Squares(steps=STEPS, batch=BATCH))
    return {"gradients": first.gradients, "weights": copy_of(module), "average": ema.average}


def train_spoilt(
    folder: Path, max_skips: int = 0, strategy: str = "ddp"
) -> tuple[str, dict[str, Tensor]]:
    """Train with bad samples on rank 1 in the second step; return how it ended and the weights."""
    module = make_module()
    trainer = make_trainer(folder, Finite(max_skips), devices=2, strategy=strategy)

    def hook(_, __, output: Tensor) -> Tensor:
        return (
            output * float("nan")
            if trainer.global_rank == 1 and trainer.global_step == 1
            else output
        )

    module.networks.denoiser.register_forward_hook(hook)
    try:
        trainer.fit(module, datamodule=Squares(steps=STEPS, batch=BATCH))
    except NonFiniteError as error:
        return str(error), copy_of(module)
    return f"ended after {trainer.global_step} steps", copy_of(module)


def main() -> None:
    """Do both runs and write the result of this rank."""
    folder = Path(sys.argv[1])
    for line in TRAINER_WARNINGS:
        warnings.filterwarnings("ignore", message=line.removeprefix("ignore:"))
    result = train(folder, devices=2)
    rank = torch.distributed.get_rank()
    result["spoilt"], _ = train_spoilt(folder)
    result["report"] = (folder / "nonfinite.json").read_text() if rank == 0 else ""
    result["left_out"], result["weights_left_out"] = train_spoilt(folder / "left_out", max_skips=1)
    torch.save(result, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    with closing_connections():
        main()
