import os
import subprocess
import sys
from pathlib import Path

import torch

from emu_edit.cli.main import main
from emu_edit.images import decode_rgb, read_image

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import sys
from emu_edit.cli.main import main
status = main(sys.argv[1:])
heavy = {"lightning", "pytorch_lightning", "wandb", "matplotlib", "torchmetrics", "webdataset",
         "pandas", "gradio", "emu_edit.training", "datamodules", "callbacks"} & set(sys.modules)
sys.stderr.write(f"heavy: {sorted(heavy)}")
sys.exit(status)
"""


def test_edit_as_a_process_imports_nothing_of_training_and_pipes_a_picture(
    photo: Path, model: Path, workplace: Path
) -> None:
    arguments = ["edit", "-", "make it red", "--task", "local", "--model", str(model)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, "-o", "-"],
        input=photo.read_bytes(),
        capture_output=True,
        cwd=workplace,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(b"heavy: []")
    assert main(["edit", str(photo), *arguments[2:], "-o", "out.png"]) == 0
    assert torch.equal(decode_rgb(done.stdout), read_image("out.png"))
