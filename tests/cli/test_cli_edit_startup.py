import gc
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from emu_edit.cli.arguments import importing
from emu_edit.cli.main import main
from emu_edit.images import decode_rgb, read_image

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import gc, sys
from emu_edit.cli.main import main
searched = set()  # what the collector for garbage interrupted
gc.callbacks.append(
    lambda *_: searched.add("torch" in sys.modules and gc.get_freeze_count() == 0)
)
status = main(sys.argv[1:])
heavy = {"lightning", "pytorch_lightning", "wandb", "matplotlib", "torchmetrics", "webdataset",
         "pandas", "gradio", "av", "pyarrow", "jsonargparse", "diffusers.pipelines",
         "diffusers.models.autoencoders.autoencoder_kl",
         "emu_edit.models.inflate", "emu_edit.metrics", "emu_edit.video", "emu_edit.web",
         "emu_edit.training", "datamodules", "callbacks"} & set(sys.modules)
if True in searched or not gc.get_freeze_count() or not gc.isenabled():
    heavy.add("the collector for garbage")
sys.stderr.write(f"heavy: {sorted(heavy)}")
sys.exit(status)
"""


@pytest.mark.slow
def test_edit_as_a_process_imports_nothing_of_training_uncollected_and_pipes_a_picture(
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


def test_imports_of_a_second_verb_in_a_process_leave_the_collector_alone() -> None:
    before = gc.get_freeze_count()  # this process has the libraries
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_an_import_that_fails_gives_the_collector_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "diffusers")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"), importing():
        import_module("nothing_of_this_name")
    assert gc.isenabled()
