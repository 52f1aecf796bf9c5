"""The least that can be trained: a weight for each number of a line, and ones as data."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from emu_edit.training.checkpoint_io import DurableCheckpointIO
from tests.training.stage import make_trainer

LENGTH = 250_000  # of float32: a checkpoint of 1 MB


class Line(LightningModule):
    """Goes down by one with each sample; plain gradient descent has no state."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Parameter(torch.zeros(LENGTH))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return a loss whose gradient is one."""
        del batch_idx
        return (self.line * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=1.0)


def train(
    folder: Path, *callbacks: Callback, steps: int = 2, ckpt: Path | None = None, **settings
) -> Trainer:
    """Train some epochs of so many micro-batches; return the trainer."""
    trainer = make_trainer(
        folder,
        *callbacks,
        enable_checkpointing=True,
        plugins=[DurableCheckpointIO()],
        **settings,
    )
    data = DataLoader([torch.ones(1)] * steps, batch_size=1)  # type: ignore[arg-type]
    trainer.fit(Line(), data, ckpt_path=ckpt, weights_only=True)
    return trainer
