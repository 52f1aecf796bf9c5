"""A stage for tests of the video module: the smallest picture model, and wandering squares."""

from dataclasses import replace
from pathlib import Path

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from emu_edit.batch import ClipBatch, ClipSample
from emu_edit.diffusion.prediction import Prediction
from emu_edit.models.temporal import TemporalSpec
from emu_edit.tasks import CAPTION
from emu_edit.training.optim import OptimizerSettings
from emu_edit.training.video_module import VideoModule
from tests.training.stage import make_module

FRAMES, SIZE = 3, 16
SPEC = TemporalSpec(head_dim=8, mlp_ratio=1)  # the paper's
FULL = replace(SPEC, still=True, text=True, motion=8)  # the recipe's


def write_base(folder: Path) -> Path:
    """Write a tiny untrained model of captions; the same weights every time."""
    make_module(prediction=Prediction.z0, tasks=[CAPTION]).make_editor().save_pretrained(folder)
    return folder


def module(
    base: Path, *, spec: TemporalSpec = SPEC, frames: int = FRAMES, **more: object
) -> VideoModule:
    """Put temporal layers on it; the same weights every time."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        return VideoModule(
            str(base),
            spec,
            frames=frames,
            optimizer=OptimizerSettings(lr=1e-3, warmup_steps=0),
            **more,  # pyright: ignore[reportArgumentType]
        )


def make_clip(position: int, frames: int = FRAMES) -> ClipSample:
    """Return clip `position`: a bright square wanders to the right."""
    target = torch.full((frames, 3, SIZE, SIZE), 40, dtype=torch.uint8)
    for f in range(frames):
        left = 1 + 3 * f + position % 3
        target[f, position % 3, 4:10, left : left + 5] = 230
    return ClipSample(
        key=f"clip-{position:03}",
        instruction=f"square {position % 3} moves to the right",
        task=0,
        source=None,
        target=target,
        rate=8.0,
        position=position,
    )


def make_clips(positions: range, frames: int = FRAMES) -> ClipBatch:
    """Return the clips at these positions, collated."""
    return ClipBatch.collate([make_clip(position, frames) for position in positions])


class Clips(LightningDataModule):
    """Clips for some epochs of two steps of two, in order; each rank takes its share of a step."""

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        share = 2 // trainer.world_size
        first = 4 * trainer.current_epoch + trainer.global_rank * share
        clips = [make_clip(first + 2 * step + i) for step in range(2) for i in range(share)]
        return DataLoader(clips, batch_size=share, collate_fn=ClipBatch.collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader([make_clip(9)], collate_fn=ClipBatch.collate)  # type: ignore[arg-type]
