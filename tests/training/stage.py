"""A stage for the training tests: the smallest real model, and a world of coloured squares."""

from pathlib import Path

import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from emu_edit.batch import EditBatch, EditSample
from emu_edit.diffusion.flow import FlowSchedule
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import LogitNormal
from emu_edit.diffusion.weighting import loss_weight
from emu_edit.editing.settings import EditorSettings
from emu_edit.models.codec import PatchCodec
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.tiny import TinyText
from emu_edit.models.unet import UNetDenoiser
from emu_edit.training.draws import Phase
from emu_edit.training.module import EditModule, StepOutput
from emu_edit.training.optim import OptimizerSettings

SIZE = 16
TASKS = ["local", "add", "style"]
COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 200, 30),
    "blue": (40, 40, 230),
    "white": (250, 250, 250),
}

TRAINER_WARNINGS = [
    # the loaders of these tests hold a handful of samples in memory: workers would only cost time
    "ignore:The '.*_dataloader' does not have many workers:",
    # runs of a few steps are shorter than Lightning's logging interval
    "ignore:The number of training batches .* is smaller than the logging interval:",
    # on a machine with a GPU the tests stay on the CPU
    "ignore:GPU available but not used:",
    # frozen parts and the text encoder are in eval mode on purpose
    "ignore:Found .* module\\(s\\) in eval mode at the start of training:",
    # and the module moves batches itself on purpose, see EditModule.transfer_batch_to_device
    "ignore:You have overridden `transfer_batch_to_device` in `LightningModule`:",
    # Lightning reads its own trees by an old name of torch's pytree
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:",
]


def make_module(
    *,
    prediction: Prediction = Prediction.change,
    optimizer: OptimizerSettings | None = None,
    dropout: DropoutRates | None = None,
    weights_seed: int = 0,
    tasks: list[str] | None = None,
    position_octaves: int = 0,
    flow: FlowSchedule | None = None,
    logit_normal: LogitNormal | None = None,
) -> EditModule:
    """Build a model of a few ten thousand weights; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(weights_seed)
        return EditModule(
            denoiser=UNetDenoiser(
                48,
                [16, 16],
                attention=[False, True],
                text_dim=16,
                task_dim=8,
                head_dim=8,
                norm_groups=4,
                sample_size=4,
                position_octaves=position_octaves,
            ),
            text_encoder=TinyText(dim=16, num_layers=1, num_heads=2),
            codec=PatchCodec(),
            tasks=TASKS if tasks is None else tasks,
            prediction=prediction,
            flow=flow,
            logit_normal=logit_normal,
            dropout=dropout,
            optimizer=OptimizerSettings(lr=1e-3, warmup_steps=0)
            if optimizer is None
            else optimizer,
            editor=EditorSettings(image_size=SIZE, guidance=Guidance(1.0, 1.0), num_steps=4),
        )


def train_step(module: EditModule, batch: EditBatch) -> StepOutput:
    """Do what `training_step` does, without a trainer to log to."""
    return module.step(module.drawn(batch, Phase.train), dropout=module.dropout)


def noise_weight(module: EditModule, t: Tensor) -> Tensor:
    """Return by how much the errors at timesteps count."""
    return loss_weight(module.objective.weighting, t, module.schedule, module.prediction)


def make_sample(position: int) -> EditSample:
    """Return pair `position`: a square changes its colour."""
    names = list(COLOURS)
    before, after = names[position % 4], names[(position + 1 + position // 4) % 4]
    return EditSample(
        key=f"pair-{position:03}",
        source=picture(before, position),
        target=picture(after, position),
        instruction=f"make the {before} square {after}",
        task=position % len(TASKS),
        position=position,
    )


def picture(colour: str, position: int) -> Tensor:
    """Draw a square on grey; where it stands depends on the position."""
    image = torch.full((3, SIZE, SIZE), 128, dtype=torch.uint8)
    left = 2 + position % 5
    image[:, 4:12, left : left + 8] = torch.tensor(COLOURS[colour], dtype=torch.uint8)[
        :, None, None
    ]
    return image


def make_batch(positions: range | list[int]) -> EditBatch:
    """Return the pairs at these positions, collated."""
    return EditBatch.collate([make_sample(position) for position in positions])


class Squares(LightningDataModule):
    """Squares for a number of steps, in order; validation pairs have positions of their own."""

    def __init__(self, steps: int = 4, batch: int = 4, val: int = 6, first: int = 0) -> None:
        super().__init__()
        self.steps, self.batch, self.val, self.first = steps, batch, val, first

    def train_dataloader(self) -> DataLoader:
        """Return the training pairs; each rank takes its share of every batch."""
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        share = self.batch // world
        order = [
            [self.first + step * self.batch + rank * share + i for i in range(share)]
            for step in range(self.steps)
        ]
        samples = [make_sample(position) for batch in order for position in batch]
        return DataLoader(samples, batch_size=share, collate_fn=EditBatch.collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        """Return the validation pairs."""
        return DataLoader(
            [make_sample(position) for position in range(self.val)],  # type: ignore[arg-type]
            batch_size=4,
            collate_fn=EditBatch.collate,
        )


def make_trainer(folder: Path, *callbacks: Callback, **settings) -> Trainer:
    """Return a silent trainer on the CPU that writes nothing unless asked to."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **settings})
