"""Two processes train temporal layers as one does; one that was killed goes on to the same end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from callbacks.durable import LAST
from callbacks.ema import Ema
from emu_edit.training.export import export_model
from emu_edit.training.optim import with_weights
from tests.distributed.launch import ROOT, environment, torchrun
from tests.distributed.video_ranks import train, trainer_of
from tests.training.stage import TRAINER_WARNINGS
from tests.training.video_stage import FULL, Clips, module, write_base

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS)]
LAYERS = "networks.denoiser.adapter."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, and what two ranks left."""
    folder = tmp_path_factory.mktemp("videos")
    write_base(folder / "base")
    torchrun("video_ranks.py", folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict:
    """What one process comes to."""
    return train(folder / "base", folder / "alone")


def ranks_of(folder: Path) -> tuple[dict, dict]:
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


def test_two_ranks_have_the_gradients_of_one_and_only_the_layers_have_any(
    folder: Path, alone: dict
) -> None:
    first, second = ranks_of(folder)
    assert_close(first["gradients"], second["gradients"], rtol=0, atol=0)
    assert_close(first["gradients"], alone["gradients"], rtol=1e-3, atol=1e-6)
    assert all(name.startswith(LAYERS) for name in first["gradients"])
    assert any(gradient.any() for gradient in first["gradients"].values())


def test_weights_and_averages_are_equal_on_all_ranks_and_close_to_one_process(
    folder: Path, alone: dict
) -> None:
    first, second = ranks_of(folder)
    for what in ("weights", "average"):
        assert_close(first[what], second[what], rtol=0, atol=0)
        # AdamW enlarges the last bits of a gradient near 0 to a step of lr = 1e-3
        assert_close(first[what], alone[what], rtol=0, atol=2e-3)
    name = next(name for name in first["weights"] if not torch.equal(*_both(first, name)))
    assert name.startswith(LAYERS)  # the average is not the weights


def test_ranks_do_not_hang_where_text_and_first_frame_are_withheld_from_every_clip(
    folder: Path,
) -> None:
    first, second = ranks_of(folder)
    assert_close(first["withheld"], second["withheld"], rtol=0, atol=0)
    assert not all(torch.equal(w, first["weights"][name]) for name, w in first["withheld"].items())


def test_one_that_was_killed_goes_on_to_the_same_weights_and_averages(
    folder: Path, alone: dict
) -> None:
    command = [sys.executable, str(ROOT / "tests" / "distributed" / "video_ranks.py"), str(folder)]
    done = subprocess.run(
        [*command, "3"], env=environment(), capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    newest = folder / "killed" / "checkpoints" / LAST
    assert newest.resolve().name == "step-00000002.ckpt"
    ours, ema = module(folder / "base", spec=FULL), Ema(0.5)
    trainer = trainer_of(folder / "killed", ema)
    trainer.fit(ours, datamodule=Clips(), ckpt_path=newest, weights_only=True)
    assert trainer.global_step == 4
    assert ema.average is not None
    for name, weight in alone["weights"].items():
        assert torch.equal(dict(ours.named_parameters())[name], weight), name
        assert torch.equal(ema.average[name], alone["average"][name]), name


def test_the_model_holds_the_average_and_the_picture_model_as_it_came(
    folder: Path, alone: dict, tmp_path: Path
) -> None:
    ours = module(folder / "base", spec=FULL)
    with with_weights(ours, alone["weights"]):
        export_model(ours, tmp_path / "model", ema=alone["average"])
    found = load_file(tmp_path / "model" / "temporal" / "temporal.safetensors")
    expected = {name.removeprefix(LAYERS): value for name, value in alone["average"].items()}
    assert {name for name in found if ".white." not in name} == {*expected}  # no averages: counts
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    assert (tmp_path / "model" / weights).read_bytes() == (folder / "base" / weights).read_bytes()


def _both(result: dict, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return result["weights"][name], result["average"][name]
