"""What each process of the test of failing checkpoints does; torchrun starts it with a folder.

The disk of rank 0 seems full for some saves. Writes what happened on this rank into a file.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import LambdaCallback

from callbacks.durable import Checkpoints
from emu_edit.errors import StorageError
from emu_edit.runs.failures import closing_connections
from tests.callbacks.line import train
from tests.training.stage import TRAINER_WARNINGS


def outcome(folder: Path) -> dict[str, object]:
    """Train until it ends or stops; return how, and where."""
    keeper, steps, error = Checkpoints(str(folder)), [0], ""
    watch = LambdaCallback(on_train_batch_end=lambda trainer, *_: steps.append(trainer.global_step))
    try:
        train(folder, keeper, watch, devices=2, strategy="ddp", max_epochs=6)
    except StorageError as failure:
        error = str(failure)
    latest = "" if keeper.latest is None else keeper.latest.name
    return {"step": steps[-1], "error": error, "latest": latest}


def main() -> None:
    """Run with a disk that is full now and then, full for good, and a folder that cannot be."""
    base = Path(sys.argv[1])
    for line in TRAINER_WARNINGS:
        warnings.filterwarnings("ignore", message=line.removeprefix("ignore:"))
    usage, saves = shutil.disk_usage(base), iter(range(1000))
    full: set[int] = set()
    # only rank 0 asks
    shutil.disk_usage = lambda _: usage._replace(free=0 if next(saves) in full else 10**12)
    full = {2, 3}
    result = {"now and then": outcome(base / "a")}
    saves, full = iter(range(1000)), {2, 3, 4}
    result["for good"] = outcome(base / "b")
    rank = torch.distributed.get_rank()
    if rank == 0:
        (base / "c").write_text("a file")
    torch.distributed.barrier()
    result["no folder"] = outcome(base / "c")
    (base / f"rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    with closing_connections():
        main()
