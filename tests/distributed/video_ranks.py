"""What each process of the tests of videos does; torchrun starts it with a folder that has a base.

Each rank writes the gradients of its first step, its weights and averages at the end, and the
weights of a training in which nothing is given. With one more argument, the number of an optimizer
step, one process trains alone and is killed in the middle of the next.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from lightning import Callback, Trainer

from callbacks.durable import Checkpoints
from callbacks.ema import Ema
from emu_edit.models.conditioning import DropoutRates
from emu_edit.runs.failures import closing_connections
from emu_edit.training.checkpoint_io import DurableCheckpointIO
from emu_edit.training.optim import copy_of
from tests.distributed.two_ranks import FirstGradients
from tests.training.stage import TRAINER_WARNINGS, make_trainer
from tests.training.video_stage import FULL, Clips, module

EPOCHS = 2  # of two steps
WITHHELD = DropoutRates(text=0.0, image=0.0, both=1.0, task=0.0)


class KilledAfter(Callback):
    """End the process as the system does when memory is out: at once, with nothing said."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: object, optimizer: object):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer_of(folder: Path, *callbacks: Callback, devices: int = 1) -> Trainer:
    """Return a trainer that keeps checkpoints in a folder."""
    return make_trainer(
        folder,
        Checkpoints(str(folder / "checkpoints")),
        *callbacks,
        devices=devices,
        max_epochs=EPOCHS,
        strategy="ddp" if devices > 1 else "auto",
        enable_checkpointing=True,
        plugins=[DurableCheckpointIO()],
    )


def train(base: Path, folder: Path, *callbacks: Callback, devices: int = 1) -> dict:
    """Train on one or two processes; return gradients, weights and averages."""
    ours, ema, first = module(base, spec=FULL), Ema(0.5), FirstGradients()
    trainer_of(folder, ema, first, *callbacks, devices=devices).fit(ours, datamodule=Clips())
    return {"gradients": first.gradients, "weights": copy_of(ours), "average": ema.average}


def main() -> None:
    """Do what was asked and write the result of this rank."""
    folder, killed_after = Path(sys.argv[1]), sys.argv[2:]
    for line in TRAINER_WARNINGS:
        warnings.filterwarnings("ignore", message=line.removeprefix("ignore:"))
    if killed_after:
        train(folder / "base", folder / "killed", KilledAfter(int(killed_after[0])))
        return
    result = train(folder / "base", folder / "ranks", devices=2)
    withheld = module(folder / "base", spec=FULL, dropout=WITHHELD)
    trainer_of(folder / "withheld", devices=2).fit(withheld, datamodule=Clips())
    result["withheld"] = copy_of(withheld)
    torch.save(result, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    with closing_connections():
        main()
