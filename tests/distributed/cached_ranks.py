"""Training on latents in two processes; torchrun starts it with the folder that the test prepared.

Each rank writes the keys and losses of its micro-batches and its weights at the end.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback

from datamodules.edit import EditDataModule
from emu_edit.runs.failures import closing_connections
from emu_edit.training.optim import copy_of
from tests.datamodules.cached_stage import SIZE, kl_codec, make_module
from tests.training.stage import TRAINER_WARNINGS, make_trainer

STEPS, BATCH = 4, 8


class Seen(Callback):
    """Note what was trained on."""

    def __init__(self) -> None:
        self.keys: list[list[str]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx):
        self.keys.append(list(batch.batch.key))
        self.losses.append(float(outputs["loss"]))


def train(folder: Path, data: Path, devices: int) -> dict:
    """Train a few steps on a folder of pictures or of latents."""
    module, seen = make_module(kl_codec(folder)), Seen()
    samples = EditDataModule(
        str(data), image_size=SIZE, global_batch=BATCH, steps_per_epoch=STEPS, num_workers=2
    )
    strategy = "ddp" if devices > 1 else "auto"
    trainer = make_trainer(folder, seen, devices=devices, strategy=strategy)
    trainer.fit(module, datamodule=samples)
    return {"keys": seen.keys, "losses": seen.losses, "weights": copy_of(module)}


def main() -> None:
    """Train on the cache and write the result of this rank."""
    folder = Path(sys.argv[1])
    for line in TRAINER_WARNINGS:
        warnings.filterwarnings("ignore", message=line.removeprefix("ignore:"))
    result = train(folder, folder / "cache", devices=2)
    torch.save(result, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    with closing_connections():
        main()
