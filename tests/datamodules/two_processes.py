"""Train the toy on two processes; run as a script: `two_processes.py FOLDER OUT [BUCKETS]`.

BUCKETS is an image size, at which pictures keep their shape.
"""

import json
import sys
import warnings
from pathlib import Path

from lightning.pytorch import Trainer

from datamodules.edit import EditDataModule
from emu_edit.runs.failures import closing_connections
from tests.datamodules.toy import SaveEverything, Toy


def main() -> None:
    """Write checkpoints, and per rank the positions it saw."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    toy = Toy()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        callbacks=[SaveEverything(out)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = EditDataModule(
        train=str(folder / "train"),
        val=str(folder / "val"),
        global_batch=4,
        micro_batch=1,
        steps_per_epoch=3,
        image_size=int(sys.argv[3]) if len(sys.argv) > 3 else 8,
        buckets=len(sys.argv) > 3,
        window=2,
    )
    trainer.fit(toy, datamodule=data)
    seen = {"seen": toy.seen, "evaluated": toy.evaluated, "weights": toy.weights()}
    (out / f"rank-{trainer.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    with closing_connections():
        main()
