"""Steer a mixture on two processes; run as a script: `steered_ranks.py SHARDS OUT`.

Writes per rank the state of the mixture and of the stream.
"""

import json
import sys
import warnings
from pathlib import Path

import torch.distributed as dist

from callbacks.mixture import SteeredMixture
from datamodules.edit import EditDataModule
from emu_edit.runs.failures import closing_connections
from emu_edit.training.optim import OptimizerSettings
from tests.training.stage import SIZE, make_module, make_trainer


def main() -> None:
    """Train as `test_callbacks_mixture` does, half of each batch on each rank."""
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    mixture = SteeredMixture()
    data = EditDataModule(
        str(shards / "train"),
        str(shards / "val"),
        image_size=SIZE,
        global_batch=8,
        steps_per_epoch=20,
        tasks=["local", "add", "style"],
    )
    trainer = make_trainer(out, mixture, max_epochs=3, devices=2, strategy="ddp")
    module = make_module(optimizer=OptimizerSettings(lr=3e-3, warmup_steps=0))
    trainer.fit(module, datamodule=data)
    found = {"mixture": mixture.state_dict(), "stream": data.state_dict()}
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with closing_connections():
        main()
