"""Train the toy around bad samples on two processes; run as a script: `skipping_ranks.py DATA OUT`.

Writes per rank what it counted and how a training above the limit ended.
"""

import json
import sys
import warnings
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import Trainer

from callbacks.skipped import Skipped, TooManySkippedError
from datamodules.edit import EditDataModule
from emu_edit.runs.failures import closing_connections
from tests.datamodules.toy import SaveEverything, Toy


def train(data: Path, folder: Path, skipped: Skipped) -> Toy:
    """Train on both processes in `folder`, with a checkpoint after every step."""
    toy = Toy()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        callbacks=[SaveEverything(folder), skipped],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = EditDataModule(
        str(data), image_size=8, global_batch=4, micro_batch=1, steps_per_epoch=4, window=2
    )
    trainer.fit(toy, datamodule=module)
    return toy


def main() -> None:
    """Do both runs and write the result of this rank."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    skipped = Skipped(every=3, max_fraction=1.0)
    toy = train(data, out, skipped)
    result = {"counts": skipped.counts.to_dict(), "weights": toy.weights(), "ended": ""}
    try:
        train(data, out / "limited", Skipped(every=3, max_fraction=0.01, after=20))
    except TooManySkippedError as error:
        result["ended"] = str(error)
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    with closing_connections():
        main()
