"""What each process of the test of EVE does; torchrun starts it with a folder of its parts."""

import sys
import warnings
from pathlib import Path

import torch

from emu_edit.runs.failures import closing_connections
from tests.distributed.two_ranks import FirstGradients
from tests.training.eve_stage import Edits, eve
from tests.training.stage import TRAINER_WARNINGS, make_trainer


def train(folder: Path, devices: int = 1) -> dict:
    """Train with judges from the second step on, on one or two processes."""
    student, first = eve((folder / "edits", folder / "moves"), judged_from=1), FirstGradients()
    trainer = make_trainer(
        folder,
        first,
        devices=devices,
        max_epochs=2,
        strategy="ddp" if devices > 1 else "auto",
        gradient_clip_val=1.0,
    )
    trainer.fit(student, datamodule=Edits())
    return {"gradients": first.gradients, "weights": student.state_dict()}


if __name__ == "__main__":
    with closing_connections():
        place = Path(sys.argv[1])
        for line in TRAINER_WARNINGS:
            warnings.filterwarnings("ignore", message=line.removeprefix("ignore:"))
        found = train(place, devices=2)
        torch.save(found, place / f"rank{torch.distributed.get_rank()}.pt")
