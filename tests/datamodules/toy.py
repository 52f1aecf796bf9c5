"""A toy module to train in tests: its weights depend on every sample and on their order."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from datamodules.edit import EditDataModule
from emu_edit.batch import EditBatch


class Toy(LightningModule):
    """A linear map from source to target; remembers the positions it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(1, 1, dtype=torch.float64)
        nn.init.constant_(self.map.weight, 0.5)
        nn.init.zeros_(self.map.bias)
        self.seen: list[list[int]] = []
        self.evaluated: list[list[int]] = []

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        del batch_idx
        self.seen.append(batch.position.tolist())
        x = batch.source.double().mean((1, 2, 3)).div(255)[:, None]
        y = batch.target.double().amax((1, 2, 3)).div(255)[:, None] + batch.task[:, None]
        return (self.map(x) - y).square().mean()

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        del batch_idx
        self.evaluated.append(batch.position.tolist())

    def test_step(self, batch: EditBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def weights(self) -> tuple[float, float]:
        return self.map.weight.item(), self.map.bias.item()


class SaveEverything(Callback):
    """Save a checkpoint after every optimizer step and at every epoch's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(self.folder / f"step-{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        trainer.save_checkpoint(self.folder / f"epoch-{trainer.current_epoch}.ckpt")


def make_trainer(*callbacks: Callback, max_epochs: int = 2, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def fit(
    data: EditDataModule,
    *callbacks: Callback,
    ckpt: Path | None = None,
    max_epochs: int = 2,
    **options: Any,
) -> Toy:
    """Train a new toy, from the start or from a checkpoint."""
    toy = Toy()
    trainer = make_trainer(*callbacks, max_epochs=max_epochs, **options)
    trainer.fit(toy, datamodule=data, ckpt_path=None if ckpt is None else str(ckpt))
    return toy
