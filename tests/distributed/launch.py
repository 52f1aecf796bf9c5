"""Start a script of this folder on two gloo processes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def environment() -> dict[str, str]:
    """Return this process's variables without what another training in it left for its children."""
    mine = {"LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "NODE_RANK"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EMU_EDIT_") and name not in mine
    }
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def torchrun(script: str, folder: Path, *, timeout: int = 900) -> None:
    """Run a script, which gets the folder, to its end on both ranks."""
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(ROOT / "tests" / "distributed" / script), str(folder)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
