"""A stage for tests of EVE: a picture model, an edit adapter and temporal layers, all untrained."""

from pathlib import Path

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from emu_edit.batch import ClipBatch, ClipSample
from emu_edit.diffusion.guidance import Guidance
from emu_edit.editing.settings import EditorSettings
from emu_edit.training.edit_adapter_module import EditAdapterModule
from emu_edit.training.eve_module import EveModule
from emu_edit.training.optim import OptimizerSettings
from emu_edit.training.teachers import Distillation
from tests.training.stage import TASKS
from tests.training.video_stage import FRAMES, SIZE, make_clip, module, write_base


def write_parts(folder: Path) -> tuple[Path, Path]:
    """Write an edit adapter and temporal layers on one base, as if both had learnt a little."""
    base = write_base(folder / "base")
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        editing = EditAdapterModule(
            str(base),
            tasks=TASKS,
            task_dim=6,
            editor=EditorSettings(SIZE, Guidance(1.0, 1.0), num_steps=3),
        )
        moving = module(base)
        for part in (editing.networks.denoiser, moving.networks.denoiser):
            for parameter in part.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.05 * torch.randn_like(parameter)
    editing.make_editor().save_pretrained(folder / "edits")
    moving.eval().save_model(folder / "moves")
    return folder / "edits", folder / "moves"


def eve(parts: tuple[Path, Path], rank: int = 2, **asked: object) -> EveModule:
    """Put a student together; the same weights every time."""
    edits, moves = parts
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(4)
        return EveModule(
            str(edits),
            str(moves),
            rank=rank,
            distillation=Distillation(**{"teacher_steps": 2, **asked}),  # pyright: ignore[reportArgumentType]
            optimizer=OptimizerSettings(lr=1e-2, warmup_steps=0),
        )


def make_edit(position: int, frames: int = FRAMES) -> ClipSample:
    """Return a clip whose square is to become white; nobody has done it."""
    clip = make_clip(position, frames)
    return ClipSample(
        key=clip.key,
        source=clip.target,
        target=clip.target,
        instruction="make the square white",
        task=position % len(TASKS),
        target_caption=f"white square {position % 3} moves to the right",
        rate=8.0,
        position=position,
    )


class Edits(LightningDataModule):
    """Clips to be edited for some epochs of two steps of two; each rank takes its share."""

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        share = 2 // trainer.world_size
        first = 4 * trainer.current_epoch + trainer.global_rank * share
        clips = [make_edit(first + 2 * step + i) for step in range(2) for i in range(share)]
        return DataLoader(clips, batch_size=share, collate_fn=ClipBatch.collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader([make_edit(9)], collate_fn=ClipBatch.collate)  # type: ignore[arg-type]
